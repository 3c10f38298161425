"""The state table, row by row, and what follows from a record."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain import transitions
from agent.domain.delivery_state import (
    TRANSITIONS,
    DatabaseRecord,
    State,
    TargetRecord,
    Transition,
    due,
    next_state,
    next_try,
    pending,
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
def test_each_move_leads_where_the_table_says_or_raises(state, move):
    wanted = TABLE.get((state.value, move.value))
    if wanted is None:
        with pytest.raises(StateError, match=f"{state} cannot be {move}"):
            next_state(state, move)
    else:
        assert next_state(state, move) == wanted


def test_the_table_has_no_other_rows():
    assert {(s.value, m.value): n.value for (s, m), n in TRANSITIONS.items()} == TABLE


def record(**databases: DatabaseRecord) -> TargetRecord:
    return TargetRecord(target=TARGET, known=True, databases=databases)


def database(state: State, generation: int | None = 0, **more: object) -> DatabaseRecord:
    seen = None if generation is None else fingerprint("reflection", generation)
    return replace(DatabaseRecord("reflection", state, seen, parts("reflection")), **more)


SURVEY = {"reflection": fingerprint("reflection", 0)}


@pytest.mark.parametrize(
    ("known", "lacking"),
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
def test_pending_is_what_was_never_delivered_is_owed_or_looks_different(known, lacking):
    assert pending(record(**known), SURVEY) == (frozenset({"reflection"}) if lacking else frozenset())


def test_a_database_that_is_gone_from_the_disk_is_not_pending():
    assert pending(record(reflection=database(State.OWED)), {}) == frozenset()


@pytest.mark.parametrize(
    ("trouble", "urgent", "now_due"),
    [
        (None, False, True),
        (problem("reflection", 0), False, False),
        (problem("reflection", 0), True, True),
        (problem("reflection", 1), False, True),
        (problem("reflection", 0, retry_at=NOON + timedelta(seconds=1)), False, False),
        (problem("reflection", 0, retry_at=NOON), False, True),
    ],
    ids=["none", "waits for a change", "somebody asks", "has changed", "not yet", "its time has come"],
)
def test_a_database_that_could_not_be_copied_waits_for_a_change_its_time_or_a_person(trouble, urgent, now_due):
    known = record(reflection=database(State.OWED, problem=trouble))
    assert due(known, SURVEY, NOON, urgent=urgent) == (frozenset(SURVEY) if now_due else frozenset())


def test_due_is_never_more_than_pending():
    known = record(reflection=database(State.CLEAN))
    assert due(known, SURVEY, NOON, urgent=True) == frozenset()


def test_a_target_backs_off_until_its_time():
    known = replace(record(), retry_at=NOON)
    assert known.backing_off(NOON - timedelta(microseconds=1))
    assert not known.backing_off(NOON)
    assert not record().backing_off(NOON)


def test_the_next_try_is_the_targets_or_that_of_an_owed_database_whichever_comes_first():
    soon, later = NOON + timedelta(seconds=1), NOON + timedelta(seconds=2)
    owed = database(State.OWED, problem=problem("reflection", retry_at=soon))
    assert next_try(record(), SURVEY) is None
    assert next_try(record(reflection=database(State.OWED, problem=problem("reflection"))), SURVEY) is None
    assert next_try(record(reflection=owed), SURVEY) == soon
    assert next_try(replace(record(reflection=owed), retry_at=later), SURVEY) == soon
    assert next_try(replace(record(reflection=replace(owed, state=State.CLEAN)), retry_at=later), SURVEY) == later


def test_a_database_that_is_no_longer_there_waits_for_nothing():
    soon = NOON + timedelta(seconds=1)
    gone = record(reflection=database(State.OWED, problem=problem("reflection", retry_at=soon)))
    assert next_try(gone, {}) is None


def test_times_that_a_clock_set_back_has_left_far_ahead_hold_nobody_up():
    """No back-off is longer than 15 minutes, so a time a day ahead is of another clock."""
    ahead = NOON + timedelta(days=1)
    assert not replace(record(), retry_at=ahead).backing_off(NOON)
    stuck = record(reflection=database(State.OWED, problem=problem("reflection", retry_at=ahead)))
    assert due(stuck, {"reflection": fingerprint("reflection")}, NOON, urgent=False) == {"reflection"}


def test_targets_are_reported_apart_by_their_ids():
    assert TARGET.id != OTHER_TARGET.id
    assert replace(TARGET, system_id="other").id != TARGET.id
    assert replace(TARGET, endpoint="", bucket="").id == "cloud aws - laptop-7"


# --------------------------------------------------------------------- what each entry of the ledger does to a record

EMPTY = TargetRecord(target=TARGET)


def states(known: TargetRecord) -> dict[str, str]:
    return {name: entry.state.value for name, entry in known.databases.items()}


def uploading(**databases: int) -> TargetRecord:
    return transitions.begin(transitions.mark_owed(EMPTY, databases), intent(**databases))


def delivered(second: int = 0, **databases: int) -> TargetRecord:
    whole = manifest(second, **databases)
    seen = {name: fingerprint(name, generation) for name, generation in databases.items()}
    return transitions.deliver(uploading(**databases), whole, seen, {}, result_id="told", at=NOON)


def test_owing_does_not_make_a_target_known_but_beginning_does():
    owed = transitions.mark_owed(EMPTY, ["reflection"])
    assert not owed.known
    assert not transitions.give_up(owed, error="down", failures=1, retry_at=NOON).known
    assert uploading(reflection=0).known


def test_what_was_never_delivered_cannot_be_unchanged():
    for known in (EMPTY, transitions.mark_owed(EMPTY, ["reflection"])):
        with pytest.raises(StateError, match="nothing of it was delivered"):
            transitions.mark_unchanged(known, {"reflection": fingerprint("reflection")})


def test_what_is_under_way_cannot_be_unchanged():
    again = transitions.begin(transitions.mark_owed(delivered(reflection=0), ["reflection"]), intent(5, reflection=1))
    with pytest.raises(StateError):
        transitions.mark_unchanged(again, {"reflection": fingerprint("reflection", 1)})


def test_a_delivered_database_that_was_touched_still_waits_for_its_confirmation():
    touched = transitions.mark_unchanged(delivered(reflection=0), {"reflection": fingerprint("reflection", 1)})
    assert states(touched) == {"reflection": "delivered"}
    assert touched.databases["reflection"].fingerprint == fingerprint("reflection", 1)
    assert states(transitions.confirm(touched, "told")) == {"reflection": "clean"}


def test_an_upload_of_a_clean_database_cannot_begin():
    clean = transitions.confirm(delivered(reflection=0), "told")
    with pytest.raises(StateError, match="clean cannot be staged"):
        transitions.begin(clean, intent(5, reflection=1))


def test_a_manifest_of_another_upload_or_without_one_of_its_databases_is_no_delivery():
    both = uploading(reflection=0, knowledge_graph=0)
    with pytest.raises(StateError, match="is not the upload in progress"):
        transitions.deliver(both, manifest(9, reflection=0, knowledge_graph=0), {}, {}, result_id="x", at=NOON)
    with pytest.raises(StateError, match="lacks knowledge_graph"):
        transitions.deliver(both, manifest(reflection=0), {}, {}, result_id="x", at=NOON)
    with pytest.raises(StateError, match="is not the upload in progress"):
        transitions.deliver(transitions.abandon(both), manifest(reflection=0), {}, {}, result_id="x", at=NOON)


def test_another_manifest_is_not_adopted_while_an_upload_is_under_way():
    with pytest.raises(StateError, match="is not the upload in progress"):
        transitions.adopt(uploading(reflection=0), manifest(9, reflection=0), result_id="x")


def handed_over(request_id: str = "r1", **databases: int) -> TargetRecord:
    begun = replace(intent(request_id=request_id, **databases), upload_id=request_id)
    seen = {name: fingerprint(name, generation) for name, generation in databases.items()}
    return transitions.deliver_memories(
        transitions.begin(transitions.mark_owed(EMPTY, databases), begun),
        seen,
        {},
        result_id="told",
        at=NOON + timedelta(1),
    )


def test_what_was_handed_over_is_delivered_and_lies_nowhere():
    known = handed_over(reflection=3)
    entry = known.databases["reflection"]
    assert (entry.state, entry.fingerprint, entry.delivered_by) == (
        "delivered",
        fingerprint("reflection", 3),
        "told",
    )
    assert (entry.parts, entry.problem) == ((), None)
    assert (known.known, known.intent, known.newest_upload_id) == (True, None, None)
    assert known.last_success == NOON + timedelta(1)
    assert states(transitions.confirm(known, "told")) == {"reflection": "clean"}


def test_handing_over_settles_the_target_clears_problems_and_keeps_those_of_the_others():
    failing = transitions.record_problems(EMPTY, {"reflection": problem("reflection")})
    failing = transitions.give_up(failing, error="down", failures=3, retry_at=NOON)
    begun = transitions.begin(failing, replace(intent(reflection=1), upload_id="r1"))
    begun = transitions.count_attempt(begun, "r1", attempts=2, retry_at=NOON, error="503")
    other = problem("knowledge_graph")
    seen = {"reflection": fingerprint("reflection", 1)}
    known = transitions.deliver_memories(begun, seen, {"knowledge_graph": other}, result_id="told", at=NOON)
    assert (known.attempts, known.attempt_request, known.failures, known.retry_at, known.error) == (0, "", 0, None, "")
    assert states(known) == {"reflection": "delivered", "knowledge_graph": "owed"}
    assert (known.databases["reflection"].problem, known.databases["knowledge_graph"].problem) == (None, other)


def test_what_has_not_begun_or_whose_looks_are_not_reported_cannot_be_handed_over():
    seen = {"reflection": fingerprint("reflection")}
    given_up = transitions.give_up(uploading(reflection=0), error="403", failures=1, retry_at=NOON)
    for known, what in ((EMPTY, "no delivery was started"), (given_up, "owed cannot be committed")):
        with pytest.raises(StateError, match=what):
            transitions.deliver_memories(known, seen, {}, result_id="told", at=NOON)
    with pytest.raises(StateError, match="fingerprint of knowledge_graph is missing"):
        transitions.deliver_memories(uploading(reflection=0, knowledge_graph=0), seen, {}, result_id="told", at=NOON)


def test_what_was_handed_over_can_be_unchanged_until_it_is_forgotten():
    owed = transitions.mark_owed(transitions.confirm(handed_over(reflection=0), "told"), ["reflection"])
    touched = transitions.mark_unchanged(owed, {"reflection": fingerprint("reflection", 5)})
    assert states(touched) == {"reflection": "clean"}
    assert touched.databases["reflection"].fingerprint == fingerprint("reflection", 5)
    with pytest.raises(StateError, match="nothing of it was delivered"):
        transitions.mark_unchanged(
            transitions.forget(owed, ["reflection"]), {"reflection": fingerprint("reflection", 5)}
        )


def test_newest_upload_never_goes_back():
    later = transitions.adopt(EMPTY, manifest(100, reflection=0), result_id="a")
    assert transitions.adopt(later, manifest(50, reflection=0), result_id="b").newest_upload_id == upload_id(100)


def test_forgotten_databases_have_nothing_to_reuse_and_are_owed():
    gone = transitions.forget(delivered(reflection=0, knowledge_graph=0), ["reflection"])
    assert states(gone) == {"reflection": "owed", "knowledge_graph": "delivered"}
    assert not gone.databases["reflection"].parts
    assert gone.databases["knowledge_graph"].parts


BOTH_SEEN = {name: fingerprint(name, 7) for name in ("reflection", "knowledge_graph")}

steps = st.sampled_from(
    [
        lambda r: transitions.mark_owed(r, ["reflection"]),
        lambda r: transitions.mark_owed(r, ["knowledge_graph"]),
        lambda r: transitions.begin(r, intent(0, reflection=0)),
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
def test_whatever_happens_intent_rows_are_those_of_the_intent_or_none_and_clean_means_delivered(story):
    known = EMPTY
    for step in story:
        try:
            known = step(known)
        except StateError:
            continue
        under_way = {name for name, entry in known.databases.items() if entry.state is State.INTENT}
        assert under_way in (set(), set(known.intent.databases) if known.intent else set()), "all of it, or given up"
        for entry in known.databases.values():
            assert entry.delivered_by or entry.state not in (State.CLEAN, State.DELIVERED)
        if known.intent or known.newest_upload_id:
            assert known.known
