"""What the Akosha side takes of which upload, in which order, what it refuses, and what a kill or an outage costs."""

import asyncio
import gzip
import hashlib
import shutil
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta
from pathlib import Path

import pytest

from agent.adapters.gunzip import Unpacker
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.memory_bus import MemoryBus
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner
from agent.application.ingest.service import IngestService, IngestSummary
from agent.application.ingest.system_ingester import TRIES
from agent.application.ingest.turns import Share, Turn
from agent.application.ingest.upload_ingester import Limits, UploadIngester
from agent.application.memories.push import MemoryPush
from agent.domain.errors import BusError, SinkError, StoreError
from agent.domain.events import Event, IngestCompleted, IngestFailed
from agent.domain.identity import Identity
from agent.domain.memories import KINDS, Memory, memory_id
from agent.domain.retention import KeepRules
from agent.ports import BusState, Capabilities, PackedMemory, StoreResult
from tests.support.clock import ManualClock
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
class Shelf:
    """A MemorySink: what Akosha has. `errors`: raised by the next calls of `store`, one each; None: it goes well."""

    rows: dict[str, str] = field(default_factory=dict)
    errors: list[BaseException | None] = field(default_factory=list)
    down: SinkError | None = None
    version: str = "1"
    refuses: str = ""
    stored: list[list[str]] = field(default_factory=list)
    location: str = "shelf"
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
        there = {at for at, packed in enumerate(batch) if at not in refused and packed.memory_id in self.rows}
        new = [each for each in taken if each not in self.rows]
        self.rows |= dict.fromkeys(new, "")
        self.stored.append(taken)
        return StoreResult(stored=len(new), existing=frozenset(there), refused=refused)

    async def aclose(self) -> None:
        pass

    def of(self, system: str = LAPTOP) -> list[int]:
        """The numbers of the memories that a system has here, in the order they came."""
        return [int(name.split(":")[1].rpartition("-")[2]) for name in self.rows if name.startswith(f"{system}:")]


class Wire:
    """An EventBus that lets nothing through while `down`; what came through is in `told`."""

    def __init__(self, clock: ManualClock) -> None:
        self.down, self.recorded = False, list[Event]()
        self._bus = MemoryBus(clock)
        self.subscribe, self.stream, self.on_change = self._bus.subscribe, None, self._bus.on_change

    @property
    def state(self) -> BusState:
        return replace(self._bus.state, ready=not self.down)

    async def wait_until_ready(self) -> None:
        pass

    async def publish(self, event: Event) -> None:
        if self.down:
            raise BusError("NATS is away", transient=True)
        self.recorded.append(event)
        await self._bus.publish(event)

    async def aclose(self) -> None:
        await self._bus.aclose()


class World:
    """A bucket, an Akosha, and a reactor's state directory; `reactor` makes a new one, as a restart does."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = ManualClock(NOON + timedelta(hours=1))
        self.place = tmp_path
        self.bucket = MemoryStore()
        self.store = FaultyStore(self.bucket)
        self.shelf, self.reader, self.wire = Shelf(), LinesReader(), Wire(self.clock)
        self.laptop = Sender(self.store, tmp_path / "scratch")
        self.staging = tmp_path / "staging"
        self.staging.mkdir()

    async def open(self) -> None:
        self.ledger = inline_ledger(self.clock)

    def reactor(
        self, *systems: str, bus: bool = True, share: Share | None = None, limits: Limits | None = None
    ) -> IngestService:
        push = MemoryPush(
            sink=self.shelf, ledger=self.ledger.memories(), clock=self.clock, batch_size=2, missing_embedding="wait"
        )
        ingest = UploadIngester(
            store=self.store,
            unpacker=Unpacker(self.staging),
            push=push,
            reader=self.reader,
            memories_file=JsonMemoriesFile(self.staging),
            zone=lambda _name: UTC,
            endpoint="shelf",
            bucket="bucket",
            standstill_seconds=60,
            limits=limits or Limits(),
        )
        wire = self.wire if bus else None
        share = share or Share()
        return IngestService(IDENTITY, ingest, self.ledger, wire, self.clock, systems, rescan_seconds=60, share=share)

    async def once(self, *systems: str) -> IngestSummary:
        summary = await self.reactor(*systems).once()
        assert list(self.staging.iterdir()) == []
        return summary

    def fetched(self, ending: str) -> list[str]:
        return [key for key in self.store.keys("get") if key.endswith(ending)]

    async def events(self) -> list[Event]:
        return [entry.event for entry in await self.ledger.history()]

    @asynccontextmanager
    async def running(self, **how):
        reactor = self.reactor(**how)
        task = asyncio.create_task(reactor.run())
        try:
            yield reactor
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(self, wanted) -> None:
        """Let the loop turn until it is so; time stands still."""
        async with asyncio.timeout(60):
            while not wanted():
                await asyncio.sleep(0)


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.open()
    yield world
    await world.wire.aclose()
    await world.ledger.aclose()


def outcomes(events: Sequence[Event]) -> list[tuple[str, str]]:
    return [(event.upload_id, event.type.split(".")[2]) for event in events]


async def test_deltas_are_taken_in_order_and_no_database_is_read(world):
    first = await world.laptop.upload(0, [1, 2, 3])
    second = await world.laptop.upload(1, [1, 2, 3, 4], new=[4], base=0)
    summary = await world.once()
    assert (summary.success, summary.outcomes[LAPTOP].ingested, world.shelf.of()) == (True, 2, [1, 2, 3, 4])
    assert world.reader.opened == []
    assert outcomes(world.wire.recorded) == [(first.upload_id, "completed"), (second.upload_id, "completed")]
    assert [(event.stored, event.source) for event in await world.events()] == [(3, "memories"), (1, "memories")]


async def test_a_system_that_is_not_there_is_a_failure_that_names_those_that_are(world):
    await world.laptop.upload(0, [1])
    summary = await world.once("nosuch", LAPTOP)
    assert (summary.success, summary.outcomes.keys(), summary.failures.keys()) == (False, {LAPTOP}, {"nosuch"})
    assert f"systems there: {LAPTOP}" in summary.failures["nosuch"]


async def test_what_was_taken_is_not_even_asked_for_again(world):
    await world.laptop.upload(0, [1, 2, 3])
    await world.once()
    world.store.calls.clear()
    world.shelf.down = DOWN
    assert (await world.once()).success
    assert world.store.keys("get") == []
    assert len(world.wire.recorded) == 1


async def test_who_lacks_the_base_reads_the_newest_upload_s_database_once_and_goes_on_with_deltas(world):
    for second in (3, 4, 5):
        await world.laptop.upload(second, range(1, second + 2), new=[second + 1], base=second - 1)
    summary = await world.once()
    assert (world.reader.opened, world.shelf.of(), summary.outcomes[LAPTOP].ingested) == (
        [[1, 2, 3, 4, 5, 6]],
        [1, 2, 3, 4, 5, 6],
        3,
    )
    assert {event.source for event in world.wire.recorded[:1]} == {"databases"}
    await world.laptop.upload(6, range(1, 8), new=[7], base=5)
    await world.once()
    assert (len(world.reader.opened), world.shelf.of()) == (1, [1, 2, 3, 4, 5, 6, 7])


async def test_an_upload_without_memories_is_read_from_its_database_unless_that_is_unchanged(world):
    await world.laptop.upload(0, [1, 2], without_memories=True)
    await world.once()
    await world.laptop.upload(1, [1, 2], without_memories=True)
    await world.once()
    assert (world.reader.opened, world.shelf.of()) == ([[1, 2]], [1, 2])
    assert outcomes(world.wire.recorded)[-1] == (world.laptop.id(1), "completed")


async def test_two_agents_of_one_system_have_each_their_own_chain_and_their_own_newest_database(world):
    other = replace(world.laptop, agent_id="b" * 32)
    await world.laptop.upload(0, [1, 2])
    await other.upload(1, [11, 12])
    await world.laptop.upload(2, [1, 2, 3], new=[3], base=0)
    await other.upload(3, [11, 12, 13], new=[13], base=1)
    await world.once()
    assert (world.reader.opened, world.shelf.of()) == ([], [1, 2, 11, 12, 3, 13])
    await world.laptop.upload(4, [1, 2, 3, 4, 5], new=[5], base=-9)
    assert world.laptop.id(-9) < world.laptop.id(0)
    await world.once()
    assert world.shelf.of()[-1:] == [5]
    lost = replace(world.laptop, agent_id="c" * 32)
    await lost.upload(5, [21, 22], new=[22], base=4)
    await other.upload(6, [11, 12, 13, 14], new=[14], base=3)
    await world.once()
    assert (world.reader.opened, set(world.shelf.of()) >= {21, 22, 14}) == ([[21, 22]], True)


async def test_an_upload_of_another_agent_that_comes_late_under_an_older_id_is_taken_when_it_is_reported(world):
    other = replace(world.laptop, agent_id="b" * 32)
    async with world.running():
        await world.wire.publish(succeeded(await world.laptop.upload(5, [1, 2])))
        await world.until(lambda: world.shelf.of() == [1, 2])
        late = await other.upload(3, [11])
        for _ in range(2):
            await world.wire.publish(succeeded(late))
            await world.until(lambda: len([e for e in world.wire.recorded if isinstance(e, IngestCompleted)]) == 2)
    assert world.shelf.of() == [1, 2, 11]
    assert (await world.reactor()._journal.cursor(LAPTOP)).through == world.laptop.id(5)
    assert len(world.fetched(f"{late.upload_id}/manifest.json")) == 1


async def test_a_pruned_upload_is_passed_over(world):
    await world.laptop.upload(0, [1])
    await world.once()
    gone = await world.laptop.upload(1, [1, 2], new=[2], base=0)
    await world.laptop.upload(2, [1, 2, 3], new=[3], base=1)
    await world.bucket.delete([key for key in world.bucket.objects if gone.upload_id in key])
    await world.once()
    assert (world.reader.opened, world.shelf.of()) == ([[1, 2, 3]], [1, 2, 3])


async def test_an_upload_that_is_pruned_while_it_is_read_is_passed_over_and_a_newer_one_makes_up_for_it(world):
    first = await world.laptop.upload(0, [1])
    second = await world.laptop.upload(1, [1, 2], new=[2], base=0)
    world.store = PrunedWhenRead(world.bucket, first.key, world.clock)
    async with world.running():
        await world.until(lambda: world.fetched(f"{first.upload_id}/memories.json") and world.clock.sleepers == 2)
        await world.clock.advance(31)
        await world.until(lambda: world.shelf.of() == [1, 2] and len(world.wire.recorded) == 2)
    assert world.reader.opened == [[1, 2]], "the base is gone: its database serves"
    assert outcomes(world.wire.recorded)[-1] == (second.upload_id, "completed")
    assert not [key for key in world.bucket.objects if first.upload_id in key]


class PrunedWhenRead(FaultyStore):
    """Once a manifest has been read, all but the newest upload is deleted."""

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
    ("spoiled", "why"),
    [
        ({"manifest.json": b"{}"}, "not a manifest"),
        ({"manifest.json": b" " * (16 * 2**20 + 1)}, "larger than any manifest"),
        ({"memories.json": b"x" * 100_000}, "larger than the"),
    ],
)
async def test_what_can_never_be_right_is_refused_at_once_and_the_next_upload_makes_up_for_it(world, spoiled, why):
    await world.laptop.upload(0, [1, 2], spoiled=spoiled)
    summary = await world.once()
    assert not summary.success
    assert summary.outcomes[LAPTOP].refused == 1
    (event,) = world.wire.recorded
    assert isinstance(event, IngestFailed)
    assert why in event.error
    assert event.retry_at is None
    await world.laptop.upload(1, [1, 2, 3], new=[3], base=0)
    assert (await world.once()).success
    assert world.shelf.of() == [1, 2, 3]


async def test_a_foreign_manifest_under_an_id_far_ahead_keeps_no_upload_from_being_taken(world):
    for foreign in ("99991231_235959_X", f"20990101_000000_{LAPTOP}"):
        world.bucket.objects[f"systems/{LAPTOP}/uploads/{foreign}/manifest.json"] = b"{}", {}
    for second in range(2):
        await world.laptop.upload(second, [1, 2, 3][: second + 2])
        assert (await world.once()).success
    assert world.shelf.of() == [1, 2, 3]


async def test_a_manifest_may_not_tell_of_another_system_nor_of_objects_elsewhere(world):
    stranger = Sender(world.store, world.laptop.scratch, system="stranger")
    theirs = await stranger.upload(0, [9])
    moved = theirs.encode().replace(b"stranger/uploads", b"laptop-7/uploads")
    for second, manifest in enumerate((theirs.encode(), moved)):
        await world.laptop.upload(second, [1], spoiled={"manifest.json": manifest})
    summary = await world.once(LAPTOP)
    assert (summary.outcomes[LAPTOP].refused, world.shelf.rows) == (2, {})
    assert not [key for key in world.store.keys("get") if "memories" in key or "duckdb" in key]


async def test_memories_that_claim_another_system_are_refused(world):
    stranger = Sender(world.store, world.laptop.scratch, system="stranger-2")
    document = await stranger._document([memory(9)])
    manifest = await world.laptop.upload(0, [1])
    recorded = replace(manifest.memories, size=len(document), sha256=hashlib.sha256(document).hexdigest())
    await world.laptop.upload(0, [1], memories=recorded, spoiled={"memories.json": document})
    summary = await world.once()
    assert (summary.outcomes[LAPTOP].refused, world.shelf.rows) == (1, {})


async def test_a_gzip_bomb_ends_where_the_manifest_ends(world):
    bomb = gzip.compress(b"0" * 4_000_000)
    manifest = await world.laptop.upload(0, [1, 2], without_memories=True)
    (part,) = manifest.parts
    parts = (replace(part, stored_size=len(bomb)),)
    await world.laptop.upload(0, [1, 2], without_memories=True, parts=parts, spoiled={part.name: bomb})
    await world.once()
    (event,) = world.wire.recorded
    assert "unpacks to more than the 4 bytes" in event.error


async def test_limits_are_those_of_sizes_that_a_manifest_tells(world):
    manifest = await world.laptop.upload(0, [1])
    await world.laptop.upload(0, [1], memories=replace(manifest.memories, size=9 * 2**30))
    (part,) = (await world.laptop.upload(1, [1, 2], without_memories=True)).parts
    parts = (replace(part, raw_size=65 * 2**30),)
    await world.laptop.upload(1, [1, 2], without_memories=True, parts=parts)
    await world.once()
    assert [(": the limit is " in event.error, event.retry_at) for event in world.wire.recorded] == [(True, None)] * 2
    assert not [key for key in world.store.keys("get") if not key.endswith("manifest.json")]


async def test_a_disk_without_room_is_waited_for(world, monkeypatch):
    usage = shutil.disk_usage(world.place)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=200 * 2**20))
    await world.laptop.upload(0, [1])
    summary = await world.once()
    assert "bytes free in" in summary.failures[LAPTOP]
    (event,) = world.wire.recorded
    assert event.retry_at is not None


@pytest.mark.parametrize("name", ["memories.json", "reflection.duckdb"])
async def test_a_half_propagated_object_is_waited_for_and_given_up_in_the_end(world, name):
    delta = name == "memories.json"
    whole = await world.laptop.upload(0, [1, 2], without_memories=not delta)
    (key,) = [key for key in world.bucket.objects if key.endswith(name)]
    right = world.bucket.objects[key]
    world.bucket.objects[key] = right[0][:-3], {}
    async with world.running():
        await world.until(lambda: len(world.wire.recorded) == 1)
        (event,) = world.wire.recorded
        assert (event.retry_at - event.time).total_seconds() == 30
        await world.until(lambda: world.clock.sleepers >= 2)
        world.bucket.objects[key] = right
        await world.clock.advance(31)
        await world.until(lambda: len(world.wire.recorded) == 2)
    assert (outcomes(world.wire.recorded)[-1], world.shelf.of()) == ((whole.upload_id, "completed"), [1, 2])


async def test_what_stays_wrong_is_given_up_and_not_fetched_again_for_each_upload_that_follows(world):
    await world.laptop.upload(0, [1], without_memories=True)
    await world.laptop.upload(1, [1, 2], without_memories=True, spoiled={"reflection.duckdb": b""})
    async with world.running():
        for attempt in range(1, TRIES):
            await world.until(lambda attempt=attempt: len(world.fetched("duckdb")) == attempt)
            await world.until(lambda: world.clock.sleepers == 2)
            await world.clock.advance(30 * 2 ** (attempt - 1) + 1)
        await world.until(lambda: len(world.wire.recorded) == 3)
    assert [event.retry_at is None for event in world.wire.recorded] == [False, True, True]
    assert len(world.fetched("duckdb")) == TRIES


async def test_a_database_that_the_engine_cannot_read_leaves_the_others_alone_and_waits_for_a_newer_upload(world):
    graph = await world.laptop.upload(0, UNREADABLE, database="knowledge_graph", new=[])
    both = await world.laptop.upload(1, [1], new=[1])
    bases = {"reflection": None, "knowledge_graph": world.laptop.id(-5)}
    parts = tuple(
        replace(part, key=part.key.replace(graph.upload_id, both.upload_id)) for part in (*graph.parts, *both.parts)
    )
    for part in graph.parts:
        world.bucket.objects[part.key.replace(graph.upload_id, both.upload_id)] = world.bucket.objects[part.key]
    await world.bucket.delete([key for key in world.bucket.objects if graph.upload_id in key])
    await world.laptop.upload(1, [1], parts=parts, memories=replace(both.memories, bases=bases))
    summary = await world.once()
    assert (summary.outcomes[LAPTOP].refused, world.shelf.of()) == (1, [1])
    assert "newer DuckDB" in world.wire.recorded[0].error


async def test_a_kill_between_push_and_position_repeats_nothing_that_shows(world, monkeypatch):
    await world.laptop.upload(0, [1, 2, 3])
    note = world.ledger.note

    async def killed(key, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(world.ledger, "note", killed)
    with pytest.raises(KeyboardInterrupt):
        await world.reactor()._ingester(LAPTOP).catch_up()
    assert world.shelf.of() == [1, 2, 3]
    monkeypatch.setattr(world.ledger, "note", note)
    world.shelf.stored.clear()
    assert (await world.once()).success
    assert world.shelf.stored == []
    assert outcomes(world.wire.recorded) == [(world.laptop.id(0), "completed")]


async def test_akosha_down_is_said_once_waited_for_and_loses_nothing(world, capsys):
    other = Sender(world.store, world.laptop.scratch, system="desktop")
    await world.laptop.upload(0, [1, 2, 3])
    world.shelf.errors = [None, DOWN]
    async with world.running():
        await world.until(lambda: len(world.wire.recorded) == 1 and world.clock.sleepers == 2)
        world.shelf.down = DOWN
        await world.wire.publish(replace(succeeded(await other.upload(0, [7])), system_id="desktop"))
        await world.until(lambda: len(world.wire.recorded) == 3 and world.clock.sleepers == 3)
        await world.clock.advance(31)
        await world.until(lambda: world.clock.sleepers == 3)
        assert world.shelf.of() == [1, 2]
        world.shelf.down = None
        await world.clock.advance(30)  # the pass finds it healthy: nobody waits for the time of the next try
        await world.until(lambda: world.shelf.of() == [1, 2, 3] and world.shelf.of("desktop") == [7])
    assert [event.retry_at is not None for event in world.wire.recorded if isinstance(event, IngestFailed)] == [
        True,
        True,
    ]
    assert capsys.readouterr().out.count("[warning") == 1


async def test_memories_that_wait_or_are_refused_are_reported_and_go_when_a_new_akosha_takes_them(world):
    world.shelf.refuses = "conversation-2"
    await world.laptop.upload(0, [1, 2], new=[1, 2, memory(3, embedded=False)])
    await world.once()
    (event,) = world.wire.recorded
    assert (event.stored, dict(event.kept_back)) == (1, {"too long": 1, "no embedding": 1})
    world.shelf.refuses = ""
    await world.once()
    assert world.shelf.of() == [1]
    world.shelf.version = "2"
    await world.once()
    assert set(world.shelf.of()) == {1, 2}
    assert {event.id for event in world.wire.recorded} == {event.id}


async def test_one_system_that_stands_still_holds_up_no_other(world):
    slow = Sender(world.store, world.laptop.scratch, system="slow")
    await slow.upload(0, [1])
    await world.laptop.upload(0, [1])
    reached = world.store.stall("get", key=f"{slow.id(0)}/memories.json", times=99)
    async with world.running():
        await reached.wait()
        await world.until(lambda: world.wire.recorded)
        await world.laptop.upload(1, [1, 2], new=[2], base=0)
        await world.wire.publish(succeeded(await world.laptop.upload(1, [1, 2], new=[2], base=0)))
        await world.until(lambda: world.shelf.of() == [1, 2])
    assert world.shelf.of("slow") == []


ROWS = 300


async def with_hostile_systems(world: World, count: int, rows: int = ROWS) -> None:
    """Put uploads of systems with the same row over and over, and one row of a system that comes after them."""
    for number in range(count):
        sender = Sender(world.store, world.laptop.scratch, system=f"hostile-{number}")
        await sender.upload(0, [1] * rows, without_memories=True)
    await Sender(world.store, world.laptop.scratch, system="later").upload(0, [7])


def rows_read_before_all_had_a_turn(monkeypatch, systems: int) -> list[int]:
    """Return a list that gets how many rows had been read from databases when the last system got its first turn.

    No turn ends before all systems have asked for theirs: threads bring them there in any order.
    """
    read, asked, given, found = 0, set[Turn](), set[Turn](), list[int]()
    all_asked = asyncio.Event()
    pages, begin, pause = ListedMemories.pages, Turn.begin, Turn.pause

    async def counted(source):
        nonlocal read
        async for page in pages(source):
            read += len(page)
            yield page

    async def counted_begin(turn):
        asked.add(turn)
        if len(asked) == systems:
            all_asked.set()
        await begin(turn)
        given.add(turn)
        if len(given) == systems and not found:
            found.append(read)

    async def held_pause(turn, moved, every_seconds):
        await all_asked.wait()
        await pause(turn, moved, every_seconds)

    monkeypatch.setattr(ListedMemories, "pages", counted)
    monkeypatch.setattr(Turn, "begin", counted_begin)
    monkeypatch.setattr(Turn, "pause", held_pause)
    return found


@pytest.mark.parametrize("hostile", [4, 6])
async def test_systems_with_rows_without_end_leave_the_others_their_turn_and_are_gone_on_with(
    world, monkeypatch, hostile
):
    await with_hostile_systems(world, hostile)
    found = rows_read_before_all_had_a_turn(monkeypatch, hostile + 1)
    summary = await world.reactor(share=Share(rows=9)).once()
    assert found[0] <= 3 * hostile * 9 < ROWS, "three turns of each at most, each of nine rows"
    assert all(caught.ingested == 1 for caught in summary.outcomes.values()), "what had to wait lost nothing"
    assert [len(rows) for rows in world.reader.opened] == [ROWS] * hostile, "each was opened once"


async def test_a_turn_ends_with_its_bytes_and_with_its_time_too(world, monkeypatch):
    await with_hostile_systems(world, 4, rows=150)
    found = rows_read_before_all_had_a_turn(monkeypatch, 5)
    await world.reactor(share=Share(raw_bytes=300)).once()
    assert found[0] < 150, "a file of 300 bytes alone is a turn: all have one before any is read to its end"
    slow = Sender(world.store, world.laptop.scratch, system="later")
    await slow.upload(1, [7, 8], without_memories=True)
    assert (await world.reactor(share=Share(seconds=0)).once()).success


async def test_a_system_beyond_the_limit_of_rows_is_refused_with_the_reason(world):
    await with_hostile_systems(world, 1)
    summary = await world.reactor(limits=Limits(rows=100)).once()
    caught = summary.outcomes["hostile-0"]
    assert (caught.ingested, caught.refused, summary.outcomes["later"].ingested) == (0, 1, 1)
    assert "the limit is 100" in caught.refusal
    (event,) = [event for event in await world.events() if isinstance(event, IngestFailed)]
    assert event.error == caught.refusal


async def test_a_system_beyond_the_limit_of_bytes_is_refused_before_anything_is_downloaded(world):
    await with_hostile_systems(world, 1, rows=3000)
    summary = await world.reactor(limits=Limits(raw_bytes=5999)).once()
    assert "the limit is 5,999" in summary.outcomes["hostile-0"].refusal
    assert summary.outcomes["later"].ingested == 1
    assert not [key for key in world.fetched(".duckdb") if "hostile" in key]


async def test_a_broken_system_fails_alone_and_more_systems_than_turns_are_all_taken(world):
    senders = [Sender(world.store, world.laptop.scratch, system=f"s-{number}") for number in range(9)]
    for number, sender in enumerate(senders):
        await sender.upload(0, [number])
    world.store.fail("get", StoreError("503", transient=True), key=f"{senders[3].id(0)}/memories.json", times=99)
    summary = await world.once()
    assert (list(summary.failures), len(summary.outcomes), summary.success) == (["s-3"], 8, False)


async def test_a_result_wakes_its_system_alone_and_one_without_a_bucket_or_of_others_wakes_none(world):
    async with world.running(bus=True) as reactor:
        await world.until(lambda: world.clock.sleepers)
        manifest = await world.laptop.upload(0, [1])
        await world.wire.publish(replace(succeeded(manifest), manifest_key=""))
        await world.wire.publish(replace(succeeded(manifest), system_id="nobody"))
        await world.until(lambda: not reactor._ingesters)
        assert world.shelf.of() == []
        await world.wire.publish(succeeded(manifest))
        await world.until(lambda: world.shelf.of() == [1] and list(reactor._ingesters) == [LAPTOP])


async def test_a_result_that_was_missed_is_found_by_looking_without_a_bus_every_minute(world):
    async with world.running(bus=False):
        await world.until(lambda: world.clock.sleepers)
        await world.laptop.upload(0, [1])
        await world.clock.advance(61)
        async with asyncio.timeout(60):
            while not await world.events():
                pass
    assert world.shelf.of() == [1]
    assert outcomes(await world.events()) == [(world.laptop.id(0), "completed")]


async def test_named_systems_are_the_only_ones(world):
    other = Sender(world.store, world.laptop.scratch, system="desktop")
    await other.upload(0, [7])
    await world.laptop.upload(0, [1])
    await world.once("desktop")
    assert (world.shelf.of(), world.shelf.of("desktop")) == ([], [7])


async def test_results_wait_for_a_bus_that_is_away_also_over_a_restart(world):
    world.wire.down = True
    await world.laptop.upload(0, [1])
    await world.once()
    assert (world.wire.recorded, len(await world.events())) == ([], 1)
    world.wire.down = False
    await world.once()
    (event,) = world.wire.recorded
    assert isinstance(event, IngestCompleted)
    await world.once()
    assert len(world.wire.recorded) == 1


async def test_a_damaged_position_restarts_and_nothing_is_stored_twice(world):
    await world.laptop.upload(0, [1, 2])
    await world.once()
    (key,) = [key for key in await world.ledger.notes() if key.endswith(LAPTOP)]
    await world.ledger.note(key, "{")
    world.shelf.stored.clear()
    await world.once()
    assert world.shelf.stored == []


async def test_another_akosha_is_given_everything(world):
    await world.laptop.upload(0, [1, 2])
    await world.once()
    world.shelf.rows.clear()
    reactor = world.reactor()
    elsewhere = IngestService(
        IDENTITY, replace(reactor.ingest, endpoint="another"), world.ledger, None, world.clock, (), rescan_seconds=60
    )
    assert (await elsewhere.once()).success
    assert world.shelf.of() == [1, 2]
