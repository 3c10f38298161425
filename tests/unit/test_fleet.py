"""The fleet: what is known of a system is merged and judged; one system or source that is wrong hides no other."""

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.application.fleet import bucket as fleet_bucket
from agent.application.fleet.bucket import BucketFacts, FleetBucket, NewestUpload
from agent.application.fleet.events import FleetEvents, SystemEvents
from agent.application.fleet.fleet import Fleet, FleetReport
from agent.application.fleet.merge import Condition, by_severity, merged
from agent.application.ingest.cursor import Cursor
from agent.application.ingest.journal import finished_uploads, note_prefix
from agent.bootstrap.fleet import open_fleet
from agent.domain import naming
from agent.domain.errors import BusError, LedgerDamaged, StoreError
from agent.domain.events import SyncSucceeded, UploadVerified
from agent.domain.manifest import Manifest
from agent.domain.naming import subject_matches
from agent.entrypoints.fleet_text import fleet_lines
from agent.entrypoints.fleet_watch import BUCKET_SECONDS, TICK_SECONDS, FleetWatch, _printer
from agent.ports import StreamEntry
from agent.settings import Settings
from tests.support import fleet
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore
from tests.support.values import NOON

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
MAC = "mac"
DISABLED = "akosha_sync_enabled is false"
UPLOAD, OLDER = fleet.upload(MAC, NOON - HOUR), fleet.upload(MAC, NOON - 5 * HOUR)


def entry(event, stored_at=None, sequence=1):
    return StreamEntry(subject=event.subject, sequence=sequence, stored_at=stored_at or event.time, event=event)


def events(*found, **fields):
    return SystemEvents(newest={type(one): entry(one) for one in found}, **fields)


def in_bucket(manifest=UPLOAD, **fields):
    return BucketFacts(newest=NewestUpload.of(manifest), **fields)


def verified(manifest, **problems):
    return UploadVerified(
        id="v", time=NOON, system_id=MAC, upload_id=manifest.upload_id, whole=not problems, deep=False, objects=1,
        problems=problems,
    )  # fmt: skip


def judge(bucket=None, stream=None, **how):
    return merged(MAC, bucket, stream, now=NOON, overdue=DAY, **how)


def forgotten(hours):
    return in_bucket(fleet.upload(MAC, NOON - timedelta(hours=hours)))


CASES = [
    (in_bucket(), None, Condition.FINE, ""),
    (None, events(fleet.succeeded(UPLOAD)), Condition.FINE, ""),
    (in_bucket(), events(fleet.failed(MAC, NOON - MINUTE, error="no")), Condition.FAILING, "sync fails: cloud: no"),
    (in_bucket(), events(fleet.failed(MAC, NOON - 2 * HOUR)), Condition.FINE, ""),
    (None, events(fleet.failed(MAC, NOON - 2 * HOUR), fleet.skipped(MAC, NOON - HOUR)), Condition.FINE, ""),
    (in_bucket(), events(verified(UPLOAD, graph="is missing")), Condition.DAMAGED, "damaged: graph: is missing"),
    (in_bucket(), events(verified(OLDER, graph="is missing")), Condition.FINE, ""),
    (in_bucket(replace(UPLOAD, incomplete={"graph": "no"})), None, Condition.FAILING, "was uploaded: graph: no"),
    (in_bucket(), events(fleet.ingest_failed(UPLOAD, "too long")), Condition.FAILING, "ingestion fails: too long"),
    (in_bucket(), events(fleet.ingest_failed(OLDER, "too long"), fleet.ingested(UPLOAD)), Condition.FINE, ""),
    (forgotten(25), None, Condition.OVERDUE, "no result for more than 24 h"),
    (forgotten(25), events(fleet.skipped(MAC, NOON - HOUR)), Condition.FINE, ""),
    (forgotten(25), events(fleet.skipped(MAC, NOON - HOUR, DISABLED)), Condition.OVERDUE, "no result for more"),
    (
        in_bucket(OLDER),
        events(fleet.failed(MAC, NOON - 2 * HOUR), fleet.skipped(MAC, NOON - HOUR, "reflection waits: no permission")),
        Condition.FAILING,
        "sync fails",
    ),
    (None, events(fleet.skipped(MAC, NOON, DISABLED)), Condition.UNKNOWN, f"sync was skipped: {DISABLED}"),
    (BucketFacts(claimed_at=NOON - 2 * DAY), None, Condition.OVERDUE, "no complete upload yet"),
    (BucketFacts(claimed_at=NOON - HOUR), None, Condition.UNKNOWN, "no upload and no result yet"),
    (in_bucket(problems=("owner.json is damaged",)), None, Condition.UNKNOWN, "owner.json is damaged"),
    (None, SystemEvents(problems=("not valid",)), Condition.UNKNOWN, "not valid"),
    (in_bucket(replace(UPLOAD, uploaded_at=NOON + DAY)), None, Condition.UNKNOWN, "clock is or was ahead: 2026-03-02"),
]  # fmt: skip


@pytest.mark.parametrize(("bucket", "stream", "condition", "reason"), CASES)
def test_a_system_has_the_worst_condition_that_applies_and_its_reason(bucket, stream, condition, reason):
    found = judge(bucket, stream)
    assert (found.condition, bool(found.reason)) == (condition, bool(reason))
    assert reason in found.reason


def test_both_sources_complete_each_other():
    stream = events(
        fleet.succeeded(UPLOAD), fleet.ingested(OLDER), fleet.failed(MAC, NOON), failures=3, failing_since=NOON
    )
    found = judge(in_bucket(OLDER, host="studio"), stream)
    assert (found.newest_upload, found.last_success, found.host) == (UPLOAD.upload_id, UPLOAD.uploaded_at, "studio")
    assert (found.last_result.outcome, found.failures, found.failing_since) == ("failed", 3, NOON)
    assert (found.ingestion.upload_id, found.ingestion.behind_seconds) == (OLDER.upload_id, 4 * 3600)
    assert found.stored_bytes is None  # that of an earlier upload
    assert (found.agent_version, found.sources) == ("1.2.3", ("bucket", "nats"))


def test_the_cursor_of_this_machine_shows_ingestion_without_nats():
    assert judge(in_bucket(), ingested=UPLOAD.upload_id).ingestion.behind_seconds == 0
    assert judge(in_bucket(), ingested="20260301_110000_another").ingestion is None
    assert judge(in_bucket()).ingestion is None


def test_a_time_in_the_future_hides_no_later_failure_and_makes_no_system_fresh():
    ahead = replace(fleet.succeeded(UPLOAD), time=NOON + 1000 * DAY)
    stream = SystemEvents(
        newest={SyncSucceeded: entry(ahead, stored_at=NOON - HOUR), **events(fleet.failed(MAC, NOON - MINUTE)).newest}
    )
    found = judge(None, stream)
    assert found.condition is Condition.FAILING
    assert found.last_success == NOON - HOUR
    in_future = in_bucket(replace(UPLOAD, uploaded_at=NOON + DAY))
    assert judge(in_future).last_success is None
    found = judge(in_future, events(fleet.failed(MAC, NOON - MINUTE), failures=7, failing_since=NOON - HOUR))
    assert (found.condition, found.failures, found.last_result.outcome) == (Condition.FAILING, 7, "failed")
    assert judge(replace(in_future, claimed_at=NOON - 2 * DAY)).condition is Condition.UNKNOWN


def test_texts_of_a_system_are_escaped_and_short():
    evil = fleet.ESCAPE + "x" * 9000
    found = judge(in_bucket(replace(UPLOAD, agent_version=evil)), events(fleet.failed(MAC, NOON, error=evil)))
    for text in (found.reason, found.agent_version, found.last_result.text):
        assert text.isprintable()
        assert len(text) < 400


def test_the_worst_systems_come_first():
    systems = [replace(judge(in_bucket()), system_id=str(n), condition=each) for n, each in enumerate(Condition)]
    assert by_severity(systems[::-1]) == systems


async def put_all(store, objects):
    async def body(data):
        yield data

    for key, data in objects.items():
        await store.put(key, body(data), metadata={}, part_bytes=2**20, progress=lambda _: None)


@pytest.fixture
def store():
    return FaultyStore(MemoryStore())


@pytest.fixture
def bucket(store):
    return FleetBucket(store, ManualClock(NOON))


async def test_a_system_with_a_new_upload_costs_three_requests(store, bucket):
    uploads = [fleet.upload(MAC, NOON - n * DAY) for n in range(1, 9)]
    await put_all(store, {one.key: one.encode() for one in uploads})
    await put_all(store, {naming.owner_key(MAC): fleet.owner(MAC, NOON).encode()})
    store.calls.clear()
    facts = await bucket.read_system(MAC)
    assert (facts.newest.upload_id, facts.host, facts.problems) == (uploads[0].upload_id, "host-of-mac", ())
    assert store.calls == [
        ("list", naming.uploads_prefix(MAC)), ("get", uploads[0].key), ("get", naming.owner_key(MAC)),
    ]  # fmt: skip


@pytest.mark.parametrize("age", [3, 400])
async def test_an_old_upload_is_found(store, bucket, age):
    old = fleet.upload(MAC, NOON - age * DAY)
    await put_all(store, {old.key: old.encode()})
    assert (await bucket.read_system(MAC)).newest.upload_id == old.upload_id


async def test_unfinished_and_unreadable_uploads_and_foreign_objects_do_not_hide_the_newest_complete_one(store, bucket):
    prefix = naming.uploads_prefix(MAC)
    await put_all(store, {UPLOAD.key: UPLOAD.encode(), OLDER.key: OLDER.encode(), naming.owner_key(MAC): b"{"})
    for n in range(1, 20):  # under IDs far ahead of the clock, by another program
        await put_all(store, {naming.manifest_key(MAC, naming.upload_id(NOON + n * 300 * DAY, MAC)): b"{}"})
    unfinished, damaged = fleet.upload(MAC, NOON - MINUTE), fleet.upload(MAC, NOON - 2 * MINUTE)
    await put_all(store, {f"{prefix}{unfinished.upload_id}/reflection.duckdb": b"", damaged.key: b"[" * 10_000})
    await put_all(store, {f"{prefix}99991231_235959_mac/manifest.json": b"{}", f"{prefix}latest/manifest.json": b"{}"})
    facts = await bucket.read_system(MAC)
    assert facts.newest.upload_id == UPLOAD.upload_id
    assert any("owner.json" in problem for problem in facts.problems)
    assert any(damaged.upload_id in problem for problem in facts.problems)


async def test_an_upload_with_an_id_ahead_of_the_clock_counts_with_the_time_of_its_manifest(store, bucket):
    """A clock that was ahead once leaves its system with such IDs."""
    ahead = replace(fleet.upload(MAC, NOON + 90 * DAY), uploaded_at=NOON - HOUR)
    await put_all(store, {ahead.key: ahead.encode(), OLDER.key: OLDER.encode()})
    found = judge(await bucket.read_system(MAC))
    assert (found.newest_upload, found.last_success, found.condition) == (ahead.upload_id, NOON - HOUR, Condition.FINE)


async def test_a_system_that_cannot_be_read_hides_no_other(store, bucket):
    await fleet.fill_bucket(lambda key, data: put_all(store, {key: data}), ["a", "b"], NOON)
    store.fail("get", StoreError("the key was refused", hint="renew it"), key=fleet.upload("a", NOON - HOUR).key)
    found, notes = await bucket.read()
    assert found.keys() == {"a", "b", fleet.HOSTILE}
    assert found["a"].problems == ("the key was refused (renew it)",)
    assert (found["b"].newest.upload_id, found["b"].problems) == (fleet.upload("b", NOON - HOUR).upload_id, ())
    assert notes == ("folders that name no system were ignored: hostile.evil",)


async def test_the_manifests_of_a_hostile_system_are_not_decoded_on_the_event_loop(store, bucket, monkeypatch):
    decode, threads = Manifest.decode, []

    def decoded(data):
        threads.append(threading.current_thread())
        return decode(data)

    monkeypatch.setattr(Manifest, "decode", decoded)
    large = replace(UPLOAD, incomplete={str(number): "x" * 100 for number in range(5_000)})
    await put_all(store, {UPLOAD.key: large.encode()})
    assert (await bucket.read_system(MAC)).newest.upload_id == UPLOAD.upload_id
    assert threading.main_thread() not in threads


async def test_a_system_that_does_not_answer_delays_no_other(store, bucket, monkeypatch):
    await fleet.fill_bucket(lambda key, data: put_all(store, {key: data}), ["a", "b"], NOON)
    stalled = store.stall("get", key="a/owner.json")
    reading = asyncio.create_task(bucket.read())
    await stalled.wait()
    while ("get", "systems/b/owner.json") not in store.calls:
        await asyncio.sleep(0)
    reading.cancel()
    monkeypatch.setattr(fleet_bucket, "SYSTEM_SECONDS", 0.01)
    store.stall("get", key="a/owner.json")
    assert (await bucket.read_system("a")).problems == ("memory:// did not answer within 0.01 s",)


async def test_at_most_so_many_systems_and_folders_are_read(store, bucket, monkeypatch):
    monkeypatch.setattr(fleet_bucket, "MOST_SYSTEMS", 2)
    monkeypatch.setattr(fleet_bucket, "MOST_LISTED", 3)
    await put_all(store, {f"systems/a/uploads/{n}/x": b"" for n in range(5)})
    await put_all(store, {f"systems/{name}/x": b"" for name in "bcd"})
    found, notes = await bucket.read()
    assert found.keys() == {"a", "b"}
    assert "more than 3 folders" in found["a"].problems[0]
    assert notes == ("2 more systems were not read: at most 2 are",)


class Stream:
    """An EventReader on a list of events, oldest first; `error` is raised by every call."""

    location = "nats://example.com"
    problem = ""

    def __init__(self, *stored, unreadable=()):
        self.stored = [entry(event, sequence=n) for n, event in enumerate(stored, 1)]
        self.stored += [
            StreamEntry(subject=subject, sequence=100, stored_at=NOON, event=None, problem="forged")
            for subject in unreadable
        ]
        self.error = None
        self.counted = []
        self.during_read = lambda: None

    async def subjects(self, pattern):
        if self.error:
            raise self.error
        return {one.subject: 1 for one in self.stored if subject_matches(pattern, one.subject)}

    async def newest(self, subjects):
        self.during_read()
        return {one.subject: one for one in self.stored if one.subject in subjects}

    async def first_after(self, subject, sequence):
        self.counted.append(subject)
        found = [one for one in self.stored if one.subject == subject and one.sequence > sequence]
        return (found[0], len(found)) if found else None

    async def follow(self, patterns, handler, reconnected):
        self.handler, self.reconnected = handler, reconnected


async def test_failures_are_counted_from_the_last_result_that_was_none():
    failures = [fleet.failed(MAC, NOON + n * MINUTE, n) for n in range(4)]
    stream = Stream(
        failures[0], fleet.succeeded(UPLOAD, time=NOON), *failures[1:], fleet.succeeded(fleet.upload("b", NOON))
    )
    found, _ = await FleetEvents(stream).read()
    assert (found[MAC].failures, found[MAC].failing_since) == (3, NOON + MINUTE)
    assert (found["b"].failures, found["b"].failing_since) == (0, None)
    assert stream.counted == [failures[0].subject]
    disabled = Stream(*failures[:2], fleet.skipped(MAC, NOON + HOUR, DISABLED))
    found, _ = await FleetEvents(disabled).read()
    assert found[MAC].failures == 2


async def test_forged_events_and_odd_subjects_are_named_and_hide_no_other():
    odd = ("akosha.sync.\x1b[2J.failed", "akosha.sync.evil.succeeded")
    found, notes = await FleetEvents(Stream(fleet.succeeded(UPLOAD), unreadable=odd)).read()
    assert found[MAC].of(SyncSucceeded).upload_id == UPLOAD.upload_id
    assert found["evil"].problems == ("the newest message on akosha.sync.evil.succeeded is not a valid event: forged",)
    assert notes == ("subjects that name no system were ignored: \\x1b[2J",)


def test_a_new_event_is_counted_once_and_an_older_one_is_ignored():
    known = SystemEvents().with_entry(entry(fleet.succeeded(UPLOAD)))
    failing = known.with_entry(entry(fleet.failed(MAC, NOON, 1))).with_entry(entry(fleet.failed(MAC, NOON + MINUTE, 2)))
    assert (failing.failures, failing.failing_since) == (2, NOON)
    assert failing.with_entry(entry(fleet.failed(MAC, NOON + MINUTE, 2))) == failing
    assert failing.with_entry(entry(fleet.succeeded(OLDER))) == failing
    disabled = failing.with_entry(entry(fleet.skipped(MAC, NOON + HOUR, DISABLED)))
    assert (disabled.failures, disabled.is_failing) == (2, True)
    recovered = failing.with_entry(entry(fleet.skipped(MAC, NOON + HOUR)))
    assert (recovered.failures, recovered.failing_since) == (0, None)
    assert recovered.with_entry(entry(replace(fleet.skipped(MAC, NOON + DAY, DISABLED), id="later"))) == recovered


async def no_cursors():
    return {}


@pytest.fixture
def made(bucket):
    def make(stream):
        clock = ManualClock(NOON)
        return Fleet(bucket=bucket, events=FleetEvents(stream), cursors=no_cursors, clock=clock, overdue=DAY)

    return make


async def test_without_any_system_the_fleet_is_not_fine_because_the_bucket_may_be_the_wrong_one(made):
    found = made(Stream())
    await found.read()
    assert not found.report().is_fine


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_text("a note"), "Not a directory"),
        (lambda path: path.mkdir(), ""),
    ],
    ids=["missing", "file", "empty"],
)
async def test_a_directory_that_does_not_exist_is_an_error_and_an_empty_one_is_not(make, error, tmp_path):
    make(tmp_path / "bucket")
    settings = Settings(
        cloud_endpoint=tmp_path.as_uri(), cloud_bucket="bucket", agent_state_dir=tmp_path / "state", agent_nats_url=""
    )
    async with open_fleet(settings, overdue=DAY) as found:
        await found.read()
    (source,) = [one for one in found.report().sources if one.name == "bucket"]
    assert error in source.error
    assert bool(source.error) == bool(error)


def test_a_cell_is_cut_to_its_width_in_columns():
    one = merged(MAC, in_bucket(host="記" * 20), None, now=NOON, overdue=DAY)
    *_, row = fleet_lines(FleetReport(time=NOON, sources=(), systems=(one,)), width=None)
    assert row.text.endswith(f"  {'記' * 10}...")


async def test_a_directory_that_is_missing_is_the_reason_that_no_system_is_known(tmp_path):
    bucket = FleetBucket(DirectoryStore(tmp_path / "unmounted" / "nas"), ManualClock(NOON))
    found = Fleet(bucket=bucket, events=None, cursors=no_cursors, clock=ManualClock(NOON), overdue=HOUR)
    await found.read()
    first, second, *_ = [line.text for line in fleet_lines(found.report(), width=None)]
    assert first == "No system is known: bucket could not be read"
    assert "does not exist (mount its disk, or correct akosha_cloud_endpoint and akosha_cloud_bucket)" in second


async def test_a_source_that_fails_does_not_hide_the_other_and_keeps_what_it_knew(store, made):
    await put_all(store, {UPLOAD.key: UPLOAD.encode()})
    stream = Stream(fleet.succeeded(fleet.upload("b", NOON - HOUR)))
    found = made(stream)
    await found.read()
    assert found.report().is_fine
    stream.error = BusError("NATS cannot be reached", hint="check akosha_agent_nats_url")
    store.fail("list", StoreError("the bucket does not exist"))
    await found.read()
    report = found.report()
    assert {one.name: one.error for one in report.sources} == {
        "bucket": "the bucket does not exist", "nats": "NATS cannot be reached (check akosha_agent_nats_url)",
    }  # fmt: skip
    assert [one.system_id for one in report.systems] == ["b", MAC]
    assert not report.is_fine


async def test_an_event_that_arrives_while_the_stored_ones_are_read_is_not_lost(made):
    stream = Stream(fleet.succeeded(UPLOAD))
    found = made(stream)
    stream.during_read = lambda: found.take(fleet.failed(MAC, NOON))
    await found.read_events()
    (system,) = found.report().systems
    assert (system.condition, system.failures) == (Condition.FAILING, 1)


async def test_an_upload_that_is_announced_is_read_and_shown_without_reading_the_rest(store, made, capsys):
    await put_all(store, {UPLOAD.key: UPLOAD.encode()})
    stream = Stream(fleet.succeeded(fleet.upload("b", NOON - HOUR)))
    found = made(stream)
    watch = FleetWatch(found, _printer())
    await found.follow(watch._take, watch._reconnected)
    await found.read()
    watch._draw(found.report())
    newer = fleet.upload(MAC, NOON)
    await put_all(store, {newer.key: newer.encode()})
    store.calls.clear()
    await stream.handler(fleet.succeeded(newer))
    assert watch._uploaded == {MAC}
    await found.read_systems([watch._uploaded.pop()])
    watch._draw(found.report())
    watch._draw(found.report())
    assert {key.split("/")[1] for _, key in store.calls} == {MAC}
    assert [line.split("  ")[1:] for line in capsys.readouterr().out.splitlines()] == [
        ["b", "fine"], [MAC, "fine"], [MAC, "fine"],
    ]  # fmt: skip
    assert found.report().systems[1].newest_upload == newer.upload_id


@pytest.fixture
async def watched(store, made):
    """A fleet with a system `mac` that is watched. The tests advance its clock."""
    await put_all(store, {UPLOAD.key: UPLOAD.encode()})
    found = made(Stream(fleet.succeeded(UPLOAD)))
    task = asyncio.create_task(FleetWatch(found, lambda report: None).run())
    await found.clock.advance(1)
    yield found
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def newest(found):
    return {one.system_id: one.newest_upload for one in found.report().systems}


async def test_a_system_that_publishes_without_end_delays_neither_others_nor_the_stored_events(store, watched):
    stream, read_system, reads = watched.events.reader, watched.bucket.read_system, []
    hostile, newer = fleet.succeeded(fleet.upload("hostile", NOON)), fleet.upload(MAC, NOON)

    async def read(system_id):
        reads.append(system_id)
        if system_id == "hostile":
            await stream.handler(replace(hostile, id=str(len(reads))))
        return await read_system(system_id)

    watched.bucket.read_system = read
    await put_all(store, {newer.key: newer.encode()})
    await stream.handler(hostile)
    await stream.handler(fleet.succeeded(newer))
    stream.stored.append(entry(fleet.failed("b", NOON), sequence=9))  # it is not passed on: the connection was lost
    stream.reconnected()
    await watched.clock.advance(0.9)
    assert newest(watched)[MAC] == newer.upload_id
    assert [one.system_id for one in watched.report().systems if one.condition is Condition.FAILING] == ["b"]
    assert reads.count("hostile") <= 3


async def test_the_whole_bucket_is_read_at_an_interval_for_systems_without_nats(store, watched):
    other = fleet.upload("other", NOON)
    await put_all(store, {other.key: other.encode()})
    await watched.clock.advance(BUCKET_SECONDS - 10)
    assert "other" not in newest(watched)
    await watched.clock.advance(10)
    assert newest(watched)["other"] == other.upload_id


async def test_a_stream_that_cannot_be_read_is_not_read_again_for_each_event(watched):
    stream, tries = watched.events.reader, []
    stream.error = BusError("the stream does not exist")
    subjects = stream.subjects

    async def counted(pattern):
        tries.append(pattern)
        return await subjects(pattern)

    stream.subjects = counted
    stream.reconnected()
    for second in range(10):
        await watched.clock.advance(1)
        await stream.handler(fleet.failed(MAC, NOON, second))
    assert len(tries) <= 3
    stream.error = None
    await watched.clock.advance(TICK_SECONDS)
    assert not watched.events_unread


async def test_events_that_do_not_arrive_and_a_damaged_ledger_are_named(made):
    stream = Stream(fleet.succeeded(UPLOAD))
    found = made(stream)

    async def damaged():
        raise LedgerDamaged("the ledger is damaged")

    found.cursors = damaged
    await found.follow(print, print)
    stream.problem = "permissions violation"
    await found.read()
    report = found.report()
    assert {one.name: (one.error, one.notes) for one in report.sources} == {
        "bucket": ("", ()), "nats": ("", ("new events do not arrive: permissions violation",)),
        "ledger": ("the ledger is damaged", ()),
    }  # fmt: skip
    assert not report.is_fine


def test_the_uploads_that_react_has_finished_are_read_from_its_notes():
    endpoints, elsewhere = ("s3://a", "http://akosha"), ("s3://b", "http://akosha")
    notes = {
        note_prefix(endpoints) + MAC: Cursor(through=UPLOAD.upload_id).encode(),
        note_prefix(endpoints) + "started": Cursor().encode(),
        note_prefix(endpoints) + "damaged": "{",
        note_prefix(elsewhere) + "other": Cursor(through=OLDER.upload_id).encode(),
        "watcher": "native",
    }
    assert finished_uploads(notes, endpoints) == {MAC: UPLOAD.upload_id}
