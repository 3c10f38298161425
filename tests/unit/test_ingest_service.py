"""Ingesting uploads into Akosha: what is read from each upload, order, refusals, limits, kills and outages."""

import asyncio
import gzip
import shutil
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta
from pathlib import Path

import pytest

from agent.adapters.gunzip import Unpacker
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.patches import ZstdPatcher
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner
from agent.application.ingest.service import IngestService, IngestSummary
from agent.application.ingest.system_ingester import TRIES
from agent.application.ingest.turns import Share, Turn
from agent.application.ingest.upload_ingester import Limits, UploadIngester
from agent.application.memories.push import MemoryPush
from agent.domain.errors import BusError, SinkError, StagingFull, StateError, StoreError, WireError
from agent.domain.events import Event, IngestCompleted, IngestFailed
from agent.domain.identity import Identity
from agent.domain.memories import KINDS, Memory, memory_id
from agent.domain.retention import KeepRules
from agent.ports import BusState, Capabilities, PackedMemory, StoreResult, StreamMark
from tests.support import values
from tests.support.clock import ManualClock, until_idle
from tests.support.consumed_bus import ConsumedMemoryBus
from tests.support.faulty_store import FaultyStore
from tests.support.ledger import inline_ledger
from tests.support.memories import memory
from tests.support.memory_source import ListedMemories
from tests.support.memory_store import MemoryStore
from tests.support.sender import UNREADABLE, LinesReader, Sender
from tests.support.values import NOON, succeeded

IDENTITY = Identity("f" * 32, "server")
DOWN = SinkError("Akosha does not answer", transient=True)
LAPTOP = "laptop-7"


@dataclass
class FakeAkosha:
    """A MemorySink with the stored IDs in `rows`. `store` raises the next item of `errors`, unless it is None."""

    rows: dict[str, str] = field(default_factory=dict)
    errors: list[BaseException | None] = field(default_factory=list)
    down: SinkError | None = None
    version: str = "1"
    refuses: str = ""
    stored: list[list[str]] = field(default_factory=list)
    location: str = "akosha"
    bytes_sent: int = 0
    health_version: str = ""

    async def is_available(self) -> bool:
        return self.down is None

    sessions = 1

    async def connect(self) -> Capabilities:
        if self.down:
            raise self.down
        return Capabilities(version=self.version, kinds=frozenset(KINDS), need_embedding=frozenset(KINDS))

    def pack(self, memory: Memory, system_id: str) -> PackedMemory:
        return PackedMemory(row=memory.row, memory_id=memory_id(system_id, memory.row), body=memory.text.encode())

    async def store(self, batch: Sequence[PackedMemory]) -> StoreResult:
        if self.errors and (error := self.errors.pop(0)):
            raise error
        refused = {
            at: "too long" for at, packed in enumerate(batch) if self.refuses and self.refuses in packed.memory_id
        }
        taken = [packed.memory_id for at, packed in enumerate(batch) if at not in refused]
        existing = {at for at, packed in enumerate(batch) if at not in refused and packed.memory_id in self.rows}
        new = [each for each in taken if each not in self.rows]
        self.rows |= dict.fromkeys(new, "")
        self.stored.append(taken)
        return StoreResult(stored=len(new), existing=frozenset(existing), refused=refused)

    async def aclose(self) -> None:
        pass

    def of(self, system: str = LAPTOP) -> list[int]:
        """Return the numbers of a system's stored memories, in order of arrival."""
        return [int(name.split(":")[1].rpartition("-")[2]) for name in self.rows if name.startswith(f"{system}:")]


class FakeBus:
    """A DurableBus that accepts no event while `down`; `published` lists the accepted ones."""

    def __init__(self, clock: ManualClock) -> None:
        self.down, self.published, self.since = False, list[Event](), NOON
        self._bus = ConsumedMemoryBus(clock)
        self.consume, self.stream = self._bus.consume, StreamMark("stream", 1)
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def replace_stream(self) -> None:
        self.stream, self.since = StreamMark("another stream", 1), self.since + timedelta(seconds=1)
        for listener in self._listeners:
            listener()

    @property
    def state(self) -> BusState:
        return replace(self._bus.state, ready=not self.down, since=self.since)

    async def wait_until_ready(self) -> None:
        pass

    async def publish(self, event: Event) -> None:
        if self.down:
            raise BusError("NATS is away", transient=True)
        self.published.append(event)
        await self._bus.publish(event)

    async def aclose(self) -> None:
        await self._bus.aclose()


class Setup:
    """A bucket, an Akosha and a ledger; `ingest_service` returns a new service, like a restart."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = ManualClock(NOON + timedelta(hours=1))
        self.directory = tmp_path
        self.bucket = MemoryStore()
        self.store = FaultyStore(self.bucket)
        self.akosha, self.reader, self.bus = FakeAkosha(), LinesReader(), FakeBus(self.clock)
        self.laptop = Sender(self.store, tmp_path / "scratch")
        self.staging = tmp_path / "staging"
        self.staging.mkdir()

    async def open(self) -> None:
        self.ledger = inline_ledger(self.clock)

    def ingest_service(
        self, *systems: str, bus: bool = True, share: Share | None = None, limits: Limits | None = None
    ) -> IngestService:
        ingest = self.upload_ingester(limits)
        event_bus = self.bus if bus else None
        share = share or Share()
        return IngestService(
            IDENTITY, ingest, self.ledger, event_bus, self.clock, systems, rescan_seconds=60, share=share
        )

    def upload_ingester(self, limits: Limits | None = None) -> UploadIngester:
        push = MemoryPush(
            sink=self.akosha, ledger=self.ledger.memories(), clock=self.clock, batch_size=2, missing_embedding="wait"
        )
        return UploadIngester(
            store=self.store,
            unpacker=Unpacker(self.staging),
            patcher=ZstdPatcher(),
            push=push,
            reader=self.reader,
            memories_file=JsonMemoriesFile(self.staging),
            zone=lambda _name: UTC,
            endpoint="akosha",
            bucket="bucket",
            standstill_seconds=60,
            limits=limits or Limits(),
        )

    async def once(self, *systems: str) -> IngestSummary:
        summary = await self.ingest_service(*systems).once()
        assert list(self.staging.iterdir()) == []
        return summary

    def fetched(self, ending: str) -> list[str]:
        return [key for key in self.store.keys("get") if key.endswith(ending)]

    async def events(self) -> list[Event]:
        return [entry.event for entry in await self.ledger.history()]

    @asynccontextmanager
    async def running(self, **options):
        service = self.ingest_service(**options)
        task = asyncio.create_task(service.run())
        try:
            yield service
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(self, condition) -> None:
        """Run the event loop until the condition holds; the clock does not advance."""
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0)


@pytest.fixture
async def setup(tmp_path):
    setup = Setup(tmp_path)
    await setup.open()
    yield setup
    await setup.bus.aclose()
    await setup.ledger.aclose()


def outcomes(events: Sequence[Event]) -> list[tuple[str, str]]:
    return [(event.upload_id, event.type.split(".")[2]) for event in events]


async def test_deltas_are_ingested_in_order_without_reading_a_database(setup):
    first = await setup.laptop.upload(0, [1, 2, 3])
    second = await setup.laptop.upload(1, [1, 2, 3, 4], new=[4], base=0)
    summary = await setup.once()
    assert (summary.success, summary.outcomes[LAPTOP].ingested, setup.akosha.of()) == (True, 2, [1, 2, 3, 4])
    assert setup.reader.opened == []
    assert outcomes(setup.bus.published) == [(first.upload_id, "completed"), (second.upload_id, "completed")]
    assert [(event.stored, event.source) for event in await setup.events()] == [(3, "memories"), (1, "memories")]


async def test_an_unknown_system_is_a_failure_that_lists_the_known_ones(setup):
    await setup.laptop.upload(0, [1])
    summary = await setup.once("nosuch", LAPTOP)
    assert (summary.success, summary.outcomes.keys(), summary.failures.keys()) == (False, {LAPTOP}, {"nosuch"})
    assert f"systems there: {LAPTOP}" in summary.failures["nosuch"]


async def test_ingested_uploads_are_not_read_again(setup):
    await setup.laptop.upload(0, [1, 2, 3])
    await setup.once()
    setup.store.calls.clear()
    setup.akosha.down = DOWN
    assert (await setup.once()).success
    assert setup.store.keys("get") == []
    assert len(setup.bus.published) == 1


async def test_without_the_base_the_newest_database_is_read_once_then_deltas(setup):
    for second in (3, 4, 5):
        await setup.laptop.upload(second, range(1, second + 2), new=[second + 1], base=second - 1)
    summary = await setup.once()
    assert (setup.reader.opened, setup.akosha.of(), summary.outcomes[LAPTOP].ingested) == (
        [[1, 2, 3, 4, 5, 6]],
        [1, 2, 3, 4, 5, 6],
        3,
    )
    assert {event.source for event in setup.bus.published[:1]} == {"databases"}
    await setup.laptop.upload(6, range(1, 8), new=[7], base=5)
    await setup.once()
    assert (len(setup.reader.opened), setup.akosha.of()) == (1, [1, 2, 3, 4, 5, 6, 7])


async def test_an_upload_without_memories_is_read_from_its_database_unless_that_is_unchanged(setup):
    await setup.laptop.upload(0, [1, 2], without_memories=True)
    await setup.once()
    await setup.laptop.upload(1, [1, 2], without_memories=True)
    await setup.once()
    assert (setup.reader.opened, setup.akosha.of()) == ([[1, 2]], [1, 2])
    assert outcomes(setup.bus.published)[-1] == (setup.laptop.id(1), "completed")


async def test_only_the_new_rows_of_a_database_that_was_read_before_are_looked_at(setup):
    for last in (4, 5):
        await setup.laptop.upload(last, range(last), without_memories=True)
        await setup.once()
    assert setup.reader.opened == [[*range(4)], [*range(5)]]
    assert [source.listed_rows for source in setup.reader.sources] == [4, 1]
    assert setup.akosha.of() == [*range(5)]


async def chain(setup, *, until: int) -> None:
    """Upload a first upload without memories, three changes of it, one whose memories are omitted, and changes of it.

    The upload of second n has the rows 0 to n. `until` ends the chain before the upload of that second.
    """
    for second in range(until):
        omitted = second in (0, 4)
        await setup.laptop.upload(second, range(second + 1), new=[second], base=second - 1, omitted=omitted)


@pytest.mark.parametrize("once_each", [True, False])
async def test_an_upload_whose_memories_are_omitted_is_read_from_its_database_and_is_a_base(setup, once_each):
    for until in range(1, 8) if once_each else (7,):
        await chain(setup, until=until)
        await setup.once()
        assert setup.akosha.of() == [*range(until)]
    assert setup.reader.opened == ([[0], [0, 1, 2, 3, 4]] if once_each else [[*range(7)]])
    assert [outcome for _, outcome in outcomes(setup.bus.published)] == ["completed"] * 7
    assert sum(len(batch) for batch in setup.akosha.stored) == 7, "no memory is sent twice"


@pytest.mark.parametrize("pruned", range(6))
async def test_a_chain_of_uploads_is_complete_without_any_of_them(setup, pruned):
    """Each upload is pruned before it is ingested, with the next one already there or not."""
    await chain(setup, until=pruned)
    await setup.once()
    await chain(setup, until=pruned + 1)
    await setup.bucket.delete([key for key in setup.bucket.objects if setup.laptop.id(pruned) in key])
    await setup.once()
    for until in range(pruned + 2, 9):
        await setup.laptop.upload(until - 1, range(until), new=[until - 1], base=until - 2, omitted=until == 5)
        await setup.once()
        assert setup.akosha.of() == [*range(until)]
    assert len(setup.reader.opened) <= 3


@pytest.mark.parametrize("lost", range(7))
async def test_a_lost_cursor_reads_the_newest_database_once_and_stores_nothing_twice(setup, lost):
    await chain(setup, until=lost)
    await setup.once()
    await setup.ledger.aclose()
    await setup.open()
    setup.reader.opened.clear()
    await chain(setup, until=7)
    await setup.once()
    assert setup.akosha.of() == [*range(7)]
    assert setup.reader.opened == [[*range(7)]]
    await setup.laptop.upload(7, range(8), new=[7], base=6)
    await setup.once()
    assert (len(setup.reader.opened), setup.akosha.of()) == (1, [*range(8)])


async def test_one_database_is_a_change_and_the_memories_of_the_other_are_omitted(setup):
    await chain(setup, until=1)
    await setup.once()
    graph = await setup.laptop.upload(1, [70, 71], database="knowledge_graph", omitted=True)
    reflection = await setup.laptop.upload(1, [0, 1], new=[1], base=0)
    both = {"parts": (*graph.parts, *reflection.parts), "memories_omitted": graph.memories_omitted}
    await setup.laptop.upload(1, [0, 1], new=[1], base=0, **both)
    await setup.once()
    assert (setup.akosha.of(), setup.reader.opened) == ([0, 1, 70, 71], [[0], [70, 71]])


async def test_an_unchanged_database_whose_memories_are_omitted_is_not_read_and_is_a_base(setup):
    """The agent has lost its ledger: it sends the same database once more, and continues from there."""
    await chain(setup, until=1)
    await setup.once()
    await setup.laptop.upload(1, [0], omitted=True)
    await setup.laptop.upload(2, [0, 1], new=[1], base=1)
    await setup.once()
    assert (setup.akosha.of(), setup.reader.opened) == ([0, 1], [[0]])


async def test_each_agent_of_a_system_has_its_own_chain_and_newest_database(setup):
    other = replace(setup.laptop, agent_id="b" * 32)
    await setup.laptop.upload(0, [1, 2])
    await other.upload(1, [11, 12])
    await setup.laptop.upload(2, [1, 2, 3], new=[3], base=0)
    await other.upload(3, [11, 12, 13], new=[13], base=1)
    await setup.once()
    assert (setup.reader.opened, setup.akosha.of()) == ([], [1, 2, 11, 12, 3, 13])
    await setup.laptop.upload(4, [1, 2, 3, 4, 5], new=[5], base=-9)
    assert setup.laptop.id(-9) < setup.laptop.id(0)
    await setup.once()
    assert setup.akosha.of()[-1:] == [5]
    lost = replace(setup.laptop, agent_id="c" * 32)
    await lost.upload(5, [21, 22], new=[22], base=4)
    await other.upload(6, [11, 12, 13, 14], new=[14], base=3)
    await setup.once()
    assert (setup.reader.opened, set(setup.akosha.of()) >= {21, 22, 14}) == ([[21, 22]], True)


async def test_a_late_upload_of_another_agent_with_an_older_id_is_ingested(setup):
    other = replace(setup.laptop, agent_id="b" * 32)
    async with setup.running():
        await setup.bus.publish(succeeded(await setup.laptop.upload(5, [1, 2])))
        await setup.until(lambda: setup.akosha.of() == [1, 2])
        late = await other.upload(3, [11])
        for _ in range(2):
            await setup.bus.publish(succeeded(late))
            await setup.until(lambda: len([e for e in setup.bus.published if isinstance(e, IngestCompleted)]) == 2)
    assert setup.akosha.of() == [1, 2, 11]
    assert (await setup.ingest_service()._journal.cursor(LAPTOP)).through == setup.laptop.id(5)
    assert len(setup.fetched(f"{late.upload_id}/manifest.json")) == 1


async def test_a_pruned_upload_is_skipped(setup):
    await setup.laptop.upload(0, [1])
    await setup.once()
    pruned = await setup.laptop.upload(1, [1, 2], new=[2], base=0)
    await setup.laptop.upload(2, [1, 2, 3], new=[3], base=1)
    await setup.bucket.delete([key for key in setup.bucket.objects if pruned.upload_id in key])
    await setup.once()
    assert (setup.reader.opened, setup.akosha.of()) == ([[1, 2, 3]], [1, 2, 3])


async def test_an_upload_pruned_while_read_is_skipped_for_a_newer_one(setup):
    first = await setup.laptop.upload(0, [1])
    second = await setup.laptop.upload(1, [1, 2], new=[2], base=0)
    setup.store = PrunedWhenRead(setup.bucket, first.key, setup.clock)
    async with setup.running():
        await setup.until(lambda: setup.fetched(f"{first.upload_id}/memories.json.gz") and setup.clock.sleepers == 2)
        await setup.clock.advance(31)
        await setup.until(lambda: setup.akosha.of() == [1, 2] and len(setup.bus.published) == 2)
    assert setup.reader.opened == [[1, 2]], "without the base, the database is read"
    assert outcomes(setup.bus.published)[-1] == (second.upload_id, "completed")
    assert not [key for key in setup.bucket.objects if first.upload_id in key]


class PrunedWhenRead(FaultyStore):
    """A store that deletes all but the newest upload once one manifest has been read."""

    def __init__(self, store, manifest_key, clock):
        super().__init__(store)
        self._manifest_key = manifest_key
        self._pruning = Pruner(Catalog(store, LAPTOP), KeepRules(last=1, daily=0, weekly=0, monthly=0), clock)

    async def get(self, key):
        async for piece in super().get(key):
            yield piece
        if key == self._manifest_key:
            await self._pruning.carry_out(await self._pruning.plan({}), {})


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        ({"manifest.json": b"{}"}, "not a manifest"),
        ({"manifest.json": b" " * (16 * 2**20 + 1)}, "larger than any manifest"),
        ({"memories.json.gz": b"x" * 100_000}, "larger than the"),
    ],
)
async def test_a_permanent_defect_is_refused_at_once_and_the_next_upload_ingested(setup, spoiled, reason):
    await setup.laptop.upload(0, [1, 2], spoiled=spoiled)
    summary = await setup.once()
    assert not summary.success
    assert summary.outcomes[LAPTOP].refused == 1
    (event,) = setup.bus.published
    assert isinstance(event, IngestFailed)
    assert reason in event.error
    assert event.retry_at is None
    await setup.laptop.upload(1, [1, 2, 3], new=[3], base=0)
    assert (await setup.once()).success
    assert setup.akosha.of() == [1, 2, 3]


async def test_a_foreign_manifest_with_an_id_far_ahead_blocks_no_upload(setup):
    for foreign in ("99991231_235959_X", f"20990101_000000_{LAPTOP}"):
        setup.bucket.objects[f"systems/{LAPTOP}/uploads/{foreign}/manifest.json"] = b"{}", {}
    for second in range(2):
        await setup.laptop.upload(second, [1, 2, 3][: second + 2])
        assert (await setup.once()).success
    assert setup.akosha.of() == [1, 2, 3]


async def test_a_manifest_of_another_system_or_with_foreign_keys_is_refused(setup):
    stranger = Sender(setup.store, setup.laptop.scratch, system="stranger")
    foreign = await stranger.upload(0, [9])
    moved = foreign.encode().replace(b"stranger/uploads", b"laptop-7/uploads")
    for second, manifest in enumerate((foreign.encode(), moved)):
        await setup.laptop.upload(second, [1], spoiled={"manifest.json": manifest})
    summary = await setup.once(LAPTOP)
    assert (summary.outcomes[LAPTOP].refused, setup.akosha.rows) == (2, {})
    assert not [key for key in setup.store.keys("get") if "memories" in key or "duckdb" in key]


async def test_memories_that_claim_another_system_are_refused(setup):
    stranger = Sender(setup.store, setup.laptop.scratch, system="stranger-2")
    document, written = await stranger._document([memory(9)])
    manifest = await setup.laptop.upload(0, [1])
    sizes = {"raw_size": written.raw_size, "stored_size": written.stored_size}
    recorded = replace(manifest.memories, **sizes, sha256=written.sha256)
    await setup.laptop.upload(0, [1], memories=recorded, spoiled={"memories.json.gz": document})
    summary = await setup.once()
    assert (summary.outcomes[LAPTOP].refused, setup.akosha.rows) == (1, {})


async def test_a_gzip_bomb_is_stopped_at_the_size_in_the_manifest(setup):
    bomb = gzip.compress(b"0" * 4_000_000)
    manifest = await setup.laptop.upload(0, [1, 2], without_memories=True)
    (part,) = manifest.parts
    parts = (replace(part, stored_size=len(bomb)),)
    await setup.laptop.upload(0, [1, 2], without_memories=True, parts=parts, spoiled={part.name: bomb})
    await setup.once()
    (event,) = setup.bus.published
    assert "unpacks to more than the 4 bytes" in event.error


async def test_memories_that_are_a_gzip_bomb_are_stopped_at_the_size_in_the_manifest(setup):
    bomb = gzip.compress(b"0" * 4_000_000)
    recorded = (await setup.laptop.upload(0, [1, 2])).memories
    claimed = replace(recorded, stored_size=len(bomb))
    await setup.laptop.upload(0, [1, 2], memories=claimed, spoiled={"memories.json.gz": bomb})
    await setup.once()
    (event,) = setup.bus.published
    assert f"unpacks to more than the {recorded.raw_size} bytes" in event.error
    assert (event.retry_at, setup.akosha.rows) == (None, {})


@pytest.mark.parametrize(("file_bytes", "refused"), [(20 * 2**30, False), (65 * 2**30, True)])
async def test_the_limit_is_for_each_state_of_a_patched_database_and_not_for_their_sum(setup, file_bytes, refused):
    """Applying a chain of patches to 20 GB needs up to 80 GB of disk: whether these are free is another question."""
    base, *patches = values.patched_part([0, 1, 2]).layers
    layers = (replace(base, raw_size=file_bytes), *patches)
    layers = tuple(replace(layer, file_size=file_bytes) for layer in layers)
    part = replace(values.patched_part([0, 1, 2]), raw_size=file_bytes, layers=layers)
    manifest = replace(values.manifest(0, reflection=0), parts=(part,))
    ingester = setup.upload_ingester()
    with pytest.raises(WireError if refused else StagingFull) as error:
        await ingester.database(manifest, "reflection", None, None)
    assert (f"has {file_bytes:,} bytes: the limit is" in error.value.message) is refused


async def test_sizes_in_a_manifest_are_limited(setup):
    manifest = await setup.laptop.upload(0, [1])
    await setup.laptop.upload(0, [1], memories=replace(manifest.memories, raw_size=9 * 2**30))
    (part,) = (await setup.laptop.upload(1, [1, 2], without_memories=True)).parts
    parts = (replace(part, raw_size=65 * 2**30),)
    await setup.laptop.upload(1, [1, 2], without_memories=True, parts=parts)
    await setup.once()
    assert [(": the limit is " in event.error, event.retry_at) for event in setup.bus.published] == [(True, None)] * 2
    assert not [key for key in setup.store.keys("get") if not key.endswith("manifest.json")]


async def test_a_full_disk_is_retried(setup, monkeypatch):
    usage = shutil.disk_usage(setup.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=200 * 2**20))
    await setup.laptop.upload(0, [1])
    summary = await setup.once()
    assert "bytes free in" in summary.failures[LAPTOP]
    (event,) = setup.bus.published
    assert event.retry_at is not None


@pytest.mark.parametrize("name", ["memories.json.gz", "reflection.duckdb"])
async def test_an_incomplete_object_is_retried(setup, name):
    delta = name == "memories.json.gz"
    manifest = await setup.laptop.upload(0, [1, 2], without_memories=not delta)
    (key,) = [key for key in setup.bucket.objects if key.endswith(name)]
    complete = setup.bucket.objects[key]
    setup.bucket.objects[key] = complete[0][:-3], {}
    async with setup.running():
        await setup.until(lambda: len(setup.bus.published) == 1)
        (event,) = setup.bus.published
        assert (event.retry_at - event.time).total_seconds() == 30
        await setup.until(lambda: setup.clock.sleepers >= 2)
        setup.bucket.objects[key] = complete
        await setup.clock.advance(31)
        await setup.until(lambda: len(setup.bus.published) == 2)
    assert (outcomes(setup.bus.published)[-1], setup.akosha.of()) == ((manifest.upload_id, "completed"), [1, 2])


async def test_a_permanently_damaged_object_is_given_up_and_not_downloaded_again(setup):
    await setup.laptop.upload(0, [1], without_memories=True)
    await setup.laptop.upload(1, [1, 2], without_memories=True, spoiled={"reflection.duckdb": b""})
    async with setup.running():
        for attempt in range(1, TRIES):
            await setup.until(lambda attempt=attempt: len(setup.fetched("duckdb")) == attempt)
            await setup.until(lambda: setup.clock.sleepers == 2)
            await setup.clock.advance(30 * 2 ** (attempt - 1) + 1)
        await setup.until(lambda: len(setup.bus.published) == 3)
    assert [event.retry_at is None for event in setup.bus.published] == [False, True, True]
    assert len(setup.fetched("duckdb")) == TRIES


async def test_an_upload_whose_patches_fail_each_time_is_given_up(setup, monkeypatch):
    """The process that applies them may lack memory each time: then the upload would hold up all later ones."""

    async def fail(*_arguments):
        raise StateError("the patches could not be applied", transient=True)

    await setup.laptop.upload(0, [1], without_memories=True)
    monkeypatch.setattr(UploadIngester, "database", fail)
    async with setup.running():
        for attempt in range(1, TRIES):
            await setup.until(lambda: setup.clock.sleepers == 2)
            await setup.clock.advance(30 * 2 ** (attempt - 1) + 1)
        await setup.until(lambda: len(setup.bus.published) == 2)
    assert [event.retry_at is None for event in setup.bus.published] == [False, True]


async def test_an_unreadable_database_does_not_affect_the_others(setup):
    graph = await setup.laptop.upload(0, UNREADABLE, database="knowledge_graph", new=[])
    both = await setup.laptop.upload(1, [1], new=[1])
    bases = {"reflection": None, "knowledge_graph": setup.laptop.id(-5)}
    parts = tuple(
        replace(part, key=part.key.replace(graph.upload_id, both.upload_id)) for part in (*graph.parts, *both.parts)
    )
    for part in graph.parts:
        setup.bucket.objects[part.key.replace(graph.upload_id, both.upload_id)] = setup.bucket.objects[part.key]
    await setup.bucket.delete([key for key in setup.bucket.objects if graph.upload_id in key])
    await setup.laptop.upload(1, [1], parts=parts, memories=replace(both.memories, bases=bases))
    summary = await setup.once()
    assert (summary.outcomes[LAPTOP].refused, setup.akosha.of()) == (1, [1])
    assert "newer DuckDB" in setup.bus.published[0].error


async def test_a_kill_between_push_and_cursor_repeats_no_delivery(setup, monkeypatch):
    await setup.laptop.upload(0, [1, 2, 3])
    note = setup.ledger.note

    async def killed(key, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup.ledger, "note", killed)
    with pytest.raises(KeyboardInterrupt):
        await setup.ingest_service()._ingester(LAPTOP).catch_up()
    assert setup.akosha.of() == [1, 2, 3]
    monkeypatch.setattr(setup.ledger, "note", note)
    setup.akosha.stored.clear()
    assert (await setup.once()).success
    assert setup.akosha.stored == []
    assert outcomes(setup.bus.published) == [(setup.laptop.id(0), "completed")]


async def test_an_outage_of_akosha_is_logged_once_and_loses_nothing(setup, capsys):
    other = Sender(setup.store, setup.laptop.scratch, system="desktop")
    await setup.laptop.upload(0, [1, 2, 3])
    setup.akosha.errors = [None, DOWN]
    async with setup.running():
        await setup.until(lambda: len(setup.bus.published) == 1 and setup.clock.sleepers == 2)
        setup.akosha.down = DOWN
        await setup.bus.publish(replace(succeeded(await other.upload(0, [7])), system_id="desktop"))
        await setup.until(lambda: len(setup.bus.published) == 3 and setup.clock.sleepers == 3)
        await setup.clock.advance(31)
        await setup.until(lambda: setup.clock.sleepers == 3)
        assert setup.akosha.of() == [1, 2]
        setup.akosha.down = None
        await setup.clock.advance(30)  # the rescan finds Akosha healthy and does not wait for the retry time
        await setup.until(lambda: setup.akosha.of() == [1, 2, 3] and setup.akosha.of("desktop") == [7])
    assert [event.retry_at is not None for event in setup.bus.published if isinstance(event, IngestFailed)] == [
        True,
        True,
    ]
    assert capsys.readouterr().out.count("[warning") == 1


async def test_waiting_and_refused_memories_are_reported_and_sent_to_a_new_version(setup):
    setup.akosha.refuses = "conversation-2"
    await setup.laptop.upload(0, [1, 2], new=[1, 2, memory(3, embedded=False)])
    await setup.once()
    (event,) = setup.bus.published
    assert (event.stored, dict(event.kept_back)) == (1, {"too long": 1, "no embedding": 1})
    setup.akosha.refuses = ""
    await setup.once()
    assert setup.akosha.of() == [1]
    setup.akosha.version = "2"
    await setup.once()
    assert set(setup.akosha.of()) == {1, 2}
    assert {event.id for event in setup.bus.published} == {event.id}


async def test_a_stalled_system_does_not_block_others(setup):
    slow = Sender(setup.store, setup.laptop.scratch, system="slow")
    await slow.upload(0, [1])
    await setup.laptop.upload(0, [1])
    reached = setup.store.stall("get", key=f"{slow.id(0)}/memories.json.gz", times=99)
    async with setup.running():
        await reached.wait()
        await setup.until(lambda: setup.bus.published)
        await setup.laptop.upload(1, [1, 2], new=[2], base=0)
        await setup.bus.publish(succeeded(await setup.laptop.upload(1, [1, 2], new=[2], base=0)))
        await setup.until(lambda: setup.akosha.of() == [1, 2])
    assert setup.akosha.of("slow") == []


ROWS = 300


async def with_hostile_systems(setup: Setup, count: int, rows: int = ROWS) -> None:
    """Upload databases of hostile systems, which repeat one row, and one row of a system that sorts after them."""
    for number in range(count):
        sender = Sender(setup.store, setup.laptop.scratch, system=f"hostile-{number}")
        await sender.upload(0, [1] * rows, without_memories=True)
    await Sender(setup.store, setup.laptop.scratch, system="later").upload(0, [7])


def rows_read_before_each_system_had_a_turn(monkeypatch, systems: int) -> list[int]:
    """Return a list that receives the number of rows read from databases when the last system got its first turn.

    No turn ends before all systems have requested one, because threads reach that point in any order.
    """
    read, requested, started, counts = 0, set[Turn](), set[Turn](), list[int]()
    all_requested = asyncio.Event()
    pages, begin, pause = ListedMemories.pages, Turn.begin, Turn.pause

    async def counted(source):
        nonlocal read
        async for page in pages(source):
            read += len(page)
            yield page

    async def counted_begin(turn):
        requested.add(turn)
        if len(requested) == systems:
            all_requested.set()
        await begin(turn)
        started.add(turn)
        if len(started) == systems and not counts:
            counts.append(read)

    async def delayed_pause(turn, moved, every_seconds):
        await all_requested.wait()
        await pause(turn, moved, every_seconds)

    monkeypatch.setattr(ListedMemories, "pages", counted)
    monkeypatch.setattr(Turn, "begin", counted_begin)
    monkeypatch.setattr(Turn, "pause", delayed_pause)
    return counts


@pytest.mark.parametrize("hostile", [4, 6])
async def test_systems_with_endless_rows_take_turns_with_the_others(setup, monkeypatch, hostile):
    await with_hostile_systems(setup, hostile)
    counts = rows_read_before_each_system_had_a_turn(monkeypatch, hostile + 1)
    summary = await setup.ingest_service(share=Share(rows=9)).once()
    assert counts[0] <= 3 * hostile * 9 < ROWS, "at most three turns of each, of nine rows each"
    assert all(outcome.ingested == 1 for outcome in summary.outcomes.values()), "no system loses data by waiting"
    assert [len(rows) for rows in setup.reader.opened] == [ROWS] * hostile, "each database is opened once"


async def test_a_turn_is_limited_in_bytes_and_time_too(setup, monkeypatch):
    await with_hostile_systems(setup, 4, rows=150)
    counts = rows_read_before_each_system_had_a_turn(monkeypatch, 5)
    await setup.ingest_service(share=Share(raw_bytes=300)).once()
    assert counts[0] < 150, "a file of 300 bytes uses up a turn: each system gets one before any is read completely"
    slow = Sender(setup.store, setup.laptop.scratch, system="later")
    await slow.upload(1, [7, 8], without_memories=True)
    assert (await setup.ingest_service(share=Share(seconds=0)).once()).success


async def test_a_system_over_the_row_limit_is_refused_with_the_reason(setup):
    await with_hostile_systems(setup, 1)
    summary = await setup.ingest_service(limits=Limits(rows=100)).once()
    outcome = summary.outcomes["hostile-0"]
    assert (outcome.ingested, outcome.refused, summary.outcomes["later"].ingested) == (0, 1, 1)
    assert "the limit is 100" in outcome.refusal
    (event,) = [event for event in await setup.events() if isinstance(event, IngestFailed)]
    assert event.error == outcome.refusal


async def test_a_system_over_the_byte_limit_is_refused_before_any_download(setup):
    await with_hostile_systems(setup, 1, rows=3000)
    summary = await setup.ingest_service(limits=Limits(raw_bytes=5999)).once()
    assert "the limit is 5,999" in summary.outcomes["hostile-0"].refusal
    assert summary.outcomes["later"].ingested == 1
    assert not [key for key in setup.fetched(".duckdb") if "hostile" in key]


async def test_one_broken_system_does_not_affect_more_systems_than_turns(setup):
    senders = [Sender(setup.store, setup.laptop.scratch, system=f"s-{number}") for number in range(9)]
    for number, sender in enumerate(senders):
        await sender.upload(0, [number])
    setup.store.fail("get", StoreError("503", transient=True), key=f"{senders[3].id(0)}/memories.json.gz", times=99)
    summary = await setup.once()
    assert (list(summary.failures), len(summary.outcomes), summary.success) == (["s-3"], 8, False)


async def test_only_a_result_with_a_matching_manifest_key_starts_an_ingest(setup):
    async with setup.running(bus=True) as service:
        await setup.until(lambda: setup.clock.sleepers)
        manifest = await setup.laptop.upload(0, [1])
        await setup.bus.publish(replace(succeeded(manifest), manifest_key=""))
        await setup.bus.publish(replace(succeeded(manifest), system_id="another"))
        await setup.until(lambda: not service._ingesters)
        assert setup.akosha.of() == []
        await setup.bus.publish(succeeded(manifest))
        await setup.until(lambda: setup.akosha.of() == [1] and list(service._ingesters) == [LAPTOP])


async def test_without_a_bus_new_uploads_are_found_every_minute(setup):
    async with setup.running(bus=False):
        await setup.until(lambda: setup.clock.sleepers)
        await setup.laptop.upload(0, [1])
        await setup.clock.advance(61)
        async with asyncio.timeout(60):
            while not await setup.events():
                pass
    assert setup.akosha.of() == [1]
    assert outcomes(await setup.events()) == [(setup.laptop.id(0), "completed")]


async def test_only_named_systems_are_ingested(setup):
    other = Sender(setup.store, setup.laptop.scratch, system="desktop")
    await other.upload(0, [7])
    await setup.laptop.upload(0, [1])
    await setup.once("desktop")
    assert (setup.akosha.of(), setup.akosha.of("desktop")) == ([], [7])


async def test_results_wait_for_the_bus_also_across_a_restart(setup):
    setup.bus.down = True
    await setup.laptop.upload(0, [1])
    await setup.once()
    assert (setup.bus.published, len(await setup.events())) == ([], 1)
    setup.bus.down = False
    await setup.once()
    (event,) = setup.bus.published
    assert isinstance(event, IngestCompleted)
    await setup.once()
    assert len(setup.bus.published) == 1


async def test_results_of_the_last_days_are_published_again_to_a_stream_that_replaces_a_lost_one(setup):
    await setup.laptop.upload(0, [1])
    await setup.once()
    await setup.clock.advance(timedelta(days=8).total_seconds())
    await setup.laptop.upload(1, [1, 2])
    async with setup.running():
        await setup.until(lambda: outcomes(setup.bus.published)[1:] == [(setup.laptop.id(1), "completed")])
        setup.bus.replace_stream()
        await setup.until(lambda: len(setup.bus.published) == 3)
        await until_idle()
    assert outcomes(setup.bus.published)[2:] == [(setup.laptop.id(1), "completed")]


async def test_after_a_damaged_cursor_nothing_is_stored_twice(setup):
    await setup.laptop.upload(0, [1, 2])
    await setup.once()
    (key,) = [key for key in await setup.ledger.notes() if key.endswith(LAPTOP)]
    await setup.ledger.note(key, "{")
    setup.akosha.stored.clear()
    await setup.once()
    assert setup.akosha.stored == []


async def test_another_akosha_gets_all_memories(setup):
    await setup.laptop.upload(0, [1, 2])
    await setup.once()
    setup.akosha.rows.clear()
    service = setup.ingest_service()
    elsewhere = IngestService(
        IDENTITY, replace(service.ingest, endpoint="another"), setup.ledger, None, setup.clock, (), rescan_seconds=60
    )
    assert (await elsewhere.once()).success
    assert setup.akosha.of() == [1, 2]
