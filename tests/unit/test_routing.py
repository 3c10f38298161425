"""The routing slip, and the next step after a failed attempt."""

from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain.errors import CloudUploadError, SyncError
from agent.domain.events import MethodError
from agent.domain.routing import (
    CLOUD,
    HTTP,
    Forward,
    GiveUp,
    RetryAt,
    RetryRules,
    next_step,
    open_route,
    plan_route,
    target_backoff,
)
from tests.support.values import request

RULES = RetryRules(max_retries=3, backoff_seconds=2.0)
NO_JITTER = 0.5
TRANSIENT = CloudUploadError("503", CLOUD, transient=True)
PERMANENT = CloudUploadError("403", CLOUD, hint="allow s3:PutObject")


@pytest.mark.parametrize(
    ("force", "configured", "fallback", "route"),
    [
        ("auto", True, True, (CLOUD, HTTP)),
        ("auto", True, False, (CLOUD,)),
        ("auto", False, True, (HTTP,)),
        ("auto", False, False, (HTTP,)),
        ("cloud", True, True, (CLOUD,)),
        ("cloud", False, True, (CLOUD,)),
        ("http", True, True, (HTTP,)),
        ("grpc", True, True, ("grpc",)),
    ],
)
def test_the_route_follows_from_the_settings(force, configured, fallback, route):
    assert plan_route(force_method=force, cloud_configured=configured, enable_fallback=fallback) == route


@pytest.mark.parametrize(
    ("available", "backing_off", "reason", "route"),
    [
        ({CLOUD, HTTP}, set(), "file_change", (CLOUD, HTTP)),
        ({HTTP}, set(), "file_change", (HTTP,)),
        ({CLOUD, HTTP}, {CLOUD}, "file_change", (HTTP,)),
        ({CLOUD, HTTP}, {CLOUD, HTTP}, "retry", ()),
        ({CLOUD, HTTP}, {CLOUD, HTTP}, "startup", ()),
        ({CLOUD, HTTP}, {CLOUD, HTTP}, "manual", (CLOUD, HTTP)),
        ({CLOUD}, {CLOUD, HTTP}, "session_end", (CLOUD,)),
        (set(), set(), "manual", ()),
    ],
)
def test_a_target_that_backs_off_is_skipped_except_for_commands_and_session_ends(available, backing_off, reason, route):
    assert open_route((CLOUD, HTTP), available=available, backing_off=backing_off, reason=reason) == route


def test_three_retries_follow_after_2_4_and_8_seconds():
    delays, attempts = [], 0
    while isinstance(
        step := next_step(request(), TRANSIENT, attempts=attempts, rules=RULES, jitter=NO_JITTER), RetryAt
    ):
        attempts = step.attempts
        delays.append(step.delay)
    assert delays == [2.0, 4.0, 8.0]
    assert attempts == 3
    assert isinstance(step, Forward)


@settings(max_examples=50)
@given(st.integers(0, 2), st.floats(0, 1, exclude_max=True))
def test_jitter_changes_a_delay_by_at_most_a_tenth(attempts, jitter):
    step = next_step(request(), TRANSIENT, attempts=attempts, rules=RULES, jitter=jitter)
    assert step.delay == pytest.approx(2.0 * 2**attempts, rel=0.1001)


@pytest.mark.parametrize(("retry_after", "delay"), [(None, 2.0), (1.0, 2.0), (30.0, 30.0), (1e9, 900.0)])
def test_a_retry_after_of_a_server_is_honoured_up_to_15_minutes(retry_after, delay):
    error = SyncError("429", HTTP, transient=True, retry_after=retry_after)
    assert next_step(request(), error, attempts=0, rules=RULES, jitter=NO_JITTER).delay == delay


def test_no_retries_means_one_attempt():
    rules = RetryRules(max_retries=0, backoff_seconds=2.0)
    assert isinstance(next_step(request(), TRANSIENT, attempts=0, rules=rules, jitter=NO_JITTER), Forward)


def test_a_permanent_error_forwards_the_request_at_once_with_the_error_appended():
    step = next_step(request("r9"), PERMANENT, attempts=0, rules=RULES, jitter=NO_JITTER)
    assert isinstance(step, Forward)
    assert step.request.request_id == "r9"
    assert step.request.id == "r9.http"
    assert step.request.route == (HTTP,)
    assert step.request.errors == (MethodError(method=CLOUD, error="403 (allow s3:PutObject)"),)
    assert step.request.subject.endswith(".requested.http")


def test_the_last_method_gives_up_with_the_errors_of_all():
    first = next_step(request(), PERMANENT, attempts=0, rules=RULES, jitter=NO_JITTER)
    last = next_step(first.request, SyncError("refused", HTTP), attempts=0, rules=RULES, jitter=NO_JITTER)
    assert isinstance(last, GiveUp)
    assert [error.method for error in last.errors] == [CLOUD, HTTP]
    assert last.blames_target


def test_an_error_of_the_source_is_not_forwarded_and_not_attributed_to_the_target():
    error = CloudUploadError("unreadable", CLOUD, forwardable=False)
    step = next_step(request(), error, attempts=0, rules=RULES, jitter=NO_JITTER)
    assert isinstance(step, GiveUp)
    assert not step.blames_target


def test_a_target_backs_off_for_30_s_doubling_to_15_min():
    waits = [target_backoff(failures) for failures in range(1, 8)]
    assert [wait.total_seconds() for wait in waits] == [30, 60, 120, 240, 480, 900, 900]
    assert target_backoff(10**9) == timedelta(minutes=15)
    assert target_backoff(0) == timedelta(seconds=30)
