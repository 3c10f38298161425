"""Which uploads there are, and which is meant."""

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
from agent.domain.errors import NoSuchObject, SettingsError, StoreError
from agent.entrypoints.cli.uploads import _print_list, _print_one
from tests.support import values
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import DatedStore, MemoryStore

HOUR = 3600


def store_with(*seconds: int) -> MemoryStore:
    """A store with the uploads of those seconds, their objects empty but for the manifests."""
    store = MemoryStore()
    for second in seconds:
        manifest = values.manifest(second, reflection=second)
        for part in manifest.parts:
            store.objects[part.key] = bytes(part.stored_size), part.metadata
        store.objects[manifest.key] = manifest.encode(), {}
    return store


def ids(listing):
    return [listed.upload_id for listed in listing.uploads]


async def test_an_object_that_is_read_through_for_its_tag_tells_that_it_moves():
    """A directory keeps no tags: where a large object takes long, that is no standstill."""

    class WithoutTags(MemoryStore):
        async def inspect(self, key, *, progress):
            for piece in range(3):
                progress(piece)
            return await self.head(key)

    store, moved = WithoutTags(), []
    store.objects |= store_with(0).objects
    part = values.manifest(0, reflection=0).parts[0]
    uploads = Catalog(store, values.SYSTEM).uploads
    assert await uploads.holds(part, lambda: moved.append(1))
    assert len(moved) > 3
    assert await uploads.missing([part], lambda: moved.append(1)) == set()


async def test_uploads_come_the_newest_first_with_what_their_manifests_tell():
    listing = await Catalog(store_with(0, HOUR, 2 * HOUR), values.SYSTEM).listing()
    assert ids(listing) == [values.upload_id(second) for second in (2 * HOUR, HOUR, 0)]
    newest = listing.uploads[0]
    assert newest.at == (values.NOON + timedelta(hours=2)).replace(microsecond=0)
    assert newest.raw_bytes == 2 * (1_000 + 2 * HOUR)
    assert newest.rows == 40 + 2 * HOUR
    assert newest.stored_bytes > 2 * (800 + 2 * HOUR)
    assert not newest.problems


async def test_only_the_newest_manifests_are_read_and_few_of_them_at_a_time():
    store = FaultyStore(store_with(*range(60)))
    listing = await Catalog(store, values.SYSTEM).listing(manifests=40)
    assert len(listing.uploads) == 60
    assert [listed.manifest is not None for listed in listing.uploads] == [True] * 40 + [False] * 20
    assert listing.uploads[-1].raw_bytes is None
    assert listing.uploads[-1].stored_bytes
    assert sorted(store.keys("get")) == [values.manifest(second).key for second in range(20, 60)]
    assert store.keys("list") == [f"systems/{values.SYSTEM}/uploads/"]


async def test_an_upload_is_there_when_its_manifest_is():
    store = store_with(0, 1)
    del store.objects[values.manifest(1).key]
    store.objects[f"systems/{values.SYSTEM}/uploads/{values.upload_id(0)}/"] = b"", {}  # a marker of Akosha's
    store.objects[f"systems/{values.SYSTEM}/uploads/notes.txt"] = b"", {}
    listing = await Catalog(store, values.SYSTEM).listing()
    assert ids(listing) == [values.upload_id(0)]
    assert listing.unfinished == (values.upload_id(1),)


@pytest.mark.parametrize("what", [b"", b"{}", b"\xff\x00", values.manifest(5, reflection=1).encode()])
async def test_an_upload_whose_manifest_is_none_of_it_is_shown_with_what_is_wrong(what):
    store = store_with(0, 1)
    store.objects[values.manifest(1).key] = what, {}
    archive = Catalog(store, values.SYSTEM)
    newest, older = (await archive.listing()).uploads
    assert list(newest.problems) == ["manifest.json"]
    assert older.manifest is not None
    assert await archive.resolve() == values.upload_id(1)
    with pytest.raises(StoreError):
        await archive.manifest(values.upload_id(1))


async def test_a_listing_shows_what_is_missing_and_what_has_another_size():
    store = store_with(0)
    main, sidecar = values.parts("reflection")
    del store.objects[main.key]
    store.objects[sidecar.key] = b"short", {}
    (listed,) = (await Catalog(store, values.SYSTEM).listing()).uploads
    assert dict(listed.problems) == {
        "reflection.duckdb": "is missing",
        "reflection.duckdb.wal": "has 5 bytes, but the manifest records 800",
    }


async def test_a_store_that_fails_is_no_damaged_upload():
    store = FaultyStore(store_with(0, 1, 2))
    store.fail("get", StoreError("the network is down", transient=True), key=values.manifest(1).key)
    with pytest.raises(StoreError, match="the network is down"):
        await Catalog(store, values.SYSTEM).listing()


async def test_a_store_that_stands_still_is_reported():
    store = FaultyStore(store_with(0))
    stalled = store.stall("list")
    with pytest.raises(StoreError, match="no progress"):
        await Catalog(store, values.SYSTEM, standstill_seconds=0.01).ids()
    assert stalled.is_set()


async def test_an_upload_is_found_by_its_id_or_its_unique_beginning():
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


async def test_a_time_means_the_newest_upload_that_is_not_after_it():
    archive, noon = Catalog(store_with(0, HOUR), values.SYSTEM), values.NOON.replace(microsecond=0)
    for minutes, second in ((0, 0), (59, 0), (60, HOUR), (10**5, HOUR)):
        assert await archive.resolve_at(noon + timedelta(minutes=minutes)) == values.upload_id(second)
    earlier = (noon - timedelta(seconds=1)).isoformat(" ", "seconds")
    with pytest.raises(NoSuchObject, match=re.escape(f"from {earlier} or before: the oldest is {values.upload_id(0)}")):
        await archive.resolve_at(noon - timedelta(microseconds=10))


async def test_show_reads_one_upload_alone():
    store = FaultyStore(store_with(0, 1))
    archive = Catalog(store, values.SYSTEM)
    assert (await archive.show(values.upload_id(0))).manifest == values.manifest(0, reflection=0)
    assert store.calls == [("list", f"systems/{values.SYSTEM}/uploads/{values.upload_id(0)}/"), *store.calls[1:]]
    with pytest.raises(NoSuchObject):
        await archive.show(values.upload_id(9))


def test_a_time_is_rfc_3339_or_as_the_clock_here_shows_it():
    assert time_of("2026-11-20T18:00:00Z") == datetime(2026, 11, 20, 18, tzinfo=UTC)
    assert time_of("2026-11-20T18:00:00+02:00") == datetime(2026, 11, 20, 16, tzinfo=UTC)
    assert time_of("2026-11-20 18:00:00") == datetime(2026, 11, 20, 18).astimezone()
    minute = datetime(2026, 11, 20, 18, 0, 59, 999_999).astimezone()
    assert time_of(" 2026-11-20 18:00") == minute, "an upload is listed by its minute"


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-20", "18:00", "2026-13-01 10:00", "0001-01-01 00:00:99"])
def test_what_is_no_time_is_a_wrong_use(text):
    with pytest.raises(SettingsError):
        time_of(text)


def test_a_manifest_of_ours_is_plausible_up_to_what_gzip_can_do():

    zeros = bytes(10**7)
    assert len(zeros) < len(gzip.compress(zeros)) * MOST_UNPACKED
    assert impossible_values(values.manifest(reflection=3)) == {}


async def test_a_listing_that_is_given_up_leaves_no_task_behind():
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
def test_what_a_terminal_would_obey_is_only_shown(show, capsys):
    problems = {"knowledge_graph_\x1b[31m.duckdb": "is not\nthere"}
    show(CatalogEntry(upload_id=values.upload_id(0), sizes={}, problems=problems))
    reported = capsys.readouterr().out
    assert r"knowledge_graph_\x1b[31m.duckdb: is not\nthere" in reported
    assert "\x1b" not in reported


@pytest.mark.parametrize("mirrored", [False, True])
async def test_after_a_clock_that_was_ahead_uploads_are_shown_and_found_by_when_they_were_made(mirrored):
    """Three ids a second apart in a year, made on three days; mirrored to another bucket, all objects are of today."""
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


async def test_a_manifest_that_is_not_ours_under_an_id_far_ahead_is_not_the_latest_upload():
    store = DatedStore()
    store.objects |= store_with(0, HOUR).objects
    for foreign in (f"20990101_000000_{values.SYSTEM}", "20990101_000000_other", "99991231_235959_X"):
        store.objects[f"systems/{values.SYSTEM}/uploads/{foreign}/manifest.json"] = b"{}", {}
    store.times["systems/"] = values.NOON + timedelta(hours=2)
    assert await Catalog(store, values.SYSTEM).resolve() == values.upload_id(HOUR)
