"""The catalog: listing the uploads of a target, and resolving an ID or a time to one of them."""

import asyncio
import gzip
import re
from datetime import UTC, datetime, timedelta

import pytest

from agent.application.archive.catalog import (
    MOST_UNPACKED,
    Catalog,
    CatalogEntry,
    CatalogListing,
    impossible_values,
    time_of,
)
from agent.domain import naming
from agent.domain.errors import NoSuchObject, SettingsError, StoreError
from agent.entrypoints.cli.uploads import _print_list, _print_one
from tests.support import values
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import DatedStore, MemoryStore

HOUR = 3600


def store_with(*seconds: int) -> MemoryStore:
    """Return a store with one upload per second given; objects hold zeros, manifests are real."""
    store = MemoryStore()
    for second in seconds:
        manifest = values.manifest(second, reflection=second)
        for part in manifest.parts:
            store.objects[part.key] = bytes(part.stored_size), part.objects[0].metadata
        store.objects[manifest.key] = manifest.encode(), {}
    return store


def ids(listing):
    return [listed.upload_id for listed in listing.uploads]


async def test_reading_an_object_for_its_digest_reports_progress():
    """A directory stores no ETags. Reading a large object takes long and must not count as a stall."""

    class WithoutTags(MemoryStore):
        async def inspect(self, key, *, progress):
            for piece in range(3):
                progress(piece)
            return await self.head(key)

    store, reports = WithoutTags(), []
    store.objects |= store_with(0).objects
    part = values.manifest(0, reflection=0).parts[0]
    uploads = Catalog(store, values.SYSTEM).uploads
    assert await uploads.holds(part, lambda: reports.append(1))
    assert len(reports) > 3
    assert await uploads.missing([part], lambda: reports.append(1)) == set()


async def test_uploads_are_listed_newest_first_with_figures_of_their_manifests():
    listing = await Catalog(store_with(0, HOUR, 2 * HOUR), values.SYSTEM).listing()
    assert ids(listing) == [values.upload_id(second) for second in (2 * HOUR, HOUR, 0)]
    newest = listing.uploads[0]
    assert newest.at == (values.NOON + timedelta(hours=2)).replace(microsecond=0)
    assert newest.raw_bytes == 2 * (1_000 + 2 * HOUR)
    assert newest.rows == 40 + 2 * HOUR
    assert newest.stored_bytes > 2 * (800 + 2 * HOUR)
    assert not newest.problems


async def test_only_the_newest_manifests_are_read():
    store = FaultyStore(store_with(*range(60)))
    listing = await Catalog(store, values.SYSTEM).listing(manifests=40)
    assert len(listing.uploads) == 60
    assert [listed.manifest is not None for listed in listing.uploads] == [True] * 40 + [False] * 20
    assert listing.uploads[-1].raw_bytes is None
    assert listing.uploads[-1].stored_bytes
    assert sorted(store.keys("get")) == [values.manifest(second).key for second in range(20, 60)]
    assert store.keys("list") == [f"systems/{values.SYSTEM}/uploads/"]


async def test_an_upload_exists_when_its_manifest_does():
    store = store_with(0, 1)
    del store.objects[values.manifest(1).key]
    store.objects[f"systems/{values.SYSTEM}/uploads/{values.upload_id(0)}/"] = b"", {}  # a marker of Akosha's
    store.objects[f"systems/{values.SYSTEM}/uploads/notes.txt"] = b"", {}
    listing = await Catalog(store, values.SYSTEM).listing()
    assert ids(listing) == [values.upload_id(0)]
    assert listing.unfinished == (values.upload_id(1),)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", values.manifest(5, reflection=1).encode()])
async def test_an_upload_with_an_invalid_manifest_is_listed_with_the_problem(content):
    store = store_with(0, 1)
    store.objects[values.manifest(1).key] = content, {}
    archive = Catalog(store, values.SYSTEM)
    newest, older = (await archive.listing()).uploads
    assert list(newest.problems) == ["manifest.json"]
    assert older.manifest is not None
    assert await archive.resolve() == values.upload_id(1)
    with pytest.raises(StoreError):
        await archive.manifest(values.upload_id(1))


async def test_a_listing_shows_missing_objects_and_wrong_sizes():
    store = store_with(0)
    main, sidecar = values.parts("reflection")
    del store.objects[main.key]
    store.objects[sidecar.key] = b"short", {}
    (listed,) = (await Catalog(store, values.SYSTEM).listing()).uploads
    assert dict(listed.problems) == {
        "reflection.duckdb": "is missing",
        "reflection.duckdb.wal": "has 5 bytes, but the manifest records 800",
    }


async def test_a_store_error_is_raised_and_not_shown_as_damage():
    store = FaultyStore(store_with(0, 1, 2))
    store.fail("get", StoreError("the network is down", transient=True), key=values.manifest(1).key)
    with pytest.raises(StoreError, match="the network is down"):
        await Catalog(store, values.SYSTEM).listing()


async def test_a_stalled_store_is_an_error():
    store = FaultyStore(store_with(0))
    stalled = store.stall("list")
    with pytest.raises(StoreError, match="no progress"):
        await Catalog(store, values.SYSTEM, standstill_seconds=0.01).ids()
    assert stalled.is_set()


async def test_an_upload_is_found_by_its_id_or_a_unique_prefix():
    archive = Catalog(store_with(0, HOUR), values.SYSTEM)
    newest = values.upload_id(HOUR)
    assert [await archive.resolve(which) for which in ("latest", newest, "20260301_13")] == [newest] * 3
    with pytest.raises(SettingsError, match="2 uploads begin with 20260301"):
        await archive.resolve("20260301")
    for nothing in ("", "2027", "../x"):
        with pytest.raises(NoSuchObject):
            await archive.resolve(nothing)
    with pytest.raises(NoSuchObject):
        await Catalog(MemoryStore(), values.SYSTEM).resolve()


async def test_a_time_resolves_to_the_newest_upload_not_after_it():
    archive, noon = Catalog(store_with(0, HOUR), values.SYSTEM), values.NOON.replace(microsecond=0)
    for minutes, second in ((0, 0), (59, 0), (60, HOUR), (10**5, HOUR)):
        assert await archive.resolve_at(noon + timedelta(minutes=minutes)) == values.upload_id(second)
    earlier = (noon - timedelta(seconds=1)).isoformat(" ", "seconds")
    with pytest.raises(NoSuchObject, match=re.escape(f"at this time, {earlier}: the oldest is {values.upload_id(0)}")):
        await archive.resolve_at(noon - timedelta(microseconds=10))
    with pytest.raises(NoSuchObject, match="had no upload yet at this time, 2026-11-20 01:00"):
        await archive.resolve_at(noon - timedelta(days=9), "2026-11-20 01:00")


async def test_show_reads_only_one_upload():
    store = FaultyStore(store_with(0, 1))
    archive = Catalog(store, values.SYSTEM)
    assert (await archive.show(values.upload_id(0))).manifest == values.manifest(0, reflection=0)
    assert store.calls == [("list", f"systems/{values.SYSTEM}/uploads/{values.upload_id(0)}/"), *store.calls[1:]]
    with pytest.raises(NoSuchObject):
        await archive.show(values.upload_id(9))


def test_a_time_is_rfc_3339_or_local_time():
    assert time_of("2026-11-20T18:00:00Z", values.NOON) == datetime(2026, 11, 20, 18, tzinfo=UTC)
    assert time_of("2026-11-20T18:00:00+02:00", values.NOON) == datetime(2026, 11, 20, 16, tzinfo=UTC)
    assert time_of("2026-11-20 18:00:00", values.NOON) == datetime(2026, 11, 20, 18).astimezone()
    minute = datetime(2026, 11, 20, 18, 0, 59, 999_999).astimezone()
    assert time_of(" 2026-11-20 18:00", values.NOON) == minute, "an upload is listed by its minute"


def test_a_time_can_be_relative_to_now():
    now = datetime(2026, 11, 20, 18, 30, tzinfo=UTC)
    assert time_of("now", now) == now
    assert time_of("2 hours ago", now) == now - timedelta(hours=2)
    assert time_of(" An  hour ago", now) == now - timedelta(hours=1)
    assert time_of("3 weeks ago", now) == now - timedelta(weeks=3)
    local = now.astimezone()
    yesterday = (local - timedelta(days=1)).date()
    end = datetime(yesterday.year, yesterday.month, yesterday.day, 23, 59, 59, 999_999).astimezone()
    assert time_of("yesterday", now) == end
    assert time_of(f"{yesterday}", now) == end
    assert time_of("yesterday 9:05", now) == end.replace(hour=9, minute=5)
    assert time_of("today at 18:00", now) == local.replace(hour=18, minute=0, second=59, microsecond=999_999)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2 ago",
        "yesterday 25:00",
        "99999 days ago",
        "in 2 hours",
        "18:00",
        "2026-13-01 10:00",
        "0001-01-01 00:00:99",
    ],
)
def test_an_invalid_time_is_a_settings_error(text):
    with pytest.raises(SettingsError):
        time_of(text, values.NOON)


def test_a_valid_manifest_passes_the_plausibility_check():

    zeros = bytes(10**7)
    assert len(zeros) < len(gzip.compress(zeros)) * MOST_UNPACKED
    assert impossible_values(values.manifest(reflection=3)) == {}


@pytest.mark.parametrize(
    ("gzipped", "sizes", "problem"),
    [
        (True, {"raw_size": 2**39}, "cannot decompress from 1200 to"),
        (False, {"raw_size": 2**39}, "cannot decompress from 3000 to"),
        (True, {"stored_size": 2**62}, "has an impossible size"),
    ],
)
def test_impossible_sizes_of_memories_are_found(gzipped, sizes, problem):
    memories = values.memories_part(gzipped=gzipped, reflection=None)
    manifest = values.replace(values.manifest(reflection=3), memories=values.replace(memories, **sizes))
    ((name, found),) = impossible_values(manifest).items()
    assert name == ("memories.json.gz" if gzipped else "memories.json")
    assert problem in found


@pytest.mark.parametrize("exact", [True, False])
async def test_an_upload_of_the_last_second_that_a_time_can_have_is_listed(exact):
    store, upload = DatedStore(), f"99991231_235959_{values.SYSTEM}"
    store.objects[naming.manifest_key(values.SYSTEM, upload)] = b"{}", {}
    store.times[""] = last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    (entry,) = (await Catalog(store, values.SYSTEM).listing(exact=exact)).uploads
    assert (entry.upload_id, entry.at) == (upload, last)


async def test_a_cancelled_listing_leaves_no_tasks():
    store = FaultyStore(store_with(0, 1, 2))
    stalled = store.stall("get")
    listing = asyncio.create_task(Catalog(store, values.SYSTEM).listing())
    await stalled.wait()
    listing.cancel()
    await asyncio.wait({listing})
    assert {task for task in asyncio.all_tasks() if task.get_name() == "read-manifest"} == set()


@pytest.mark.parametrize(
    "show", [_print_one, lambda listed: _print_list(CatalogListing(uploads=(listed,)), "s", "w")], ids=["one", "list"]
)
def test_escape_sequences_in_problems_are_printed_as_text(show, capsys):
    problems = {"knowledge_graph_\x1b[31m.duckdb": "is not\nthere"}
    show(CatalogEntry(upload_id=values.upload_id(0), sizes={}, problems=problems))
    reported = capsys.readouterr().out
    assert r"knowledge_graph_\x1b[31m.duckdb: is not\nthere" in reported
    assert "\x1b" not in reported


def test_an_upload_is_shown_with_the_memories_that_it_has_and_the_reason_why_it_lacks_others(capsys):
    manifest = values.replace(
        values.manifest(20, reflection=3),
        memories_omitted={"knowledge_graph": "there is no base upload"},
        without_memories={"knowledge_graph_x": "made by a newer DuckDB"},
    )
    _print_one(CatalogEntry(upload_id=manifest.upload_id, sizes={}, manifest=manifest))
    shown = capsys.readouterr().out
    assert "memories    in the databases only\n" in shown
    assert "  knowledge_graph: left out: there is no base upload\n" in shown
    assert "  knowledge_graph_x: could not be read: made by a newer DuckDB\n" in shown
    manifest = values.replace(manifest, memories=values.memories_part(20, count=7, reflection=10))
    _print_one(CatalogEntry(upload_id=manifest.upload_id, sizes={}, manifest=manifest))
    shown = capsys.readouterr().out
    assert "memories    7 in 7.0 kB (memories.json.gz)\n" in shown
    assert f"  reflection: new or changed since {values.upload_id(10)}\n" in shown
    assert "  knowledge_graph: left out: there is no base upload\n" in shown


@pytest.mark.parametrize("mirrored", [False, True])
async def test_ids_from_a_clock_that_was_ahead_are_ordered_by_upload_time(mirrored):
    """Three IDs a year ahead, uploaded on three days. In a mirrored bucket all objects are from today."""
    store, ahead = DatedStore(), 365 * 24 * HOUR
    for number in range(3):
        manifest = values.manifest(ahead + number, reflection=number)
        made = values.NOON - timedelta(days=3 - number)
        manifest = values.replace(manifest, uploaded_at=made if mirrored else manifest.uploaded_at)
        store.objects[manifest.key] = manifest.encode(), {}
        store.times[manifest.key] = values.NOON if mirrored else made
    archive = Catalog(store, values.SYSTEM)
    listing = await archive.listing(manifests=0)
    assert [(values.NOON - listed.at).days for listed in listing.uploads] == [1, 2, 3]
    assert await archive.resolve() == values.upload_id(ahead + 2)
    assert await archive.resolve_at(values.NOON - timedelta(days=2)) == values.upload_id(ahead + 1)
    with pytest.raises(NoSuchObject):
        await archive.resolve_at(values.NOON - timedelta(days=4))


async def test_a_foreign_manifest_with_an_id_far_ahead_is_not_the_latest_upload():
    store = DatedStore()
    store.objects |= store_with(0, HOUR).objects
    for foreign in (f"20990101_000000_{values.SYSTEM}", "20990101_000000_other", "99991231_235959_X"):
        store.objects[f"systems/{values.SYSTEM}/uploads/{foreign}/manifest.json"] = b"{}", {}
    store.times["systems/"] = values.NOON + timedelta(hours=2)
    assert await Catalog(store, values.SYSTEM).resolve() == values.upload_id(HOUR)
