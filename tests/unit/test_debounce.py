"""A burst of changes becomes a sync after the quiet time, at the deadline at the latest, not within the interval."""

from itertools import pairwise

from hypothesis import given, settings, strategies as st

from agent.domain.debounce import Debounce, DebounceRules, Wait

RULES = DebounceRules(quiet=2, deadline=30, min_interval=300)
quick = settings(max_examples=80)


def test_nothing_is_due_without_a_change():
    assert Debounce().due(RULES) is None
    assert Debounce().fired(5).due(RULES) is None


def test_a_single_change_is_due_after_the_quiet_time():
    assert Debounce().changed(100).due(RULES) == 102


def test_each_change_delays_the_sync_up_to_the_deadline():
    busy = Debounce().changed(0)
    for at in range(1, 100):
        busy = busy.changed(at)
    assert busy.due(RULES) == 30


def test_changes_reported_out_of_order_count_by_their_time():
    assert Debounce().changed(100).changed(99).due(RULES) == 102
    assert Debounce().changed(29).changed(0).changed(29.5).due(RULES) == 30


def test_a_change_soon_after_a_sync_waits_for_the_interval_and_is_not_lost():
    after = Debounce().changed(0).taken().fired(2).changed(3)
    assert after.due(RULES) == 302


def test_a_change_long_after_a_sync_does_not_wait():
    assert Debounce().changed(0).taken().fired(2).changed(1000).due(RULES) == 1002


def test_changes_synced_by_another_trigger_are_no_longer_due():
    settled = Debounce().changed(0).taken().fired(2).changed(10).taken()
    assert settled.due(RULES) is None
    assert settled.changed(20).due(RULES) == 302


seconds = st.floats(0, 1000, allow_nan=False)
rules = st.builds(DebounceRules, quiet=seconds, deadline=seconds, min_interval=seconds)
bursts = st.lists(seconds, min_size=1, max_size=12).map(sorted)


@quick
@given(rules, bursts, st.none() | seconds)
def test_due_is_between_quiet_time_and_deadline_unless_the_interval_is_longer(given_rules, burst, before):
    waiting = Debounce(started=None if before is None else -before)
    for at in burst:
        waiting = waiting.changed(at)
    due = waiting.due(given_rules)
    last, first = burst[-1], burst[0]
    latest = first + given_rules.deadline
    interval_over = -before + given_rules.min_interval if before is not None else float("-inf")
    assert due <= max(latest, interval_over)
    assert due >= min(last + given_rules.quiet, latest)
    assert due >= interval_over
    assert due in (last + given_rules.quiet, latest, interval_over)


@quick
@given(rules, bursts)
def test_in_a_simulated_run_every_change_is_synced_and_syncs_keep_the_interval(given_rules, changes):
    state, started, synced = Debounce(), [], []
    for at in [*changes, float("inf")]:
        while (due := state.due(given_rules)) is not None and due < at:
            # The agent checks later than `due` only if a later change arrived; it fires at the time of the check.
            started.append(due)
            synced.append(state.last)
            state = state.taken().fired(due)
        if at != float("inf"):
            state = state.changed(at)
    assert synced[-1] == changes[-1], "the last change of all was synced"
    assert all(b - a >= given_rules.min_interval - 1e-6 for a, b in pairwise(started))
    for first in changes:
        followed = min(at for at in started if at >= first)
        assert followed <= max(first + given_rules.deadline, first + given_rules.min_interval) + 1e-6


def test_the_rule_that_delays_a_sync_is_known():
    assert Debounce().waits_for(RULES) is None
    assert Debounce().changed(100).waits_for(RULES) == (102, Wait.QUIET)
    assert Debounce().changed(0).changed(29).waits_for(RULES) == (30, Wait.DEADLINE)
    assert Debounce().changed(0).taken().fired(2).changed(3).waits_for(RULES) == (302, Wait.MIN_INTERVAL)
