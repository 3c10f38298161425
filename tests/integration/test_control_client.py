"""Commands while an agent is running that answers at its socket correctly, incorrectly or not at all."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from agent.adapters.unix_http import CONTROL_SOCKET
from agent.application.monitoring.status import BusStatus, DatabaseStatus, Status, TargetStatus
from agent.bootstrap.home import Home
from agent.domain.errors import StateError
from agent.domain.events import SyncAsked, SyncProgress, SyncRequested, SyncSkipped
from agent.entrypoints import status_document, sync_client
from agent.entrypoints.cli import status
from agent.entrypoints.control_client import client as control, endpoint, follow_history
from agent.entrypoints.formatting import json_value
from agent.entrypoints.mcp.tools import STATUS, call_tool
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_view import gather_status
from agent.entrypoints.sync_client import SyncClient
from agent.ports import MemoryCounts
from agent.settings import Loaded, load

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PATIENCE = 20.0


def loaded_of(tmp_path: Path) -> Loaded:
    directories = {"agent_data_dir": tmp_path / "data", "agent_state_dir": tmp_path / "state"}
    given = {"system_id": "laptop", "cloud_endpoint": (tmp_path / "bucket").as_uri()} | directories
    text = {key: str(value) for key, value in given.items()}
    return load(command_line=text, settings_file=None, environ={}, cwd=tmp_path, home=tmp_path)


@pytest.fixture
async def home(tmp_path):
    (tmp_path / "data").mkdir()
    home = Home.of(loaded_of(tmp_path).settings)
    await asyncio.to_thread(home.prepare)
    return home


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch):
    """Shorten the timeouts: in these tests, only an agent that does not answer is slow."""
    monkeypatch.setattr(control, "RESPONSE_SECONDS", 0.5)
    monkeypatch.setattr(control, "MAX_RESPONSE_BYTES", 2**20)  # few enough to be read in time on a busy machine
    monkeypatch.setattr(endpoint, "MIN_PAUSE_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def logged():
    """The captured log lines, which are not printed."""
    with capture_logs() as logged:
        yield logged


class Agent:
    """Holds the state directory like a running agent, keeps a ledger and answers at its socket.

    `answers` has handlers that replace the default of a path. `asked` are the received sync requests, `resumed` the
    positions from which event readers continued.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.answers: dict[str, object] = {}
        self.asked: list[SyncAsked] = []
        self.resumed: list[str | None] = []
        self.changed = asyncio.Condition()
        self.readers: list[web.StreamResponse] = []
        self._holding = ExitStack()

    async def __aenter__(self) -> Self:
        self._holding.enter_context(self.home.lock("run"))
        self.ledger = await self.home.open_ledger()
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def listen(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self.runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await self.runner.setup()
        await web.UnixSite(self.runner, str(self.home.state.path / CONTROL_SOCKET)).start()

    async def stop_listening(self) -> None:
        """Close the socket and every connection."""
        await self.cut()
        await self.runner.cleanup()

    async def die(self) -> None:
        await self.stop_listening()
        await self.ledger.aclose()
        self._holding.close()

    async def cut(self) -> None:
        for reader in self.readers:
            if reader._req.transport is not None:
                reader._req.transport.abort()
        self.readers.clear()

    async def until(self, true) -> None:
        async with asyncio.timeout(PATIENCE), self.changed:
            await self.changed.wait_for(true)

    async def settle(self, ask_id: str) -> SyncSkipped:
        """Record the result of a request in the ledger and return it."""
        result = SyncSkipped(
            id=f"{ask_id}.skipped", time=AT, system_id="laptop", request_id=ask_id, method="cloud", success=True,
            triggered_by="manual", why="nothing has changed",
        )  # fmt: skip
        await self.ledger.settle(None, result)
        return result

    async def remember(self, count: int, *, first: int = 0) -> list[str]:
        """Add events to the ledger and return their IDs."""
        ids = [f"r{number}" for number in range(first, first + count)]
        for name in ids:
            about = {"id": name, "time": AT, "system_id": "laptop", "request_id": name, "agent_id": "a"}
            await self.ledger.add_to_history(SyncRequested(**about, reason="manual", route=("cloud",)))
        return ids

    async def send_history(self) -> None:
        """Send the history of the ledger to all readers."""
        for entry in await self.ledger.history(after=0):
            for reader in self.readers:
                await reader.write(sse_message(self.home, entry.event, entry.position))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if (other := self.answers.get(f"{request.method} {request.path}")) is not None:
            return await other(request)
        if (request.method, request.path) == ("POST", "/v1/events"):
            self.asked.append(self.home.codec.decode(await request.read()))
            await self._notify()
            return web.json_response({"id": self.asked[-1].id, "new": True}, status=202)
        if (request.method, request.path) == ("GET", "/v1/events"):
            reader = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await reader.prepare(request)
            await reader.write(b": hello\nretry: 1000\n\n")
            self.resumed.append(request.headers.get("Last-Event-ID"))
            self.readers.append(reader)
            await self._notify()
            await asyncio.Event().wait()
        raise web.HTTPNotFound

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


def sse_message(home: Home, event, position: int | None = None) -> bytes:
    number = b"" if position is None else b"id: %d\n" % position
    return number + b"event: %s\ndata: %s\n\n" % (event.type.encode(), home.codec.encode(event))


@pytest.fixture
async def agent(home) -> AsyncIterator[Agent]:
    async with Agent(home) as agent:
        yield agent


# ------------------------------------------------------------------------------------------------ status


def status_of(home: Home) -> StatusDocument:
    database = DatabaseStatus(name="reflection", state="owed", pending=True, size=1, problem="bad")
    target = TargetStatus(
        method="cloud", endpoint="e", bucket="b", databases=(database,), newest_upload_id=None, last_success=AT,
        failures=1, next_try=AT, error="no", memories=MemoryCounts(delivered=1, waiting={"why": 2}, refused={"odd": 3}),
    )  # fmt: skip
    reported = Status(
        system_id="laptop", agent_id="a", route=("cloud",), targets=(target,), pending=("reflection",),
        notes={"watcher": "inotify"}, bus=BusStatus(text="in this process", since=AT), results_waiting=4,
    )  # fmt: skip
    running = {"pid": 7, "command": "run", "since": str(AT)}
    return StatusDocument.of(reported, home.settings, running=running, problem="a problem")


def document_of(home: Home) -> dict:
    return json.loads(json.dumps(status_of(home).to_dict(), default=json_value))


def answering(document: object):
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(document)

    return answer


async def test_the_status_of_a_running_agent_is_printed_key_by_key(agent, home, capsys):
    agent.answers["GET /v1/status"] = answering(document_of(home))
    assert await status.status(home.settings, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == document_of(home)
    found = await gather_status(home.settings)
    assert (found, found.unresponsive_agent) == (status_of(home), "")


async def test_the_settings_of_the_agent_are_shown_not_those_of_the_command(agent, home, capsys):
    agent.answers["GET /v1/status"] = answering(document_of(home) | {"data_dir": "/other", "sync_enabled": False})
    await status.status(home.settings, as_json=False)
    reported = capsys.readouterr().out
    assert "databases  /other\n" in reported
    assert "disabled" in reported


async def test_the_mcp_tool_returns_the_same_status_and_warns_of_an_unresponsive_agent(agent, home):
    loaded = loaded_of(home.settings.agent_data_dir.parent)
    agent.answers["GET /v1/status"] = answering(document_of(home))
    reported = await call_tool(STATUS, {}, lambda: loaded)
    assert json.loads(json.dumps(reported, default=json_value)) == json.loads(
        json.dumps(reported, default=str)
    ) | document_of(home)
    assert reported["warnings"] == []
    agent.answers["GET /v1/status"] = hanging
    [warning] = (await call_tool(STATUS, {}, lambda: loaded))["warnings"]
    assert "does not answer" in warning


async def test_fields_of_a_newer_agent_are_ignored(agent, home):
    newer = document_of(home)
    for part in (newer, newer["targets"][0], newer["targets"][0]["databases"][0], newer["bus"], newer["running"]):
        part["tomorrow"] = {"a": [1]}
    agent.answers["GET /v1/status"] = answering(newer)
    assert await gather_status(home.settings) == replace(status_of(home), running=newer["running"])


async def hanging(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "5000"})
    await response.prepare(request)
    await response.write(b'{"system_id":')
    request.transport.abort()
    return response


async def dribbling(request: web.Request) -> web.StreamResponse:
    """Send one byte every 10 ms without end."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def failing(_: web.Request) -> web.StreamResponse:
    return web.json_response({"title": "no", "detail": "no", "hint": "", "status": 500}, status=500)


async def reset(request: web.Request) -> web.StreamResponse:
    request.transport.abort()
    await asyncio.Event().wait()
    raise AssertionError


async def garbage(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\0\xff<html>")


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 2**20)


BROKEN = {
    "hang": hanging,
    "half": half,
    "dribble": dribbling,
    "500": failing,
    "reset": reset,
    "garbage": garbage,
    "array": answering([1]),
    "other": answering({"system_id": "laptop"}),
    "endless": endless,
}
SILENT = {"hang", "dribble"}


@pytest.mark.parametrize("name", BROKEN)
async def test_status_reads_the_ledger_if_the_agent_does_not_return_it(agent, home, name, capsys, logged):
    await agent.settle("before")
    agent.answers["GET /v1/status"] = BROKEN[name]
    async with asyncio.timeout(PATIENCE):
        assert await status.status(home.settings, as_json=True) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document.keys() == document_of(home).keys()
    assert (document["running"]["pid"], document["results_waiting"]) == (os.getpid(), 1)
    assert ("does not answer" in printed.err) == (name in SILENT)
    assert len(printed.err.splitlines()) == 1
    assert document["verdict"]["text"].startswith(f"Unknown: process {os.getpid()} (run) does not ")
    assert {line["log_level"] for line in logged} == {"debug"}


async def test_an_agent_that_hangs_is_reported_in_one_line(agent, home, capsys):
    agent.answers["GET /v1/status"] = hanging
    await status.status(home.settings, as_json=False)
    shown = capsys.readouterr().out
    assert shown.startswith(f"Unknown: process {os.getpid()} (run) does not answer; this status is from its ledger")
    assert f"\nagent      process {os.getpid()} (run) does not answer; this status is from its ledger\n" in shown


def stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


NO_SOCKET = {
    "missing": lambda _: None,
    "stale": stale,
    "file": lambda path: path.write_text("not a socket"),
    "folder": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("name", NO_SOCKET)
async def test_an_agent_without_a_listening_socket_makes_the_verdict_unknown(home, name, monkeypatch):
    NO_SOCKET[name](home.state.path / CONTROL_SOCKET)
    with home.lock("run"):
        starting = await gather_status(home.settings)
        monkeypatch.setattr(status_document, "STARTING", timedelta(0))
        found = await gather_status(home.settings)
    assert found.verdict.text.startswith(f"Unknown: process {os.getpid()} (run) does not report its status: ")
    assert (found.running["command"], found.verdict.severity, found.warnings[0].code) == (
        "run", "unknown", "agent_silent",
    )  # fmt: skip
    assert "service restart" in found.warnings[0].hint
    assert "has just started" in starting.warnings[0].hint


async def test_a_socket_of_another_user_is_not_used(agent, home, monkeypatch):
    agent.answers["GET /v1/status"] = answering(document_of(home))
    assert await gather_status(home.settings) == status_of(home)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert await endpoint.Endpoint(home).client() is None


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reach a socket through a descriptor")
async def test_a_state_directory_with_a_path_too_long_for_a_socket_is_reached(tmp_path, monkeypatch):
    root = tmp_path / ("long" * 30)
    root.mkdir()
    (root / "data").mkdir()
    home = Home.of(loaded_of(root).settings)
    home.prepare()
    monkeypatch.chdir(root / "state")
    with home.lock("run"):
        app = web.Application()
        app.router.add_get("/v1/status", answering(document_of(home)))
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, "control.sock").start()
        before = descriptors()
        for _ in range(3):
            assert await gather_status(home.settings) == status_of(home)
        assert descriptors() <= before + 1  # the server may close its side a moment later
        await runner.cleanup()


# ------------------------------------------------------------------------------------------------ sync


async def started(home: Home, received: list | None = None) -> tuple[SyncClient, asyncio.Task]:
    asked = await SyncClient.prepare(home.settings)
    hear = (lambda _: None) if received is None else received.append
    return asked, asyncio.create_task(asked.result(on_progress=hear), name="sync")


def progress(request_id: str, done: int) -> SyncProgress:
    return SyncProgress(
        id=f"p{done}", time=AT, system_id="laptop", request_id=request_id, method="cloud", phase="upload",
        done_bytes=done, total_bytes=10,
    )  # fmt: skip


def notes(home: Home) -> list[Path]:
    return list(home.state.spool.glob("[!.]*.json"))


async def wait_for_note(home: Home) -> None:
    async with asyncio.timeout(PATIENCE):
        while not notes(home):
            await asyncio.sleep(0.005)


async def test_one_request_returns_progress_and_result_and_leaves_no_note(agent, home):
    received: list[SyncProgress] = []
    asked, syncing = await started(home, received)
    await agent.until(lambda: agent.asked and agent.readers)
    assert agent.asked == [asked.ask]
    for done in (1, 2):
        await agent.readers[0].write(sse_message(home, progress(asked.ask.id, done)))
    other = await agent.settle("somebody else's")
    result = await agent.settle(asked.ask.id)
    assert other != result
    await agent.send_history()
    async with asyncio.timeout(PATIENCE):
        assert await syncing == result
    assert [event.done_bytes for event in received] == [1, 2]
    assert (len(agent.asked), list(home.state.spool.iterdir())) == (1, [])


async def test_a_result_recorded_before_the_response_is_not_missed(agent, home):
    async def settle_at_once(request: web.Request) -> web.Response:
        ask = home.codec.decode(await request.read())
        await agent.settle(ask.id)
        await agent.send_history()
        return web.json_response({}, status=202)

    agent.answers["POST /v1/events"] = settle_at_once
    _, syncing = await started(home)
    async with asyncio.timeout(PATIENCE):
        assert (await syncing).why == "nothing has changed"


async def test_after_a_broken_connection_a_note_has_the_same_id_and_progress_continues(agent, home):
    received: list[SyncProgress] = []
    asked, syncing = await started(home, received)
    await agent.until(lambda: agent.asked)
    await agent.cut()
    await wait_for_note(home)
    [(_, event)] = await home._spool().waiting()
    assert event == asked.ask
    await agent.until(lambda: agent.readers)
    await agent.readers[0].write(sse_message(home, progress(asked.ask.id, 5)))
    result = await agent.settle(asked.ask.id)
    await agent.send_history()
    async with asyncio.timeout(PATIENCE):
        assert await syncing == result
    assert ([event.done_bytes for event in received], len(agent.asked)) == ([5], 1)
    assert list(home.state.spool.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in ("array", "other")])
@pytest.mark.parametrize("path", ["GET /v1/events", "POST /v1/events"], ids=["events", "ask"])
async def test_a_request_that_the_agent_does_not_accept_is_left_in_the_spool(agent, home, path, name, logged):
    agent.answers[path] = BROKEN[name]
    asked, syncing = await started(home)
    await wait_for_note(home)
    result = await agent.settle(asked.ask.id)
    async with asyncio.timeout(PATIENCE):
        assert await syncing == result
    assert list(home.state.spool.iterdir()) == []
    assert {line["event"] for line in logged} >= (
        {"agent_silent"} if name in SILENT and path.startswith("P") else set()
    )


async def test_without_events_from_the_agent_a_note_is_left_and_its_ledger_is_read(agent, home, monkeypatch):
    monkeypatch.setattr(sync_client, "NOTE_AFTER_SECONDS", 0.05)
    asked, syncing = await started(home)
    await wait_for_note(home)
    await agent.until(lambda: len(agent.readers) == 1)
    result = await agent.settle(asked.ask.id)
    async with asyncio.timeout(PATIENCE):
        assert await syncing == result
    assert list(home.state.spool.iterdir()) == []


async def test_the_result_of_an_accepted_request_is_awaited_without_a_note(agent, home, monkeypatch, logged):
    async def full(*_):
        raise StateError("no space left")

    monkeypatch.setattr(sync_client, "NOTE_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(Home, "leave_note", full)
    asked, syncing = await started(home)
    await agent.until(lambda: agent.asked)
    async with asyncio.timeout(PATIENCE):
        while not logged:
            await asyncio.sleep(0.005)
        result = await agent.settle(asked.ask.id)
        assert await syncing == result
    assert [line["event"] for line in logged if line["log_level"] == "warning"] == ["note_not_left"]


async def test_a_sync_accepted_by_an_agent_that_dies_is_done_by_the_command(agent, home):
    asked, syncing = await started(home)
    await agent.until(lambda: agent.asked)
    await agent.die()
    async with asyncio.timeout(PATIENCE):
        result = await syncing
    assert (result.request_id, result.method, result.type) == (asked.ask.id, "cloud", "akosha.sync.skipped.v1")
    assert list(home.state.spool.iterdir()) == []
    await agent.__aenter__()


async def test_a_cancelled_sync_ends_as_cancelled_if_the_ledger_cannot_be_read(home, monkeypatch):
    started_here, messages = asyncio.Event(), []

    async def under_way(*_):
        started_here.set()
        await asyncio.Event().wait()

    async def unreadable(_):
        raise StateError("the ledger cannot be read")

    monkeypatch.setattr(SyncClient, "_sync_here", under_way)
    asked = await SyncClient.prepare(home.settings)
    syncing = asyncio.create_task(asked.result(on_message=messages.append), name="sync")
    await started_here.wait()
    monkeypatch.setattr(Home, "has_ledger", unreadable)
    syncing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await syncing
    assert messages == ["stopped: the next sync sends what is pending"]


async def test_a_sync_finished_by_an_agent_that_dies_is_not_repeated(agent, home, monkeypatch):
    monkeypatch.setattr(SyncClient, "_sync_here", lambda *_: pytest.fail("the sync is done again"))
    asked, syncing = await started(home)
    await agent.until(lambda: agent.asked)
    result = await agent.settle(asked.ask.id)
    await agent.die()
    async with asyncio.timeout(PATIENCE):
        assert await syncing == result
    await agent.__aenter__()


@pytest.mark.parametrize("name", ["follows", "hang", "endless"])
async def test_a_cancelled_sync_leaves_no_note_no_connection_and_no_task(agent, home, name):
    if name in BROKEN:
        agent.answers["POST /v1/events"] = BROKEN[name]
    _, syncing = await started(home)
    await agent.until(lambda: agent.readers)
    if name == "hang":
        await wait_for_note(home)
    syncing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await syncing
    assert list(home.state.spool.iterdir()) == []
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not names & {"follow-sync", "leave-note", "withdraw-note"}


# ------------------------------------------------------------------------------------------------ events


@asynccontextmanager
async def followed(home: Home, **how: int) -> AsyncIterator[list[str]]:
    """Follow the history and yield the list that receives the IDs of the events."""
    seen: list[str] = []

    async def read() -> None:
        ledger = await home.read_ledger()
        try:
            async with aclosing(follow_history(home, ledger, after=how.get("after", 0))) as entries:
                async for entry in entries:
                    seen.append(entry.event.id)  # noqa: PERF401 - it never ends
        finally:
            await ledger.aclose()

    reading = asyncio.create_task(read(), name="read")
    try:
        yield seen
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading


async def reached(seen: list[str], wanted: list[str]) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(seen) < len(wanted):
            await asyncio.sleep(0.005)
    assert seen == wanted


async def test_events_are_pushed_by_the_agent_and_the_ledger_is_not_polled(agent, home, monkeypatch):
    ids = await agent.remember(2)
    async with followed(home) as seen:
        await agent.until(lambda: agent.readers)
        assert agent.resumed == ["2"]
        monkeypatch.setattr(type(home.clock), "sleep", lambda *_: pytest.fail("the ledger is polled"))
        ids += await agent.remember(1, first=2)
        await agent.readers[0].write(sse_message(home, progress("r", 1)) + b": beat\n\n")
        await agent.readers[0].write(b'id: 99\nevent: tomorrow\ndata: {"specversion": "1.0", "type": "tomorrow"}\n\n')
        await agent.readers[0].write(b"id: x\nevent: y\ndata: \xff\xfe\n\n")
        await agent.send_history()
        await reached(seen, ids)


@pytest.mark.parametrize("cut_at", ["between", "within", "after half a line"])
async def test_a_broken_stream_is_continued_without_gap_or_duplicate(agent, home, cut_at):
    ids = await agent.remember(1)
    async with followed(home) as seen:
        await agent.until(lambda: agent.readers)
        ids += await agent.remember(2, first=1)
        entries = await agent.ledger.history(after=1)
        reported = b"".join(sse_message(home, entry.event, entry.position) for entry in entries)
        cut = {"between": len(reported) // 2, "within": len(reported) * 3 // 4, "after half a line": len(reported) - 1}[
            cut_at
        ]
        await agent.readers[0].write(reported[:cut])
        await agent.cut()
        await agent.until(lambda: agent.readers)
        assert agent.resumed == ["1", "3"]
        ids += await agent.remember(1, first=3)
        await agent.send_history()
        await reached(seen, ids)


async def test_events_are_read_from_the_ledger_while_no_agent_listens(agent, home):
    ids = await agent.remember(1)
    async with followed(home) as seen:
        await agent.until(lambda: agent.readers)
        await agent.stop_listening()
        ids += await agent.remember(2, first=1)
        await reached(seen, ids)
        await agent.listen()
        await agent.until(lambda: agent.readers)
        assert agent.resumed[-1] == "3"
        ids += await agent.remember(1, first=3)
        await agent.send_history()
        await reached(seen, ids)


@pytest.mark.parametrize("name", ["hang", "500", "garbage", "reset"])
async def test_events_are_read_from_the_ledger_if_the_agent_sends_none(agent, home, name):
    agent.answers["GET /v1/events"] = BROKEN[name]
    ids = await agent.remember(1)
    async with followed(home) as seen:
        await reached(seen, ids)
        ids += await agent.remember(1, first=1)
        await reached(seen, ids)
