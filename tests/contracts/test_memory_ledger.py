"""What every ledger promises of memories: the port's words, and what becomes of them where the ledger moves on."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.domain import naming
from agent.domain.errors import StateError
from agent.domain.manifest import MemoriesPart
from agent.ports import HeldMemory, MemoryCounts
from tests.support.clock import ManualClock
from tests.support.ledger import without_fsync
from tests.support.memories import seen
from tests.support.values import NOON, OTHER_TARGET, SYSTEM, TARGET, intent, manifest, sha256, succeeded, upload_id

LATER = NOON + timedelta(hours=1)
PAGE = (seen(3), seen(1), seen(1, kind="reflection"), seen(1, kind="entity"), seen(2, embedded=False))
NOTHING = MemoryCounts()


class Book:
    """One ledger's place. `open` opens it, closing what was open before: a restart."""

    def __init__(self, place, *, fsync=True):
        self.place, self.fsync, self.ledger = place, fsync, None

    @property
    def memories(self):
        return self.ledger.memories()

    async def open(self):
        await self.close()
        self.ledger = await SqliteLedger.open(self.place / "ledger.db", CloudEventsCodec(), clock=ManualClock(NOON))
        if not self.fsync:
            without_fsync(self.ledger)

    async def close(self):
        if self.ledger is not None:
            await self.ledger.aclose()


@pytest.fixture(params=["sqlite"])
async def book(request, tmp_path):
    kept = Book(tmp_path)
    await kept.open()
    yield kept
    await kept.close()


@pytest.fixture
def memories(book):
    return book.memories


def waiting(row, reason="no embedding", since=NOON):
    return HeldMemory(row=row, state="waiting", reason=reason, since=since)


def refused(row, reason="wrong dimension", since=NOON):
    return HeldMemory(row=row, state="refused", reason=reason, since=since)


async def lacking(memories, *page, target=TARGET):
    return list(await memories.lacking(target, page))


async def kept(memories, target=TARGET):
    """All that a ledger tells of memories, to see that it has not changed."""
    standing, held = await memories.counts(target), list(await memories.held(target, limit=1000))
    return standing, held, await lacking(memories, *PAGE, target=target), dict(await memories.bases(target))


# -------------------------------------------------------------------------------------------- delivered, held, lacking


async def test_an_empty_ledger_has_delivered_nothing_and_everything_is_lacking_in_order(memories):
    assert await kept(memories) == (NOTHING, [], list(PAGE), {})
    assert await lacking(memories) == []


async def test_what_was_delivered_is_lacking_no_more_until_it_changes(book):
    await book.memories.delivered(TARGET, {seen(1), seen(3)})
    await book.open()
    page = [seen(3), seen(2), seen(1, state=1), seen(1)]
    assert await lacking(book.memories, *page) == [seen(2), seen(1, state=1)]
    await book.memories.delivered(TARGET, [seen(1, state=1)])
    assert await lacking(book.memories, *page) == [seen(2), seen(1)], "only its last state is known"
    assert await book.memories.counts(TARGET) == MemoryCounts(delivered=2)


async def test_each_target_has_memories_of_its_own(memories):
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


async def test_what_waits_stays_lacking_and_what_was_refused_is_lacking_when_it_changes(memories):
    await memories.hold(TARGET, [waiting(seen(1)), refused(seen(2))])
    assert await lacking(memories, seen(1), seen(2), seen(2, state=1)) == [seen(1), seen(2, state=1)]
    assert await memories.counts(TARGET) == MemoryCounts(waiting={"no embedding": 1}, refused={"wrong dimension": 1})


async def test_delivered_at_last_it_is_held_no_more(memories):
    await memories.hold(TARGET, [waiting(seen(1)), refused(seen(2))])
    await memories.delivered(TARGET, [seen(1), seen(2, state=1)])
    assert await memories.counts(TARGET) == MemoryCounts(delivered=2)
    assert list(await memories.held(TARGET, limit=9)) == []


async def test_a_row_that_was_delivered_in_an_earlier_state_is_held_in_its_new_one(memories):
    await memories.delivered(TARGET, [seen(1), seen(2)])
    await memories.hold(TARGET, [waiting(seen(1, state=1)), refused(seen(2, state=1))])
    assert await memories.counts(TARGET) == MemoryCounts(waiting={"no embedding": 1}, refused={"wrong dimension": 1})
    assert await lacking(memories, seen(1, state=1), seen(2, state=1)) == [seen(1, state=1)]


async def test_what_is_held_comes_back_as_it_was_given_the_refused_ones_first(memories):
    given = [
        waiting(seen(1, embedded=False)),
        refused(seen(2, kind="entity"), "no such tool", LATER),
        waiting(seen(3, kind="relationship"), "the server has no tool for a relationship"),
        refused(seen(4), "wrong dimension"),
    ]
    await memories.hold(TARGET, given)
    reported = list(await memories.held(TARGET, limit=9))
    assert [held.state for held in reported] == ["refused", "refused", "waiting", "waiting"]
    assert {held.row.key: held for held in reported} == {held.row.key: held for held in given}
    for limit in range(5):
        assert list(await memories.held(TARGET, limit=limit)) == reported[:limit]


async def test_held_again_in_the_same_state_of_the_row_it_is_not_new_and_its_time_stays(memories):
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


async def test_pages_and_batches_may_be_large_mixed_and_repeat_themselves(memories):
    rows = [seen(number, kind=kind) for number in range(701) for kind in ("conversation", "reflection", "entity")]
    await memories.delivered(TARGET, [*rows[::2], *rows[:7:2]])
    assert await lacking(memories, *rows, *rows[:4]) == [*rows[1::2], *rows[1:4:2]]
    assert await memories.hold(TARGET, [waiting(row) for row in (*rows[1::2], *rows[1::2])]) == len(rows[1::2])
    assert await memories.counts(TARGET) == MemoryCounts(
        delivered=len(rows[::2]), waiting={"no embedding": len(rows[1::2])}
    )


async def test_of_a_databases_rows_that_are_gone_none_is_held(memories):
    deleted, kept, graph = seen("deleted ☂"), seen(2), seen(1, kind="entity")
    await memories.delivered(TARGET, [seen(9)])
    for target in (TARGET, OTHER_TARGET):
        await memories.hold(
            target, [waiting(deleted), waiting(graph), HeldMemory(row=kept, state="refused", reason="x", since=NOON)]
        )
    await memories.release(TARGET, "reflection", {kept.key})
    assert {held.row for held in await kept_back(memories)} == {kept, graph}
    assert (await memories.counts(TARGET)).delivered == 1
    assert len(await kept_back(memories, OTHER_TARGET)) == 3
    await memories.release(TARGET, "knowledge_graph", ())
    await memories.release(TARGET, "unheard_of", ())
    assert {held.row for held in await kept_back(memories)} == {kept}


async def kept_back(memories, target=TARGET):
    return await memories.held(target, limit=9)


async def test_ids_and_reasons_may_hold_anything(memories):
    ids = ["", "\0", "a\0", "a", "\u00e9", "e\u0301", "\ud800", "\\ud800", "'; DROP TABLE memories; --"]
    rows = [replace(seen(1), id=row_id) for row_id in ids]
    await memories.hold(TARGET, [refused(row, "\udcff at 5") for row in rows])
    assert {held.row.id for held in await memories.held(TARGET, limit=99)} == set(ids)
    assert await memories.counts(TARGET) == MemoryCounts(refused={"\\udcff at 5": len(ids)})
    await memories.update_version(TARGET, "\udcff")
    for row in rows:
        assert await lacking(memories, row) == []


async def test_nothing_is_no_harm(memories):
    await memories.delivered(TARGET, [])
    assert await memories.hold(TARGET, []) == 0
    await memories.stage(TARGET, upload_id(), [])
    await memories.unstage(TARGET)
    assert await kept(memories) == (NOTHING, [], list(PAGE), {})


async def test_all_of_it_is_closed_with_the_ledger(book):
    memories = book.memories
    await book.ledger.aclose()
    with pytest.raises(StateError, match="closed"):
        await memories.delivered(TARGET, [seen(1)])


# -------------------------------------------------------------------------------------------- versions of the target


async def test_the_first_meeting_is_remembered_and_the_same_version_again_is_nothing(book):
    await book.memories.hold(TARGET, [refused(seen(1))])
    assert await book.memories.update_version(TARGET, "0.11.0") == frozenset()
    await book.open()
    assert await book.memories.update_version(TARGET, "0.11.0") == frozenset()
    assert await lacking(book.memories, seen(1)) == []


async def test_for_another_version_what_was_refused_is_lacking_and_what_is_held_is_worth_another_look(book):
    await book.memories.update_version(TARGET, "0.11.0")
    await book.memories.delivered(TARGET, [replace(seen(4), database="knowledge_graph_x")])
    await book.memories.hold(TARGET, [refused(seen(1)), waiting(seen(2, kind="entity")), refused(seen(3))])
    await book.memories.hold(OTHER_TARGET, [refused(seen(1))])
    assert await book.memories.update_version(TARGET, "0.12.0") == {"reflection", "knowledge_graph"}
    await book.open()
    assert await lacking(book.memories, seen(1), seen(3)) == [seen(1), seen(3)]
    assert await lacking(book.memories, seen(1), target=OTHER_TARGET) == []
    assert await book.memories.counts(TARGET) == MemoryCounts(
        delivered=1, waiting={"wrong dimension": 2, "no embedding": 1}
    ), "it is told of until it was tried"
    assert await book.memories.update_version(TARGET, "0.12.0") == frozenset()
    assert await book.memories.update_version(TARGET, "0.11.0") == {"reflection", "knowledge_graph"}, (
        "back is a change too"
    )


async def test_what_is_worth_another_look_is_owed_from_that_moment_where_the_ledger_knows_the_database(book):
    ledger = book.ledger
    await upload(book, 0, {"reflection": None, "knowledge_graph": None})
    (result,) = await ledger.outbox()
    await ledger.confirm(result)
    await book.memories.hold(TARGET, [refused(seen(1)), refused(replace(seen(1), database="knowledge_graph_x"))])
    await book.memories.update_version(TARGET, "0.11.0")
    assert await book.memories.update_version(TARGET, "0.12.0") == {"reflection", "knowledge_graph_x"}
    await book.open()
    record = await book.ledger.record(TARGET)
    assert {name: entry.state.value for name, entry in record.databases.items()} == {
        "reflection": "owed",
        "knowledge_graph": "clean",
    }


# ------------------------------------------------------------------------------------------- staged, for an upload


def whole(second, bases, *, parts=("reflection", "knowledge_graph")):
    """The manifest of the upload of that second, with memories of the databases in `bases`; None: without them."""
    plain = manifest(second, **dict.fromkeys(parts, second))
    if bases is None:
        return plain
    key = naming.memories_key(SYSTEM, plain.upload_id)
    return replace(plain, memories=MemoriesPart(key=key, size=9, sha256=sha256(key), count=1, bases=bases))


async def begin(book, second):
    await book.ledger.mark_owed(TARGET, ["reflection", "knowledge_graph"])
    await book.ledger.begin(TARGET, intent(second, reflection=second, knowledge_graph=second))


async def deliver(book, second, bases):
    committed = whole(second, bases)
    await book.ledger.deliver(TARGET, committed, {}, {}, succeeded(committed))


async def upload(book, second, bases, *rows):
    await begin(book, second)
    await book.memories.stage(TARGET, upload_id(second), rows)
    await deliver(book, second, bases)


BOTH = {"reflection": None, "knowledge_graph": None}
ROWS = (seen(1), seen(2), seen(1, kind="entity"))


async def test_what_is_staged_is_delivered_with_its_upload_and_not_before(book):
    await begin(book, 0)
    await book.memories.stage(TARGET, upload_id(), ROWS[:2])
    await book.memories.stage(TARGET, upload_id(), ROWS[2:])
    assert await lacking(book.memories, *ROWS) == list(ROWS)
    assert (await book.memories.counts(TARGET), dict(await book.memories.bases(TARGET))) == (NOTHING, {})
    await deliver(book, 0, BOTH)
    await book.open()
    assert await lacking(book.memories, *ROWS, seen(1, state=1)) == [seen(1, state=1)]
    assert await book.memories.bases(TARGET) == {"reflection": upload_id(), "knowledge_graph": upload_id()}
    assert await book.memories.bases(OTHER_TARGET) == {}


async def test_an_upload_that_had_nothing_new_of_a_database_is_its_base_all_the_same(book):
    await upload(book, 0, BOTH, *ROWS)
    await upload(book, 1, {"reflection": upload_id(0), "knowledge_graph": upload_id(0)})
    assert await book.memories.bases(TARGET) == {"reflection": upload_id(1), "knowledge_graph": upload_id(1)}
    assert await lacking(book.memories, *ROWS) == []


async def test_a_database_whose_rows_an_upload_does_not_have_keeps_its_base_and_what_was_staged_of_it_is_lacking(book):
    await upload(book, 0, BOTH, *ROWS)
    news = (seen(3), seen(3, kind="entity"))
    await upload(book, 1, {"reflection": upload_id(0)}, *news)
    assert await book.memories.bases(TARGET) == {"reflection": upload_id(1), "knowledge_graph": upload_id(0)}
    assert await lacking(book.memories, *ROWS, *news) == [news[1]]


async def test_an_upload_without_memories_delivers_none(book):
    await upload(book, 0, None, *ROWS)
    assert await lacking(book.memories, *ROWS) == list(ROWS)
    assert await book.memories.bases(TARGET) == {}
    await upload(book, 1, BOTH, seen(9))
    assert await lacking(book.memories, *ROWS, seen(9)) == list(ROWS), "nor does a later one"


async def test_what_other_uploads_had_staged_is_dropped_and_other_targets_are_left_alone(book):
    await book.memories.stage(TARGET, upload_id(5), [seen(5)])
    await book.memories.stage(OTHER_TARGET, upload_id(0), [seen(6)])
    await upload(book, 0, BOTH, *ROWS)
    assert await lacking(book.memories, seen(5), seen(6)) == [seen(5), seen(6)]
    await upload(book, 5, BOTH)
    assert await lacking(book.memories, seen(5)) == [seen(5)]
    await book.ledger.begin(OTHER_TARGET, intent(0, reflection=0))
    committed = whole(0, {"reflection": None}, parts=("reflection",))
    await book.ledger.deliver(OTHER_TARGET, committed, {}, {}, succeeded(committed))
    assert await lacking(book.memories, seen(6), target=OTHER_TARGET) == []


async def test_staged_once_more_the_later_state_counts_and_what_was_held_is_delivered(book):
    await book.memories.hold(TARGET, [waiting(seen(1)), refused(seen(2))])
    await begin(book, 0)
    await book.memories.stage(TARGET, upload_id(), [seen(1), seen(2)])
    await book.memories.stage(TARGET, upload_id(), [seen(1, state=1), seen(2), seen(3)])
    await deliver(book, 0, BOTH)
    page = [seen(1), seen(1, state=1), seen(2), seen(3)]
    assert await lacking(book.memories, *page) == [seen(1)]
    assert await book.memories.counts(TARGET) == MemoryCounts(delivered=3)


async def test_what_was_unstaged_or_abandoned_was_not_delivered_but_what_was_given_up_is_still_staged(book):
    await begin(book, 0)
    await book.memories.stage(TARGET, upload_id(), [seen(1)])
    await book.memories.unstage(TARGET)
    await book.memories.stage(TARGET, upload_id(), [seen(2)])
    await book.ledger.give_up(TARGET, error="503", failures=1, retry_at=None, result=None)
    await begin(book, 0)
    await deliver(book, 0, BOTH)
    assert await lacking(book.memories, seen(1), seen(2)) == [seen(1)]
    await begin(book, 1)
    await book.memories.stage(TARGET, upload_id(1), [seen(3)])
    await book.memories.stage(TARGET, upload_id(2), [seen(4)])
    await book.ledger.abandon(TARGET)
    await begin(book, 1)
    await deliver(book, 1, BOTH)
    assert await lacking(book.memories, seen(3), seen(4)) == [seen(3), seen(4)]


async def test_abandoning_an_upload_leaves_what_the_next_one_has_staged_already(book):
    await begin(book, 0)
    await book.memories.stage(TARGET, upload_id(0), [seen(1)])
    await book.memories.stage(TARGET, upload_id(1), [seen(2)])
    await book.ledger.abandon(TARGET)
    await upload(book, 1, BOTH)
    assert await lacking(book.memories, seen(1), seen(2)) == [seen(1)]


@pytest.mark.parametrize("rows", [ROWS, ()], ids=["with news", "with nothing new"])
async def test_killed_between_manifest_and_delivery_an_adopted_upload_is_as_good_as_delivered(book, rows):
    await begin(book, 3)
    await book.memories.stage(TARGET, upload_id(3), rows)
    await book.open()
    committed = whole(3, BOTH)
    await book.ledger.adopt(TARGET, committed, succeeded(committed))
    assert await lacking(book.memories, *ROWS) == ([] if rows else list(ROWS))
    assert await book.memories.bases(TARGET) == {"reflection": upload_id(3), "knowledge_graph": upload_id(3)}
    await book.ledger.adopt(TARGET, committed, succeeded(committed))
    assert await book.memories.bases(TARGET) == {"reflection": upload_id(3), "knowledge_graph": upload_id(3)}


@pytest.mark.parametrize("rows", [ROWS, ()], ids=["staged", "not staged"])
async def test_an_upload_that_this_ledger_had_not_begun_is_no_base_when_it_is_adopted(book, rows):
    """Which rows are in it, and in which state, is not known: the next upload has everything."""
    await book.memories.stage(TARGET, upload_id(3), rows)
    committed = whole(3, BOTH)
    await book.ledger.adopt(TARGET, committed, succeeded(committed))
    assert await lacking(book.memories, *ROWS) == list(ROWS)
    assert await book.memories.bases(TARGET) == {}
    await upload(book, 4, BOTH)
    assert await lacking(book.memories, *ROWS) == list(ROWS), "what was staged is gone"


async def test_an_upload_that_is_none_of_ours_leaves_the_base_where_it_was(book):
    await upload(book, 0, BOTH, *ROWS)
    other = whole(3, {"reflection": upload_id(2)})
    await book.ledger.adopt(TARGET, other, succeeded(other))
    assert await book.memories.bases(TARGET) == {"reflection": upload_id(0), "knowledge_graph": upload_id(0)}
    assert await lacking(book.memories, *ROWS) == []


async def test_a_delivery_that_is_refused_delivers_no_memories(book):
    await book.memories.stage(TARGET, upload_id(), ROWS)
    with pytest.raises(StateError, match="is not the upload in progress"):
        await deliver(book, 0, BOTH)
    assert (await book.memories.counts(TARGET), dict(await book.memories.bases(TARGET))) == (NOTHING, {})
    await upload(book, 0, BOTH)
    assert await lacking(book.memories, *ROWS) == [], "it is staged as before"


async def test_what_is_gone_from_the_bucket_is_new_again(book):
    await upload(book, 0, BOTH, *ROWS)
    await book.memories.hold(TARGET, [waiting(seen(3)), refused(seen(4)), refused(seen(4, kind="entity"))])
    await book.memories.delivered(OTHER_TARGET, ROWS)
    await begin(book, 1)
    await book.memories.stage(TARGET, upload_id(1), [seen(5), seen(5, kind="entity")])
    await book.ledger.forget(TARGET, ["reflection"])
    page = [*ROWS, seen(4), seen(4, kind="entity")]
    assert await lacking(book.memories, *page) == [seen(1), seen(2), seen(4)]
    assert await lacking(book.memories, *ROWS, target=OTHER_TARGET) == []
    assert await book.memories.counts(TARGET) == MemoryCounts(delivered=1, refused={"wrong dimension": 1})
    assert await book.memories.bases(TARGET) == {"knowledge_graph": upload_id(0)}
    await deliver(book, 1, BOTH)
    assert await lacking(book.memories, seen(5), seen(5, kind="entity")) == [seen(5)]


# -------------------------------------------------------------------------------------------- any story, told to both


class Model:
    """What a ledger must say of one target, in memory. Uploads are begun, staged, and then delivered or abandoned."""

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

    def meet(self, version):
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
    st.tuples(st.sampled_from(["meet"]), st.sampled_from(["1", "2"])),
    st.tuples(st.sampled_from(["forget"]), st.sampled_from(["reflection", "knowledge_graph"])),
    st.tuples(st.sampled_from(["commit", "adopt"]), st.sampled_from([None, *[{n: None} for n in BOTH], BOTH])),
    st.tuples(st.sampled_from(["unstage", "abandon", "restart"]), st.none()),
)


@settings(max_examples=40)
@given(st.lists(ENTRIES, max_size=14))
def test_whatever_is_entered_the_ledger_says_what_a_model_in_memory_says(tmp_path_factory, story):
    async def reported():
        book, model = Book(tmp_path_factory.mktemp("ledger"), fsync=False), Model()
        await book.open()
        try:
            for second, (what, of) in enumerate(story):
                await enter(book, model, second, what, of)
                assert await lacking(book.memories, *ALL) == [row for row in ALL if model.lacks(row)]
                standing = await book.memories.counts(TARGET)
                assert standing.delivered == len(model.delivered)
                assert sum([*standing.waiting.values(), *standing.refused.values()]) == len(model.held)
                held = await book.memories.held(TARGET, limit=99)
                assert {one.row.key: one for one in held} == model.held
                assert await book.memories.bases(TARGET) == model.bases
        finally:
            await book.close()

    asyncio.run(reported())


async def enter(book, model, second, what, of):
    record = await book.ledger.record(TARGET)
    if record.intent is None:
        await begin(book, second)
        record = await book.ledger.record(TARGET)
    now = int((naming.upload_time(record.intent.upload_id) - naming.upload_time(upload_id())).total_seconds())
    at = NOON + timedelta(seconds=second)
    match what:
        case "delivered":
            await book.memories.delivered(TARGET, of)
            model.deliver(of)
        case "waiting" | "refused":
            held = [HeldMemory(row=row, state=what, reason=what, since=at) for row in of]
            await book.memories.hold(TARGET, held)
            model.hold(held)
        case "meet":
            await book.memories.update_version(TARGET, of)
            model.meet(of)
        case "forget":
            await book.ledger.forget(TARGET, [of])
            model.forget(of)
        case "staged":
            await book.memories.stage(TARGET, upload_id(now), of)
            model.staged |= {row.key: row for row in of}
        case "commit" | "adopt":
            committed = whole(now, of)
            if what == "commit":
                await book.ledger.deliver(TARGET, committed, {}, {}, succeeded(committed))
            else:
                await book.ledger.adopt(TARGET, committed, succeeded(committed))
            model.deliver(row for row in model.staged.values() if row.database in (of or {}))
            model.bases |= dict.fromkeys(of or {}, upload_id(now))
            model.staged = {}
        case "unstage":
            await book.memories.unstage(TARGET)
            model.staged = {}
        case "abandon":
            await book.ledger.abandon(TARGET)
            model.staged = {}
        case "restart":
            await book.open()
