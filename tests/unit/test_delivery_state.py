"""The state table, row by row, and what a target's record implies."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain import transitions
from agent.domain.delivery_state import (
    TRANSITIONS,
    CopyUse,
    DatabaseRecord,
    State,
    TargetRecord,
    Transition,
    due,
    next_state,
    next_try,
    pending,
    use_of_copy,
    waits_for_change,
)
from agent.domain.errors import StateError
from tests.support.values import (
    NOON,
    OTHER_TARGET,
    TARGET,
    fingerprint,
    intent,
    manifest,
    parts,
    problem,
    upload_id,
)

TABLE = {
    ("clean", "changed"): "owed",
    ("owed", "changed"): "owed",
    ("owed", "staged"): "intent",
    ("owed", "unchanged"): "clean",
    ("intent", "changed"): "intent",
    ("intent", "committed"): "delivered",
    ("intent", "retry"): "intent",
    ("intent", "abandoned"): "owed",
    ("delivered", "confirmed"): "clean",
    ("delivered", "changed"): "owed",
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("move", Transition)
def test_each_transition_follows_the_table_or_raises(state, move):
    expected = TABLE.get((state.value, move.value))
    if expected is None:
        with pytest.raises(StateError, match=f"{state} cannot be {move}"):
            next_state(state, move)
    else:
        assert next_state(state, move) == expected


def test_the_table_has_no_other_rows():
    assert {(s.value, m.value): n.value for (s, m), n in TRANSITIONS.items()} == TABLE


def record(**databases: DatabaseRecord) -> TargetRecord:
    return TargetRecord(target=TARGET, known=True, databases=databases)


def database(state: State, generation: int | None = 0, **more: object) -> DatabaseRecord:
    seen = None if generation is None else fingerprint("reflection", generation)
    return replace(DatabaseRecord("reflection", state, seen, parts("reflection")), **more)


SURVEY = {"reflection": fingerprint("reflection", 0)}


@pytest.mark.parametrize(
    ("known", "is_pending"),
    [
        ({}, True),
        ({"reflection": database(State.CLEAN)}, False),
        ({"reflection": database(State.DELIVERED)}, False),
        ({"reflection": database(State.OWED)}, True),
        ({"reflection": database(State.INTENT)}, True),
        ({"reflection": database(State.CLEAN, 1)}, True),
        ({"reflection": database(State.DELIVERED, 1)}, True),
        ({"reflection": database(State.DELIVERED, None)}, True),
    ],
)
def test_a_database_is_pending_if_undelivered_owed_or_changed(known, is_pending):
    assert pending(record(**known), SURVEY) == (frozenset({"reflection"}) if is_pending else frozenset())


def test_a_deleted_database_is_not_pending():
    assert pending(record(reflection=database(State.OWED)), {}) == frozenset()


@pytest.mark.parametrize(
    ("copy_problem", "urgent", "now_due"),
    [
        (None, False, True),
        (problem("reflection", 0), False, False),
        (problem("reflection", 0), True, True),
        (problem("reflection", 1), False, True),
        (problem("reflection", 0, retry_at=NOON + timedelta(seconds=1)), False, False),
        (problem("reflection", 0, retry_at=NOON), False, True),
    ],
    ids=["no problem", "waits for a change", "urgent", "has changed", "backs off", "back-off over"],
)
def test_a_database_that_failed_to_copy_is_due_after_a_change_a_back_off_or_a_command(copy_problem, urgent, now_due):
    known = record(reflection=database(State.OWED, problem=copy_problem))
    assert due(known, SURVEY, NOON, urgent=urgent) == (frozenset(SURVEY) if now_due else frozenset())


@pytest.mark.parametrize(("retry_at", "now_due"), [(NOON + timedelta(seconds=1), True), (None, False)])
def test_at_the_start_a_back_off_is_over_and_a_wait_for_a_change_is_not(retry_at, now_due):
    known = record(reflection=database(State.OWED, problem=problem("reflection", retry_at=retry_at)))
    assert bool(due(known, SURVEY, NOON, urgent=False, at_start=True)) == now_due
    assert waits_for_change(known, SURVEY) != now_due
    assert not waits_for_change(known, SURVEY | {"knowledge_graph": fingerprint("knowledge_graph", 0)})
    assert not waits_for_change(known, {"reflection": fingerprint("reflection", 1)})


SAME, OTHER = ({part.name: part.sha256 for part in parts("reflection", generation)} for generation in (0, 1))


@pytest.mark.parametrize(
    ("known", "digests", "inconclusive", "deduplicate", "use"),
    [
        (None, SAME, False, True, "send"),
        ("complete", OTHER, False, True, "send"),
        ("complete", SAME, False, True, "same"),
        ("complete", SAME, True, True, "same"),
        ("complete", SAME, False, False, "send"),
        ("not copied", SAME, False, True, "same"),
        ("incomplete", OTHER, True, True, "send"),
        ("incomplete", SAME, False, True, "repeat"),
        ("incomplete", SAME, True, True, "wait"),
        ("incomplete", SAME, True, False, "wait"),
    ],
)
def test_bytes_that_the_target_has_incomplete_are_sent_again_only_after_a_conclusive_check(
    known, digests, inconclusive, deduplicate, use
):
    problems = {
        "complete": None,
        "not copied": problem("reflection"),
        "incomplete": replace(problem("reflection"), incomplete=True),
    }
    entry = database(State.OWED, problem=problems[known]) if known else None
    assert use_of_copy(entry, digests, inconclusive=inconclusive, deduplicate=deduplicate) == CopyUse(use)


def test_due_is_never_more_than_pending():
    known = record(reflection=database(State.CLEAN))
    assert due(known, SURVEY, NOON, urgent=True) == frozenset()


def test_a_target_backs_off_until_its_retry_time():
    known = replace(record(), retry_at=NOON)
    assert known.backing_off(NOON - timedelta(microseconds=1))
    assert not known.backing_off(NOON)
    assert not record().backing_off(NOON)


def test_the_next_retry_is_that_of_the_target_if_it_backs_off_else_of_an_owed_database():
    soon, later = NOON + timedelta(seconds=1), NOON + timedelta(seconds=2)
    owed = database(State.OWED, problem=problem("reflection", retry_at=soon))
    assert next_try(record(), SURVEY) is None
    assert next_try(record(reflection=database(State.OWED, problem=problem("reflection"))), SURVEY) is None
    assert next_try(record(reflection=owed), SURVEY) == soon
    assert next_try(replace(record(reflection=owed), retry_at=later), SURVEY) == later
    assert next_try(replace(record(reflection=replace(owed, state=State.CLEAN)), retry_at=later), SURVEY) == later


def test_a_deleted_database_has_no_next_retry():
    soon = NOON + timedelta(seconds=1)
    deleted = record(reflection=database(State.OWED, problem=problem("reflection", retry_at=soon)))
    assert next_try(deleted, {}) is None


def test_retry_times_far_ahead_are_ignored_after_the_clock_was_set_back():
    """No back-off is longer than 15 minutes: a time a day ahead was written before the clock was set back."""
    ahead = NOON + timedelta(days=1)
    assert not replace(record(), retry_at=ahead).backing_off(NOON)
    stuck = record(reflection=database(State.OWED, problem=problem("reflection", retry_at=ahead)))
    assert due(stuck, {"reflection": fingerprint("reflection")}, NOON, urgent=False) == {"reflection"}


def test_targets_have_distinct_ids():
    assert TARGET.id != OTHER_TARGET.id
    assert replace(TARGET, system_id="other").id != TARGET.id
    assert replace(TARGET, endpoint="", bucket="").id == "cloud aws - laptop-7"


# --------------------------------------------------------------------------- how each ledger operation changes a record

EMPTY = TargetRecord(target=TARGET)


def states(known: TargetRecord) -> dict[str, str]:
    return {name: entry.state.value for name, entry in known.databases.items()}


def uploading(**databases: int) -> TargetRecord:
    return transitions.begin(transitions.mark_owed(EMPTY, databases), intent(**databases))


def delivered(second: int = 0, **databases: int) -> TargetRecord:
    uploaded = manifest(second, **databases)
    seen = {name: fingerprint(name, generation) for name, generation in databases.items()}
    return transitions.deliver(uploading(**databases), uploaded, seen, {}, result_id="result-1", at=NOON)


def test_a_target_is_known_after_an_upload_began_not_after_it_is_owed():
    owed = transitions.mark_owed(EMPTY, ["reflection"])
    assert not owed.known
    assert not transitions.give_up(owed, error="down", failures=1, retry_at=NOON).known
    assert uploading(reflection=0).known


def test_an_undelivered_database_cannot_be_unchanged():
    for known in (EMPTY, transitions.mark_owed(EMPTY, ["reflection"])):
        with pytest.raises(StateError, match="nothing of it was delivered"):
            transitions.mark_unchanged(known, {"reflection": fingerprint("reflection")})


def test_a_database_in_an_upload_cannot_be_unchanged():
    again = transitions.begin(transitions.mark_owed(delivered(reflection=0), ["reflection"]), intent(5, reflection=1))
    with pytest.raises(StateError):
        transitions.mark_unchanged(again, {"reflection": fingerprint("reflection", 1)})


def test_a_delivered_database_that_was_touched_still_needs_its_confirmation():
    touched = transitions.mark_unchanged(delivered(reflection=0), {"reflection": fingerprint("reflection", 1)})
    assert states(touched) == {"reflection": "delivered"}
    assert touched.databases["reflection"].fingerprint == fingerprint("reflection", 1)
    assert states(transitions.confirm(touched, "result-1")) == {"reflection": "clean"}


def test_an_upload_of_a_clean_database_cannot_begin():
    clean = transitions.confirm(delivered(reflection=0), "result-1")
    with pytest.raises(StateError, match="clean cannot be staged"):
        transitions.begin(clean, intent(5, reflection=1))


def test_a_manifest_of_another_upload_or_with_a_database_missing_is_rejected():
    both = uploading(reflection=0, knowledge_graph=0)
    with pytest.raises(StateError, match="is not the upload in progress"):
        transitions.deliver(both, manifest(9, reflection=0, knowledge_graph=0), {}, {}, result_id="x", at=NOON)
    with pytest.raises(StateError, match="lacks knowledge_graph"):
        transitions.deliver(both, manifest(reflection=0), {}, {}, result_id="x", at=NOON)
    with pytest.raises(StateError, match="is not the upload in progress"):
        transitions.deliver(transitions.abandon(both), manifest(reflection=0), {}, {}, result_id="x", at=NOON)


def test_another_manifest_is_not_adopted_during_an_upload():
    with pytest.raises(StateError, match="is not the upload in progress"):
        transitions.adopt(uploading(reflection=0), manifest(9, reflection=0), result_id="x")


def pushed(request_id: str = "r1", **databases: int) -> TargetRecord:
    started = replace(intent(request_id=request_id, **databases), upload_id=request_id)
    seen = {name: fingerprint(name, generation) for name, generation in databases.items()}
    return transitions.deliver_memories(
        transitions.begin(transitions.mark_owed(EMPTY, databases), started),
        seen,
        {},
        result_id="result-1",
        at=NOON + timedelta(1),
    )


def test_pushed_memories_are_delivered_and_have_no_objects():
    known = pushed(reflection=3)
    entry = known.databases["reflection"]
    assert (entry.state, entry.fingerprint, entry.delivered_by) == (
        "delivered",
        fingerprint("reflection", 3),
        "result-1",
    )
    assert (entry.parts, entry.problem) == ((), None)
    assert (known.known, known.intent, known.newest_upload_id) == (True, None, None)
    assert known.last_success == NOON + timedelta(1)
    assert states(transitions.confirm(known, "result-1")) == {"reflection": "clean"}


def test_a_push_resets_the_target_and_clears_only_the_problems_of_its_databases():
    failing = transitions.record_problems(EMPTY, {"reflection": problem("reflection")})
    failing = transitions.give_up(failing, error="down", failures=3, retry_at=NOON)
    started = transitions.begin(failing, replace(intent(reflection=1), upload_id="r1"))
    started = transitions.count_attempt(started, "r1", attempts=2, retry_at=NOON, error="503")
    other = problem("knowledge_graph")
    seen = {"reflection": fingerprint("reflection", 1)}
    known = transitions.deliver_memories(started, seen, {"knowledge_graph": other}, result_id="result-1", at=NOON)
    assert (known.attempts, known.attempt_request, known.failures, known.retry_at, known.error) == (0, "", 0, None, "")
    assert states(known) == {"reflection": "delivered", "knowledge_graph": "owed"}
    assert (known.databases["reflection"].problem, known.databases["knowledge_graph"].problem) == (None, other)


def test_a_push_that_was_not_started_or_lacks_fingerprints_is_rejected():
    seen = {"reflection": fingerprint("reflection")}
    given_up = transitions.give_up(uploading(reflection=0), error="403", failures=1, retry_at=NOON)
    for known, message in ((EMPTY, "no delivery was started"), (given_up, "owed cannot be committed")):
        with pytest.raises(StateError, match=message):
            transitions.deliver_memories(known, seen, {}, result_id="result-1", at=NOON)
    with pytest.raises(StateError, match="fingerprint of knowledge_graph is missing"):
        transitions.deliver_memories(
            uploading(reflection=0, knowledge_graph=0), seen, {}, result_id="result-1", at=NOON
        )


def test_a_pushed_database_can_be_unchanged_until_it_is_forgotten():
    owed = transitions.mark_owed(transitions.confirm(pushed(reflection=0), "result-1"), ["reflection"])
    touched = transitions.mark_unchanged(owed, {"reflection": fingerprint("reflection", 5)})
    assert states(touched) == {"reflection": "clean"}
    assert touched.databases["reflection"].fingerprint == fingerprint("reflection", 5)
    with pytest.raises(StateError, match="nothing of it was delivered"):
        transitions.mark_unchanged(
            transitions.forget(owed, ["reflection"]), {"reflection": fingerprint("reflection", 5)}
        )


def test_the_newest_upload_id_never_decreases():
    later = transitions.adopt(EMPTY, manifest(100, reflection=0), result_id="a")
    assert transitions.adopt(later, manifest(50, reflection=0), result_id="b").newest_upload_id == upload_id(100)


def test_forgotten_databases_have_no_reusable_parts_and_are_owed():
    deleted = transitions.forget(delivered(reflection=0, knowledge_graph=0), ["reflection"])
    assert states(deleted) == {"reflection": "owed", "knowledge_graph": "delivered"}
    assert not deleted.databases["reflection"].parts
    assert deleted.databases["knowledge_graph"].parts


BOTH_SEEN = {name: fingerprint(name, 7) for name in ("reflection", "knowledge_graph")}

steps = st.sampled_from(
    [
        lambda r: transitions.mark_owed(r, ["reflection"]),
        lambda r: transitions.mark_owed(r, ["knowledge_graph"]),
        lambda r: transitions.begin(r, intent(0, reflection=0)),
        lambda r: transitions.begin(r, intent(0, reflection=1, knowledge_graph=0)),
        lambda r: transitions.begin(r, intent(1, reflection=1, knowledge_graph=0)),
        lambda r: transitions.mark_unchanged(r, {"reflection": fingerprint("reflection", 3)}),
        lambda r: transitions.record_problems(r, {"knowledge_graph": problem("knowledge_graph")}),
        lambda r: transitions.forget(r, ["reflection"]),
        transitions.abandon,
        lambda r: transitions.count_attempt(r, "r1", attempts=r.attempts + 1, retry_at=NOON, error="503"),
        lambda r: transitions.give_up(r, error="403", failures=r.failures + 1, retry_at=NOON),
        lambda r: transitions.deliver(r, manifest(0, reflection=0), {}, {}, result_id="a", at=NOON),
        lambda r: transitions.deliver(r, manifest(1, reflection=1, knowledge_graph=0), {}, {}, result_id="b", at=NOON),
        lambda r: transitions.deliver_memories(r, BOTH_SEEN, {}, result_id="c", at=NOON),
        lambda r: transitions.adopt(r, manifest(1, reflection=1, knowledge_graph=(0, "carried")), result_id="b"),
        lambda r: transitions.confirm(r, "a"),
        lambda r: transitions.confirm(r, "b"),
        lambda r: transitions.confirm(r, "c"),
        transitions.settle,
        transitions.reset,
    ]
)


@settings(max_examples=80)
@given(st.lists(steps, max_size=25))
def test_any_sequence_keeps_intents_consistent_and_clean_means_delivered(sequence):
    known = EMPTY
    for step in sequence:
        try:
            known = step(known)
        except StateError:
            continue
        in_intent = {name for name, entry in known.databases.items() if entry.state is State.INTENT}
        assert in_intent in (set(), set(known.intent.databases) if known.intent else set()), (
            "all databases of the intent, or none after a give-up"
        )
        for entry in known.databases.values():
            assert entry.delivered_by or entry.state not in (State.CLEAN, State.DELIVERED)
        if known.intent or known.newest_upload_id:
            assert known.known
