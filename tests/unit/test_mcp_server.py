"""The MCP server without a client: progress, results of errors, and hints."""

import asyncio
import os
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from jsonschema import Draft202012Validator

from agent.domain.errors import AlreadyRunning, SettingsError, StateError, StoreError
from agent.domain.events import MethodError, SyncFailed, SyncProgress, SyncResult, SyncSucceeded
from agent.entrypoints.formatting import hint_of_text
from agent.entrypoints.mcp import progress
from agent.entrypoints.mcp.progress import ProgressCounter, ProgressReporter
from agent.entrypoints.mcp.tools import RESTORE_POINTS, STATUS, SYNC, call_tool, tool_definitions
from agent.entrypoints.result_document import ResultDocument
from tests.support.values import NOON, SYSTEM

OUTPUT = {tool["name"]: Draft202012Validator(tool["outputSchema"]) for tool in tool_definitions()}


def progress_event(done: int, total: int, *, phase: str = "upload", method: str = "cloud") -> SyncProgress:
    return SyncProgress(
        id="p", time=NOON, system_id=SYSTEM, request_id="r", method=method, phase=phase, done_bytes=done,
        total_bytes=total,
    )  # fmt: skip


def failed(*errors: tuple[str, str]) -> SyncFailed:
    return SyncFailed(
        id="r.failed", time=NOON, system_id=SYSTEM, request_id="r", method=errors[-1][0], success=False,
        error="; ".join(": ".join(error) for error in errors), triggered_by="manual",
        errors=tuple(MethodError(method=method, error=error) for method, error in errors),
    )  # fmt: skip


def document(result: SyncResult) -> dict[str, object]:
    return ResultDocument.of(result).to_dict()


class Client:
    """A client that keeps progress reports; `enough` is set after `count` of them."""

    def __init__(self, count: int) -> None:
        self.reported: list[tuple[float, float | None, str]] = []
        self.count, self.enough = count, asyncio.Event()

    async def report(self, done: float, total: float | None, message: str) -> None:
        self.reported.append((done, total, message))
        if len(self.reported) >= self.count:
            self.enough.set()


# ------------------------------------------------------------------------------------------------------------- progress

events = st.builds(
    progress_event,
    st.integers(0, 50),
    st.integers(0, 50),
    phase=st.sampled_from("ab"),
    method=st.sampled_from(["cloud", "http"]),
)


@given(st.lists(st.one_of(events, st.none()), max_size=40))
def test_progress_grows_with_every_step_up_to_its_total(seen):
    counter = ProgressCounter()
    steps = [counter.begin("begins")]
    steps += [counter.wait("waits") if event is None else counter.advance(event) for event in seen]
    steps.append(counter.finish("done"))
    assert all(earlier.done < later.done for earlier, later in pairwise(steps))
    assert all(step.total is None or step.done <= step.total for step in steps)
    assert steps[-1].done == steps[-1].total


def test_the_bytes_of_two_phases_are_added():
    counter = ProgressCounter()
    seen = [
        progress_event(400, 1000, phase="snapshot"),
        progress_event(1000, 1000, phase="snapshot"),
        progress_event(100, 500),
        progress_event(500, 500),
    ]
    steps = [counter.advance(event) for event in seen]
    assert [(step.done, step.total) for step in steps] == [(400, 1000), (1000, 1000), (1100, 1500), (1500, 1500)]
    assert steps[2].message == "cloud: upload, 100 bytes of 500 bytes"


async def test_a_call_without_progress_reports_that_it_is_running_and_the_latest_problem(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0)
    client, problems = Client(3), ["cloud: attempt 1 failed", StateError("the disk is gone"), ""]

    async def problem() -> str:
        found = problems.pop(0) if problems else ""
        if isinstance(found, Exception):
            raise found
        return found

    reporter = ProgressReporter(client.report)
    async with asyncio.timeout(60), reporter.running(problem):
        await client.enough.wait()
    assert [message for _, _, message in client.reported[:3]] == ["cloud: attempt 1 failed (0 s)"] + [
        "syncing (0 s)"
    ] * 2


@pytest.mark.parametrize(
    ("pid", "holder"),
    [(1, "process 1 (run)"), (0, "another process"), (os.getpid(), "another call")],
    ids=["run", "unknown", "own"],
)
async def test_the_process_that_holds_the_lock_is_reported_once(pid, holder):
    client = Client(1)
    reporter = ProgressReporter(client.report)

    async def no_problem() -> str:
        return ""

    async with asyncio.timeout(60), reporter.running(no_problem):
        for _ in range(3):
            reporter.on_wait(AlreadyRunning("in use", pid=pid, command="run"))
        await client.enough.wait()
    assert [message for _, _, message in client.reported] == [f"waiting for {holder}, which holds the state directory"]


# ---------------------------------------------------------------------------------------------------- results of errors


@pytest.mark.parametrize(
    "given",
    [
        {"method": "ftp"},
        {"method": None},
        {"method": ["cloud"]},
        {"method": "x" * 10_000},
        {"enable_fallback": "no"},
        {"enable_fallback": 1},
        {"force": True},
    ],
    ids=lambda given: f"{given}"[:40],
)
async def test_invalid_arguments_are_a_result_with_a_hint_without_reading_settings(given):
    result = await call_tool(SYNC, given, pytest.fail)
    OUTPUT[SYNC].validate(result)
    assert (result["success"], result["outcome"]) == (False, "failed")
    assert next(iter(given)) in result["error"]
    assert result["hint"]
    assert len(result["error"]) < 500


@pytest.mark.parametrize(
    ("error", "expected", "hint"),
    [
        (SettingsError("akosha_max_retries is -1"), "akosha_max_retries is -1", "correct the setting"),
        (SettingsError("no such file", hint="check --settings"), "no such file (check --settings)", "check --settings"),
        (StoreError("the bucket is gone"), "the bucket is gone", "akosha-agent status"),
        (ValueError("canary-s3cret"), "ValueError", "log"),
        (KeyError("canary-s3cret"), "KeyError", "log"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_every_tool_returns_any_error_as_a_result(error, expected, hint):
    def loading():
        raise error

    for tool in (SYNC, STATUS, RESTORE_POINTS):
        result = await call_tool(tool, {"method": "http"} if tool == SYNC else {}, loading)
        OUTPUT[tool].validate(result)
        assert result["success"] is False
        assert expected in result["error"]
        assert hint in result["hint"]
        assert "canary" not in f"{result}"
    assert (await call_tool(SYNC, {"method": "http"}, loading))["method"] == "http"


def test_the_hint_of_a_failed_result_has_those_of_its_methods():
    result = document(
        failed(
            ("cloud", "the bucket memories does not exist (create it (or set akosha_cloud_bucket))"),
            ("http", "Akosha cannot be reached (start it: akosha start)"),
        )
    )
    OUTPUT[SYNC].validate(result)
    assert result["hint"] == "create it (or set akosha_cloud_bucket); start it: akosha start"


@pytest.mark.parametrize("error", ["no space left", "no space left (/var)", "refused)", "(", ")", ""])
def test_the_hint_of_an_error_without_one_is_the_status_command(error):
    assert hint_of_text(error) == ""
    assert document(failed(("cloud", error)))["hint"] == "run akosha-agent status to see the problem"


def test_a_success_has_the_number_of_memories_and_no_hint():
    result = document(
        SyncSucceeded(
            id="u",
            time=NOON,
            system_id=SYSTEM,
            request_id="r",
            method="http",
            success=True,
            triggered_by="manual",
            incomplete={"reflection": "3 wait"},
            memories=7,
        )
    )
    OUTPUT[SYNC].validate(result)
    assert (result["memories"], result["incomplete"], result["hint"]) == (7, {"reflection": "3 wait"}, None)


def test_a_refusal_has_every_field_that_a_failed_result_has():
    refused = ResultDocument.refused(StoreError("gone"), method="cloud").to_dict()
    assert refused.keys() == document(failed(("cloud", "gone"))).keys()
