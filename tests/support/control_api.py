"""A desk that says what a test wants, and tells events as they happen; and the documents that answers are held to."""

import asyncio
from datetime import UTC, datetime
from functools import cache

from jsonschema import Draft202012Validator

from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.status import describe
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import WireError
from agent.domain.events import SessionEnded, SyncAsked, SyncProgress, SyncRequested, SyncResult, request_event_id
from agent.domain.identity import Identity
from agent.ports import HistoryEntry, MemoryCounts
from tests.support import values

SYSTEM = values.SYSTEM
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def ended(number: int = 0) -> SessionEnded:
    return SessionEnded(id=f"session-{number}", time=NOON, system_id=SYSTEM, session_id=f"s{number}", reason="other")


def progress(done: int = 1) -> SyncProgress:
    return SyncProgress(
        id=f"p{done}", time=NOON, system_id=SYSTEM, request_id="r", method="cloud", phase="send", done_bytes=done,
        total_bytes=9,
    )  # fmt: skip


class FakeAgentService(AgentService):
    """`error` is raised by whatever is asked next; `gate` holds up whoever asks until it is set."""

    def __init__(self) -> None:
        self.is_ready, self.stuck = True, {}
        self.error: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: dict[str, SyncAsked] = {}
        self.taken: list[object] = []
        self.refuses = False
        self.outcomes: dict[str, SyncResult] = {}
        self.history: list[HistoryEntry] = []
        self.reading = 0
        """How many follow the events."""
        self._passing: list[asyncio.Queue] = []
        self._changed = asyncio.Event()

    @property
    def identity(self) -> Identity:
        return Identity("0" * 32, SYSTEM)

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
        if self.refuses:
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
        new = event.id not in [known.id for known in self.taken]
        self.taken.append(event)
        self._tell()
        return new

    async def last_position(self) -> int:
        return len(self.history)

    async def events(self, *, after):
        passing: asyncio.Queue = asyncio.Queue()
        self._passing.append(passing)
        position = len(self.history) if after is None else after
        self.reading += 1
        self._tell()
        try:
            await self._enter()
            while True:
                for entry in self.history[position:]:
                    position = entry.position
                    yield entry
                while (told := await passing.get()) is not None:
                    yield told
        finally:
            self._passing.remove(passing)
            self.reading -= 1
            self._tell()

    async def readers(self, count: int) -> None:
        """Wait until so many follow."""
        await self.until(lambda: self.reading == count)

    async def until(self, wanted) -> None:
        """Wait for what this desk is told."""
        async with asyncio.timeout(60):
            while not wanted():
                await self._changed.wait()

    def happen(self, event, count: int = 1) -> None:
        """An event for the history, or progress in passing."""
        if isinstance(event, SyncProgress):
            told = event
        else:
            told = None
            for _ in range(count):
                self.history.append(HistoryEntry(len(self.history) + 1, event))
        for passing in self._passing:
            passing.put_nowait(told)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _enter(self) -> None:
        await self.gate.wait()
        if self.error:
            raise self.error


@cache
def _validator(document: str, path: str, method: str, status: int, kind: str) -> Draft202012Validator:
    import json

    whole = json.loads(document)
    operation = whole["paths"][path]["get" if method == "HEAD" else method.lower()]
    answer = operation["responses"].get(str(status))
    assert answer, f"{method} {path} is answered with {status}: not in the document"
    assert kind in answer["content"], f"{method} {path} {status}: {kind} is not in {list(answer['content'])}"
    schema = {"components": whole["components"], "allOf": [answer["content"][kind]["schema"]]}
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def hold(document: str, path: str, method: str, status: int, kind: str, body: object) -> None:
    """Assert that the OpenAPI document has this answer; `body` as JSON, or as text."""
    wrong = [f"{e.json_path}: {e.message}" for e in _validator(document, path, method, status, kind).iter_errors(body)]
    assert not wrong, f"{method} {path} {status}: {wrong}: {body}"
