"""Syncs by the http method, with databases, ledger and Akosha in memory."""

from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.memories.push import MemoryPush
from agent.application.sync.http import HttpSync
from agent.application.sync.results import ResultRecorder
from agent.domain.databases import main_name
from agent.domain.delivery_state import State, Target, pending
from agent.domain.errors import HTTPSyncError, SinkError, SnapshotError
from agent.domain.memories import Memory
from agent.domain.upload_plan import RawFile
from agent.ports import Delivered, Snapshot
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger
from tests.support.memories import memory
from tests.support.memory_source import ListedMemories, ListedReader
from tests.support.sink import MemorySink

TARGET = Target("http", "http://127.0.0.1:8682/mcp", "", values.SYSTEM)
BUSY = SinkError("busy", transient=True)
BROKEN = SnapshotError("DuckDB crashed on it")
KILLED = SnapshotError("the reader was killed (SIGKILL)", transient=True)


class Files:
    """Databases and their memories. Each `put` gives a database another fingerprint."""

    def __init__(self) -> None:
        self.reader = ListedReader({})
        self._fingerprints, self._rows, self._numbers = {}, {}, count(1)
        self.unverified: set[str] = set()
        self.readable: set[str] = set()
        self.inconclusive: set[str] = set()
        self.staged: set[str] = set()

    def put(self, database: str, *memories: Memory, fail_at: int | None = None, error: Exception | None = None) -> None:
        source = ListedMemories(memories, page_rows=100 if fail_at is None else 1, fail_at=fail_at, error=error)
        self.reader.databases[database] = source
        self._fingerprints[database] = values.fingerprint(database, next(self._numbers))
        self._rows[database] = len(memories)

    def remove(self, database: str) -> None:
        del self._fingerprints[database]

    async def survey(self):
        return dict(self._fingerprints)

    async def take(self, database: str) -> Snapshot:
        if database not in self._fingerprints:
            raise SnapshotError(f"{database} does not exist", transient=True)
        self.staged.add(database)
        fingerprint = self._fingerprints[database]
        return Snapshot(
            database=database,
            folder=Path("/staged"),
            files=(RawFile(main_name(database), fingerprint.size, fingerprint.header, ()),),
            fingerprint=fingerprint,
            header_iteration=1,
            verified=database not in self.unverified,
            unverified_reason="too new" if database in self.unverified else "",
            inconclusive=database in self.inconclusive,
            rows={} if database in self.unverified - self.readable else {"any table": self._rows[database]},
        )

    async def discard(self, snapshot: Snapshot) -> None:
        self.staged.discard(snapshot.database)


class Report:
    """Receives the progress and asserts that it is valid."""

    def __init__(self) -> None:
        self.done = self.total = 0

    def phase(self, _name: str, total_bytes: int) -> None:
        self.done, self.total = 0, total_bytes

    def moved(self, count: int) -> None:
        self.done += count
        assert 0 <= self.done <= self.total

    def kept(self, count: int) -> None:
        self.moved(count)


class Rig:
    def __init__(self, ledger: SqliteLedger, *, standstill_seconds: float = 60.0, **rules) -> None:
        self.ledger, self.clock, self.files, self.sink = ledger, ManualClock(values.NOON), Files(), MemorySink()
        self.memories, self.recorder = ledger.memories(), ResultRecorder(ledger, None, self.clock)
        rules = {"batch_size": 2, "missing_embedding": "wait", **rules}
        self.method = HttpSync(
            target=TARGET,
            push=MemoryPush(sink=self.sink, ledger=self.memories, clock=self.clock, **rules),
            taker=self.files,
            reader=self.files.reader,
            ledger=ledger,
            clock=self.clock,
            zone=lambda: values.NOON.tzinfo,
            standstill_seconds=standstill_seconds,
        )
        self._numbers = count(1)

    async def attempt(self, *, reason: str = "file_change", **asked):
        """Make one attempt and record it as the subscriber does; an error is recorded as given up and returned."""
        await self.sink.is_available()
        request = replace(values.request(f"r{next(self._numbers)}", route=("http",), reason=reason), **asked)
        try:
            done = await self.method.sync(request, Report())
        except HTTPSyncError as error:
            await self.ledger.give_up(TARGET, error=str(error), failures=1, retry_at=None, result=None)
            return error
        finally:
            assert self.files.staged == set()
        if isinstance(done, Delivered):
            await self.recorder.delivered(TARGET, done)
            await self.ledger.confirm(done.result)
        else:
            await self.recorder.skipped(TARGET, request, method="http", reason=done.reason)
        return done

    async def states(self) -> dict[str, State]:
        return {name: known.state for name, known in (await self.ledger.record(TARGET)).databases.items()}

    async def pending(self) -> set[str]:
        return {*pending(await self.ledger.record(TARGET), await self.files.survey())}


@asynccontextmanager
async def rig(**rules):
    ledger = inline_ledger(ManualClock(values.NOON))
    try:
        yield Rig(ledger, **rules)
    finally:
        await ledger.aclose()


def some(*numbers, **how) -> list[Memory]:
    return [memory(number, **how) for number in numbers]
