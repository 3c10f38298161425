"""What every ledger promises: the port's words and the state table of docs/architecture.md, one test each."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.domain import transitions
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import StateError
from agent.domain.events import SessionEnded, UploadsPruned, outcome_event_id
from tests.support.clock import ManualClock
from tests.support.ledger import without_fsync
from tests.support.values import (
    NOON,
    OTHER_TARGET,
    SYSTEM,
    TARGET,
    failed,
    fingerprint,
    intent,
    manifest,
    parts,
    problem,
    request,
    skipped,
    succeeded,
    upload_id,
)

LATER = NOON + timedelta(seconds=30)


class Book:
    """One ledger's place. `open` opens it, closing what was open before: a restart."""

    def __init__(self, place, clock, *, fsync=True):
        self.place, self.clock, self.fsync, self.now = place, clock, fsync, None

    async def open(self):
        await self.close()
        self.now = await SqliteLedger.open(self.place / "ledger.db", CloudEventsCodec(), clock=self.clock)
        if not self.fsync:
            without_fsync(self.now)
        return self.now

    async def close(self):
        if self.now is not None:
            await self.now.aclose()


@pytest.fixture(params=["sqlite"])
async def book(request, tmp_path):
    kept = Book(tmp_path, ManualClock(NOON))
    await kept.open()
    yield kept
    await kept.close()


@pytest.fixture
def ledger(book):
    return book.now


async def states(ledger, target=TARGET):
    return {name: entry.state.value for name, entry in (await ledger.record(target)).databases.items()}


async def everything(ledger):
    """All that a ledger tells, to see that it has not changed."""
    return (
        await ledger.record(TARGET),
        await ledger.record(OTHER_TARGET),
        list(await ledger.outbox()),
        list(await ledger.history()),
        dict(await ledger.notes()),
    )


async def upload(ledger, second=0, *, request_id="r1", problems=None, **generations):
    """Owe, begin and deliver; returns the result that waits in the outbox."""
    whole = manifest(second, request_id, **generations)
    await ledger.mark_owed(TARGET, generations)
    await ledger.begin(TARGET, intent(second, request_id, **generations))
    seen = {name: fingerprint(name, at) for name, at in generations.items()}
    await ledger.deliver(TARGET, whole, seen, problems or {}, succeeded(whole))
    return succeeded(whole)


# ---------------------------------------------------------------------------------------------------- the state table


async def test_an_empty_ledger_knows_nothing(ledger):
    assert await ledger.record(TARGET) == TargetRecord(target=TARGET)
    assert list(await ledger.outbox()) == []
    assert list(await ledger.history()) == []
    assert await ledger.last_position() == 0
    assert dict(await ledger.notes()) == {}
    assert await ledger.outcome("r1") is None


async def test_clean_changed_is_owed_and_keeps_what_was_delivered(ledger):
    await ledger.confirm(await upload(ledger, reflection=0))
    assert await states(ledger) == {"reflection": "clean"}
    await ledger.mark_owed(TARGET, ["reflection"])
    entry = (await ledger.record(TARGET)).databases["reflection"]
    assert entry.state == "owed"
    assert entry.parts == parts("reflection", 0)
    assert entry.fingerprint == fingerprint("reflection", 0)
    assert entry.rows == {"conversations_v2": 40}


async def test_owed_staged_is_intent_and_the_intent_is_kept_whole(ledger):
    begun = intent(0, "r1", reflection=0, knowledge_graph=1)
    await ledger.mark_owed(TARGET, ["reflection", "knowledge_graph", "knowledge_graph_x"])
    await ledger.begin(TARGET, begun)
    record = await ledger.record(TARGET)
    assert record.intent == begun
    assert record.known
    assert await states(ledger) == {"reflection": "intent", "knowledge_graph": "intent", "knowledge_graph_x": "owed"}


async def test_the_same_intent_again_is_no_move_and_another_one_is_refused(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    before = await everything(ledger)
    await ledger.begin(TARGET, intent(0, reflection=0))
    assert await everything(ledger) == before
    with pytest.raises(StateError, match="is not finished"):
        await ledger.begin(TARGET, intent(1, reflection=0))
    assert await everything(ledger) == before


async def test_intent_changed_is_still_intent(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.mark_owed(TARGET, ["reflection"])
    assert await states(ledger) == {"reflection": "intent"}


async def test_intent_committed_is_delivered_with_its_result_in_the_outbox(ledger):
    await ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="503")
    await ledger.record_problems(TARGET, {"reflection": problem("reflection")})
    result = await upload(ledger, 5, reflection=2)
    record = await ledger.record(TARGET)
    entry = record.databases["reflection"]
    assert (entry.state, entry.parts, entry.problem) == ("delivered", parts("reflection", 2, second=5), None)
    assert (entry.fingerprint, entry.rows) == (fingerprint("reflection", 2), {"conversations_v2": 45})
    assert (record.intent, record.attempts, record.failures, record.retry_at, record.error) == (None, 0, 0, None, "")
    assert (record.newest_upload_id, record.last_success) == (upload_id(5), result.time)
    assert list(await ledger.outbox()) == [result]
    assert await ledger.outcome("r1") == result


async def test_intent_retry_is_intent_with_attempts_their_request_and_the_time(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.count_attempt(TARGET, request("r7"), attempts=2, retry_at=LATER, error="503 SlowDown")
    record = await ledger.record(TARGET)
    assert (record.attempts, record.attempt_request, record.retry_at) == (2, "r7", LATER)
    assert (record.error, record.intent) == ("503 SlowDown", intent(0, reflection=0))
    assert await states(ledger) == {"reflection": "intent"}


async def test_an_attempt_counts_without_an_intent_too(ledger):
    await ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="unreachable")
    record = await ledger.record(TARGET)
    assert (record.attempts, record.known) == (1, False)


async def test_intent_abandoned_is_owed(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.abandon(TARGET)
    assert await states(ledger) == {"reflection": "owed"}
    assert (await ledger.record(TARGET)).intent is None


async def test_abandoning_where_nothing_has_begun_is_nothing(ledger):
    await ledger.mark_owed(TARGET, ["reflection"])
    before = await everything(ledger)
    await ledger.abandon(TARGET)
    assert await everything(ledger) == before


@pytest.mark.parametrize("result", [None, failed()], ids=["forwarded", "failed"])
async def test_giving_up_owes_keeps_the_error_and_tells_where_no_method_is_left(ledger, result):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.count_attempt(TARGET, request(), attempts=3, retry_at=NOON, error="503")
    await ledger.give_up(TARGET, error="403", failures=2, retry_at=LATER, result=result)
    record = await ledger.record(TARGET)
    assert (record.attempts, record.attempt_request) == (0, "")
    assert (record.error, record.failures, record.retry_at) == ("403", 2, LATER)
    assert await states(ledger) == {"reflection": "owed"}
    assert list(await ledger.outbox()) == ([] if result is None else [result])
    assert await ledger.outcome("r1") == result


async def test_what_was_given_up_goes_on_under_its_id_or_is_abandoned(ledger):
    begun = intent(0, reflection=0)
    await ledger.begin(TARGET, begun)
    await ledger.give_up(TARGET, error="403", failures=1, retry_at=LATER, result=None)
    assert (await ledger.record(TARGET)).intent == begun
    with pytest.raises(StateError, match="not finished"):
        await ledger.begin(TARGET, intent(1, reflection=1))
    await ledger.begin(TARGET, begun)
    assert await states(ledger) == {"reflection": "intent"}
    await ledger.give_up(TARGET, error="403", failures=2, retry_at=LATER, result=None)
    await ledger.abandon(TARGET)
    await ledger.begin(TARGET, intent(1, reflection=1))
    assert await states(ledger) == {"reflection": "intent"}


async def test_delivered_confirmed_is_clean_and_out_of_the_outbox_and_again_is_nothing(ledger):
    result = await upload(ledger, reflection=0)
    await ledger.confirm(result)
    after = await everything(ledger)
    assert await states(ledger) == {"reflection": "clean"}
    assert list(await ledger.outbox()) == []
    await ledger.confirm(result)
    assert await everything(ledger) == after


async def test_delivered_changed_is_owed_and_its_result_still_waits_and_does_not_clear_it(ledger):
    result = await upload(ledger, reflection=0)
    await ledger.mark_owed(TARGET, ["reflection"])
    assert list(await ledger.outbox()) == [result]
    await ledger.confirm(result)
    assert await states(ledger) == {"reflection": "owed"}


async def test_a_result_confirms_only_what_its_own_upload_delivered(ledger):
    first = await upload(ledger, 0, request_id="r1", reflection=0)
    second = await upload(ledger, 1, request_id="r2", reflection=1, knowledge_graph=0)
    await ledger.confirm(first)
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "delivered"}
    await ledger.confirm(second)
    assert await states(ledger) == {"reflection": "clean", "knowledge_graph": "clean"}


async def test_confirming_what_was_never_reported_is_refused(ledger):
    with pytest.raises(StateError, match="never in the outbox"):
        await ledger.confirm(skipped("r9"))


async def test_owed_unchanged_is_clean_with_the_new_look_and_without_its_problem(ledger):
    await ledger.confirm(await upload(ledger, reflection=0))
    await ledger.record_problems(TARGET, {"reflection": problem("reflection")})
    await ledger.mark_unchanged(TARGET, {"reflection": fingerprint("reflection", 8)})
    entry = (await ledger.record(TARGET)).databases["reflection"]
    assert (entry.state, entry.fingerprint, entry.problem) == ("clean", fingerprint("reflection", 8), None)


async def test_clean_and_delivered_ones_that_were_touched_stay_what_they_are(ledger):
    await ledger.confirm(await upload(ledger, 0, request_id="r1", reflection=0))
    await upload(ledger, 1, request_id="r2", knowledge_graph=0)
    looks = {name: fingerprint(name, 8) for name in ("reflection", "knowledge_graph")}
    await ledger.mark_unchanged(TARGET, looks)
    assert await states(ledger) == {"reflection": "clean", "knowledge_graph": "delivered"}
    record = await ledger.record(TARGET)
    assert {name: entry.fingerprint for name, entry in record.databases.items()} == looks


async def hand_over(ledger, request_id="r1", problems=None, **generations):
    """Begin and hand over, as a method does that keeps no files; returns the result that waits in the outbox."""
    await ledger.mark_owed(TARGET, generations)
    await ledger.begin(TARGET, replace(intent(0, request_id, **generations), upload_id=request_id))
    seen = {name: fingerprint(name, at) for name, at in generations.items()}
    await ledger.deliver_memories(TARGET, seen, problems or {}, handed(request_id))
    return handed(request_id)


def handed(request_id="r1"):
    plain = succeeded(manifest(0, request_id, reflection=0))
    return replace(
        plain, id=outcome_event_id(request_id, "succeeded"), upload_id="", manifest_key="", files_uploaded=()
    )


async def test_intent_handed_over_is_delivered_without_an_upload_and_confirmed_it_is_clean(book):
    ledger, trouble = book.now, problem("knowledge_graph", retry_at=LATER)
    await ledger.record_problems(TARGET, {"reflection": problem("reflection")})
    await ledger.give_up(TARGET, error="503", failures=1, retry_at=NOON, result=None)
    result = await hand_over(ledger, "0190c2e6", {"knowledge_graph": trouble}, reflection=4)
    record = await ledger.record(TARGET)
    entry = record.databases["reflection"]
    assert (entry.fingerprint, entry.parts, entry.problem) == (fingerprint("reflection", 4), (), None)
    assert (record.intent, record.failures, record.retry_at, record.error) == (None, 0, None, "")
    assert (record.newest_upload_id, record.last_success) == (None, result.time)
    assert record.databases["knowledge_graph"].problem == trouble
    assert list(await ledger.outbox()) == [result]
    ledger = await book.open()
    assert await ledger.record(TARGET) == record
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "owed"}
    await ledger.confirm(result)
    assert await states(ledger) == {"reflection": "clean", "knowledge_graph": "owed"}


async def test_an_intent_without_an_upload_id_is_retried_given_up_taken_up_and_abandoned_like_any(ledger):
    begun = replace(intent(0, "not an upload id", reflection=0), upload_id="not an upload id")
    await ledger.begin(TARGET, begun)
    await ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="503")
    await ledger.give_up(TARGET, error="503", failures=1, retry_at=LATER, result=None)
    await ledger.begin(TARGET, begun)
    assert (await ledger.record(TARGET)).intent == begun
    await ledger.abandon(TARGET)
    assert await states(ledger) == {"reflection": "owed"}


async def test_what_was_handed_over_is_clean_again_where_it_was_only_touched(ledger):
    await ledger.confirm(await hand_over(ledger, reflection=0))
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.mark_unchanged(TARGET, {"reflection": fingerprint("reflection", 8)})
    assert await states(ledger) == {"reflection": "clean"}


ILLEGAL = {
    "staging what is clean": lambda book: book.begin(TARGET, intent(5, knowledge_graph=0, reflection=1)),
    "unchanged, never delivered": lambda book: book.mark_unchanged(
        TARGET, {"reflection": fingerprint("reflection"), "knowledge_graph_x": fingerprint("knowledge_graph_x")}
    ),
    "delivering what has not begun": lambda book: book.deliver(
        TARGET, manifest(9, "r9", reflection=1), {}, {}, succeeded(manifest(9, "r9", reflection=1))
    ),
    "handing over what has not begun": lambda book: book.deliver_memories(
        TARGET, {"reflection": fingerprint("reflection", 1)}, {}, handed("r9")
    ),
    "confirming what was never told": lambda book: book.confirm(skipped("r9")),
}


@pytest.mark.parametrize("move", ILLEGAL.values(), ids=ILLEGAL.keys())
async def test_a_move_that_is_not_in_the_table_writes_nothing(book, move):
    await book.now.confirm(await upload(book.now, reflection=0))
    await book.now.mark_owed(TARGET, ["knowledge_graph"])
    before = await everything(book.now)
    with pytest.raises(StateError):
        await move(book.now)
    assert await everything(book.now) == before
    assert await everything(await book.open()) == before


async def test_the_ledger_goes_on_after_a_refused_move(ledger):
    with pytest.raises(StateError):
        await ledger.confirm(skipped())
    await ledger.mark_owed(TARGET, ["reflection"])
    assert await states(ledger) == {"reflection": "owed"}


# ------------------------------------------------------------------------------------ what the table does not speak of


async def test_each_target_has_a_state_of_its_own(ledger):
    await ledger.mark_owed(OTHER_TARGET, ["reflection"])
    await ledger.confirm(await upload(ledger, reflection=0))
    assert await states(ledger) == {"reflection": "clean"}
    assert await states(ledger, OTHER_TARGET) == {"reflection": "owed"}


async def test_what_is_only_owed_or_tried_is_not_known_so_that_a_lost_ledger_asks_the_bucket(ledger):
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.record_problems(TARGET, {"reflection": problem("reflection")})
    await ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="down")
    await ledger.give_up(TARGET, error="down", failures=1, retry_at=LATER, result=failed())
    await ledger.settle(TARGET, skipped("r2"))
    await ledger.reset(TARGET)
    assert not (await ledger.record(TARGET)).known


async def test_a_database_that_cannot_be_copied_is_owed_and_can_still_be_carried(ledger):
    await ledger.confirm(await upload(ledger, reflection=0))
    trouble = problem("reflection", 1, retry_at=LATER)
    await ledger.record_problems(TARGET, {"reflection": trouble, "knowledge_graph": problem("knowledge_graph")})
    record = await ledger.record(TARGET)
    assert record.databases["reflection"].problem == trouble
    assert record.databases["reflection"].parts
    assert await states(ledger) == {"reflection": "owed", "knowledge_graph": "owed"}


async def test_what_is_gone_from_the_bucket_is_owed_whole(ledger):
    await ledger.confirm(await upload(ledger, reflection=0, knowledge_graph=0))
    await ledger.forget(TARGET, ["reflection"])
    assert await states(ledger) == {"reflection": "owed", "knowledge_graph": "clean"}
    record = await ledger.record(TARGET)
    assert not record.databases["reflection"].parts
    assert record.databases["reflection"].fingerprint is None


async def test_what_an_upload_holds_beside_its_intent_gets_its_new_keys_and_keeps_its_state(ledger):
    await ledger.confirm(await upload(ledger, 0, reflection=0, knowledge_graph=0))
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.begin(TARGET, intent(7, "r2", reflection=1))
    whole = manifest(7, "r2", reflection=1, knowledge_graph=(0, "copied"), knowledge_graph_x=(0, "carried"))
    trouble = {"knowledge_graph": problem("knowledge_graph")}
    await ledger.deliver(TARGET, whole, {"reflection": fingerprint("reflection", 1)}, {}, succeeded(whole))
    record = await ledger.record(TARGET)
    graph = record.databases["knowledge_graph"]
    assert (graph.state, graph.fingerprint) == ("clean", fingerprint("knowledge_graph", 0))
    assert graph.parts == whole.of("knowledge_graph")
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "clean", "knowledge_graph_x": "owed"}
    await ledger.record_problems(TARGET, trouble)
    assert (await ledger.record(TARGET)).databases["knowledge_graph"].parts


async def test_a_delivery_that_lacks_a_database_leaves_it_owed_with_the_reason(ledger):
    trouble = problem("knowledge_graph", retry_at=LATER)
    await upload(ledger, problems={"knowledge_graph": trouble}, reflection=0)
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "owed"}
    assert (await ledger.record(TARGET)).databases["knowledge_graph"].problem == trouble


async def test_a_lost_ledger_takes_the_newest_manifest_as_delivered_but_looks_at_each_file_once(ledger):
    whole = manifest(3, reflection=4, knowledge_graph=(1, "carried"))
    await ledger.mark_owed(TARGET, ["reflection", "knowledge_graph"])
    await ledger.adopt(TARGET, whole, succeeded(whole))
    record = await ledger.record(TARGET)
    assert record.known
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "owed"}
    assert {entry.fingerprint for entry in record.databases.values()} == {None}
    assert record.databases["reflection"].parts == whole.of("reflection")
    assert record.databases["knowledge_graph"].parts
    assert record.newest_upload_id == upload_id(3)
    assert list(await ledger.outbox()) == [succeeded(whole)]
    await ledger.confirm(succeeded(whole))
    assert await states(ledger) == {"reflection": "clean", "knowledge_graph": "owed"}


async def test_an_intent_whose_manifest_was_found_is_delivered(ledger):
    await ledger.mark_owed(TARGET, ["reflection", "knowledge_graph"])
    await ledger.begin(TARGET, intent(3, reflection=4))
    whole = manifest(3, reflection=4, knowledge_graph=(1, "carried"))
    await ledger.adopt(TARGET, whole, succeeded(whole))
    assert (await ledger.record(TARGET)).intent is None
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "owed"}


async def test_adopting_again_tells_the_result_once_and_one_that_was_reported_is_clean_at_once(ledger):
    whole = manifest(3, reflection=4)
    await ledger.adopt(TARGET, whole, succeeded(whole))
    await ledger.adopt(TARGET, whole, succeeded(whole))
    assert len(await ledger.outbox()) == 1
    await ledger.confirm(succeeded(whole))
    await ledger.adopt(OTHER_TARGET, whole, succeeded(whole))
    assert list(await ledger.outbox()) == []
    assert await states(ledger, OTHER_TARGET) == {"reflection": "clean"}


async def test_settling_tells_the_result_and_nothing_waits_to_be_tried_again(ledger):
    await ledger.count_attempt(TARGET, request(), attempts=2, retry_at=LATER, error="503")
    await ledger.give_up(TARGET, error="503", failures=1, retry_at=LATER, result=None)
    await ledger.settle(TARGET, skipped("r2"))
    record = await ledger.record(TARGET)
    assert (record.attempts, record.attempt_request, record.failures) == (0, "", 0)
    assert (record.retry_at, record.error) == (None, "")
    assert list(await ledger.outbox()) == [skipped("r2")]


async def test_settling_without_a_target_tells_the_result_alone(ledger):
    await ledger.settle(None, skipped())
    assert await ledger.outcome("r1") == skipped()
    assert await ledger.record(TARGET) == TargetRecord(target=TARGET)


async def test_resetting_makes_the_target_worth_trying_and_leaves_the_error_to_be_read(ledger):
    await ledger.give_up(TARGET, error="403", failures=5, retry_at=LATER, result=None)
    await ledger.reset(TARGET)
    record = await ledger.record(TARGET)
    assert (record.failures, record.retry_at, record.error) == (0, None, "403")


async def test_resetting_a_target_that_was_never_heard_of_is_nothing(ledger):
    await ledger.reset(TARGET)
    assert await ledger.record(TARGET) == TargetRecord(target=TARGET)


# -------------------------------------------------------------------------------------- history, outbox, outcome, notes


async def test_an_event_id_is_kept_once_and_the_state_moves_all_the_same(ledger):
    first = failed("r1")
    await ledger.give_up(TARGET, error="one", failures=1, retry_at=None, result=first)
    await ledger.give_up(TARGET, error="two", failures=2, retry_at=None, result=replace(first, error="another text"))
    assert list(await ledger.outbox()) == [first]
    assert (await ledger.record(TARGET)).error == "two"


async def test_the_outbox_is_oldest_first_and_survives(book):
    results = [skipped("r3"), failed("r1"), skipped("r2")]
    for result in results:
        await book.now.settle(None, result)
    assert list(await (await book.open()).outbox()) == results
    await book.now.confirm(results[1])
    assert list(await (await book.open()).outbox()) == [results[0], results[2]]


async def test_a_requests_outcome_is_its_latest_result_and_a_request_is_none(ledger):
    await ledger.add_to_history(request("r1"))
    assert await ledger.outcome("r1") is None
    await ledger.settle(None, failed("r1"))
    await ledger.settle(None, skipped("r1"))
    assert await ledger.outcome("r1") == skipped("r1")
    assert await ledger.outcome("r") is None


def ended(number: int, *, days_ago: int = 0) -> SessionEnded:
    return SessionEnded(id=f"s{number}", time=NOON - timedelta(days=days_ago), system_id=SYSTEM, session_id=f"{number}")


async def test_history_is_in_order_without_repetition_and_can_be_followed(ledger):
    for number in (1, 2, 2, 3):
        await ledger.add_to_history(ended(number))
    entries = await ledger.history()
    assert [entry.event for entry in entries] == [ended(1), ended(2), ended(3)]
    assert [entry.position for entry in entries] == sorted({entry.position for entry in entries})
    assert await ledger.last_position() == entries[-1].position
    assert list(await ledger.history(after=entries[0].position, limit=1)) == [entries[1]]
    assert list(await ledger.history(after=entries[-1].position)) == []


async def test_what_is_remembered_is_not_in_the_outbox_and_what_is_reported_is_in_the_history(ledger):
    await ledger.add_to_history(request())
    await ledger.settle(None, skipped())
    assert list(await ledger.outbox()) == [skipped()]
    assert [entry.event for entry in await ledger.history()] == [request(), skipped()]


async def test_after_90_days_events_are_let_go_but_never_what_no_bus_has_confirmed(book):
    old = NOON - timedelta(days=91)
    await book.now.add_to_history(ended(1, days_ago=91))
    await book.now.add_to_history(ended(2, days_ago=89))
    await book.now.settle(None, skipped("told", time=old))
    await book.now.confirm(skipped("told", time=old))
    await book.now.settle(None, skipped("waiting", time=old))
    last = await book.now.last_position()
    again = await book.open()
    assert [entry.event for entry in await again.history()] == [ended(2, days_ago=89), skipped("waiting", time=old)]
    assert await again.last_position() == last


async def test_an_agent_that_never_stops_releases_too_once_a_day(book):
    async def left_after(days):
        await book.clock.advance(timedelta(days=days).total_seconds())
        await book.now.settle(None, skipped(f"{days}"))
        await book.now.confirm(skipped(f"{days}"))
        return {entry.event.id for entry in await book.now.history()} & {"s1", "s2"}

    await book.now.add_to_history(ended(1))
    await book.now.add_to_history(ended(2, days_ago=-1))
    assert await left_after(89.5) == {"s1", "s2"}
    assert await left_after(0.7) == {"s1", "s2"}, "looked at less than a day ago"
    assert await left_after(0.4) == {"s2"}
    assert await left_after(1.0) == set()


async def test_a_position_is_never_used_twice(book):
    await book.now.add_to_history(ended(1))
    used = await book.now.last_position()
    book.clock.jump(timedelta(days=91))
    again = await book.open()
    assert await again.last_position() == 0
    await again.add_to_history(ended(2))
    assert await again.last_position() > used


async def test_a_note_replaces_the_one_before_and_survives(book):
    await book.now.note("watch", "native")
    await book.now.note("bus", "memory")
    await book.now.note("watch", "polling (the inotify limit is reached)")
    wanted = {"bus": "memory", "watch": "polling (the inotify limit is reached)"}
    assert dict(await (await book.open()).notes()) == wanted


async def test_texts_and_names_come_back_as_they_are_and_bytes_that_are_no_text_do_no_harm(book):
    graph = "knowledge_graph_\n'; DROP TABLE targets; -- père"
    await upload(book.now, **{graph: 0})
    await book.now.record_problems(TARGET, {graph: replace(problem(graph), reason="/home/\udcff")})
    await book.now.give_up(TARGET, error="/home/\udcff", failures=1, retry_at=None, result=None)
    await book.now.note("where", "/home/\udcff")
    record = await (await book.open()).record(TARGET)
    assert record.databases[graph].problem.reason == "/home/\udcff"
    assert record.databases[graph].parts == parts(graph, 0)
    assert record.error == "/home/\\udcff"
    assert dict(await book.now.notes()) == {"where": "/home/\\udcff"}


# ------------------------------------------------------------------------------------------------- durability, closing


async def test_all_of_it_survives_a_restart(book):
    await upload(book.now, 0, reflection=0, knowledge_graph=0)
    await book.now.mark_owed(TARGET, ["reflection"])
    await book.now.record_problems(TARGET, {"knowledge_graph": problem("knowledge_graph", retry_at=LATER)})
    await book.now.begin(TARGET, intent(1, "r2", reflection=1))
    await book.now.count_attempt(TARGET, request("r2"), attempts=2, retry_at=LATER, error="503")
    await book.now.mark_owed(OTHER_TARGET, ["reflection"])
    await book.now.note("bus", "memory")
    before = await everything(book.now)
    assert await everything(await book.open()) == before


async def test_entries_made_at_once_all_arrive(ledger):
    await asyncio.gather(
        *(ledger.add_to_history(ended(number)) for number in range(40)), ledger.mark_owed(TARGET, ["reflection"])
    )
    assert {entry.event.id for entry in await ledger.history()} == {f"s{number}" for number in range(40)}
    assert await states(ledger) == {"reflection": "owed"}


async def test_closing_waits_for_what_was_begun_and_can_be_repeated(book):
    writing = asyncio.create_task(book.now.mark_owed(TARGET, ["reflection"]), name="writing")
    await asyncio.sleep(0)
    await book.now.aclose()
    await writing
    await book.now.aclose()
    with pytest.raises(StateError, match="closed"):
        await book.now.mark_owed(TARGET, ["reflection"])
    assert await states(await book.open()) == {"reflection": "owed"}


# ---------------------------------------------------------------------------------------------- any story, told to both

STEPS = {
    "mark_owed reflection": (
        lambda b: b.mark_owed(TARGET, ["reflection"]),
        lambda r: transitions.mark_owed(r, ["reflection"]),
    ),
    "mark_owed graph": (
        lambda b: b.mark_owed(TARGET, ["knowledge_graph"]),
        lambda r: transitions.mark_owed(r, ["knowledge_graph"]),
    ),
    "begin": (
        lambda b: b.begin(TARGET, intent(1, reflection=1)),
        lambda r: transitions.begin(r, intent(1, reflection=1)),
    ),
    "abandon": (lambda b: b.abandon(TARGET), transitions.abandon),
    "retry": (
        lambda b: b.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="503"),
        lambda r: transitions.count_attempt(r, "r1", attempts=1, retry_at=LATER, error="503"),
    ),
    "give up": (
        lambda b: b.give_up(TARGET, error="403", failures=1, retry_at=LATER, result=failed()),
        lambda r: transitions.give_up(r, error="403", failures=1, retry_at=LATER),
    ),
    "mark_unchanged": (
        lambda b: b.mark_unchanged(TARGET, {"reflection": fingerprint("reflection", 2)}),
        lambda r: transitions.mark_unchanged(r, {"reflection": fingerprint("reflection", 2)}),
    ),
    "record_problems": (
        lambda b: b.record_problems(TARGET, {"knowledge_graph": problem("knowledge_graph", retry_at=LATER)}),
        lambda r: transitions.record_problems(r, {"knowledge_graph": problem("knowledge_graph", retry_at=LATER)}),
    ),
    "deliver": (
        lambda b: b.deliver(TARGET, WHOLE, SEEN, {}, succeeded(WHOLE)),
        lambda r: transitions.deliver(r, WHOLE, SEEN, {}, result_id=succeeded(WHOLE).id, at=WHOLE.uploaded_at),
    ),
    "hand over": (
        lambda b: b.deliver_memories(TARGET, SEEN, {}, handed()),
        lambda r: transitions.deliver_memories(r, SEEN, {}, result_id=handed().id, at=handed().time),
    ),
    "adopt": (
        lambda b: b.adopt(TARGET, WHOLE, succeeded(WHOLE)),
        lambda r: transitions.adopt(r, WHOLE, result_id=succeeded(WHOLE).id),
    ),
    "forget": (lambda b: b.forget(TARGET, ["reflection"]), lambda r: transitions.forget(r, ["reflection"])),
    "settle": (lambda b: b.settle(TARGET, skipped()), transitions.settle),
    "reset": (lambda b: b.reset(TARGET), transitions.reset),
}
WHOLE = manifest(1, reflection=1, knowledge_graph=(0, "carried"))
SEEN = {"reflection": fingerprint("reflection", 1)}
TELLS = {
    "give up": failed(),
    "deliver": succeeded(WHOLE),
    "adopt": succeeded(WHOLE),
    "hand over": handed(),
    "settle": skipped(),
}


@settings(max_examples=50)
@given(st.lists(st.sampled_from([*STEPS, "confirm", "restart"]), max_size=14))
def test_whatever_is_entered_the_ledger_says_what_a_record_in_memory_says(tmp_path_factory, story):
    async def reported():
        book = Book(tmp_path_factory.mktemp("ledger"), ManualClock(NOON), fsync=False)
        try:
            await tell(await book.open(), book, story)
        finally:
            await book.close()

    asyncio.run(reported())


async def tell(ledger, book, story):
    record, waiting, out = TargetRecord(target=TARGET), {}, {}
    for step in story:
        if step == "restart":
            ledger = await book.open()
        elif step == "confirm":
            for result in list(waiting.values()):
                await ledger.confirm(result)
                record = transitions.confirm(record, result.id)
            out |= waiting
            waiting = {}
        else:
            enter, change = STEPS[step]
            try:
                expected = change(record)
            except StateError:
                with pytest.raises(StateError):
                    await enter(ledger)
            else:
                await enter(ledger)
                record = expected
                result = TELLS.get(step)
                if result is not None and result.id in out:
                    record = transitions.confirm(record, result.id)
                elif result is not None:
                    waiting.setdefault(result.id, result)
        assert await ledger.record(TARGET) == record
        assert list(await ledger.outbox()) == list(waiting.values())


async def test_what_a_bus_has_lost_is_reported_again_and_nothing_else_changes(book):
    """Results of the time asked for, oldest first; the database that was clean stays so."""
    ledger, first = book.now, manifest(1, "r1", reflection=1)
    await ledger.begin(TARGET, intent(1, "r1", reflection=1))
    await ledger.deliver(TARGET, first, {"reflection": fingerprint("reflection", 1)}, {}, succeeded(first))
    old, new = replace(skipped("r0"), time=NOON - timedelta(days=8)), skipped("r2")
    for result in (old, new):
        await ledger.settle(None, result)
    for result in await ledger.outbox():
        await ledger.confirm(result)
    await ledger.add_to_history(request("r3"))
    before = await ledger.record(TARGET)
    assert await ledger.republish_since(NOON - timedelta(days=7)) == 2
    ledger = await book.open()
    assert {result.id for result in await ledger.outbox()} == {succeeded(first).id, new.id}
    assert await ledger.record(TARGET) == before
    for result in await ledger.outbox():
        await ledger.confirm(result)
    assert await ledger.record(TARGET) == before
    assert await ledger.outbox() == []


async def test_an_event_of_the_history_can_be_had_by_its_id(ledger):
    asked = request("r1")
    await ledger.add_to_history(asked)
    assert await ledger.find_event(asked.id) == asked
    assert await ledger.find_event("r1") is None


async def test_a_sessions_end_is_accepted_once(book):
    """However old it is, after restarts, and told apart by system, sender and id."""
    ended = SessionEnded(id="s-1", time=NOON, system_id=SYSTEM)
    assert await book.now.accept(ended)
    assert not await book.now.accept(ended)
    book.clock.jump(timedelta(days=4000))
    ledger = await book.open()
    assert not await ledger.accept(replace(ended, time=NOON + timedelta(days=1), session_id="other"))
    assert await ledger.accept(replace(ended, system_id="other"))
    assert await ledger.accept(replace(ended, id="s-2"))
    assert await ledger.accept(replace(ended, sender="/buddy"))
    assert not await ledger.accept(replace(ended, sender="/buddy"))
    assert await ledger.accept(replace(ended, sender="/buddy/2"))


async def test_a_sessions_end_is_open_from_its_acceptance_until_a_result_that_names_it(book):
    """Whichever way the result is written."""
    for number in range(5):
        await book.now.accept(SessionEnded(id=f"s-{number}", time=NOON, system_id=SYSTEM))
    ledger = await book.open()
    assert await ledger.open_session_ends() == ["s-0", "s-1", "s-2", "s-3", "s-4"]
    await ledger.settle(None, replace(skipped("r1"), caused_by=("s-1", "unknown")))
    assert await ledger.open_session_ends() == ["s-0", "s-2", "s-3", "s-4"]
    first = manifest(reflection=1)
    await ledger.begin(TARGET, intent(reflection=1))
    result = replace(succeeded(first), caused_by=("s-0", "s-3"))
    await ledger.deliver(TARGET, first, {"reflection": fingerprint("reflection", 1)}, {}, result)
    assert await ledger.open_session_ends() == ["s-2", "s-4"]
    lost = replace(failed("r3"), caused_by=("s-2",))
    await ledger.give_up(TARGET, error="403", failures=1, retry_at=None, result=lost)
    assert await ledger.open_session_ends() == ["s-4"]
    await ledger.settle(TARGET, skipped("r4"))
    assert await ledger.open_session_ends() == ["s-4"]


# ----------------------------------------------------------------------------------------------- who follows, and size


async def test_who_listens_to_the_history_is_reported_after_each_write_that_adds_to_it(ledger):
    heard = []
    ledger.on_history(lambda: heard.append(1))
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.note("watcher", "native")
    assert not heard
    await ledger.add_to_history(request())
    assert len(heard) == 1
    await ledger.settle(None, skipped())
    assert len(heard) == 2
    await upload(ledger, reflection=0)
    assert len(heard) == 3


async def test_what_was_announced_waits_in_the_outbox_until_a_bus_has_it(ledger):
    event = UploadsPruned(
        id="p", time=NOON, system_id=SYSTEM, upload_ids=(), kept=1, objects=0, bytes_freed=0, leftovers=0
    )
    await ledger.announce(event)
    assert [entry.event for entry in await ledger.history()] == list(await ledger.outbox()) == [event]
    await ledger.confirm(event)
    assert list(await ledger.outbox()) == []


async def test_its_size_is_what_it_takes_up_on_disk(book, ledger):
    await ledger.add_to_history(request())
    assert await ledger.size() == sum(path.stat().st_size for path in book.place.iterdir())
