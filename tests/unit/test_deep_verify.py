"""The weekly deep verification: which upload is next, what it reports, and what follows from damage."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from agent.adapters.memory_bus import MemoryDurableBus
from agent.application.archive import verify_loop
from agent.application.archive.command_results import CommandResults
from agent.application.archive.deep_schedule import EVERY, DeepSchedule
from agent.application.archive.target_check import TargetCheck
from agent.application.archive.verify import VerifyResult, missing_upload
from agent.application.archive.verify_loop import (
    AGAIN_SECONDS,
    FIRST_SECONDS,
    DeepVerifier,
    VerifyLoop,
    VerifyReporter,
)
from agent.application.signal import Signal
from agent.application.status_warnings import warnings_in
from agent.application.sync.confirmed_upload import ConfirmedUpload
from agent.application.sync.results import ResultRecorder
from agent.domain.delivery_state import State
from agent.domain.errors import StagingFull, StoreError
from agent.domain.events import UploadsPruned, UploadVerified
from agent.domain.identity import Identity
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger

IDENTITY = Identity("agent-1", values.SYSTEM)
NEWEST, MIDDLE, OLDEST = IDS = [values.upload_id(second) for second in (200, 100, 0)]
WEEK = EVERY.total_seconds()


class ScriptedVerifier:
    """A verifier with scripted findings; `verified` lists the uploads in order."""

    def __init__(self) -> None:
        self.ids, self.verified, self.problems, self.error, self.left_out = list(IDS), [], {}, None, ()

    async def uploads(self):
        return self.ids

    async def shallow(self, upload):
        return self.result(upload, deep=False)

    async def deep(self, upload, *, most_bytes):
        if self.error is not None:
            raise self.error
        self.verified.append(upload)
        return replace(self.result(upload, deep=True), left_out=self.left_out)

    def result(self, upload, *, deep):
        manifest = values.manifest(IDS.index(upload), reflection=1, knowledge_graph=1)
        problems = {"reflection.duckdb": self.problems[upload]} if deep and upload in self.problems else {}
        return VerifyResult(upload_id=upload, deep=deep, objects=3, manifest=manifest, problems=problems)

    async def exists(self, upload):
        return True


class FailingCall:
    def __init__(self, error) -> None:
        self.error = error

    async def __call__(self, *arguments):
        raise self.error


class Setup:
    def __init__(self, ledger, clock) -> None:
        self.ledger, self.clock, self.verifier, self.sync_requests = ledger, clock, ScriptedVerifier(), 0
        self.sync_lock = asyncio.Lock()
        recorder = ResultRecorder(ledger, MemoryDurableBus(clock), clock)
        reporter = VerifyReporter(IDENTITY, ledger, recorder, clock)
        self.deep = DeepVerifier(self._open_verifier, reporter, ledger, clock, most_bytes=10)
        self.loop = VerifyLoop(
            open_verifier=self._open_verifier,
            reporter=reporter,
            target=values.TARGET,
            ledger=ledger,
            clock=clock,
            taker=self,
            sync_lock=self.sync_lock,
            every=timedelta(days=1),
            rescan_seconds=300,
            sync_again=self._request_sync,
            signal=Signal(clock, "verify"),
            target_check=TargetCheck(self._open_verifier, values.TARGET, ledger, clock),
            deep=self.deep,
        )

    @asynccontextmanager
    async def _open_verifier(self):
        yield self.verifier

    async def survey(self):
        return {"reflection": values.fingerprint("reflection")}

    async def _request_sync(self) -> None:
        self.sync_requests += 1

    async def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        await self.clock.until_asleep()
        while (due := self.clock.next_due) is not None and self.clock.monotonic() + due <= end:
            await self.clock.advance(due)
            await self.clock.until_asleep()
        await self.clock.advance(end - self.clock.monotonic())

    async def warnings(self):
        return {warning.code: warning.message for warning in warnings_in(await self.ledger.notes())}

    async def deliver_newest(self) -> None:
        manifest = values.manifest(200, "r", reflection=1, knowledge_graph=1)
        databases = {"reflection": 1, "knowledge_graph": 1}
        await self.ledger.mark_owed(values.TARGET, list(databases))
        await self.ledger.begin(values.TARGET, values.intent(200, "r", **databases))
        seen = {name: values.fingerprint(name) for name in databases}
        await self.ledger.deliver(values.TARGET, manifest, seen, {}, values.succeeded(manifest))


@pytest.fixture
async def setup(monkeypatch):
    monkeypatch.setattr(verify_loop, "MOST_SECONDS", 86_400.0)  # so that weeks pass in few steps
    clock = ManualClock(values.NOON)
    ledger = inline_ledger(clock)
    made = Setup(ledger, clock)
    await made.deliver_newest()
    running = asyncio.create_task(made.loop.run())
    yield made
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    await ledger.aclose()


async def test_one_upload_a_week_is_verified_first_the_newest_then_the_longest_unverified(setup):
    await setup.pass_time(FIRST_SECONDS + 1)
    assert setup.verifier.verified == [NEWEST]
    await setup.pass_time(WEEK - 3600)
    assert setup.verifier.verified == [NEWEST]
    for _ in range(3):
        await setup.pass_time(WEEK)
    assert setup.verifier.verified == [NEWEST, OLDEST, MIDDLE, OLDEST]
    assert await setup.warnings() == {}
    events = [event for event in await setup.ledger.outbox() if isinstance(event, UploadVerified) and event.deep]
    assert [event.upload_id for event in events] == [OLDEST, MIDDLE, OLDEST], (
        "the first has the ID of the shallow verification at the same time"
    )


async def test_a_damaged_newest_upload_is_a_warning_and_existing_databases_are_uploaded_again(setup):
    setup.verifier.problems = {NEWEST: "does not unpack"}
    await setup.pass_time(FIRST_SECONDS + 1)
    assert NEWEST in (await setup.warnings())["upload_damaged"]
    assert setup.sync_requests == 1
    assert (await setup.ledger.record(values.TARGET)).databases["reflection"].parts == ()


async def test_a_damaged_older_upload_is_a_warning_until_deleted_and_the_newest_is_verified_at_once(setup):
    await setup.pass_time(FIRST_SECONDS + 1)
    setup.verifier.problems = {OLDEST: "does not unpack"}
    await setup.pass_time(WEEK)
    assert setup.verifier.verified == [NEWEST, OLDEST, NEWEST]
    assert OLDEST in (await setup.warnings())["upload_damaged"]
    assert setup.sync_requests == 0
    setup.verifier.ids.remove(OLDEST)
    await setup.pass_time(timedelta(days=1).total_seconds())
    assert await setup.warnings() == {}


@pytest.mark.parametrize("event", ["pruned", "verified", "missing"])
async def test_the_commands_prune_and_verify_end_the_warning_of_a_damaged_upload(setup, event):
    setup.verifier.problems = {NEWEST: "does not unpack"}
    await setup.pass_time(FIRST_SECONDS + 1)
    found = setup.verifier.result(OLDEST, deep=False).event(IDENTITY, setup.clock)
    events = {
        "pruned": UploadsPruned(
            id="p",
            time=setup.clock.now(),
            system_id=values.SYSTEM,
            upload_ids=(NEWEST,),
            kept=2,
            objects=4,
            bytes_freed=9,
            leftovers=0,
        ),
        "verified": replace(found, upload_id=NEWEST, deep=True),
        "missing": replace(found, upload_id=NEWEST, whole=False, problems={"manifest.json": "is missing"}),
    }
    results = CommandResults(values.TARGET, setup.ledger, setup.clock)
    await results.record(replace(found, upload_id=NEWEST, whole=False, problems={"reflection.duckdb": "is cut"}))
    assert "upload_damaged" in await setup.warnings()
    await results.record(events[event])
    assert "upload_damaged" not in await setup.warnings()


@pytest.mark.parametrize(("transient", "is_confirmed"), [(True, True), (False, False)])
async def test_a_target_that_is_gone_ends_the_confirmation_of_the_newest_upload(setup, transient, is_confirmed):
    confirmed = ConfirmedUpload(values.TARGET, setup.ledger, setup.clock)
    await confirmed.record(NEWEST)
    setup.verifier.shallow = setup.verifier.uploads = FailingCall(StoreError("no bucket", transient=transient))
    await setup.pass_time(FIRST_SECONDS + 1)
    assert await confirmed.is_recent(await setup.ledger.record(values.TARGET)) is is_confirmed


async def test_a_missing_newest_upload_is_owed_completely(setup):
    await setup.pass_time(FIRST_SECONDS + 1)
    event = missing_upload(NEWEST).event(IDENTITY, setup.clock)
    await CommandResults(values.TARGET, setup.ledger, setup.clock).record(event)
    record = await setup.ledger.record(values.TARGET)
    assert {known.state for known in record.databases.values()} == {State.OWED}
    assert not any(known.parts for known in record.databases.values())


@pytest.mark.parametrize("error", [StoreError("no answer", transient=True), StagingFull("no room")])
async def test_a_failed_verification_is_repeated_an_hour_later(setup, error):
    setup.verifier.error = error
    await setup.pass_time(FIRST_SECONDS + 1)
    assert (await setup.warnings(), setup.verifier.verified) == ({}, [])
    setup.verifier.error = None
    await setup.pass_time(AGAIN_SECONDS - 10)
    assert setup.verifier.verified == []
    await setup.pass_time(1000)
    assert setup.verifier.verified == [NEWEST]


async def test_databases_beyond_the_limit_are_named_with_the_setting(setup):
    setup.verifier.left_out = ("knowledge_graph",)
    await setup.pass_time(FIRST_SECONDS + 1)
    assert "knowledge_graph" in (await setup.warnings())["deep_verify_limited"]
    result = setup.verifier.result(NEWEST, deep=True)
    assert result.event(IDENTITY, setup.clock).deep
    limited = replace(result, left_out=("knowledge_graph",))
    assert not limited.event(IDENTITY, setup.clock).deep, (
        "consumers must not read a limited verification as a complete one"
    )


async def test_a_deep_verification_waits_while_a_sync_runs(setup):
    async with setup.sync_lock:
        await setup.pass_time(FIRST_SECONDS + 100)
        assert setup.verifier.verified == []
    await setup.pass_time(20)
    assert setup.verifier.verified == [NEWEST]


def test_with_a_new_upload_every_week_older_ones_are_still_verified():
    schedule, ids, verified, now = DeepSchedule(), list(IDS), [], values.NOON + timedelta(hours=1)
    for week in range(6):
        ids.insert(0, values.upload_id(1000 + week))
        upload = schedule.next(ids)
        verified.append(upload)
        schedule = schedule.record(upload, ids, now, "")
        now += EVERY
    assert verified == [ids[5], OLDEST, ids[3], MIDDLE, ids[1], NEWEST]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"at": 5}'])
def test_an_invalid_note_counts_as_no_verification(note):
    schedule = DeepSchedule.from_notes({"deep_verified": note})
    assert (schedule, schedule.seconds_left(values.NOON)) == (DeepSchedule(), 0.0)
    assert DeepSchedule.from_notes({"deep_verified": schedule.note()}) == schedule
