"""The contract of `MemoryLedger`: its promises, and the effect of the transitions of the `Ledger` on memories."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.domain import naming
from agent.domain.errors import SnapshotError, StateError
from agent.ports import HeldMemory, MemoryCounts
from tests.support.clock import ManualClock
from tests.support.ledger import without_fsync
from tests.support.memories import seen
from tests.support.memory_source import digests, write_row_set
from tests.support.values import NOON, OTHER_TARGET, TARGET, intent, manifest, succeeded, upload_id

LATER = NOON + timedelta(hours=1)
PAGE = (seen(3), seen(1), seen(1, kind="reflection"), seen(1, kind="entity"), seen(2, embedded=False))
NOTHING = MemoryCounts()


class LedgerHandle:
    """A ledger in a directory. `open` closes the open ledger first: a restart."""

    def __init__(self, folder, *, fsync=True):
        self.folder, self.fsync, self.ledger, self.clock = folder, fsync, None, ManualClock(NOON)

    @property
    def memories(self):
        return self.ledger.memories()

    async def open(self):
        await self.close()
        self.ledger = await SqliteLedger.open(self.folder / "ledger.db", CloudEventsCodec(), clock=self.clock)
        if not self.fsync:
            without_fsync(self.ledger)

    async def close(self):
        if self.ledger is not None:
            await self.ledger.aclose()


@pytest.fixture(params=["sqlite"])
async def handle(request, tmp_path):
    opened = LedgerHandle(tmp_path)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def memories(handle):
    return handle.memories


def waiting(row, reason="no embedding", since=NOON):
    return HeldMemory(row=row, state="waiting", reason=reason, since=since)


def refused(row, reason="wrong dimension", since=NOON):
    return HeldMemory(row=row, state="refused", reason=reason, since=since)


async def lacking(memories, *page, target=TARGET):
    return list(await memories.lacking(target, page))


async def snapshot(memories, target=TARGET):
    """Return all that a ledger records of memories, to check that it has not changed."""
    counts, held = await memories.counts(target), list(await memories.held(target, limit=1000))
    return counts, held, await lacking(memories, *PAGE, target=target), dict(await memories.bases(target))


# -------------------------------------------------------------------------------------------- delivered, held, lacking


async def test_in_an_empty_ledger_every_memory_is_lacking_in_the_given_order(memories):
    assert await snapshot(memories) == (NOTHING, [], list(PAGE), {})
    assert await lacking(memories) == []


async def test_a_delivered_memory_is_lacking_again_when_it_changes(handle):
    await handle.memories.delivered(TARGET, {seen(1), seen(3)})
    await handle.open()
    page = [seen(3), seen(2), seen(1, state=1), seen(1)]
    assert await lacking(handle.memories, *page) == [seen(2), seen(1, state=1)]
    await handle.memories.delivered(TARGET, [seen(1, state=1)])
    assert await lacking(handle.memories, *page) == [seen(2), seen(1)], "only its last state is known"
    assert await handle.memories.counts(TARGET) == MemoryCounts(delivered=2)


async def test_each_target_has_its_own_memories(memories):
    await memories.delivered(TARGET, [seen(1)])
    await memories.hold(OTHER_TARGET, [refused(seen(2))])
    assert await lacking(memories, seen(1), seen(2)) == [seen(2)]
    assert await lacking(memories, seen(1), seen(2), target=OTHER_TARGET) == [seen(1)]
    assert await memories.counts(OTHER_TARGET) == MemoryCounts(refused={"wrong dimension": 1})


async def test_rows_of_equal_ids_are_distinguished_by_database_and_kind(memories):
    row = seen(1)
    others = [replace(row, database="knowledge_graph"), replace(row, kind="reflection")]
    await memories.delivered(TARGET, [row])
    assert await lacking(memories, row, *others) == others
    await memories.delivered(TARGET, others[:1])
    assert await lacking(memories, row, *others) == others[1:]


async def test_a_waiting_memory_is_lacking_and_a_refused_one_when_it_changes(memories):
    await memories.hold(TARGET, [waiting(seen(1)), refused(seen(2))])
    assert await lacking(memories, seen(1), seen(2), seen(2, state=1)) == [seen(1), seen(2, state=1)]
    assert await memories.counts(TARGET) == MemoryCounts(waiting={"no embedding": 1}, refused={"wrong dimension": 1})


async def test_a_delivered_memory_is_no_longer_held(memories):
    await memories.hold(TARGET, [waiting(seen(1)), refused(seen(2))])
    await memories.delivered(TARGET, [seen(1), seen(2, state=1)])
    assert await memories.counts(TARGET) == MemoryCounts(delivered=2)
    assert list(await memories.held(TARGET, limit=9)) == []


async def test_a_memory_delivered_in_an_earlier_state_can_be_held_in_a_new_one(memories):
    await memories.delivered(TARGET, [seen(1), seen(2)])
    await memories.hold(TARGET, [waiting(seen(1, state=1)), refused(seen(2, state=1))])
    assert await memories.counts(TARGET) == MemoryCounts(waiting={"no embedding": 1}, refused={"wrong dimension": 1})
    assert await lacking(memories, seen(1, state=1), seen(2, state=1)) == [seen(1, state=1)]


async def test_held_memories_are_returned_unchanged_and_refused_ones_first(memories):
    given = [
        waiting(seen(1, embedded=False)),
        refused(seen(2, kind="entity"), "no such tool", LATER),
        waiting(seen(3, kind="relationship"), "the server has no tool for a relationship"),
        refused(seen(4), "wrong dimension"),
    ]
    await memories.hold(TARGET, given)
    returned = list(await memories.held(TARGET, limit=9))
    assert [held.state for held in returned] == ["refused", "refused", "waiting", "waiting"]
    assert {held.row.key: held for held in returned} == {held.row.key: held for held in given}
    for limit in range(5):
        assert list(await memories.held(TARGET, limit=limit)) == returned[:limit]


async def test_a_memory_held_again_in_the_same_state_keeps_its_time_and_is_not_counted(memories):
    assert await memories.hold(TARGET, [waiting(seen(1)), waiting(seen(2))]) == 2
    again = [waiting(seen(1), since=LATER), waiting(seen(2, state=1), since=LATER), refused(seen(3), since=LATER)]
    assert await memories.hold(TARGET, again) == 2
    assert await memories.hold(TARGET, [refused(seen(1), "other reason", LATER)]) == 0
    assert {held.row: (held.state, held.reason, held.since) for held in await memories.held(TARGET, limit=9)} == {
        seen(1): ("refused", "other reason", NOON),
        seen(2, state=1): ("waiting", "no embedding", LATER),
        seen(3): ("refused", "wrong dimension", LATER),
    }
    await memories.delivered(TARGET, [seen(1)])
    assert await memories.hold(TARGET, [waiting(seen(1, state=1))]) == 1


async def test_pages_and_batches_may_be_large_mixed_and_have_duplicates(memories):
    rows = [seen(number, kind=kind) for number in range(701) for kind in ("conversation", "reflection", "entity")]
    await memories.delivered(TARGET, [*rows[::2], *rows[:7:2]])
    assert await lacking(memories, *rows, *rows[:4]) == [*rows[1::2], *rows[1:4:2]]
    assert await memories.hold(TARGET, [waiting(row) for row in (*rows[1::2], *rows[1::2])]) == len(rows[1::2])
    assert await memories.counts(TARGET) == MemoryCounts(
        delivered=len(rows[::2]), waiting={"no embedding": len(rows[1::2])}
    )


async def test_of_rows_that_share_an_id_none_is_newly_held_if_one_was_held(memories):
    shared = [waiting(seen(1)), waiting(seen(1, state=1))]
    assert await memories.hold(TARGET, shared) == 2
    assert await memories.hold(TARGET, [*shared, waiting(seen(2))]) == 1


async def test_release_drops_held_memories_whose_rows_were_deleted(memories):
    deleted, remaining, graph = seen("deleted ☂"), seen(2), seen(1, kind="entity")
    await memories.delivered(TARGET, [seen(9)])
    for target in (TARGET, OTHER_TARGET):
        await memories.hold(
            target,
            [waiting(deleted), waiting(graph), HeldMemory(row=remaining, state="refused", reason="x", since=NOON)],
        )
    await memories.release(TARGET, "reflection", {remaining.key})
    assert {held.row for held in await held_by(memories)} == {remaining, graph}
    assert (await memories.counts(TARGET)).delivered == 1
    assert len(await held_by(memories, OTHER_TARGET)) == 3
    await memories.release(TARGET, "knowledge_graph", ())
    await memories.release(TARGET, "unknown", ())
    assert {held.row for held in await held_by(memories)} == {remaining}


async def held_by(memories, target=TARGET):
    return await memories.held(target, limit=9)


async def test_ids_and_reasons_may_have_any_characters(memories):
    ids = ["", "\0", "a\0", "a", "\u00e9", "e\u0301", "\ud800", "\\ud800", "'; DROP TABLE memories; --"]
    rows = [replace(seen(1), id=row_id) for row_id in ids]
    await memories.hold(TARGET, [refused(row, "\udcff at 5") for row in rows])
    assert {held.row.id for held in await memories.held(TARGET, limit=99)} == set(ids)
    assert await memories.counts(TARGET) == MemoryCounts(refused={"\\udcff at 5": len(ids)})
    await memories.update_version(TARGET, "\udcff")
    for row in rows:
        assert await lacking(memories, row) == []


async def test_empty_batches_change_nothing(memories):
    await memories.delivered(TARGET, [])
    assert await memories.hold(TARGET, []) == 0
    await memories.unstage(TARGET)
    assert await snapshot(memories) == (NOTHING, [], list(PAGE), {})


async def test_closing_the_ledger_closes_its_memories(handle):
    memories = handle.memories
    await handle.ledger.aclose()
    with pytest.raises(StateError, match="closed"):
        await memories.delivered(TARGET, [seen(1)])


# -------------------------------------------------------------------------------------------- versions of the target


async def test_the_first_version_and_a_repeated_version_change_nothing(handle):
    await handle.memories.hold(TARGET, [refused(seen(1))])
    assert await handle.memories.update_version(TARGET, "0.11.0") == frozenset()
    await handle.open()
    assert await handle.memories.update_version(TARGET, "0.11.0") == frozenset()
    assert await lacking(handle.memories, seen(1)) == []


async def test_a_new_version_makes_refused_memories_lacking_and_returns_databases_with_held_ones(handle):
    await handle.memories.update_version(TARGET, "0.11.0")
    await handle.memories.delivered(TARGET, [replace(seen(4), database="knowledge_graph_x")])
    await handle.memories.hold(TARGET, [refused(seen(1)), waiting(seen(2, kind="entity")), refused(seen(3))])
    await handle.memories.hold(OTHER_TARGET, [refused(seen(1))])
    assert await handle.memories.update_version(TARGET, "0.12.0") == {"reflection", "knowledge_graph"}
    await handle.open()
    assert await lacking(handle.memories, seen(1), seen(3)) == [seen(1), seen(3)]
    assert await lacking(handle.memories, seen(1), target=OTHER_TARGET) == []
    assert await handle.memories.counts(TARGET) == MemoryCounts(
        delivered=1, waiting={"wrong dimension": 2, "no embedding": 1}
    ), "they stay held until they are sent"
    assert await handle.memories.update_version(TARGET, "0.12.0") == frozenset()
    assert await handle.memories.update_version(TARGET, "0.11.0") == {"reflection", "knowledge_graph"}, (
        "an older version is a change too"
    )


async def test_a_new_version_makes_known_databases_with_held_memories_owed(handle):
    ledger = handle.ledger
    await upload(handle, 0)
    (result,) = await ledger.outbox()
    await ledger.confirm(result)
    await handle.memories.hold(TARGET, [refused(seen(1)), refused(replace(seen(1), database="knowledge_graph_x"))])
    await handle.memories.update_version(TARGET, "0.11.0")
    assert await handle.memories.update_version(TARGET, "0.12.0") == {"reflection", "knowledge_graph_x"}
    await handle.open()
    record = await handle.ledger.record(TARGET)
    assert {name: entry.state.value for name, entry in record.databases.items()} == {
        "reflection": "owed",
        "knowledge_graph": "clean",
    }


# ------------------------------------------------------------------------------------------------------ row sets


DATABASES = ("reflection", "knowledge_graph")


async def begin(handle, second, target=TARGET):
    await handle.ledger.mark_owed(target, DATABASES)
    await handle.ledger.begin(target, intent(second, reflection=second, knowledge_graph=second))


def base_of(second, *databases):
    """Return the manifest of an upload that can be the base of these databases, by default of both."""
    omitted = dict.fromkeys(databases or DATABASES, "there is no base")
    return replace(manifest(second, reflection=second, knowledge_graph=second), memories_omitted=omitted)


async def deliver(handle, second, target=TARGET):
    committed = base_of(second)
    await handle.ledger.deliver(target, committed, {}, {}, succeeded(committed))


async def stage(handle, second, target=TARGET, **rows):
    """Stage these rows of each database."""
    for database, listed in rows.items():
        await handle.memories.stage(target, upload_id(second), database, row_set(handle, listed))


def row_set(handle, rows):
    return write_row_set(handle.folder / "staged.rows", rows)


async def upload(handle, second, target=TARGET, **rows):
    await begin(handle, second, target)
    await stage(handle, second, target, **rows)
    await deliver(handle, second, target)


async def known(handle, database="reflection", target=TARGET):
    """Return the digests of the rows that the target has, None if they are unknown."""
    file = handle.folder / "known.rows"
    if not await handle.memories.known_rows(target, database, file):
        return None
    return digests(file)


def of(*rows):
    return {row.digest for row in rows}


def rows(count, state=0):
    return [seen(number, state=state) for number in range(count)]


async def test_a_row_set_is_returned_as_it_was_recorded(handle):
    assert await known(handle) is None
    await handle.memories.set_rows(TARGET, "reflection", row_set(handle, rows(8)))
    await handle.open()
    assert await known(handle) == of(*rows(8))
    assert await known(handle, target=OTHER_TARGET) is None
    assert await known(handle, "knowledge_graph") is None
    assert dict(await handle.memories.bases(TARGET)) == {}


@pytest.mark.parametrize(
    "later",
    [rows(8), rows(9), rows(7), rows(2), [], [*rows(3), *rows(5, state=1)], [seen(99), *rows(8)]],
    ids=["the same", "one more", "one less", "few", "none", "some changed", "shifted"],
)
async def test_a_row_set_is_replaced_completely(handle, later):
    for listed in (rows(8), later):
        await handle.memories.set_rows(TARGET, "reflection", row_set(handle, listed))
        assert await known(handle) == of(*listed)
    await upload(handle, 0, reflection=rows(8))
    await upload(handle, 1, reflection=later)
    assert await known(handle) == of(*later)


async def test_a_small_change_writes_few_bytes(handle):
    await handle.memories.set_rows(TARGET, "reflection", row_set(handle, rows(60_000)))
    await handle.open()
    before = await written(handle)
    await handle.memories.set_rows(TARGET, "reflection", row_set(handle, [*rows(59_999), seen("new")]))
    assert await written(handle) - before < 100_000
    assert await known(handle) == of(*rows(59_999), seen("new"))


async def written(handle):
    """Return the size of the write-ahead log."""
    return (handle.folder / "ledger.db-wal").stat().st_size


@pytest.mark.parametrize("content", [b"x", b"\0" * 11 + b"\1" + b"h" * 15], ids=["no head", "too few hashes"])
async def test_an_incomplete_file_changes_nothing(handle, content):
    await handle.memories.set_rows(TARGET, "reflection", row_set(handle, rows(8)))
    file = row_set(handle, rows(2))
    file.write_bytes(file.read_bytes() + content)
    for recorded in (
        handle.memories.set_rows(TARGET, "reflection", file),
        handle.memories.stage(TARGET, upload_id(), "reflection", file),
        handle.memories.set_rows(TARGET, "reflection", handle.folder / "missing"),
    ):
        with pytest.raises(SnapshotError, match=r"incomplete|invalid|cannot be read"):
            await recorded
    assert await known(handle) == of(*rows(8))


async def test_staged_rows_are_delivered_with_their_upload_and_not_before(handle):
    await begin(handle, 0)
    await stage(handle, 0, reflection=rows(2), knowledge_graph=[seen(1, kind="entity")])
    assert (await known(handle), dict(await handle.memories.bases(TARGET))) == (None, {})
    await deliver(handle, 0)
    await handle.open()
    assert await known(handle) == of(*rows(2))
    assert await known(handle, "knowledge_graph") == of(seen(1, kind="entity"))
    assert await handle.memories.bases(TARGET) == dict.fromkeys(DATABASES, upload_id())
    assert await handle.memories.bases(OTHER_TARGET) == {}
    assert await handle.memories.counts(TARGET) == NOTHING, "nothing is recorded of single rows"


async def test_a_database_that_was_not_staged_keeps_its_rows_and_its_base(handle):
    await upload(handle, 0, reflection=rows(2), knowledge_graph=[seen(1, kind="entity")])
    await upload(handle, 1, reflection=rows(3))
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(1), "knowledge_graph": upload_id(0)}
    assert await known(handle, "knowledge_graph") == of(seen(1, kind="entity"))


async def test_rows_of_a_database_of_which_the_upload_is_no_base_are_not_delivered(handle):
    await upload(handle, 0, reflection=rows(2))
    await begin(handle, 1)
    await stage(handle, 1, reflection=rows(3), knowledge_graph=[seen(1, kind="entity")])
    committed = base_of(1, "knowledge_graph")
    await handle.ledger.deliver(TARGET, committed, {}, {}, succeeded(committed))
    assert await known(handle) == of(*rows(2))
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(0), "knowledge_graph": upload_id(1)}


async def test_delivery_drops_rows_staged_for_other_uploads_of_the_target(handle):
    await stage(handle, 5, reflection=rows(5))
    await stage(handle, 0, OTHER_TARGET, reflection=rows(6))
    await upload(handle, 0, reflection=rows(2))
    await upload(handle, 5)
    assert await known(handle) == of(*rows(2))
    await handle.ledger.begin(OTHER_TARGET, intent(0, reflection=0))
    committed = replace(manifest(0, reflection=0), memories_omitted={"reflection": "there is no base"})
    await handle.ledger.deliver(OTHER_TARGET, committed, {}, {}, succeeded(committed))
    assert await known(handle, target=OTHER_TARGET) == of(*rows(6))


@pytest.mark.parametrize(("days", "replaced", "kept"), [(31, True, False), (29, True, True), (400, False, True)])
async def test_row_sets_are_deleted_a_month_after_another_target_has_replaced_theirs(handle, days, replaced, kept):
    """The record of the target, which says what is in it, stays."""
    await upload(handle, 0, reflection=rows(2))
    before = await handle.ledger.record(TARGET)
    await handle.clock.advance(days * 86_400)
    if replaced:
        await upload(handle, days * 86_400, OTHER_TARGET, reflection=rows(3))
    await handle.open()
    assert await known(handle) == (of(*rows(2)) if kept else None)
    assert bool(await handle.memories.bases(TARGET)) == kept
    assert await handle.ledger.record(TARGET) == before
    assert await known(handle, target=OTHER_TARGET) == (of(*rows(3)) if replaced else None)


async def test_of_rows_staged_twice_the_last_ones_count(handle):
    await upload(handle, 0, reflection=rows(8))
    await begin(handle, 1)
    await stage(handle, 1, reflection=rows(20, state=1))
    await stage(handle, 1, reflection=rows(5, state=2))
    await deliver(handle, 1)
    assert await known(handle) == of(*rows(5, state=2))


async def test_unstaged_and_abandoned_rows_are_not_delivered_and_given_up_ones_stay_staged(handle):
    await begin(handle, 0)
    await stage(handle, 0, knowledge_graph=[seen(1, kind="entity")])
    await handle.memories.unstage(TARGET)
    await stage(handle, 0, reflection=rows(2))
    await handle.ledger.give_up(TARGET, error="503", failures=1, retry_at=None, result=None)
    await begin(handle, 0)
    await deliver(handle, 0)
    assert (await known(handle), await known(handle, "knowledge_graph")) == (of(*rows(2)), None)
    await begin(handle, 1)
    await stage(handle, 1, reflection=rows(3))
    await stage(handle, 2, reflection=rows(4))
    await handle.ledger.abandon(TARGET)
    await upload(handle, 2)
    assert await known(handle) == of(*rows(4)), "abandoning an upload keeps what is staged for the next one"


@pytest.mark.parametrize("staged", [True, False])
async def test_adopting_an_upload_in_progress_delivers_its_staged_rows(handle, staged):
    """The agent adopts its own upload after it was killed between the manifest and the delivery."""
    await begin(handle, 3)
    if staged:
        await stage(handle, 3, reflection=rows(2))
    await handle.open()
    committed = base_of(3)
    for _ in range(2):
        await handle.ledger.adopt(TARGET, committed, succeeded(committed))
        assert await known(handle) == (of(*rows(2)) if staged else None)
        assert await handle.memories.bases(TARGET) == ({"reflection": upload_id(3)} if staged else {})


@pytest.mark.parametrize("staged", [True, False])
async def test_an_adopted_upload_that_this_ledger_did_not_begin_is_not_a_base(handle, staged):
    """Its rows are not known, so that a reader reads the databases of the next upload."""
    if staged:
        await stage(handle, 3, reflection=rows(2))
    committed = base_of(3)
    await handle.ledger.adopt(TARGET, committed, succeeded(committed))
    assert (await known(handle), await handle.memories.bases(TARGET)) == (None, {})
    await upload(handle, 4)
    assert await known(handle) is None, "the staged rows were dropped"


async def test_adopting_an_upload_of_another_ledger_keeps_the_base(handle):
    await upload(handle, 0, reflection=rows(2))
    other = manifest(3, reflection=3)
    await handle.ledger.adopt(TARGET, other, succeeded(other))
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(0)}
    assert await known(handle) == of(*rows(2))


async def test_a_refused_delivery_delivers_no_rows(handle):
    await stage(handle, 0, reflection=rows(2))
    with pytest.raises(StateError, match="is not the upload in progress"):
        await deliver(handle, 0)
    assert (await known(handle), await handle.memories.bases(TARGET)) == (None, {})
    await upload(handle, 0)
    assert await known(handle) == of(*rows(2)), "the rows are still staged"


async def test_forgetting_a_database_forgets_all_its_rows(handle):
    await upload(handle, 0, reflection=rows(2), knowledge_graph=[seen(1, kind="entity")])
    await handle.memories.delivered(TARGET, [seen(1), seen(1, kind="entity")])
    await handle.memories.hold(TARGET, [waiting(seen(3)), refused(seen(4)), refused(seen(4, kind="entity"))])
    await handle.memories.delivered(OTHER_TARGET, rows(2))
    await handle.memories.set_rows(OTHER_TARGET, "reflection", row_set(handle, rows(2)))
    await begin(handle, 1)
    await stage(handle, 1, reflection=rows(5), knowledge_graph=[seen(5, kind="entity")])
    await handle.ledger.forget(TARGET, ["reflection"])
    page = [seen(1), seen(1, kind="entity"), seen(4), seen(4, kind="entity")]
    assert await lacking(handle.memories, *page) == [seen(1), seen(4)]
    assert await lacking(handle.memories, *rows(2), target=OTHER_TARGET) == []
    assert await known(handle, target=OTHER_TARGET) == of(*rows(2))
    assert await handle.memories.counts(TARGET) == MemoryCounts(delivered=1, refused={"wrong dimension": 1})
    assert await handle.memories.bases(TARGET) == {"knowledge_graph": upload_id(0)}
    await deliver(handle, 1)
    assert await known(handle) is None
    assert await known(handle, "knowledge_graph") == of(seen(5, kind="entity"))


async def test_the_keys_of_held_memories_of_a_database(memories):
    await memories.delivered(TARGET, [seen(1)])
    await memories.hold(
        TARGET, [waiting(seen(2)), refused(seen(3, kind="reflection")), refused(seen(4, kind="entity"))]
    )
    await memories.hold(OTHER_TARGET, [waiting(seen(5))])
    keys = [("conversation", "conversation-2"), ("reflection", "reflection-3")]
    assert list(await memories.held_keys(TARGET, "reflection", limit=9)) == keys
    assert list(await memories.held_keys(TARGET, "reflection", limit=1)) == keys[:1]
    assert list(await memories.held_keys(TARGET, "unknown", limit=9)) == []


# -------------------------------------------------------------------------------------------- sequences of steps


class Model:
    """The expected memories of one target. Uploads are begun, staged, and then delivered, adopted or abandoned."""

    def __init__(self):
        self.delivered, self.held, self.staged, self.known, self.bases = {}, {}, {}, {}, {}
        self.version = self.base = None

    def lacks(self, row):
        held = self.held.get(row.key)
        return self.delivered.get(row.key) != row.digest and not (
            held and held.state == "refused" and held.row.digest == row.digest
        )

    def deliver(self, rows):
        for row in rows:
            self.delivered[row.key] = row.digest
            self.held.pop(row.key, None)

    def hold(self, held):
        for one in held:
            before = self.held.get(one.row.key)
            since = before.since if before and before.row.digest == one.row.digest else one.since
            self.held[one.row.key] = replace(one, since=since)
            self.delivered.pop(one.row.key, None)

    def update_version(self, version):
        if self.version not in (None, version):
            self.held = {key: replace(held, state="waiting") for key, held in self.held.items()}
        self.version = version

    def forget(self, database):
        for rows in (self.delivered, self.held):
            for key in [key for key in rows if key[0] == database]:
                del rows[key]
        for sets in (self.staged, self.known, self.bases):
            sets.pop(database, None)


ALL = [seen(n, kind=kind, state=s) for n in (1, 2) for kind in ("conversation", "reflection", "entity") for s in (0, 1)]
BATCH = st.lists(st.sampled_from(ALL), max_size=4, unique_by=lambda row: row.key)
ENTRIES = st.one_of(
    st.tuples(st.sampled_from(["delivered", "waiting", "refused"]), BATCH),
    st.tuples(st.sampled_from(["staged", "known"]), st.tuples(st.sampled_from(DATABASES), BATCH)),
    st.tuples(st.sampled_from(["update_version"]), st.sampled_from(["1", "2"])),
    st.tuples(st.sampled_from(["forget"]), st.sampled_from(["reflection", "knowledge_graph"])),
    st.tuples(st.sampled_from(["commit", "adopt", "unstage", "abandon", "restart"]), st.none()),
)


@settings(max_examples=40)
@given(st.lists(ENTRIES, max_size=14))
def test_the_ledger_agrees_with_a_model_in_memory_after_any_steps(tmp_path_factory, steps):
    async def run():
        handle, model = LedgerHandle(tmp_path_factory.mktemp("ledger"), fsync=False), Model()
        await handle.open()
        try:
            for second, (step, argument) in enumerate(steps):
                await apply(handle, model, second, step, argument)
                assert await lacking(handle.memories, *ALL) == [row for row in ALL if model.lacks(row)]
                counts = await handle.memories.counts(TARGET)
                assert counts.delivered == len(model.delivered)
                assert sum([*counts.waiting.values(), *counts.refused.values()]) == len(model.held)
                held = await handle.memories.held(TARGET, limit=99)
                assert {one.row.key: one for one in held} == model.held
                assert await handle.memories.bases(TARGET) == model.bases
                assert {name: await known(handle, name) for name in DATABASES} == {
                    name: model.known.get(name) for name in DATABASES
                }
        finally:
            await handle.close()

    asyncio.run(run())


async def apply(handle, model, second, step, argument):
    record = await handle.ledger.record(TARGET)
    if record.intent is None:
        await begin(handle, second)
        record = await handle.ledger.record(TARGET)
    now = int((naming.upload_time(record.intent.upload_id) - naming.upload_time(upload_id())).total_seconds())
    at = NOON + timedelta(seconds=second)
    match step:
        case "delivered":
            await handle.memories.delivered(TARGET, argument)
            model.deliver(argument)
        case "waiting" | "refused":
            held = [HeldMemory(row=row, state=step, reason=step, since=at) for row in argument]
            await handle.memories.hold(TARGET, held)
            model.hold(held)
        case "update_version":
            await handle.memories.update_version(TARGET, argument)
            model.update_version(argument)
        case "forget":
            await handle.ledger.forget(TARGET, [argument])
            model.forget(argument)
        case "staged":
            await stage(handle, now, **{argument[0]: argument[1]})
            model.staged[argument[0]] = of(*argument[1])
        case "known":
            await handle.memories.unstage(TARGET)  # only one of the two is used for a target
            await handle.memories.set_rows(TARGET, argument[0], row_set(handle, argument[1]))
            model.known[argument[0]], model.staged = of(*argument[1]), {}
        case "commit" | "adopt":
            committed = base_of(now)
            if step == "commit":
                await handle.ledger.deliver(TARGET, committed, {}, {}, succeeded(committed))
            else:
                await handle.ledger.adopt(TARGET, committed, succeeded(committed))
            model.known |= model.staged
            model.bases |= dict.fromkeys(model.staged, upload_id(now))
            model.staged = {}
        case "unstage":
            await handle.memories.unstage(TARGET)
            model.staged = {}
        case "abandon":
            await handle.ledger.abandon(TARGET)
            model.staged = {}
        case "restart":
            await handle.open()
