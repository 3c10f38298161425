"""The contract of `MemoryLedger`: its promises, and the effect of the transitions of the `Ledger` on memories."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.domain import naming
from agent.domain.errors import StateError
from agent.ports import HeldMemory, MemoryCounts
from tests.support.clock import ManualClock
from tests.support.ledger import without_fsync
from tests.support.memories import seen
from tests.support.values import NOON, OTHER_TARGET, TARGET, intent, manifest, memories_part, succeeded, upload_id

LATER = NOON + timedelta(hours=1)
PAGE = (seen(3), seen(1), seen(1, kind="reflection"), seen(1, kind="entity"), seen(2, embedded=False))
NOTHING = MemoryCounts()


class LedgerHandle:
    """A ledger in a directory. `open` closes the open ledger first: a restart."""

    def __init__(self, folder, *, fsync=True):
        self.folder, self.fsync, self.ledger = folder, fsync, None

    @property
    def memories(self):
        return self.ledger.memories()

    async def open(self):
        await self.close()
        self.ledger = await SqliteLedger.open(self.folder / "ledger.db", CloudEventsCodec(), clock=ManualClock(NOON))
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
    await memories.stage(TARGET, upload_id(), [])
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
    await upload(handle, 0, {"reflection": None, "knowledge_graph": None})
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


# ------------------------------------------------------------------------------------------- staged, for an upload


def manifest_with_memories(second, bases, *, parts=("reflection", "knowledge_graph")):
    """Return the manifest of the upload of that second, with memories of the databases in `bases`, or none if None."""
    without_memories = manifest(second, **dict.fromkeys(parts, second))
    if bases is None:
        return without_memories
    return replace(without_memories, memories=replace(memories_part(second), bases=bases))


async def begin(handle, second):
    await handle.ledger.mark_owed(TARGET, ["reflection", "knowledge_graph"])
    await handle.ledger.begin(TARGET, intent(second, reflection=second, knowledge_graph=second))


async def deliver(handle, second, bases):
    committed = manifest_with_memories(second, bases)
    await handle.ledger.deliver(TARGET, committed, {}, {}, succeeded(committed))


async def upload(handle, second, bases, *rows):
    await begin(handle, second)
    await handle.memories.stage(TARGET, upload_id(second), rows)
    await deliver(handle, second, bases)


BOTH = {"reflection": None, "knowledge_graph": None}
ROWS = (seen(1), seen(2), seen(1, kind="entity"))


async def test_staged_memories_are_delivered_with_their_upload_and_not_before(handle):
    await begin(handle, 0)
    await handle.memories.stage(TARGET, upload_id(), ROWS[:2])
    await handle.memories.stage(TARGET, upload_id(), ROWS[2:])
    assert await lacking(handle.memories, *ROWS) == list(ROWS)
    assert (await handle.memories.counts(TARGET), dict(await handle.memories.bases(TARGET))) == (NOTHING, {})
    await deliver(handle, 0, BOTH)
    await handle.open()
    assert await lacking(handle.memories, *ROWS, seen(1, state=1)) == [seen(1, state=1)]
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(), "knowledge_graph": upload_id()}
    assert await handle.memories.bases(OTHER_TARGET) == {}


async def test_an_upload_without_new_memories_of_a_database_becomes_its_base(handle):
    await upload(handle, 0, BOTH, *ROWS)
    await upload(handle, 1, {"reflection": upload_id(0), "knowledge_graph": upload_id(0)})
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(1), "knowledge_graph": upload_id(1)}
    assert await lacking(handle.memories, *ROWS) == []


async def test_an_upload_becomes_the_base_of_a_database_whose_memories_it_omits(handle):
    for second, adopted in enumerate((False, True)):
        await begin(handle, second)
        rows = seen(10 + second), seen(10 + second, kind="entity")
        await handle.memories.stage(TARGET, upload_id(second), rows)
        committed = replace(
            manifest_with_memories(second, {"reflection": None} if adopted else None),
            memories_omitted=dict.fromkeys({"knowledge_graph"} if adopted else BOTH, "there is no base upload"),
        )
        if adopted:
            await handle.ledger.adopt(TARGET, committed, succeeded(committed))
        else:
            await handle.ledger.deliver(TARGET, committed, {}, {}, succeeded(committed))
        assert await lacking(handle.memories, *rows) == []
        assert await handle.memories.bases(TARGET) == dict.fromkeys(BOTH, upload_id(second))


async def test_a_database_missing_from_an_upload_keeps_its_base_and_its_staged_memories_are_lacking(handle):
    await upload(handle, 0, BOTH, *ROWS)
    new_rows = (seen(3), seen(3, kind="entity"))
    await upload(handle, 1, {"reflection": upload_id(0)}, *new_rows)
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(1), "knowledge_graph": upload_id(0)}
    assert await lacking(handle.memories, *ROWS, *new_rows) == [new_rows[1]]


async def test_an_upload_without_memories_delivers_none(handle):
    await upload(handle, 0, None, *ROWS)
    assert await lacking(handle.memories, *ROWS) == list(ROWS)
    assert await handle.memories.bases(TARGET) == {}
    await upload(handle, 1, BOTH, seen(9))
    assert await lacking(handle.memories, *ROWS, seen(9)) == list(ROWS), "a later upload does not deliver them either"


async def test_delivery_drops_memories_staged_for_other_uploads_of_the_target(handle):
    await handle.memories.stage(TARGET, upload_id(5), [seen(5)])
    await handle.memories.stage(OTHER_TARGET, upload_id(0), [seen(6)])
    await upload(handle, 0, BOTH, *ROWS)
    assert await lacking(handle.memories, seen(5), seen(6)) == [seen(5), seen(6)]
    await upload(handle, 5, BOTH)
    assert await lacking(handle.memories, seen(5)) == [seen(5)]
    await handle.ledger.begin(OTHER_TARGET, intent(0, reflection=0))
    committed = manifest_with_memories(0, {"reflection": None}, parts=("reflection",))
    await handle.ledger.deliver(OTHER_TARGET, committed, {}, {}, succeeded(committed))
    assert await lacking(handle.memories, seen(6), target=OTHER_TARGET) == []


async def test_the_last_staged_state_counts_and_held_memories_are_delivered(handle):
    await handle.memories.hold(TARGET, [waiting(seen(1)), refused(seen(2))])
    await begin(handle, 0)
    await handle.memories.stage(TARGET, upload_id(), [seen(1), seen(2)])
    await handle.memories.stage(TARGET, upload_id(), [seen(1, state=1), seen(2), seen(3)])
    await deliver(handle, 0, BOTH)
    page = [seen(1), seen(1, state=1), seen(2), seen(3)]
    assert await lacking(handle.memories, *page) == [seen(1)]
    assert await handle.memories.counts(TARGET) == MemoryCounts(delivered=3)


async def test_unstaged_and_abandoned_memories_are_not_delivered_and_given_up_ones_stay_staged(handle):
    await begin(handle, 0)
    await handle.memories.stage(TARGET, upload_id(), [seen(1)])
    await handle.memories.unstage(TARGET)
    await handle.memories.stage(TARGET, upload_id(), [seen(2)])
    await handle.ledger.give_up(TARGET, error="503", failures=1, retry_at=None, result=None)
    await begin(handle, 0)
    await deliver(handle, 0, BOTH)
    assert await lacking(handle.memories, seen(1), seen(2)) == [seen(1)]
    await begin(handle, 1)
    await handle.memories.stage(TARGET, upload_id(1), [seen(3)])
    await handle.memories.stage(TARGET, upload_id(2), [seen(4)])
    await handle.ledger.abandon(TARGET)
    await begin(handle, 1)
    await deliver(handle, 1, BOTH)
    assert await lacking(handle.memories, seen(3), seen(4)) == [seen(3), seen(4)]


async def test_abandoning_an_upload_keeps_memories_staged_for_the_next_one(handle):
    await begin(handle, 0)
    await handle.memories.stage(TARGET, upload_id(0), [seen(1)])
    await handle.memories.stage(TARGET, upload_id(1), [seen(2)])
    await handle.ledger.abandon(TARGET)
    await upload(handle, 1, BOTH)
    assert await lacking(handle.memories, seen(1), seen(2)) == [seen(1)]


@pytest.mark.parametrize("rows", [ROWS, ()], ids=["with new memories", "without new memories"])
async def test_adopting_an_upload_in_progress_delivers_its_staged_memories(handle, rows):
    """The agent adopts its own upload after it was killed between the manifest and the delivery."""
    await begin(handle, 3)
    await handle.memories.stage(TARGET, upload_id(3), rows)
    await handle.open()
    committed = manifest_with_memories(3, BOTH)
    await handle.ledger.adopt(TARGET, committed, succeeded(committed))
    assert await lacking(handle.memories, *ROWS) == ([] if rows else list(ROWS))
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(3), "knowledge_graph": upload_id(3)}
    await handle.ledger.adopt(TARGET, committed, succeeded(committed))
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(3), "knowledge_graph": upload_id(3)}


@pytest.mark.parametrize("rows", [ROWS, ()], ids=["staged", "not staged"])
async def test_an_adopted_upload_that_this_ledger_did_not_begin_is_not_a_base(handle, rows):
    """The rows in it and their states are not known, so that the next upload has all memories."""
    await handle.memories.stage(TARGET, upload_id(3), rows)
    committed = manifest_with_memories(3, BOTH)
    await handle.ledger.adopt(TARGET, committed, succeeded(committed))
    assert await lacking(handle.memories, *ROWS) == list(ROWS)
    assert await handle.memories.bases(TARGET) == {}
    await upload(handle, 4, BOTH)
    assert await lacking(handle.memories, *ROWS) == list(ROWS), "the staged memories were dropped"


async def test_adopting_an_upload_of_another_ledger_keeps_the_base(handle):
    await upload(handle, 0, BOTH, *ROWS)
    other = manifest_with_memories(3, {"reflection": upload_id(2)})
    await handle.ledger.adopt(TARGET, other, succeeded(other))
    assert await handle.memories.bases(TARGET) == {"reflection": upload_id(0), "knowledge_graph": upload_id(0)}
    assert await lacking(handle.memories, *ROWS) == []


async def test_a_refused_delivery_delivers_no_memories(handle):
    await handle.memories.stage(TARGET, upload_id(), ROWS)
    with pytest.raises(StateError, match="is not the upload in progress"):
        await deliver(handle, 0, BOTH)
    assert (await handle.memories.counts(TARGET), dict(await handle.memories.bases(TARGET))) == (NOTHING, {})
    await upload(handle, 0, BOTH)
    assert await lacking(handle.memories, *ROWS) == [], "the memories are still staged"


async def test_forgetting_a_database_makes_its_memories_lacking(handle):
    await upload(handle, 0, BOTH, *ROWS)
    await handle.memories.hold(TARGET, [waiting(seen(3)), refused(seen(4)), refused(seen(4, kind="entity"))])
    await handle.memories.delivered(OTHER_TARGET, ROWS)
    await begin(handle, 1)
    await handle.memories.stage(TARGET, upload_id(1), [seen(5), seen(5, kind="entity")])
    await handle.ledger.forget(TARGET, ["reflection"])
    page = [*ROWS, seen(4), seen(4, kind="entity")]
    assert await lacking(handle.memories, *page) == [seen(1), seen(2), seen(4)]
    assert await lacking(handle.memories, *ROWS, target=OTHER_TARGET) == []
    assert await handle.memories.counts(TARGET) == MemoryCounts(delivered=1, refused={"wrong dimension": 1})
    assert await handle.memories.bases(TARGET) == {"knowledge_graph": upload_id(0)}
    await deliver(handle, 1, BOTH)
    assert await lacking(handle.memories, seen(5), seen(5, kind="entity")) == [seen(5)]


# -------------------------------------------------------------------------------------------- sequences of steps


class Model:
    """The expected memories of one target. Uploads are begun, staged, and then delivered, adopted or abandoned."""

    def __init__(self):
        self.delivered, self.held, self.staged, self.bases = {}, {}, {}, {}
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
        for known in (self.delivered, self.held, self.staged):
            for key in [key for key in known if key[0] == database]:
                del known[key]
        self.bases.pop(database, None)


ALL = [seen(n, kind=kind, state=s) for n in (1, 2) for kind in ("conversation", "reflection", "entity") for s in (0, 1)]
BATCH = st.lists(st.sampled_from(ALL), max_size=4, unique_by=lambda row: row.key)
ENTRIES = st.one_of(
    st.tuples(st.sampled_from(["delivered", "waiting", "refused", "staged"]), BATCH),
    st.tuples(st.sampled_from(["update_version"]), st.sampled_from(["1", "2"])),
    st.tuples(st.sampled_from(["forget"]), st.sampled_from(["reflection", "knowledge_graph"])),
    st.tuples(st.sampled_from(["commit", "adopt"]), st.sampled_from([None, *[{n: None} for n in BOTH], BOTH])),
    st.tuples(st.sampled_from(["unstage", "abandon", "restart"]), st.none()),
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
            await handle.memories.stage(TARGET, upload_id(now), argument)
            model.staged |= {row.key: row for row in argument}
        case "commit" | "adopt":
            committed = manifest_with_memories(now, argument)
            if step == "commit":
                await handle.ledger.deliver(TARGET, committed, {}, {}, succeeded(committed))
            else:
                await handle.ledger.adopt(TARGET, committed, succeeded(committed))
            model.deliver(row for row in model.staged.values() if row.database in (argument or {}))
            model.bases |= dict.fromkeys(argument or {}, upload_id(now))
            model.staged = {}
        case "unstage":
            await handle.memories.unstage(TARGET)
            model.staged = {}
        case "abandon":
            await handle.ledger.abandon(TARGET)
            model.staged = {}
        case "restart":
            await handle.open()
