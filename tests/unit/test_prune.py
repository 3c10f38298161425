"""Pruning: which uploads are deleted and kept, the order of deletion, and interruptions."""

import asyncio
import random
from datetime import timedelta
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given, settings, strategies as st

from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruned, PrunePlan, Pruner, own_upload, spared_by
from agent.domain import naming
from agent.domain.delivery_state import DatabaseRecord, State, TargetRecord
from agent.domain.errors import NamingError, NotPermitted, StoreError
from agent.domain.retention import KeepRules, bases_needed, days_kept, r2_command, s3_rule
from agent.entrypoints.cli.prune import _print_plan, _print_result
from agent.ports import StoredObject
from tests.support import uploads, values
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import DatedStore, MemoryStore

PREFIX = naming.uploads_prefix(values.SYSTEM)
LAST_TWO = KeepRules(last=2, daily=0, weekly=0, monthly=0)
NOW = values.NOON + timedelta(hours=1)
DAY = timedelta(days=1)


def pruner_of(store, rules=LAST_TWO, *, now=NOW, system_id=values.SYSTEM):
    return Pruner(Catalog(store, system_id), rules, ManualClock(now))


async def bucket(count=6, *, store=None):
    """Return a bucket with `count` uploads, one per day, and their IDs. It has uploads of another system too."""
    store = MemoryStore() if store is None else store
    ids = uploads.days(count)
    for upload in [*ids, *uploads.days(3, "other")]:
        await uploads.put(store, upload, naming_system(upload))
    return store, ids


def naming_system(upload):
    return upload.split("_", 2)[2]


async def prune(store, rules=LAST_TWO, *, spared=None, now=NOW):
    pruner = pruner_of(store, rules, now=now)
    return await pruner.carry_out(await pruner.plan(spared or {}), spared or {})


async def test_uploads_not_kept_by_the_rules_are_deleted_and_others_stay_complete():
    store, ids = await bucket()
    size = sum(len(data) for key, (data, _) in store.objects.items() if any(f"/{u}/" in key for u in ids[2:]))
    pruned = await prune(store)
    assert (pruned.upload_ids, pruned.kept, pruned.objects, pruned.bytes_freed) == (tuple(ids[2:]), 2, 16, size)
    assert await uploads.uploads_in(store) == (ids[:2], [])
    assert len((await uploads.uploads_in(store, "other"))[0]) == 3


async def test_all_manifests_are_deleted_before_any_object():
    store, ids = await bucket(store=FaultyStore(MemoryStore()))
    await prune(store)
    first, second = store.keys("delete")
    assert first.split(" ") == [naming.manifest_key(values.SYSTEM, upload) for upload in reversed(ids[2:])]
    assert "manifest.json" not in second


async def test_if_the_rules_keep_all_ids_no_manifest_is_read():
    store, _ = await bucket(count=2, store=FaultyStore(MemoryStore()))
    before = len(store.calls)
    assert (await pruner_of(store).plan({})).is_empty
    assert [call for call, _ in store.calls[before:]] == ["list"]


async def test_uploads_named_in_the_ledger_are_kept_and_not_leftovers():
    store, ids = await bucket()
    unfinished = uploads.upload_id(values.NOON - timedelta(days=30))
    await uploads.put_object(store, f"{PREFIX}{unfinished}/reflection.duckdb")
    (part, *_) = values.parts("reflection", second=0)
    old = naming.object_key(values.SYSTEM, ids[4], "reflection.duckdb")
    record = TargetRecord(
        values.TARGET,
        newest_upload_id=ids[3],
        intent=values.intent(reflection=1),
        databases={"reflection": DatabaseRecord("reflection", State.CLEAN, parts=(values.replace(part, key=old),))},
    )
    spared = spared_by(values.replace(record, intent=values.replace(record.intent, upload_id=unfinished)))
    pruned = await prune(store, spared=spared)
    assert pruned.upload_ids == (ids[2], ids[5])
    assert await uploads.uploads_in(store) == ([*ids[:2], ids[3], ids[4]], [unfinished])
    plan = await pruner_of(store).plan(spared)
    assert "this agent's last upload" in plan.kept[ids[3]]


DAMAGE = ["no json", "of another upload", "an object is missing", "an object is cut off", "an object has other bytes"]


def damage(store, ids, number, kind):
    """Damage one of these uploads."""
    key = naming.manifest_key(values.SYSTEM, ids[number])
    database = naming.object_key(values.SYSTEM, ids[number], "reflection.duckdb")
    if kind == "no json":
        store.objects[key] = b"{", {}
    elif kind == "of another upload":
        store.objects[key] = store.objects[naming.manifest_key(values.SYSTEM, ids[number + 1])]
    elif kind == "an object is missing":
        del store.objects[database]
    elif kind == "an object is cut off":
        store.objects[database] = b"x", {}
    else:
        data, metadata = store.objects[database]
        store.objects[database] = data.upper(), metadata


@pytest.mark.parametrize("kind", DAMAGE)
async def test_a_damaged_upload_is_not_counted_so_an_older_one_is_kept(kind):
    store, ids = await bucket()
    damage(store, ids, 1, kind)
    plan = await pruner_of(store).plan({})
    assert list(plan.kept) == ids[:3]
    assert plan.kept[ids[1]][0].startswith("damaged, not counted: ")
    assert plan.kept[ids[2]] == ("last",)
    assert list(plan.to_delete) == ids[3:]


@pytest.mark.parametrize("kind", DAMAGE)
async def test_while_the_newest_upload_is_damaged_nothing_is_deleted(kind):
    store, ids = await bucket()
    await uploads.put_object(store, naming.object_key(values.SYSTEM, uploads.days(9)[8], "left.duckdb"))
    damage(store, ids, 0, kind)
    plan = await pruner_of(store).plan({})
    assert (list(plan.kept), plan.to_delete, plan.leftovers) == (ids, {}, {})
    assert plan.blocked.startswith(f"{ids[0]} is damaged: ")


async def test_if_all_uploads_are_damaged_none_is_deleted():
    store, ids = await bucket()
    for upload in ids:
        store.objects[naming.manifest_key(values.SYSTEM, upload)] = b"", {}
    plan = await pruner_of(store).plan({})
    assert (list(plan.kept), plan.to_delete) == (ids, {})


async def test_a_base_is_kept_if_the_databases_of_its_delta_cannot_replace_it():
    store, ids = await bucket()
    await uploads.put(store, ids[0], bases={"reflection": ids[5]}, verified=False)
    await uploads.put(store, ids[1], bases={"reflection": ids[4]})
    plan = await pruner_of(store).plan({})
    assert list(plan.kept) == [*ids[:2], ids[5]]
    assert plan.kept[ids[5]] == (f"needed by {ids[0]}",)


def test_a_base_is_needed_if_the_database_is_missing_unverified_or_without_its_main_file():
    complete = values.manifest(5, reflection=1)
    delta = values.memories_part(5, reflection=1)
    assert bases_needed(complete) == bases_needed(values.replace(complete, memories=delta)) == frozenset()
    unread = values.replace(complete.parts[0], verified=False)
    for parts in ((), (unread, complete.parts[1]), (complete.parts[1],)):
        assert bases_needed(values.replace(complete, memories=delta, parts=parts)) == {values.upload_id(1)}
    first = values.memories_part(5, reflection=None)
    assert bases_needed(values.replace(complete, memories=first, parts=())) == frozenset()


def ahead(count):
    """Return IDs, newest first, as after a clock that was a year ahead: a second apart."""
    return [uploads.upload_id(NOW + 365 * DAY + timedelta(seconds=second)) for second in reversed(range(count))]


@pytest.mark.parametrize("mirrored", [False, True])
async def test_after_a_clock_that_was_ahead_uploads_are_kept_by_upload_time(mirrored):
    """Two uploads per day, with IDs a second apart. In a mirrored bucket all objects are from today."""
    store, ids = DatedStore(), ahead(8)
    days = {upload: NOW - (number // 2) * DAY - timedelta(hours=number % 2) for number, upload in enumerate(ids)}
    for upload, day in days.items():
        await uploads.put(store, upload, uploaded_at=day if mirrored else None)
        store.times[f"{PREFIX}{upload}"] = NOW if mirrored else day
    plan = await pruner_of(store, KeepRules(last=0, daily=3, weekly=0, monthly=0)).plan({})
    assert list(plan.kept) == ids[0:6:2]
    assert [reasons[-1] for reasons in plan.kept.values()] == [
        "daily 2026-03-01",
        "daily 2026-02-28",
        "daily 2026-02-27",
    ]


async def test_in_a_copied_bucket_each_manifest_is_read_once_for_its_time():
    """There, all objects are newer than their IDs, and an agent prunes after each upload."""

    class RecordingStore(DatedStore):
        read: ClassVar[list[str]] = []

        async def get(self, key):
            self.read.append(key)
            async for piece in super().get(key):
                yield piece

    store, ids = await bucket(store=RecordingStore())
    store.times = {PREFIX: NOW + 9 * DAY}
    pruner = pruner_of(store, KeepRules(last=9, daily=0, weekly=0, monthly=0))
    await pruner.plan({})
    assert sorted(store.read) == sorted(naming.manifest_key(values.SYSTEM, upload) for upload in ids)
    await pruner.plan({})
    assert len(store.read) == len(ids)


async def test_a_foreign_manifest_with_an_id_far_ahead_blocks_no_prune():
    store, ids = await bucket(store=DatedStore())
    foreign = f"20990101_000000_{values.SYSTEM}"
    await uploads.put_object(store, naming.manifest_key(values.SYSTEM, foreign))
    store.times[PREFIX] = NOW
    plan = await pruner_of(store).plan({})
    assert plan.blocked == ""
    assert list(plan.to_delete) == ids[2:]


async def test_leftovers_are_deleted_when_a_day_old_by_id_and_by_the_stores_clock():
    store, ids = await bucket(2, store=DatedStore())
    stale, fresh, resumed = (uploads.upload_id(NOW - timedelta(days=n, seconds=1)) for n in (9, 0.5, 8))
    for upload in (stale, fresh, resumed):
        await uploads.put_object(store, f"{PREFIX}{upload}/reflection.duckdb")
    store.times = {f"{PREFIX}{resumed}/": NOW - timedelta(hours=2), f"{PREFIX}{ids[0]}": NOW, PREFIX: NOW - 9 * DAY}
    pruned = await prune(store)
    assert (pruned.upload_ids, pruned.leftovers) == ((), 1)
    assert await uploads.uploads_in(store) == (ids, [fresh, resumed])


async def test_a_clock_a_year_ahead_makes_nothing_a_leftover():
    store, _ = await bucket(2, store=DatedStore())
    unfinished = uploads.upload_id(NOW - timedelta(minutes=5))
    await uploads.put_object(store, f"{PREFIX}{unfinished}/reflection.duckdb")
    store.times = {PREFIX: NOW}
    assert (await prune(store, now=NOW + timedelta(days=365))).leftovers == 0


async def test_a_leftover_that_is_completed_meanwhile_is_kept():
    store, _ = await bucket(2)
    resumed = uploads.upload_id(NOW - 9 * DAY)
    await uploads.put_object(store, f"{PREFIX}{resumed}/reflection.duckdb")
    pruner = pruner_of(store)
    plan = await pruner.plan({})
    assert list(plan.leftovers) == [resumed]
    await uploads.put(store, resumed)
    assert (await pruner.carry_out(plan, {})).leftovers == 0
    assert resumed in (await uploads.uploads_in(store))[0]


@pytest.mark.parametrize(
    "key",
    [
        "systems/other/uploads/20260301_120000_other/reflection.duckdb",
        "systems/laptop-7/uploads/20260301_120000_other/reflection.duckdb",
        "systems/laptop-7/elsewhere/20260301_120000_laptop-7/reflection.duckdb",
        "systems/laptop-7/uploads/notes.txt",
        "systems/laptop-7",
        "elsewhere/laptop-7/uploads/20260301_120000_laptop-7/reflection.duckdb",
    ],
)
async def test_keys_outside_this_systems_uploads_are_never_deleted(key):
    assert own_upload(values.SYSTEM, key) is None
    store, ids = await bucket()
    await uploads.put_object(store, key)
    pruner = pruner_of(store)
    plan = await pruner.plan({})
    with pytest.raises(NamingError):
        await pruner.carry_out(values.replace(plan, to_delete={ids[5]: (StoredObject(key, 1),)}), {})
    await pruner.carry_out(plan, {})
    assert key in store.objects


class Killed(BaseException):
    """Stands for a SIGKILL of the process."""


class DyingStore(MemoryStore):
    """A store that raises `Killed` after `left` deletions."""

    left = 10**9

    async def delete(self, keys):
        for key in keys:
            if self.left == 0:
                raise Killed
            self.left -= 1
            await super().delete([key])


@pytest.mark.parametrize("seed", range(30))
async def test_after_a_kill_no_incomplete_upload_looks_complete_and_the_next_prune_finishes(seed):
    store, ids = await bucket(8, store=DyingStore())
    store.left = random.Random(seed).randrange(24)
    with pytest.raises(Killed):
        await prune(store)
    complete, _ = await uploads.uploads_in(store)
    assert complete[:2] == ids[:2]
    store.left = 10**9
    await prune(store, now=NOW + 2 * DAY)
    assert await uploads.uploads_in(store) == (ids[:2], [])
    assert len((await uploads.uploads_in(store, "other"))[0]) == 3


@pytest.mark.parametrize("which", ["manifests", "objects", "leftovers"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_failed_deletion_is_reported_with_the_uploads_deleted_so_far(which, after):
    store, ids = await bucket(8, store=FaultyStore(MemoryStore()))
    leftover = f"{PREFIX}{uploads.upload_id(NOW - 9 * DAY)}/reflection.duckdb"
    await uploads.put_object(store, leftover)
    last = {"manifests": "/manifest.json", "objects": f"{ids[2]}/reflection.duckdb", "leftovers": leftover}[which]
    reached = store.fail("delete", StoreError("503", transient=True), key=last, after=after)
    pruned = await prune(store)
    assert (str(pruned.error), reached.is_set()) == ("503", True)
    assert pruned.leftovers == (which == "leftovers" and after)
    complete, _ = await uploads.uploads_in(store)
    assert tuple(sorted({*ids} - {*complete}, reverse=True)) == pruned.upload_ids
    assert pruned.kept == len(complete)
    assert (await prune(store, now=NOW + 2 * DAY)).error is None
    assert await uploads.uploads_in(store) == (ids[:2], [])


async def test_a_refused_prune_deletes_nothing_and_reports_it():
    store, ids = await bucket(store=FaultyStore(MemoryStore()))
    store.fail("delete", NotPermitted("no"))
    pruned = await prune(store)
    assert (pruned.is_empty, pruned.kept, str(pruned.error)) == (True, 6, "no")
    assert len(store.keys("delete")) == 1, "a refused deletion is not retried"
    assert await uploads.uploads_in(store) == (ids, [])


async def test_if_unfinished_puts_may_not_be_listed_the_rest_is_deleted():
    store, ids = await bucket(store=FaultyStore(MemoryStore()))
    store.fail("sweep", NotPermitted("no s3:ListBucketMultipartUploads"))
    pruned = await prune(store)
    assert (pruned.upload_ids, pruned.error, pruned.unswept) == (
        tuple(ids[2:]),
        None,
        "no s3:ListBucketMultipartUploads",
    )


async def test_a_prune_ends_with_the_separation_of_copies():
    store, _ = await bucket(store=FaultyStore(MemoryStore()))
    await prune(store)
    assert store.calls[-1] == ("separate_copies", f"systems/{values.SYSTEM}/uploads/")


async def test_two_prunes_in_parallel_do_no_harm():
    store, ids = await bucket(40)
    plans = [await pruner_of(store, rules).plan({}) for rules in (LAST_TWO, KeepRules(last=3, daily=0, weekly=0))]
    await asyncio.gather(*(pruner_of(store).carry_out(plan, {}) for plan in plans))
    assert await uploads.uploads_in(store) == ([*ids[:2]], [])


async def test_an_upload_deleted_by_another_prune_is_neither_kept_nor_deleted():
    store, ids = await bucket(store=FaultyStore(MemoryStore()))
    real = store._store

    class Racing(FaultyStore):
        async def get(self, key):
            for other in [key for key in real.objects if ids[1] in key]:
                del real.objects[other]
            async for piece in super().get(key):
                yield piece

    plan = await pruner_of(Racing(real)).plan({})
    assert list(plan.kept) == [ids[0], ids[2]]
    assert list(plan.to_delete) == ids[3:]


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 400 * 24), min_size=1, max_size=25, unique=True),
    st.builds(
        KeepRules, last=st.integers(0, 5), daily=st.integers(0, 5), weekly=st.integers(0, 3), monthly=st.integers(0, 3)
    ),
    st.data(),
)
def test_the_newest_complete_upload_is_kept_and_a_second_prune_deletes_nothing(hours, rules, data):
    ids = [uploads.upload_id(values.NOON - timedelta(hours=hour)) for hour in sorted(hours)]
    damaged = set(data.draw(st.lists(st.sampled_from(ids), unique=True)))
    spared = dict.fromkeys(data.draw(st.lists(st.sampled_from(ids), unique=True)), "because")

    async def check():
        store = MemoryStore()
        for upload in ids:
            await uploads.put(store, upload)
            if upload in damaged:
                store.objects[naming.manifest_key(values.SYSTEM, upload)] = b"damaged", {}
        plan = await pruner_of(store, rules).plan(spared)
        assert plan.kept.keys() | plan.to_delete.keys() == set(ids)
        assert not plan.kept.keys() & plan.to_delete.keys()
        assert not spared.keys() & plan.to_delete.keys()
        good = [upload for upload in ids if upload not in damaged]
        assert not good or good[0] in plan.kept
        await pruner_of(store, rules).carry_out(plan, spared)
        again = await pruner_of(store, rules).plan(spared)
        assert again.is_empty
        assert list(again.kept) == list(plan.kept)

    asyncio.run(check())


def test_the_lifecycle_rule_covers_the_retention_rules_and_only_this_system():
    rules = KeepRules()
    assert days_kept(rules) == 31 * 13
    assert days_kept(KeepRules(last=1, daily=0, weekly=0, monthly=0)) == 92
    assert f'"Prefix": "{PREFIX}"' in s3_rule(values.SYSTEM, rules)
    assert r2_command("memories", values.SYSTEM, rules).startswith("npx wrangler r2 bucket lifecycle add memories ")


def test_in_a_pipe_each_upload_has_one_line_with_its_reasons(capsys):
    reasons = ("newest", "this agent's last upload", "last", "daily 2026-11-21", "weekly 2026-W47", "monthly 2026-11")
    upload = uploads.upload_id(NOW)
    pruner = SimpleNamespace(system_id=values.SYSTEM, location="file:///nas")
    _print_plan(PrunePlan(kept={upload: reasons}, to_delete={}, leftovers={}, started_before=NOW), pruner)
    titles, line, summary = capsys.readouterr().out.splitlines()
    assert titles.split() == ["upload", "freed", "action", "reason"]
    shown = (
        "newest, this agent's last upload, keep_last, keep_daily 2026-11-21, keep_weekly 2026-W47, keep_monthly 2026-11"
    )
    assert line.split(maxsplit=2) == [upload, "keep", shown]
    assert summary == "dry run: 0 of 1 upload would be deleted; nothing was deleted"


def test_without_uploads_a_prune_says_so(capsys):
    pruner = SimpleNamespace(system_id=values.SYSTEM, location="file:///nas")
    _print_plan(PrunePlan(kept={}, to_delete={}, leftovers={}, started_before=NOW), pruner)
    _print_result(Pruned(kept=0), pruner)
    assert capsys.readouterr().out == f"there are no uploads of {values.SYSTEM} in file:///nas\n" * 2
