"""Any input from outside is read or refused with one of the agent's errors: a short run of each fuzz target."""

import itertools

import pytest
import structlog
from hypothesis import HealthCheck, settings, strategies as st

from agent.domain.errors import NamingError, WireError
from agent.domain.naming import check_system_id
from tests.fuzz import target as target_module
from tests.fuzz.target import CANARY, LimitExceeded, Target, check_example
from tests.fuzz.targets import TARGETS

QUICK = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_input_is_read_or_refused_with_an_error_that_names_it(target):
    with target.reader() as read:
        target.test(read, settings(QUICK, max_examples=target.in_tests))()


def refused(text: str, *, unexpected: str = ""):
    error = WireError("x")
    error.message, error.unexpected = text, unexpected
    raise error


PLANTED = {
    "an unexpected exception": (KeyError, lambda _: {}["missing"]),
    "an error of another kind": (NamingError, check_system_id),
    "a message that does not name the input": (AssertionError, lambda _: refused("no")),
    "a message with a secret": (AssertionError, lambda _: refused(f"note: {CANARY}")),
    "a message with control characters": (AssertionError, lambda _: refused("note: \x1b[2J")),
    "a long message": (AssertionError, lambda _: refused("note: " + "x" * 10**6)),
    "an unknown exception of a library": (AssertionError, lambda _: refused("note: no", unexpected="KeyError in read")),
    "a logged error": (AssertionError, lambda _: structlog.get_logger().error("failed")),
    "a secret in the log": (AssertionError, lambda _: structlog.get_logger().info("read", text=[CANARY])),
    "no end": (LimitExceeded, lambda _: [None for _ in itertools.repeat(0) if False]),
    "much memory": (MemoryError, lambda _: bytearray(10**9)),
    "much memory in small pieces": (MemoryError, lambda _: [bytes(number) for number in range(10**6)]),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_found(kind, monkeypatch):
    expected, read = PLANTED[kind]
    monkeypatch.setattr(target_module, "CPU_SECONDS", 0.5 if expected is LimitExceeded else 10.0)
    monkeypatch.setattr(target_module, "MEMORY_BYTES", 64 * 2**20)
    planted = Target("note", st.just("my.mac"), read, errors=(WireError,), names="note")
    with pytest.raises(expected):
        check_example(planted, read, "my.mac")


def test_an_error_that_names_the_input_is_allowed():
    target = Target("note", st.just(b""), refused, errors=(WireError,), names="note")
    check_example(target, refused, "note: it is empty")
