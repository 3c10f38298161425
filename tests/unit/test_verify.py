"""The agent's own look at its newest upload: when it looks, what it tells, and what it has sent again."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from agent.adapters.memory_bus import MemoryBus
from agent.adapters.wire import CloudEventsCodec
from agent.application.archive.catalog import Catalog
from agent.application.archive.verify import MOST_PROBLEMS, Verifier, VerifyResult
from agent.application.archive.verify_loop import FIRST_SECONDS, VerifyLoop, VerifyReporter
from agent.application.monitoring.status import VerifyStatus
from agent.application.signal import Signal
from agent.application.sync.results import ResultRecorder
from agent.domain.delivery_state import State
from agent.domain.errors import SnapshotError, StoreError
from agent.domain.events import UploadVerified
from agent.domain.identity import Identity
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.ledger import inline_ledger
from tests.support.memory_store import MemoryStore

DAY = 86_400.0
REFLECTION, GRAPH = "reflection", "knowledge_graph"
IDENTITY = Identity("agent-1", values.SYSTEM)


@dataclass
class Taker:
    seen: dict = field(
        default_factory=lambda: {name: values.fingerprint(name) for name in ("reflection", "knowledge_graph")}
    )

    async def survey(self):
        if self.seen is None:
            raise SnapshotError("closed")
        return self.seen


class World:
    """A ledger, a bucket and the loop; `asked` counts how often a sync was asked for, `opened` the looks."""

    def __init__(self, ledger, clock) -> None:
        self.ledger, self.clock, self.kept, self.taker = ledger, clock, MemoryStore(), Taker()
        self.store, self.sync_lock, self.asked, self.opened = FaultyStore(self.kept), asyncio.Lock(), 0, 0
        recorder = ResultRecorder(ledger, MemoryBus(clock), clock)
        reporter = VerifyReporter(IDENTITY, ledger, recorder, clock)
        self.look = VerifyLoop(
            open_verifier=self._opening,
            reporter=reporter,
            target=values.TARGET,
            ledger=ledger,
            clock=clock,
            taker=self.taker,
            sync_lock=self.sync_lock,
            every=timedelta(days=1),
            rescan_seconds=300,
            sync_again=self._owed,
            signal=Signal(clock, "verify"),
        )

    @asynccontextmanager
    async def _opening(self):
        self.opened += 1
        yield Verifier(Catalog(self.store, values.SYSTEM), self.clock)

    async def _owed(self) -> None:
        self.asked += 1

    async def upload(self, second: int, **databases: int) -> None:
        """Deliver an upload: into the bucket, and into the ledger."""
        manifest = values.manifest(second, f"r{second}", **databases)
        for part in manifest.parts:
            self.kept.objects[part.key] = bytes(part.stored_size), part.metadata
        self.kept.objects[manifest.key] = manifest.encode(), {}
        await self.ledger.mark_owed(values.TARGET, list(databases))
        await self.ledger.begin(values.TARGET, values.intent(second, f"r{second}", **databases))
        seen = {name: values.fingerprint(name) for name in databases}
        await self.ledger.deliver(values.TARGET, manifest, seen, {}, values.succeeded(manifest))
        for event in await self.ledger.outbox():
            await self.ledger.confirm(event)

    async def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        await self.clock.until_asleep()  # the loop is, when it has done what it does now
        while (due := self.clock.next_due) is not None and self.clock.monotonic() + due <= end:
            await self.clock.advance(due)
            await self.clock.until_asleep()
        await self.clock.advance(end - self.clock.monotonic())

    async def recorded(self) -> list[UploadVerified]:
        return [event for event in await self.ledger.outbox() if isinstance(event, UploadVerified)]

    async def status(self) -> VerifyStatus | None:
        return VerifyStatus.from_notes(await self.ledger.notes())

    async def states(self):
        record = await self.ledger.record(values.TARGET)
        return {name: entry.state for name, entry in record.databases.items()}


@pytest.fixture
async def world(tmp_path):
    clock = ManualClock(values.NOON)
    ledger = inline_ledger(clock)
    made = World(ledger, clock)
    await made.upload(0, reflection=1, knowledge_graph=1)
    running = asyncio.create_task(made.look.run())
    yield made
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    await ledger.aclose()


def part_key(second: int, database: str) -> str:
    return values.parts(database, 1, second=second)[0].key


async def test_it_looks_some_time_after_the_start_and_then_once_a_day(world):
    await world.pass_time(FIRST_SECONDS - 1)
    assert world.opened == 0
    await world.pass_time(5)
    assert world.opened == 1
    await world.pass_time(DAY - 60)
    assert world.opened == 1
    await world.pass_time(120)
    assert world.opened == 2
    first, second = await world.recorded()
    assert (first.upload_id, first.whole, first.deep, first.objects) == (values.upload_id(0), True, False, 5)
    assert first.id != second.id
    assert (await world.status()).whole
    assert world.asked == 0


async def test_what_was_looked_at_lately_is_not_looked_at_after_a_start(world):
    last = VerifyStatus(upload_id=values.upload_id(0), at=world.clock.now(), problems={}, whole=True)
    await world.ledger.note("verified", last.note())
    await world.pass_time(DAY - 60)
    assert world.opened == 0
    await world.pass_time(120)
    assert world.opened == 1


async def test_a_note_from_the_future_does_not_keep_it_from_looking(world):
    at = world.clock.now() + timedelta(days=4000)
    await world.ledger.note("verified", VerifyStatus(upload_id="x", at=at, problems={}, whole=True).note())
    await world.pass_time(FIRST_SECONDS + 5)
    assert (world.opened, (await world.status()).upload_id) == (1, values.upload_id(0))


async def test_what_is_damaged_is_reported_and_owed_and_asked_for(world):
    del world.kept.objects[part_key(0, "knowledge_graph")]
    await world.pass_time(FIRST_SECONDS + 5)
    (event,) = await world.recorded()
    assert (event.whole, dict(event.problems)) == (False, {"knowledge_graph.duckdb": "is missing"})
    status = await world.status()
    assert (status.whole, dict(status.problems)) == (False, dict(event.problems))
    assert await world.states() == {"reflection": State.CLEAN, "knowledge_graph": State.OWED}
    assert not (await world.ledger.record(values.TARGET)).databases["knowledge_graph"].parts, (
        "nothing of it is copied again"
    )
    assert world.asked == 1
    await world.pass_time(DAY / 2)
    assert (world.opened, world.asked) == (1, 1)


async def test_the_upload_that_mends_it_is_looked_at_soon(world):
    del world.kept.objects[part_key(0, "knowledge_graph")]
    await world.pass_time(FIRST_SECONDS + 5)
    await world.upload(10, reflection=1, knowledge_graph=1)
    await world.pass_time(1000)
    status = await world.status()
    assert (status.upload_id, status.whole) == (values.upload_id(10), True)


async def test_without_its_manifest_everything_that_is_still_here_is_owed(world):
    del world.kept.objects[values.manifest(0).key]
    del world.taker.seen["knowledge_graph"]
    await world.pass_time(FIRST_SECONDS + 5)
    assert await world.states() == {"reflection": State.OWED, "knowledge_graph": State.CLEAN}


async def test_what_is_no_longer_here_cannot_be_sent_and_is_not_forgotten(world):
    del world.kept.objects[part_key(0, "knowledge_graph")]
    del world.taker.seen["knowledge_graph"]
    await world.pass_time(FIRST_SECONDS + 5)
    assert State.OWED not in (await world.states()).values()
    assert (world.asked, (await world.status()).whole) == (0, False)


async def test_a_bucket_that_cannot_be_asked_is_no_damage_and_is_asked_again(world):
    world.store.fail("get", StoreError("the network is down", transient=True), times=3)
    await world.pass_time(FIRST_SECONDS + 5)
    assert (world.opened, await world.recorded(), await world.status(), world.asked) == (1, [], None, 0)
    await world.pass_time(1000)
    assert (world.opened, (await world.status()).whole) == (4, True)


async def test_it_waits_while_a_sync_runs(world):
    async with world.sync_lock:
        await world.pass_time(FIRST_SECONDS + 1000)
        assert world.opened == 0
    await world.pass_time(301)
    assert world.opened == 1


async def test_an_event_names_some_of_many_problems_and_fits(world):
    problems = {f"{number:03}.duckdb": "is missing" * 100 for number in range(500)}
    found = VerifyResult(upload_id=values.upload_id(), deep=True, objects=501, manifest=None, problems=problems)
    event = found.event(IDENTITY, world.clock)
    assert len(event.problems) == MOST_PROBLEMS + 1
    assert event.problems["..."] == "480 more"
    assert CloudEventsCodec().decode(CloudEventsCodec().encode(event)) == event


def test_damaged_memories_have_the_databases_sent_again_whose_rows_they_were():
    manifest = replace(values.manifest(reflection=1, knowledge_graph=1), memories=values.memories_part(reflection=None))
    found = VerifyResult(
        upload_id=manifest.upload_id,
        deep=False,
        objects=5,
        manifest=manifest,
        problems={"memories.json": "is missing"},
    )
    assert found.damaged == {"reflection"}


@pytest.mark.parametrize("note", ["", "{}", "[]", "null", '{"upload_id": 1, "at": "yesterday", "problems": {}}'])
def test_a_note_that_is_none_counts_as_no_look(note):
    assert VerifyStatus.from_notes({"verified": note}) is None
