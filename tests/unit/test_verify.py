"""The daily verification of the newest upload: its schedule, its report, and the databases uploaded again."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from agent.adapters.memory_bus import MemoryDurableBus
from agent.adapters.wire import CloudEventsCodec
from agent.application.archive.catalog import Catalog
from agent.application.archive.target_check import CHECK_FAILED, EVERY_SECONDS, TargetCheck
from agent.application.archive.verify import MOST_PROBLEMS, Verifier, VerifyResult
from agent.application.archive.verify_loop import (
    FIRST_SECONDS,
    VERIFICATION_WAITS,
    VerifyLoop,
    VerifyReporter,
    record_verified,
)
from agent.application.monitoring.status import VerifyStatus
from agent.application.signal import Signal
from agent.application.status_warnings import warnings_in
from agent.application.sync.results import ResultRecorder
from agent.domain.delivery_state import State
from agent.domain.errors import NoSuchObject, SnapshotError, StoreError, UnreadableObject
from agent.domain.events import UploadVerified
from agent.domain.identity import Identity
from agent.entrypoints.cli.verify import _lines
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.ledger import inline_ledger
from tests.support.memory_store import MemoryStore

DAY = 86_400.0
REFLECTION, GRAPH = "reflection", "knowledge_graph"
IDENTITY = Identity("agent-1", values.SYSTEM)


@dataclass
class FakeSnapshotTaker:
    seen: dict = field(
        default_factory=lambda: {name: values.fingerprint(name) for name in ("reflection", "knowledge_graph")}
    )

    async def survey(self):
        if self.seen is None:
            raise SnapshotError("closed")
        return self.seen


class Setup:
    """A ledger, a bucket and the loop.

    `sync_requests`, `opened` and `checked` count requested syncs, verifications and hourly checks.
    """

    def __init__(self, ledger, clock) -> None:
        self.ledger, self.clock, self.kept, self.taker = ledger, clock, MemoryStore(), FakeSnapshotTaker()
        self.store, self.sync_lock, self.sync_requests, self.opened = FaultyStore(self.kept), asyncio.Lock(), 0, 0
        recorder = ResultRecorder(ledger, MemoryDurableBus(clock), clock)
        reporter = VerifyReporter(IDENTITY, ledger, recorder, clock)
        self.loop = VerifyLoop(
            open_verifier=self._open_verifier,
            reporter=reporter,
            target=values.TARGET,
            ledger=ledger,
            clock=clock,
            taker=self.taker,
            sync_lock=self.sync_lock,
            every=timedelta(days=1),
            rescan_seconds=300,
            sync_again=self._request_sync,
            signal=Signal(clock, "verify"),
            target_check=TargetCheck(self._open_check, values.TARGET, ledger, clock),
        )
        self.checked = 0

    @asynccontextmanager
    async def _open_verifier(self):
        self.opened += 1
        yield Verifier(Catalog(self.store, values.SYSTEM), self.clock)

    @asynccontextmanager
    async def _open_check(self):
        self.checked += 1
        yield Verifier(Catalog(self.store, values.SYSTEM), self.clock)

    async def warnings(self) -> list[str]:
        return [warning.code for warning in warnings_in(await self.ledger.notes())]

    async def _request_sync(self) -> None:
        self.sync_requests += 1

    async def upload(self, second: int, **databases: int) -> None:
        """Deliver an upload to the bucket and the ledger."""
        manifest = values.manifest(second, f"r{second}", **databases)
        for part in manifest.parts:
            self.kept.objects[part.key] = bytes(part.stored_size), part.objects[0].metadata
        self.kept.objects[manifest.key] = manifest.encode(), {}
        await self.ledger.mark_owed(values.TARGET, list(databases))
        await self.ledger.begin(values.TARGET, values.intent(second, f"r{second}", **databases))
        seen = {name: values.fingerprint(name) for name in databases}
        await self.ledger.deliver(values.TARGET, manifest, seen, {}, values.succeeded(manifest))
        for event in await self.ledger.outbox():
            await self.ledger.confirm(event)

    async def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        await self.clock.until_asleep()  # until the loop has finished its current step
        while (due := self.clock.next_due) is not None and self.clock.monotonic() + due <= end:
            await self.clock.advance(due)
            await self.clock.until_asleep()
        await self.clock.advance(end - self.clock.monotonic())

    async def recorded(self) -> list[UploadVerified]:
        return [event for event in await self.ledger.outbox() if isinstance(event, UploadVerified)]

    async def status(self) -> VerifyStatus | None:
        return VerifyStatus.from_notes(await self.ledger.notes(), values.TARGET)

    async def states(self):
        record = await self.ledger.record(values.TARGET)
        return {name: entry.state for name, entry in record.databases.items()}


@pytest.fixture
async def setup(tmp_path):
    clock = ManualClock(values.NOON)
    ledger = inline_ledger(clock)
    made = Setup(ledger, clock)
    await made.upload(0, reflection=1, knowledge_graph=1)
    running = asyncio.create_task(made.loop.run())
    yield made
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    await ledger.aclose()


def part_key(second: int, database: str) -> str:
    return values.parts(database, 1, second=second)[0].key


async def test_the_newest_upload_is_verified_after_the_start_and_then_daily(setup):
    await setup.pass_time(FIRST_SECONDS - 1)
    assert setup.opened == 0
    await setup.pass_time(5)
    assert setup.opened == 1
    await setup.pass_time(DAY - 60)
    assert setup.opened == 1
    await setup.pass_time(120)
    assert setup.opened == 2
    first, second = await setup.recorded()
    assert (first.upload_id, first.whole, first.deep, first.objects) == (values.upload_id(0), True, False, 5)
    assert first.id != second.id
    assert (await setup.status()).whole
    assert setup.sync_requests == 0


async def test_a_recent_verification_is_not_repeated_at_start(setup):
    last = VerifyStatus(upload_id=values.upload_id(0), at=setup.clock.now(), problems={}, whole=True)
    await setup.ledger.note("verified", last.note(values.TARGET))
    await setup.pass_time(DAY - 60)
    assert setup.opened == 0
    await setup.pass_time(120)
    assert setup.opened == 1


async def test_a_note_from_the_future_does_not_prevent_a_verification(setup):
    at = setup.clock.now() + timedelta(days=4000)
    await setup.ledger.note("verified", VerifyStatus(upload_id="x", at=at, problems={}, whole=True).note(values.TARGET))
    await setup.pass_time(FIRST_SECONDS + 5)
    assert (setup.opened, (await setup.status()).upload_id) == (1, values.upload_id(0))


async def test_a_damaged_database_is_reported_owed_and_requested(setup):
    del setup.kept.objects[part_key(0, "knowledge_graph")]
    await setup.pass_time(FIRST_SECONDS + 5)
    (event,) = await setup.recorded()
    assert (event.whole, dict(event.problems)) == (False, {"knowledge_graph.duckdb": "is missing"})
    status = await setup.status()
    assert (status.whole, dict(status.problems)) == (False, dict(event.problems))
    assert (status.databases, status.damaged) == ((GRAPH, REFLECTION), (GRAPH,))
    assert await setup.states() == {"reflection": State.CLEAN, "knowledge_graph": State.OWED}
    assert not (await setup.ledger.record(values.TARGET)).databases["knowledge_graph"].parts, (
        "damaged parts are not reused"
    )
    assert setup.sync_requests == 1
    await setup.pass_time(DAY / 2)
    assert (setup.opened, setup.sync_requests) == (1, 1)


@pytest.mark.parametrize(
    ("name", "call", "owed"),
    [("knowledge_graph.duckdb", "head", {"knowledge_graph"}), ("manifest.json", "get", {REFLECTION, GRAPH})],
)
async def test_an_object_that_its_disk_cannot_read_is_damaged(setup, name, call, owed):
    setup.store.fail(call, UnreadableObject("cannot read it: Input/output error", transient=True), key=name)
    await setup.pass_time(FIRST_SECONDS + 5)
    (event,) = await setup.recorded()
    assert [problem[:14] for problem in event.problems.values()] == [
        "cannot be read" if call == "head" else "cannot read it"
    ]
    assert {found for found, state in (await setup.states()).items() if state is State.OWED} == owed
    assert setup.sync_requests == 1


@pytest.mark.parametrize(
    ("found", "damaged"),
    [
        ({}, ()),
        ({"knowledge_graph.duckdb": "is missing"}, (GRAPH,)),
        ({"memories.json": "is missing"}, (GRAPH, REFLECTION)),
        ({"...": "9 more"}, (GRAPH, REFLECTION)),
    ],
)
async def test_the_command_verify_reports_which_databases_are_damaged(setup, found, damaged):
    event = VerifyResult(upload_id=values.upload_id(0), deep=True, objects=5, manifest=None, problems=found)
    await record_verified(event.event(IDENTITY, setup.clock), values.TARGET, setup.ledger, setup.clock)
    status = await setup.status()
    assert (status.manual, status.databases, status.damaged) == (True, (GRAPH, REFLECTION), damaged)


async def test_the_upload_that_repairs_the_damage_is_verified_soon(setup):
    del setup.kept.objects[part_key(0, "knowledge_graph")]
    await setup.pass_time(FIRST_SECONDS + 5)
    await setup.upload(10, reflection=1, knowledge_graph=1)
    await setup.pass_time(1000)
    status = await setup.status()
    assert (status.upload_id, status.whole) == (values.upload_id(10), True)


async def test_without_its_manifest_all_existing_databases_are_owed(setup):
    del setup.kept.objects[values.manifest(0).key]
    del setup.taker.seen["knowledge_graph"]
    await setup.pass_time(FIRST_SECONDS + 5)
    assert await setup.states() == {"reflection": State.OWED, "knowledge_graph": State.CLEAN}


async def test_a_damaged_database_deleted_from_the_disk_is_not_owed(setup):
    del setup.kept.objects[part_key(0, "knowledge_graph")]
    del setup.taker.seen["knowledge_graph"]
    await setup.pass_time(FIRST_SECONDS + 5)
    assert State.OWED not in (await setup.states()).values()
    assert (setup.sync_requests, (await setup.status()).whole) == (0, False)


async def test_an_unreachable_bucket_is_not_damage_and_is_verified_later(setup):
    setup.store.fail("get", StoreError("the network is down", transient=True), times=3)
    await setup.pass_time(FIRST_SECONDS + 5)
    assert (setup.opened, await setup.recorded(), await setup.status(), setup.sync_requests) == (1, [], None, 0)
    await setup.pass_time(1000)
    assert (setup.opened, (await setup.status()).whole) == (4, True)


async def test_a_deleted_bucket_is_the_verdict_within_an_hour_and_until_it_can_be_read_again(setup):
    gone = StoreError("bucket memories does not exist at s3.test")
    await setup.pass_time(FIRST_SECONDS + 5)
    setup.store.fail("head", gone, times=1)
    await setup.pass_time(EVERY_SECONDS)
    assert (setup.opened, setup.checked, await setup.warnings()) == (1, 1, [CHECK_FAILED])
    assert await setup.status(), "the last verification is still shown"
    setup.loop.signal.set()  # a sync has made an upload in a new bucket
    await setup.pass_time(5)
    assert (setup.checked, await setup.warnings()) == (2, [])
    setup.store.fail("head", StoreError("the network is down", transient=True), times=1)
    await setup.pass_time(EVERY_SECONDS)
    assert (setup.checked, await setup.warnings(), setup.sync_requests) == (3, [], 0)


async def test_an_emptied_bucket_is_reported_and_filled_within_an_hour(setup):
    await setup.pass_time(FIRST_SECONDS + 5)
    setup.kept.objects.clear()
    await setup.pass_time(EVERY_SECONDS + 5)
    assert not (await setup.status()).whole
    assert (setup.sync_requests, State.CLEAN in (await setup.states()).values()) == (1, False)


async def test_a_verification_waits_while_a_sync_runs(setup):
    async with setup.sync_lock:
        await setup.pass_time(FIRST_SECONDS + 1000)
        assert setup.opened == 0
    await setup.pass_time(301)
    assert setup.opened == 1


async def test_a_requested_verification_is_made_at_once_also_shortly_after_the_start(setup):
    await setup.loop.request()
    await setup.pass_time(1)
    assert (setup.opened, [event.whole for event in await setup.recorded()]) == (1, [True])
    await setup.loop.request()
    await setup.pass_time(1)
    await setup.pass_time(DAY / 2)
    assert (setup.opened, len(await setup.recorded())) == (2, 2)


async def test_a_requested_verification_waits_for_the_sync_and_for_the_bucket(setup):
    async with setup.sync_lock:
        await setup.loop.request()
        await setup.pass_time(100)
        assert setup.opened == 0
    setup.store.fail("get", StoreError("the network is down", transient=True), times=1)
    await setup.pass_time(10)
    assert (setup.opened, await setup.recorded()) == (1, [])
    assert await setup.warnings() == [VERIFICATION_WAITS]
    await setup.pass_time(301)
    assert (setup.opened, len(await setup.recorded()), await setup.warnings()) == (2, 1, [])


async def test_a_verification_that_was_requested_during_a_sync_is_made_after_a_restart(setup):
    await setup.pass_time(FIRST_SECONDS + 5)
    async with setup.sync_lock:  # so the first agent does not make it
        await setup.loop.request()
        await setup.pass_time(1)
        later = Setup(setup.ledger, setup.clock)
        later.store = setup.store
        running = asyncio.create_task(later.loop.run())
        await setup.pass_time(FIRST_SECONDS + 5)
        assert (setup.opened, later.opened, len(await setup.recorded())) == (1, 1, 2)
        await setup.pass_time(DAY / 2)
        assert later.opened == 1
        running.cancel()
        await asyncio.wait({running})


async def test_a_target_that_refuses_a_requested_verification_is_named_in_one_warning(setup):
    setup.store.fail("get", StoreError("403 AccessDenied", hint="allow s3:GetObject"), times=2)
    await setup.loop.request()
    await setup.pass_time(1)
    warnings = warnings_in(await setup.ledger.notes())
    assert {warning.code for warning in warnings} == {VERIFICATION_WAITS, CHECK_FAILED}
    assert [warning.code for warning in warnings if "AccessDenied" in str(warning)] == [CHECK_FAILED]
    await setup.pass_time(301)
    assert (len(await setup.recorded()), await setup.warnings()) == (1, [])


async def test_without_an_upload_a_verification_cannot_be_requested(tmp_path):
    clock = ManualClock(values.NOON)
    ledger = inline_ledger(clock)
    with pytest.raises(NoSuchObject):
        await Setup(ledger, clock).loop.request()
    await ledger.aclose()


async def test_an_event_with_many_problems_names_some_and_fits(setup):
    problems = {f"{number:03}.duckdb": "is missing" * 100 for number in range(500)}
    found = VerifyResult(upload_id=values.upload_id(), deep=True, objects=501, manifest=None, problems=problems)
    event = found.event(IDENTITY, setup.clock)
    assert len(event.problems) == MOST_PROBLEMS + 1
    assert event.problems["..."] == "480 more"
    assert CloudEventsCodec().decode(CloudEventsCodec().encode(event)) == event


def test_for_damaged_memories_the_databases_of_their_rows_are_damaged():
    manifest = replace(values.manifest(reflection=1, knowledge_graph=1), memories=values.memories_part(reflection=None))
    found = VerifyResult(
        upload_id=manifest.upload_id,
        deep=False,
        objects=5,
        manifest=manifest,
        problems={"memories.json.gz": "is missing"},
    )
    assert found.damaged == {"reflection"}


@pytest.mark.parametrize(
    ("deep", "notes", "unverified"),
    [(False, {}, {"reflection": "odd"}), (True, {"reflection": "odd"}, {"reflection": "odd"}), (True, {}, {})],
    ids=["shallow", "deep, still unreadable", "deep, readable now"],
)
def test_a_copy_that_could_not_be_verified_at_the_upload_is_not_called_intact_alone(deep, notes, unverified):
    manifest = values.manifest(reflection=1, knowledge_graph=1)
    parts = [replace(part, verified=part.database != "reflection", unverified_reason="odd") for part in manifest.parts]
    manifest = replace(manifest, parts=tuple(parts))
    found = VerifyResult(
        upload_id=manifest.upload_id, deep=deep, objects=3, manifest=manifest, problems={}, notes=notes
    )
    assert found.unverified == unverified
    first, *others = _lines(found, None)
    assert ("intact as uploaded," in first) is bool(unverified)
    expected = "  reflection: the copy could not be verified when it was uploaded: odd"
    assert (expected in others) is (bool(unverified) and not notes)
    assert len(others) == bool(unverified), others


@pytest.mark.parametrize("note", ["", "{}", "[]", "null", '{"upload_id": 1, "at": "yesterday", "problems": {}}'])
def test_an_invalid_note_counts_as_no_verification(note):
    assert VerifyStatus.from_notes({"verified": note}, values.TARGET) is None
