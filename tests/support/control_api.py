"""A fake agent behind the real control API, a client that checks each response, and a reader of event streams."""

import asyncio
import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import aiohttp
from jsonschema import Draft202012Validator

from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.status import describe
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import WireError
from agent.domain.events import SessionEnded, SyncAsked, SyncProgress, SyncRequested, SyncResult, request_event_id
from agent.domain.identity import Identity
from agent.domain.status_warning import StatusWarning
from agent.entrypoints.control_api import Limits, serve
from agent.ports import HistoryEntry, MemoryCounts
from agent.settings import Settings
from tests.support import event_documents, values

SYSTEM = values.SYSTEM
SECONDS = 60
JSON = {"Content-Type": "application/json"}
DEFAULT_LIMITS = Limits()
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def ended(number: int = 0) -> SessionEnded:
    return SessionEnded(id=f"session-{number}", time=NOON, system_id=SYSTEM, session_id=f"s{number}", reason="other")


def progress(done: int = 1) -> SyncProgress:
    return SyncProgress(
        id=f"p{done}", time=NOON, system_id=SYSTEM, request_id="r", method="cloud", phase="send", done_bytes=done,
        total_bytes=9,
    )  # fmt: skip


class FakeAgentService(AgentService):
    """Methods wait for `gate`, and raise `error` if it is set."""

    def __init__(self) -> None:
        self.is_ready, self.stuck = True, {}
        self.error: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: dict[str, SyncAsked] = {}
        self.accepted: list[object] = []
        self.refusing = False
        self.outcomes: dict[str, SyncResult] = {}
        self.history: list[HistoryEntry] = []
        self.verifications = 0
        self.port_problem: StatusWarning | None = None
        self.reader_count = 0
        """Number of readers of the events."""
        self._queues: list[asyncio.Queue] = []
        self._changed = asyncio.Event()

    @property
    def identity(self) -> Identity:
        return Identity("0" * 32, SYSTEM)

    @property
    def triggered(self) -> list[object]:
        """All that was requested and accepted."""
        return [*self.asked, *self.accepted, *["verification"] * self.verifications]

    @property
    def ready(self) -> bool:
        return self.is_ready

    def problems(self):
        return self.stuck

    async def status_for_metrics(self):
        return await self.status()

    async def status(self):
        await self._enter()
        return describe(
            system_id=SYSTEM,
            agent_id="0" * 32,
            route=("cloud",),
            records=[TargetRecord(values.TARGET)],
            memory_counts={"cloud": MemoryCounts()},
            survey={},
            notes={"bus": "memory: no NATS", "bus_since": NOON.isoformat()},
            results_waiting=0,
            running=True,
        )

    async def survey_problem(self) -> str:
        return ""

    async def request_sync(self, ask: SyncAsked) -> SyncRequested | None:
        await self._enter()
        self.asked.setdefault(ask.id, ask)
        if self.refusing:
            self.outcomes[ask.id] = values.failed(ask.id)
            return None
        return SyncRequested(
            id=request_event_id(ask.id, "cloud"), time=ask.time, system_id=SYSTEM, request_id=ask.id,
            agent_id="0" * 32, reason=ask.reason, route=("cloud",),
        )  # fmt: skip

    async def outcome(self, request_id: str) -> SyncResult | None:
        await self._enter()
        return self.outcomes.get(request_id)

    async def accept(self, event) -> bool:
        await self._enter()
        if not isinstance(event, SessionEnded | SyncAsked) or event.system_id != SYSTEM:
            raise WireError(f"{event.type} of {event.system_id} is not for this agent")
        new = event.id not in [known.id for known in self.accepted]
        self.accepted.append(event)
        self._notify()
        return new

    async def last_position(self) -> int:
        return len(self.history)

    async def past_events(self, *, before, limit, types):
        await self._enter()
        found = [
            entry
            for entry in reversed(self.history)
            if isinstance(entry.event, tuple(types)) and (before is None or entry.position < before)
        ]
        return found[:limit]

    async def report_port(self, problem) -> None:
        self.port_problem = problem

    async def request_verification(self) -> None:
        await self._enter()
        self.verifications += 1

    async def events(self, *, after):
        queue: asyncio.Queue = asyncio.Queue()
        self._queues.append(queue)
        position = len(self.history) if after is None else after
        self.reader_count += 1
        self._notify()
        try:
            await self._enter()
            while True:
                for entry in self.history[position:]:
                    position = entry.position
                    yield entry
                while (item := await queue.get()) is not None:
                    yield item
        finally:
            self._queues.remove(queue)
            self.reader_count -= 1
            self._notify()

    async def wait_for_readers(self, count: int) -> None:
        """Wait until the events have `count` readers."""
        await self.wait_for(lambda: self.reader_count == count)

    async def wait_for(self, wanted) -> None:
        """Wait until a condition on this object is true."""
        async with asyncio.timeout(60):
            while not wanted():
                await self._changed.wait()

    def add_event(self, event, count: int = 1) -> None:
        """Add an event to the history, or send progress."""
        if isinstance(event, SyncProgress):
            item = event
        else:
            item = None
            for _ in range(count):
                self.history.append(HistoryEntry(len(self.history) + 1, event))
        for queue in self._queues:
            queue.put_nowait(item)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _enter(self) -> None:
        await self.gate.wait()
        if self.error:
            raise self.error


@cache
def _validator(document: str, path: str, method: str, status: int, kind: str) -> Draft202012Validator:
    api = json.loads(document)
    operation = api["paths"][path]["get" if method == "HEAD" else method.lower()]
    response = operation["responses"].get(str(status))
    assert response, f"{method} {path} is answered with {status}: not in the document"
    assert kind in response["content"], f"{method} {path} {status}: {kind} is not in {list(response['content'])}"
    schema = {"components": api["components"], "allOf": [response["content"][kind]["schema"]]}
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_response(document: str, path: str, method: str, status: int, kind: str, body: object) -> None:
    """Assert that the OpenAPI document describes this response; `body` is JSON or text."""
    wrong = [f"{e.json_path}: {e.message}" for e in _validator(document, path, method, status, kind).iter_errors(body)]
    assert not wrong, f"{method} {path} {status}: {wrong}: {body}"


@dataclass
class Response:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class ServedAgent:
    state: Path
    settings: Settings
    client: aiohttp.ClientSession
    base: str = "http://localhost"
    document = ""
    """The OpenAPI document, read once."""

    @property
    def path(self) -> Path:
        return self.state / "control.sock"

    async def request(self, method: str, path: str, body: object = None, **how) -> Response:
        """Send a request; check the response against the OpenAPI document if that has the path."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if method == "POST":
            how.setdefault("headers", JSON)
        async with asyncio.timeout(SECONDS):
            async with self.client.request(method, self.base + path, data=body, **how) as answer:
                response = Response(answer.status, dict(answer.headers), await answer.read())
        if not self.document and path != "/openapi.json":
            async with self.client.get(self.base + "/openapi.json") as answer:
                ServedAgent.document = await answer.text()
        plain = path.partition("?")[0]
        kind = response.headers.get("Content-Type", "").partition(";")[0]
        if f'"{plain}":' in self.document and response.status != 405 and method != "HEAD":
            content = response.json if kind.endswith("json") else response.body.decode()
            check_response(self.document, plain, method, response.status, kind, content)
        if response.status >= 400 and kind == "application/problem+json" and method != "HEAD":
            assert response.json["status"] == response.status
        return response

    async def problem(self, status: int, method: str, path: str, body: object = None, **how) -> dict:
        response = await self.request(method, path, body, **how)
        assert response.status == status, (response.status, response.body)
        assert response.headers["Content-Type"] == "application/problem+json"
        return response.json

    @asynccontextmanager
    async def follow(self, query: str = "", **headers):
        async with self.client.get(f"{self.base}/v1/events{query}", headers=headers) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"] == "text/event-stream"
            yield Stream(response)


class Stream:
    """Reads server-sent events."""

    def __init__(self, response) -> None:
        self.response, self.comments = response, 0

    async def messages(self, count: int) -> list[dict]:
        found = []
        async with asyncio.timeout(SECONDS):
            while len(found) < count:
                message = await self._next()
                assert message is not None, "the stream has ended"
                if "data" in message:
                    event_documents.check(message["data"].encode())
                    assert json.loads(message["data"])["type"] == message["event"]
                    found.append(message)
        return found

    async def ids(self, count: int) -> list[int]:
        return [int(message["id"]) for message in await self.messages(count)]

    async def end(self) -> None:
        """Read until the server ends the stream."""
        async with asyncio.timeout(SECONDS):
            while await self._next() is not None:
                pass

    async def heartbeat(self) -> None:
        seen = self.comments
        async with asyncio.timeout(SECONDS):
            while self.comments == seen:
                assert "data" not in await self._next()

    async def _next(self) -> dict | None:
        message = {}
        while line := await self.response.content.readline():
            if line == b"\n":
                return message
            name, _, value = line.decode().rstrip("\n").partition(":")
            if name:
                message[name] = value.removeprefix(" ")
            else:
                self.comments += 1
        return None


async def no_metrics() -> tuple[bytes, str]:
    return b"akosha_up 1\n", "text/plain; version=1.0.0; charset=utf-8"


def make_private(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True)
    return directory


@asynccontextmanager
async def serve_agent(
    agent_service, state: Path, *, limits=DEFAULT_LIMITS, metrics=no_metrics, over="unix", alone=True, **settings
):
    if not state.exists():
        make_private(state)
    settings = Settings(agent_state_dir=state, agent_data_dir=state.parent / "data", **settings)
    before = asyncio.all_tasks()
    async with serve(agent_service, settings, state_dir=state, metrics=metrics, limits=limits):
        descriptor = os.open(state, os.O_RDONLY)
        try:
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{descriptor}/control.sock", limit=0)
            base = "http://localhost"
            if over == "tcp":
                await connector.close()
                connector, base = aiohttp.TCPConnector(), f"http://127.0.0.1:{settings.agent_http_port}"
            timeout = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
                yield ServedAgent(state, settings, client, base)
        finally:
            os.close(descriptor)
    assert not alone or not [
        task for task in asyncio.all_tasks() - before if "aiohttp" in str(task) or "control" in str(task)
    ]


async def wait_until_clients_left(agent) -> None:
    """Wait until the server has noticed that its clients have left: it answers one more client after them."""
    reader, writer = await asyncio.open_unix_connection(agent.path)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(SECONDS):
        await reader.read()
    writer.close()
    await writer.wait_closed()
