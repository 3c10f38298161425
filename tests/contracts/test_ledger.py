"""The contract of `Ledger`: its promises and the state table of docs/architecture.md, one test each."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from agent.adapters.sqlite_ledger import SqliteLedger, history
from agent.adapters.wire import CloudEventsCodec
from agent.domain import transitions
from agent.domain.delivery_state import TargetRecord, due
from agent.domain.errors import StateError
from agent.domain.events import SessionEnded, SyncSkipped, UploadsPruned, UploadVerified, outcome_event_id
from agent.ports import OpenPut, PutPart
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
PRUNED = UploadsPruned(
    id="p", time=NOON, system_id=SYSTEM, upload_ids=(), kept=1, objects=0, bytes_freed=0, leftovers=0
)


class LedgerHandle:
    """A ledger in a directory. `open` closes the open ledger first: a restart."""

    def __init__(self, folder, clock, *, fsync=True):
        self.folder, self.clock, self.fsync, self.ledger = folder, clock, fsync, None

    async def open(self):
        await self.close()
        self.ledger = await SqliteLedger.open(self.folder / "ledger.db", CloudEventsCodec(), clock=self.clock)
        if not self.fsync:
            without_fsync(self.ledger)
        return self.ledger

    async def close(self):
        if self.ledger is not None:
            await self.ledger.aclose()


@pytest.fixture(params=["sqlite"])
async def handle(request, tmp_path):
    opened = LedgerHandle(tmp_path, ManualClock(NOON))
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def ledger(handle):
    return handle.ledger


async def states(ledger, target=TARGET):
    return {name: entry.state.value for name, entry in (await ledger.record(target)).databases.items()}


async def snapshot(ledger):
    """Return all that the ledger records, to check that it has not changed."""
    return (
        await ledger.record(TARGET),
        await ledger.record(OTHER_TARGET),
        list(await ledger.outbox()),
        list(await ledger.history()),
        dict(await ledger.notes()),
    )


async def upload(ledger, second=0, *, request_id="r1", problems=None, **generations):
    """Mark owed, begin and deliver; return the result, which is in the outbox."""
    committed = manifest(second, request_id, **generations)
    await ledger.mark_owed(TARGET, generations)
    await ledger.begin(TARGET, intent(second, request_id, **generations))
    seen = {name: fingerprint(name, at) for name, at in generations.items()}
    await ledger.deliver(TARGET, committed, seen, problems or {}, succeeded(committed))
    return succeeded(committed)


# ---------------------------------------------------------------------------------------------------- the state table


async def test_an_empty_ledger_has_no_records(ledger):
    assert await ledger.record(TARGET) == TargetRecord(target=TARGET)
    assert list(await ledger.outbox()) == []
    assert list(await ledger.history()) == []
    assert await ledger.last_position() == 0
    assert dict(await ledger.notes()) == {}
    assert await ledger.outcome("r1") is None


async def test_a_changed_clean_database_is_owed_and_keeps_its_delivered_parts(ledger):
    await ledger.confirm(await upload(ledger, reflection=0))
    assert await states(ledger) == {"reflection": "clean"}
    await ledger.mark_owed(TARGET, ["reflection"])
    entry = (await ledger.record(TARGET)).databases["reflection"]
    assert entry.state == "owed"
    assert entry.parts == parts("reflection", 0)
    assert entry.fingerprint == fingerprint("reflection", 0)
    assert entry.rows == {"conversations_v2": 40}


async def test_staging_sets_the_intent_and_its_databases_state(ledger):
    first = intent(0, "r1", reflection=0, knowledge_graph=1)
    await ledger.mark_owed(TARGET, ["reflection", "knowledge_graph", "knowledge_graph_x"])
    await ledger.begin(TARGET, first)
    record = await ledger.record(TARGET)
    assert record.intent == first
    assert record.known
    assert await states(ledger) == {"reflection": "intent", "knowledge_graph": "intent", "knowledge_graph_x": "owed"}


async def test_repeating_an_intent_changes_nothing_and_a_second_intent_is_refused(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    before = await snapshot(ledger)
    await ledger.begin(TARGET, intent(0, reflection=0))
    assert await snapshot(ledger) == before
    with pytest.raises(StateError, match="is not finished"):
        await ledger.begin(TARGET, intent(1, reflection=0))
    assert await snapshot(ledger) == before


async def test_a_change_during_an_upload_leaves_the_intent(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.mark_owed(TARGET, ["reflection"])
    assert await states(ledger) == {"reflection": "intent"}


async def test_a_committed_intent_is_delivered_and_its_result_is_in_the_outbox(ledger):
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


async def test_a_retry_keeps_the_intent_and_records_attempts_request_and_time(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.count_attempt(TARGET, request("r7"), attempts=2, retry_at=LATER, error="503 SlowDown")
    record = await ledger.record(TARGET)
    assert (record.attempts, record.attempt_request, record.retry_at) == (2, "r7", LATER)
    assert (record.error, record.intent) == ("503 SlowDown", intent(0, reflection=0))
    assert await states(ledger) == {"reflection": "intent"}


async def test_an_attempt_without_an_intent_is_counted(ledger):
    await ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="unreachable")
    record = await ledger.record(TARGET)
    assert (record.attempts, record.known) == (1, False)


async def test_an_abandoned_intent_is_owed(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.abandon(TARGET)
    assert await states(ledger) == {"reflection": "owed"}
    assert (await ledger.record(TARGET)).intent is None


async def test_abandoning_without_an_intent_changes_nothing(ledger):
    await ledger.mark_owed(TARGET, ["reflection"])
    before = await snapshot(ledger)
    await ledger.abandon(TARGET)
    assert await snapshot(ledger) == before


@pytest.mark.parametrize("result", [None, failed()], ids=["forwarded", "failed"])
async def test_giving_up_leaves_the_database_owed_and_records_error_and_result(ledger, result):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.count_attempt(TARGET, request(), attempts=3, retry_at=NOON, error="503")
    await ledger.give_up(TARGET, error="403", failures=2, retry_at=LATER, result=result)
    record = await ledger.record(TARGET)
    assert (record.attempts, record.attempt_request) == (0, "")
    assert (record.error, record.failures, record.retry_at) == ("403", 2, LATER)
    assert await states(ledger) == {"reflection": "owed"}
    assert list(await ledger.outbox()) == ([] if result is None else [result])
    assert await ledger.outcome("r1") == result


async def test_a_given_up_upload_is_resumed_under_its_id_or_abandoned(ledger):
    first = intent(0, reflection=0)
    await ledger.begin(TARGET, first)
    await ledger.give_up(TARGET, error="403", failures=1, retry_at=LATER, result=None)
    assert (await ledger.record(TARGET)).intent == first
    with pytest.raises(StateError, match="not finished"):
        await ledger.begin(TARGET, intent(1, reflection=1))
    await ledger.begin(TARGET, first)
    assert await states(ledger) == {"reflection": "intent"}
    await ledger.give_up(TARGET, error="403", failures=2, retry_at=LATER, result=None)
    await ledger.abandon(TARGET)
    await ledger.begin(TARGET, intent(1, reflection=1))
    assert await states(ledger) == {"reflection": "intent"}


async def test_an_upload_in_progress_goes_on_with_other_bytes_and_its_open_puts(ledger):
    await ledger.begin(TARGET, intent(0, reflection=0))
    await ledger.put_journal(TARGET, "key").begin("put-1", "parameters")
    other = intent(0, reflection=1, knowledge_graph=0)
    await ledger.begin(TARGET, other)
    assert (await ledger.record(TARGET)).intent == other
    assert await states(ledger) == {"reflection": "intent", "knowledge_graph": "intent"}
    assert [put.put_id for put in await ledger.open_puts(TARGET)] == ["put-1"]
    with pytest.raises(StateError, match="not finished"):
        await ledger.begin(TARGET, intent(0, reflection=1))


async def test_a_confirmed_delivery_is_clean_and_leaves_the_outbox(ledger):
    result = await upload(ledger, reflection=0)
    await ledger.confirm(result)
    after = await snapshot(ledger)
    assert await states(ledger) == {"reflection": "clean"}
    assert list(await ledger.outbox()) == []
    await ledger.confirm(result)
    assert await snapshot(ledger) == after


async def test_a_delivered_database_that_changes_stays_owed_when_its_result_is_confirmed(ledger):
    result = await upload(ledger, reflection=0)
    await ledger.mark_owed(TARGET, ["reflection"])
    assert list(await ledger.outbox()) == [result]
    await ledger.confirm(result)
    assert await states(ledger) == {"reflection": "owed"}


async def test_a_result_confirms_only_the_databases_of_its_upload(ledger):
    first = await upload(ledger, 0, request_id="r1", reflection=0)
    second = await upload(ledger, 1, request_id="r2", reflection=1, knowledge_graph=0)
    await ledger.confirm(first)
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "delivered"}
    await ledger.confirm(second)
    assert await states(ledger) == {"reflection": "clean", "knowledge_graph": "clean"}


async def test_confirming_an_unknown_result_is_refused(ledger):
    with pytest.raises(StateError, match="never in the outbox"):
        await ledger.confirm(skipped("r9"))


async def test_an_unchanged_owed_database_is_clean_with_a_new_fingerprint_and_no_problem(ledger):
    await ledger.confirm(await upload(ledger, reflection=0))
    await ledger.record_problems(TARGET, {"reflection": problem("reflection")})
    await ledger.mark_unchanged(TARGET, {"reflection": fingerprint("reflection", 8)})
    entry = (await ledger.record(TARGET)).databases["reflection"]
    assert (entry.state, entry.fingerprint, entry.problem) == ("clean", fingerprint("reflection", 8), None)


async def test_touched_clean_and_delivered_databases_keep_their_state(ledger):
    await ledger.confirm(await upload(ledger, 0, request_id="r1", reflection=0))
    await upload(ledger, 1, request_id="r2", knowledge_graph=0)
    fingerprints = {name: fingerprint(name, 8) for name in ("reflection", "knowledge_graph")}
    await ledger.mark_unchanged(TARGET, fingerprints)
    assert await states(ledger) == {"reflection": "clean", "knowledge_graph": "delivered"}
    record = await ledger.record(TARGET)
    assert {name: entry.fingerprint for name, entry in record.databases.items()} == fingerprints


async def deliver_memories(ledger, request_id="r1", problems=None, **generations):
    """Begin and deliver memories, as a method that stores no files does; return the result, which is in the outbox."""
    await ledger.mark_owed(TARGET, generations)
    await ledger.begin(TARGET, replace(intent(0, request_id, **generations), upload_id=request_id))
    seen = {name: fingerprint(name, at) for name, at in generations.items()}
    await ledger.deliver_memories(TARGET, seen, problems or {}, memories_result(request_id))
    return memories_result(request_id)


def memories_result(request_id="r1"):
    with_files = succeeded(manifest(0, request_id, reflection=0))
    return replace(
        with_files, id=outcome_event_id(request_id, "succeeded"), upload_id="", manifest_key="", files_uploaded=()
    )


async def test_an_intent_is_delivered_without_an_upload_and_clean_when_confirmed(handle):
    ledger, graph_problem = handle.ledger, problem("knowledge_graph", retry_at=LATER)
    await ledger.record_problems(TARGET, {"reflection": problem("reflection")})
    await ledger.give_up(TARGET, error="503", failures=1, retry_at=NOON, result=None)
    result = await deliver_memories(ledger, "0190c2e6", {"knowledge_graph": graph_problem}, reflection=4)
    record = await ledger.record(TARGET)
    entry = record.databases["reflection"]
    assert (entry.fingerprint, entry.parts, entry.problem) == (fingerprint("reflection", 4), (), None)
    assert (record.intent, record.failures, record.retry_at, record.error) == (None, 0, None, "")
    assert (record.newest_upload_id, record.last_success) == (None, result.time)
    assert record.databases["knowledge_graph"].problem == graph_problem
    assert list(await ledger.outbox()) == [result]
    ledger = await handle.open()
    assert await ledger.record(TARGET) == record
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "owed"}
    await ledger.confirm(result)
    assert await states(ledger) == {"reflection": "clean", "knowledge_graph": "owed"}


async def test_an_intent_whose_id_is_not_an_upload_id_is_retried_resumed_and_abandoned(ledger):
    first = replace(intent(0, "not an upload id", reflection=0), upload_id="not an upload id")
    await ledger.begin(TARGET, first)
    await ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="503")
    await ledger.give_up(TARGET, error="503", failures=1, retry_at=LATER, result=None)
    await ledger.begin(TARGET, first)
    assert (await ledger.record(TARGET)).intent == first
    await ledger.abandon(TARGET)
    assert await states(ledger) == {"reflection": "owed"}


async def test_a_touched_database_with_delivered_memories_becomes_clean_again(ledger):
    await ledger.confirm(await deliver_memories(ledger, reflection=0))
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.mark_unchanged(TARGET, {"reflection": fingerprint("reflection", 8)})
    assert await states(ledger) == {"reflection": "clean"}


ILLEGAL = {
    "staging a clean database": lambda ledger: ledger.begin(TARGET, intent(5, knowledge_graph=0, reflection=1)),
    "unchanged, never delivered": lambda ledger: ledger.mark_unchanged(
        TARGET, {"reflection": fingerprint("reflection"), "knowledge_graph_x": fingerprint("knowledge_graph_x")}
    ),
    "delivering without an intent": lambda ledger: ledger.deliver(
        TARGET, manifest(9, "r9", reflection=1), {}, {}, succeeded(manifest(9, "r9", reflection=1))
    ),
    "delivering memories without an intent": lambda ledger: ledger.deliver_memories(
        TARGET, {"reflection": fingerprint("reflection", 1)}, {}, memories_result("r9")
    ),
    "confirming an unknown result": lambda ledger: ledger.confirm(skipped("r9")),
}


@pytest.mark.parametrize("transition", ILLEGAL.values(), ids=ILLEGAL.keys())
async def test_a_transition_outside_the_table_writes_nothing(handle, transition):
    await handle.ledger.confirm(await upload(handle.ledger, reflection=0))
    await handle.ledger.mark_owed(TARGET, ["knowledge_graph"])
    before = await snapshot(handle.ledger)
    with pytest.raises(StateError):
        await transition(handle.ledger)
    assert await snapshot(handle.ledger) == before
    assert await snapshot(await handle.open()) == before


async def test_the_ledger_works_after_a_refused_transition(ledger):
    with pytest.raises(StateError):
        await ledger.confirm(skipped())
    await ledger.mark_owed(TARGET, ["reflection"])
    assert await states(ledger) == {"reflection": "owed"}


# ------------------------------------------------------------------------------------ outside the state table


async def test_each_target_has_a_state_of_its_own(ledger):
    await ledger.mark_owed(OTHER_TARGET, ["reflection"])
    await ledger.confirm(await upload(ledger, reflection=0))
    assert await states(ledger) == {"reflection": "clean"}
    assert await states(ledger, OTHER_TARGET) == {"reflection": "owed"}


async def test_a_target_without_a_delivery_is_not_known(ledger):
    """The agent reads the bucket for a target that is not known, as after the loss of the ledger."""
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.record_problems(TARGET, {"reflection": problem("reflection")})
    await ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="down")
    await ledger.give_up(TARGET, error="down", failures=1, retry_at=LATER, result=failed())
    await ledger.settle(TARGET, skipped("r2"))
    await ledger.reset(TARGET)
    assert not (await ledger.record(TARGET)).known


async def test_a_database_that_cannot_be_copied_is_owed_and_keeps_its_parts(ledger):
    await ledger.confirm(await upload(ledger, reflection=0))
    second_problem = problem("reflection", 1, retry_at=LATER)
    await ledger.record_problems(TARGET, {"reflection": second_problem, "knowledge_graph": problem("knowledge_graph")})
    record = await ledger.record(TARGET)
    assert record.databases["reflection"].problem == second_problem
    assert record.databases["reflection"].parts
    assert await states(ledger) == {"reflection": "owed", "knowledge_graph": "owed"}


async def test_a_database_missing_from_the_bucket_is_owed_completely(ledger):
    await ledger.confirm(await upload(ledger, reflection=0, knowledge_graph=0))
    await ledger.forget(TARGET, ["reflection"])
    assert await states(ledger) == {"reflection": "owed", "knowledge_graph": "clean"}
    record = await ledger.record(TARGET)
    assert not record.databases["reflection"].parts
    assert record.databases["reflection"].fingerprint is None


async def test_copied_and_carried_databases_get_new_keys_and_keep_their_state(ledger):
    await ledger.confirm(await upload(ledger, 0, reflection=0, knowledge_graph=0))
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.begin(TARGET, intent(7, "r2", reflection=1))
    committed = manifest(7, "r2", reflection=1, knowledge_graph=(0, "copied"), knowledge_graph_x=(0, "carried"))
    await ledger.deliver(TARGET, committed, {"reflection": fingerprint("reflection", 1)}, {}, succeeded(committed))
    record = await ledger.record(TARGET)
    graph = record.databases["knowledge_graph"]
    assert (graph.state, graph.fingerprint) == ("clean", fingerprint("knowledge_graph", 0))
    assert graph.parts == committed.of("knowledge_graph")
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "clean", "knowledge_graph_x": "owed"}
    await ledger.record_problems(TARGET, {"knowledge_graph": problem("knowledge_graph")})
    assert (await ledger.record(TARGET)).databases["knowledge_graph"].parts


async def test_a_database_missing_from_a_delivery_is_owed_with_its_problem(ledger):
    graph_problem = problem("knowledge_graph", retry_at=LATER)
    await upload(ledger, problems={"knowledge_graph": graph_problem}, reflection=0)
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "owed"}
    assert (await ledger.record(TARGET)).databases["knowledge_graph"].problem == graph_problem


async def test_a_database_that_is_incomplete_in_a_delivery_is_owed_and_keeps_its_new_parts(ledger):
    unchecked = replace(problem("reflection", retry_at=LATER), incomplete=True)
    await ledger.confirm(await upload(ledger, problems={"reflection": unchecked}, reflection=0))
    entry = (await ledger.record(TARGET)).databases["reflection"]
    assert (entry.state, entry.parts, entry.problem) == ("owed", parts("reflection", 0), unchecked)


async def test_a_database_that_is_incomplete_in_an_adopted_manifest_is_owed(ledger):
    committed = replace(manifest(3, reflection=4, knowledge_graph=1), incomplete={"reflection": "uploaded, but ..."})
    await ledger.adopt(TARGET, committed, succeeded(committed))
    entry = (await ledger.record(TARGET)).databases["reflection"]
    assert (entry.problem.reason, entry.problem.incomplete) == ("uploaded, but ...", True)
    assert await states(ledger) == {"reflection": "owed", "knowledge_graph": "delivered"}
    assert due(await ledger.record(TARGET), {"reflection": fingerprint("reflection", 4)}, NOON, urgent=False)


async def test_an_adopted_manifest_marks_its_databases_delivered_without_fingerprints(ledger):
    committed = manifest(3, reflection=4, knowledge_graph=(1, "carried"))
    await ledger.mark_owed(TARGET, ["reflection", "knowledge_graph"])
    await ledger.adopt(TARGET, committed, succeeded(committed))
    record = await ledger.record(TARGET)
    assert record.known
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "owed"}
    assert {entry.fingerprint for entry in record.databases.values()} == {None}
    assert record.databases["reflection"].parts == committed.of("reflection")
    assert record.databases["knowledge_graph"].parts
    assert record.newest_upload_id == upload_id(3)
    assert list(await ledger.outbox()) == [succeeded(committed)]
    await ledger.confirm(succeeded(committed))
    assert await states(ledger) == {"reflection": "clean", "knowledge_graph": "owed"}


async def test_an_intent_whose_manifest_is_adopted_is_delivered(ledger):
    await ledger.mark_owed(TARGET, ["reflection", "knowledge_graph"])
    await ledger.begin(TARGET, intent(3, reflection=4))
    committed = manifest(3, reflection=4, knowledge_graph=(1, "carried"))
    await ledger.adopt(TARGET, committed, succeeded(committed))
    assert (await ledger.record(TARGET)).intent is None
    assert await states(ledger) == {"reflection": "delivered", "knowledge_graph": "owed"}


async def test_adopting_twice_adds_one_result_and_a_confirmed_result_makes_databases_clean(ledger):
    committed = manifest(3, reflection=4)
    await ledger.adopt(TARGET, committed, succeeded(committed))
    await ledger.adopt(TARGET, committed, succeeded(committed))
    assert len(await ledger.outbox()) == 1
    await ledger.confirm(succeeded(committed))
    await ledger.adopt(OTHER_TARGET, committed, succeeded(committed))
    assert list(await ledger.outbox()) == []
    assert await states(ledger, OTHER_TARGET) == {"reflection": "clean"}


async def test_settling_adds_the_result_and_clears_the_retries(ledger):
    await ledger.count_attempt(TARGET, request(), attempts=2, retry_at=LATER, error="503")
    await ledger.give_up(TARGET, error="503", failures=1, retry_at=LATER, result=None)
    await ledger.settle(TARGET, skipped("r2"))
    record = await ledger.record(TARGET)
    assert (record.attempts, record.attempt_request, record.failures) == (0, "", 0)
    assert (record.retry_at, record.error) == (None, "")
    assert list(await ledger.outbox()) == [skipped("r2")]


async def test_settling_without_a_target_only_adds_the_result(ledger):
    await ledger.settle(None, skipped())
    assert await ledger.outcome("r1") == skipped()
    assert await ledger.record(TARGET) == TargetRecord(target=TARGET)


async def test_resetting_clears_the_back_off_and_keeps_the_error(ledger):
    await ledger.give_up(TARGET, error="403", failures=5, retry_at=LATER, result=None)
    await ledger.reset(TARGET)
    record = await ledger.record(TARGET)
    assert (record.failures, record.retry_at, record.error) == (0, None, "403")


async def test_resetting_an_unknown_target_changes_nothing(ledger):
    await ledger.reset(TARGET)
    assert await ledger.record(TARGET) == TargetRecord(target=TARGET)


# -------------------------------------------------------------------------------------- history, outbox, outcome, notes


async def test_a_repeated_event_id_is_stored_once_and_the_state_still_changes(ledger):
    first = failed("r1")
    await ledger.give_up(TARGET, error="one", failures=1, retry_at=None, result=first)
    await ledger.give_up(TARGET, error="two", failures=2, retry_at=None, result=replace(first, error="another text"))
    assert list(await ledger.outbox()) == [first]
    assert (await ledger.record(TARGET)).error == "two"


async def test_the_outbox_is_oldest_first_and_survives_a_restart(handle):
    results = [skipped("r3"), failed("r1"), skipped("r2")]
    for result in results:
        await handle.ledger.settle(None, result)
    assert list(await (await handle.open()).outbox()) == results
    await handle.ledger.confirm(results[1])
    assert list(await (await handle.open()).outbox()) == [results[0], results[2]]


async def test_the_outcome_of_a_request_is_its_latest_result(ledger):
    await ledger.add_to_history(request("r1"))
    assert await ledger.outcome("r1") is None
    await ledger.settle(None, failed("r1"))
    await ledger.settle(None, skipped("r1"))
    assert await ledger.outcome("r1") == skipped("r1")
    assert await ledger.outcome("r") is None


def ended(number: int, *, days_ago: int = 0) -> SessionEnded:
    return SessionEnded(id=f"s{number}", time=NOON - timedelta(days=days_ago), system_id=SYSTEM, session_id=f"{number}")


async def test_history_is_in_order_without_duplicates_and_is_read_from_a_position(ledger):
    for number in (1, 2, 2, 3):
        await ledger.add_to_history(ended(number))
    entries = await ledger.history()
    assert [entry.event for entry in entries] == [ended(1), ended(2), ended(3)]
    assert [entry.position for entry in entries] == sorted({entry.position for entry in entries})
    assert await ledger.last_position() == entries[-1].position
    assert list(await ledger.history(after=entries[0].position, limit=1)) == [entries[1]]
    assert list(await ledger.history(after=entries[-1].position)) == []


async def test_past_events_are_read_backwards_from_a_position_by_type(ledger):
    for number in (1, 2, 3):
        await ledger.add_to_history(ended(number))
        await ledger.settle(None, skipped(f"{number}"))
    newest = await ledger.past_events(before=None, limit=2, types=[SyncSkipped])
    assert [entry.event for entry in newest] == [skipped("3"), skipped("2")]
    older = await ledger.past_events(before=newest[-1].position, limit=9, types=[SyncSkipped, SessionEnded])
    assert [entry.event for entry in older] == [ended(2), skipped("1"), ended(1)]
    assert list(await ledger.past_events(before=older[-1].position, limit=9, types=[SyncSkipped, SessionEnded])) == []


async def test_history_events_are_not_in_the_outbox_and_results_are_in_the_history(ledger):
    await ledger.add_to_history(request())
    await ledger.settle(None, skipped())
    assert list(await ledger.outbox()) == [skipped()]
    assert [entry.event for entry in await ledger.history()] == [request(), skipped()]


async def test_confirmed_events_are_deleted_after_90_days_and_unconfirmed_ones_never(handle):
    old = NOON - timedelta(days=91)
    await handle.ledger.add_to_history(ended(1, days_ago=91))
    await handle.ledger.add_to_history(ended(2, days_ago=89))
    await handle.ledger.settle(None, skipped("confirmed", time=old))
    await handle.ledger.confirm(skipped("confirmed", time=old))
    await handle.ledger.settle(None, skipped("waiting", time=old))
    last = await handle.ledger.last_position()
    again = await handle.open()
    assert [entry.event for entry in await again.history()] == [ended(2, days_ago=89), skipped("waiting", time=old)]
    assert await again.last_position() == last


async def test_a_running_agent_deletes_old_events_once_a_day(handle):
    async def remaining_after(days):
        await handle.clock.advance(timedelta(days=days).total_seconds())
        await handle.ledger.settle(None, skipped(f"{days}"))
        await handle.ledger.confirm(skipped(f"{days}"))
        return {entry.event.id for entry in await handle.ledger.history()} & {"s1", "s2"}

    await handle.ledger.add_to_history(ended(1))
    await handle.ledger.add_to_history(ended(2, days_ago=-1))
    assert await remaining_after(89.5) == {"s1", "s2"}
    assert await remaining_after(0.7) == {"s1", "s2"}, "the last deletion was less than a day ago"
    assert await remaining_after(0.4) == {"s2"}
    assert await remaining_after(1.0) == set()


async def test_the_number_of_recorded_session_ends_is_limited_once_a_day(handle, monkeypatch):
    monkeypatch.setattr(history, "MOST_ACCEPTED", 100)
    for number in range(101):
        assert await handle.ledger.accept(ended(number))
    ledger = await handle.open()
    again = [number for number in range(101) if await ledger.accept(ended(number))]
    assert 10 < len(again) < 90, "about half of them are not recognised any more"
    assert len(set(await ledger.open_session_ends())) == 101, "each one stays open until its result"


async def test_a_position_is_never_used_twice(handle):
    await handle.ledger.add_to_history(ended(1))
    used = await handle.ledger.last_position()
    handle.clock.jump(timedelta(days=91))
    again = await handle.open()
    assert await again.last_position() == 0
    await again.add_to_history(ended(2))
    assert await again.last_position() > used


async def test_a_note_replaces_the_previous_one_and_survives_a_restart(handle):
    await handle.ledger.note("watch", "native")
    await handle.ledger.note("bus", "memory")
    await handle.ledger.note("watch", "polling (the inotify limit is reached)")
    expected = {"bus": "memory", "watch": "polling (the inotify limit is reached)"}
    assert dict(await (await handle.open()).notes()) == expected


async def test_texts_and_names_are_kept_and_invalid_unicode_is_accepted(handle):
    graph = "knowledge_graph_\n'; DROP TABLE targets; -- père"
    await upload(handle.ledger, **{graph: 0})
    await handle.ledger.record_problems(TARGET, {graph: replace(problem(graph), reason="/home/\udcff")})
    await handle.ledger.give_up(TARGET, error="/home/\udcff", failures=1, retry_at=None, result=None)
    await handle.ledger.note("where", "/home/\udcff")
    record = await (await handle.open()).record(TARGET)
    assert record.databases[graph].problem.reason == "/home/\udcff"
    assert record.databases[graph].parts == parts(graph, 0)
    assert record.error == "/home/\\udcff"
    assert dict(await handle.ledger.notes()) == {"where": "/home/\\udcff"}


# ------------------------------------------------------------------------------------------------- durability, closing


async def test_every_record_survives_a_restart(handle):
    await upload(handle.ledger, 0, reflection=0, knowledge_graph=0)
    await handle.ledger.mark_owed(TARGET, ["reflection"])
    await handle.ledger.record_problems(TARGET, {"knowledge_graph": problem("knowledge_graph", retry_at=LATER)})
    await handle.ledger.begin(TARGET, intent(1, "r2", reflection=1))
    await handle.ledger.count_attempt(TARGET, request("r2"), attempts=2, retry_at=LATER, error="503")
    await handle.ledger.mark_owed(OTHER_TARGET, ["reflection"])
    await handle.ledger.note("bus", "memory")
    before = await snapshot(handle.ledger)
    assert await snapshot(await handle.open()) == before


async def test_concurrent_writes_are_all_stored(ledger):
    await asyncio.gather(
        *(ledger.add_to_history(ended(number)) for number in range(40)), ledger.mark_owed(TARGET, ["reflection"])
    )
    assert {entry.event.id for entry in await ledger.history()} == {f"s{number}" for number in range(40)}
    assert await states(ledger) == {"reflection": "owed"}


async def test_closing_waits_for_a_running_write_and_can_be_repeated(handle):
    writing = asyncio.create_task(handle.ledger.mark_owed(TARGET, ["reflection"]), name="writing")
    await asyncio.sleep(0)
    await handle.ledger.aclose()
    await writing
    await handle.ledger.aclose()
    with pytest.raises(StateError, match="closed"):
        await handle.ledger.mark_owed(TARGET, ["reflection"])
    assert await states(await handle.open()) == {"reflection": "owed"}


# ---------------------------------------------------------------------------------------------- sequences of steps

STEPS = {
    "mark_owed reflection": (
        lambda ledger: ledger.mark_owed(TARGET, ["reflection"]),
        lambda record: transitions.mark_owed(record, ["reflection"]),
    ),
    "mark_owed graph": (
        lambda ledger: ledger.mark_owed(TARGET, ["knowledge_graph"]),
        lambda record: transitions.mark_owed(record, ["knowledge_graph"]),
    ),
    "begin": (
        lambda ledger: ledger.begin(TARGET, intent(1, reflection=1)),
        lambda record: transitions.begin(record, intent(1, reflection=1)),
    ),
    "begin other bytes": (
        lambda ledger: ledger.begin(TARGET, intent(1, reflection=2, knowledge_graph=0)),
        lambda record: transitions.begin(record, intent(1, reflection=2, knowledge_graph=0)),
    ),
    "abandon": (lambda ledger: ledger.abandon(TARGET), transitions.abandon),
    "retry": (
        lambda ledger: ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="503"),
        lambda record: transitions.count_attempt(record, "r1", attempts=1, retry_at=LATER, error="503"),
    ),
    "give up": (
        lambda ledger: ledger.give_up(TARGET, error="403", failures=1, retry_at=LATER, result=failed()),
        lambda record: transitions.give_up(record, error="403", failures=1, retry_at=LATER),
    ),
    "mark_unchanged": (
        lambda ledger: ledger.mark_unchanged(TARGET, {"reflection": fingerprint("reflection", 2)}),
        lambda record: transitions.mark_unchanged(record, {"reflection": fingerprint("reflection", 2)}),
    ),
    "record_problems": (
        lambda ledger: ledger.record_problems(TARGET, {"knowledge_graph": problem("knowledge_graph", retry_at=LATER)}),
        lambda record: transitions.record_problems(
            record, {"knowledge_graph": problem("knowledge_graph", retry_at=LATER)}
        ),
    ),
    "deliver": (
        lambda ledger: ledger.deliver(TARGET, COMMITTED, SEEN, {}, succeeded(COMMITTED)),
        lambda record: transitions.deliver(
            record, COMMITTED, SEEN, {}, result_id=succeeded(COMMITTED).id, at=COMMITTED.uploaded_at
        ),
    ),
    "hand over": (
        lambda ledger: ledger.deliver_memories(TARGET, SEEN, {}, memories_result()),
        lambda record: transitions.deliver_memories(
            record, SEEN, {}, result_id=memories_result().id, at=memories_result().time
        ),
    ),
    "adopt": (
        lambda ledger: ledger.adopt(TARGET, COMMITTED, succeeded(COMMITTED)),
        lambda record: transitions.adopt(record, COMMITTED, result_id=succeeded(COMMITTED).id),
    ),
    "forget": (
        lambda ledger: ledger.forget(TARGET, ["reflection"]),
        lambda record: transitions.forget(record, ["reflection"]),
    ),
    "settle": (lambda ledger: ledger.settle(TARGET, skipped()), transitions.settle),
    "reset": (lambda ledger: ledger.reset(TARGET), transitions.reset),
}
COMMITTED = manifest(1, reflection=1, knowledge_graph=(0, "carried"))
SEEN = {"reflection": fingerprint("reflection", 1)}
RESULTS = {
    "give up": failed(),
    "deliver": succeeded(COMMITTED),
    "adopt": succeeded(COMMITTED),
    "hand over": memories_result(),
    "settle": skipped(),
}


@settings(max_examples=50)
@given(st.lists(st.sampled_from([*STEPS, "confirm", "restart"]), max_size=14))
def test_the_ledger_agrees_with_a_record_in_memory_after_any_steps(tmp_path_factory, steps):
    async def run():
        handle = LedgerHandle(tmp_path_factory.mktemp("ledger"), ManualClock(NOON), fsync=False)
        try:
            await run_steps(await handle.open(), handle, steps)
        finally:
            await handle.close()

    asyncio.run(run())


async def run_steps(ledger, handle, steps):
    record, waiting, confirmed = TargetRecord(target=TARGET), {}, {}
    for step in steps:
        if step == "restart":
            ledger = await handle.open()
        elif step == "confirm":
            for result in list(waiting.values()):
                await ledger.confirm(result)
                record = transitions.confirm(record, result.id)
            confirmed |= waiting
            waiting = {}
        else:
            write, transition = STEPS[step]
            try:
                expected = transition(record)
            except StateError:
                with pytest.raises(StateError):
                    await write(ledger)
            else:
                await write(ledger)
                record = expected
                result = RESULTS.get(step)
                if result is not None and result.id in confirmed:
                    record = transitions.confirm(record, result.id)
                elif result is not None:
                    waiting.setdefault(result.id, result)
        assert await ledger.record(TARGET) == record
        assert list(await ledger.outbox()) == list(waiting.values())


async def test_results_that_a_bus_lost_are_republished_and_nothing_else_changes(handle):
    """Only results and archive events since the given time are republished; a clean database stays clean."""
    ledger, first = handle.ledger, manifest(1, "r1", reflection=1)
    await ledger.begin(TARGET, intent(1, "r1", reflection=1))
    await ledger.deliver(TARGET, first, {"reflection": fingerprint("reflection", 1)}, {}, succeeded(first))
    old, new = replace(skipped("r0"), time=NOON - timedelta(days=8)), skipped("r2")
    for result in (old, new):
        await ledger.settle(None, result)
    verified = UploadVerified(
        id="v", time=NOON, system_id=SYSTEM, upload_id=upload_id(1), whole=True, deep=False, objects=2, problems={}
    )
    archive_events = verified, PRUNED
    for event in archive_events:
        await ledger.announce(event)
    for result in await ledger.outbox():
        await ledger.confirm(result)
    await ledger.add_to_history(request("r3"))
    before = await ledger.record(TARGET)
    assert await ledger.republish_since(NOON - timedelta(days=7)) == 4
    ledger = await handle.open()
    assert [event.id for event in await ledger.outbox()] == [
        each.id for each in (succeeded(first), new, *archive_events)
    ]
    assert await ledger.record(TARGET) == before
    for result in await ledger.outbox():
        await ledger.confirm(result)
    assert await ledger.record(TARGET) == before
    assert await ledger.outbox() == []


async def test_an_event_of_the_history_is_found_by_its_id(ledger):
    event = request("r1")
    await ledger.add_to_history(event)
    assert await ledger.find_event(event.id) == event
    assert await ledger.find_event("r1") is None


async def test_a_session_end_is_accepted_once(handle):
    """At any age and after restarts. System, sender and id identify a session end."""
    ended = SessionEnded(id="s-1", time=NOON, system_id=SYSTEM)
    assert await handle.ledger.accept(ended)
    assert not await handle.ledger.accept(ended)
    handle.clock.jump(timedelta(days=4000))
    ledger = await handle.open()
    assert not await ledger.accept(replace(ended, time=NOON + timedelta(days=1), session_id="other"))
    assert await ledger.accept(replace(ended, system_id="other"))
    assert await ledger.accept(replace(ended, id="s-2"))
    assert await ledger.accept(replace(ended, sender="/buddy"))
    assert not await ledger.accept(replace(ended, sender="/buddy"))
    assert await ledger.accept(replace(ended, sender="/buddy/2"))


async def test_a_session_end_is_open_until_a_result_names_it(handle):
    """For every method of the ledger that writes a result."""
    for number in range(5):
        await handle.ledger.accept(SessionEnded(id=f"s-{number}", time=NOON, system_id=SYSTEM))
    ledger = await handle.open()
    assert await ledger.open_session_ends() == ["s-0", "s-1", "s-2", "s-3", "s-4"]
    await ledger.settle(None, replace(skipped("r1"), caused_by=("s-1", "unknown")))
    assert await ledger.open_session_ends() == ["s-0", "s-2", "s-3", "s-4"]
    first = manifest(reflection=1)
    await ledger.begin(TARGET, intent(reflection=1))
    result = replace(succeeded(first), caused_by=("s-0", "s-3"))
    await ledger.deliver(TARGET, first, {"reflection": fingerprint("reflection", 1)}, {}, result)
    assert await ledger.open_session_ends() == ["s-2", "s-4"]
    failure = replace(failed("r3"), caused_by=("s-2",))
    await ledger.give_up(TARGET, error="403", failures=1, retry_at=None, result=failure)
    assert await ledger.open_session_ends() == ["s-4"]
    await ledger.settle(TARGET, skipped("r4"))
    assert await ledger.open_session_ends() == ["s-4"]


# ------------------------------------------------------------------------------------------------------- open puts


KEY = f"systems/{SYSTEM}/uploads/{upload_id()}/reflection.duckdb"
PARTS = {number: PutPart(number, 5 * 2**20, bytes([number]) * 16, f'"{number}"') for number in (1, 2, 3)}


async def open_put(ledger, target=TARGET, key=KEY, put_id="put 1"):
    journal = ledger.put_journal(target, key)
    await journal.begin(put_id, "parameters")
    for number in (1, 3, 2):
        await journal.add(PARTS[number])
    return journal


async def test_an_open_put_is_remembered_with_its_parts_after_a_restart(handle):
    await open_put(handle.ledger)
    await open_put(handle.ledger, OTHER_TARGET, put_id="put 2")
    ledger = await handle.open()
    expected = OpenPut(KEY, "put 1", "parameters", PARTS)
    assert await ledger.put_journal(TARGET, KEY).load() == expected
    assert await ledger.put_journal(TARGET, f"{KEY}.wal").load() is None
    assert await ledger.open_puts(TARGET) == [expected]
    assert [put.put_id for put in await ledger.open_puts(OTHER_TARGET)] == ["put 2"]


async def test_a_new_put_of_a_key_replaces_the_open_one_with_its_parts(ledger):
    journal = await open_put(ledger)
    await open_put(ledger, key=f"{KEY}.wal", put_id="put 2")
    await journal.begin("put 3", "other parameters")
    await journal.add(PARTS[2])
    await journal.add(replace(PARTS[2], etag='"again"'))
    assert await journal.load() == OpenPut(KEY, "put 3", "other parameters", {2: replace(PARTS[2], etag='"again"')})
    assert [put.put_id for put in await ledger.open_puts(TARGET)] == ["put 3", "put 2"]


async def test_a_cleared_put_is_forgotten_and_takes_no_more_parts(ledger):
    journal = await open_put(ledger)
    await open_put(ledger, OTHER_TARGET)
    for _ in range(2):
        await journal.clear()
        await journal.add(PARTS[1])
        assert await journal.load() is None
    assert len(await ledger.open_puts(OTHER_TARGET)) == 1


async def test_open_puts_are_dropped_when_their_upload_is_delivered_adopted_or_abandoned(ledger):
    delivered, adopted = manifest(reflection=1), manifest(1, reflection=2)
    await open_put(ledger, OTHER_TARGET)
    for second, end in [
        (0, lambda: ledger.deliver(TARGET, delivered, {}, {}, succeeded(delivered))),
        (1, lambda: ledger.adopt(TARGET, adopted, succeeded(adopted))),
        (2, lambda: ledger.abandon(TARGET)),
    ]:
        await ledger.mark_owed(TARGET, ["reflection"])
        await ledger.begin(TARGET, intent(second, reflection=second + 1))
        await open_put(ledger)
        await ledger.count_attempt(TARGET, request(), attempts=1, retry_at=LATER, error="a cut")
        await ledger.give_up(TARGET, error="a cut", failures=1, retry_at=None, result=None)
        await ledger.begin(TARGET, intent(second, reflection=second + 1))
        assert len(await ledger.open_puts(TARGET)) == 1, "the next attempt continues it"
        await end()
        assert list(await ledger.open_puts(TARGET)) == []
    assert len(await ledger.open_puts(OTHER_TARGET)) == 1


# ----------------------------------------------------------------------------------------------- listeners and size


async def test_history_listeners_are_called_after_each_write_that_adds_an_event(ledger):
    calls = []
    ledger.on_history(lambda: calls.append(1))
    await ledger.mark_owed(TARGET, ["reflection"])
    await ledger.note("watcher", "native")
    assert not calls
    await ledger.add_to_history(request())
    assert len(calls) == 1
    await ledger.settle(None, skipped())
    assert len(calls) == 2
    await upload(ledger, reflection=0)
    assert len(calls) == 3


async def test_an_announced_event_stays_in_the_outbox_until_it_is_confirmed(ledger):
    await ledger.announce(PRUNED, notes={"what": "was announced"})
    assert (await ledger.notes())["what"] == "was announced"
    assert [entry.event for entry in await ledger.history()] == list(await ledger.outbox()) == [PRUNED]
    await ledger.confirm(PRUNED)
    assert list(await ledger.outbox()) == []


async def test_the_size_is_that_of_the_files_on_disk(handle, ledger):
    await ledger.add_to_history(request())
    assert await ledger.size() == sum(path.stat().st_size for path in handle.folder.iterdir())
