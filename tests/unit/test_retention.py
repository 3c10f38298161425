"""The retention rules: which uploads are kept."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from agent.domain.errors import NamingError
from agent.domain.naming import upload_id, upload_time
from agent.domain.retention import KeepRules, keep

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
NONE = KeepRules(last=0, daily=0, weekly=0, monthly=0)

seconds = st.integers(0, 3 * 365 * 86_400)
ids = st.sets(seconds, max_size=30).map(lambda ages: {ago(seconds=age) for age in ages})
rules = st.builds(KeepRules, **dict.fromkeys(("last", "daily", "weekly", "monthly"), st.integers(0, 5)))


def ago(**age):
    return upload_id(NOON - timedelta(**age), "laptop")


def test_the_newest_upload_is_kept_by_any_rules():
    assert keep([ago(days=2), ago(days=1)], NONE) == {ago(days=1): ("newest",)}
    assert keep([], NONE) == {}


def test_the_last_uploads_are_kept():
    uploads = [ago(minutes=at) for at in range(20)]
    assert list(keep(uploads, KeepRules(last=3, daily=0, weekly=0, monthly=0))) == uploads[:3]


def test_the_newest_upload_of_each_day_week_and_month_is_kept():
    uploads = [ago(), ago(hours=1), ago(days=1), ago(days=1, hours=1), ago(days=7), ago(days=40), ago(days=41)]
    kept = keep(uploads, KeepRules(last=0, daily=2, weekly=2, monthly=2))
    assert kept == {
        ago(): ("newest", "daily 2026-11-21", "weekly 2026-W47", "monthly 2026-11"),
        ago(days=1): ("daily 2026-11-20",),
        ago(days=7): ("weekly 2026-W46",),
        ago(days=40): ("monthly 2026-10",),
    }


def test_a_week_belongs_to_the_year_that_most_of_it_is_in():
    new_year = upload_id(datetime(2027, 1, 1, tzinfo=UTC), "laptop")
    week = KeepRules(last=0, daily=0, weekly=1, monthly=0)
    assert keep([new_year], week) == {new_year: ("newest", "weekly 2026-W53")}


def test_days_without_an_upload_do_not_count():
    uploads = [ago(days=at * 30) for at in range(5)]
    assert list(keep(uploads, KeepRules(last=0, daily=4, weekly=0, monthly=0))) == uploads[:4]


def test_uploads_needed_by_kept_ones_are_kept_transitively():
    first, second, third, other = (ago(days=at) for at in (4, 3, 1, 2))
    kept = keep([first, second, third, other], NONE, needs={third: [second], second: [first], other: [first]})
    assert kept == {third: ("newest",), second: (f"needed by {third}",), first: (f"needed by {second}",)}


def test_a_needed_upload_that_no_longer_exists_is_ignored():
    assert keep([ago()], NONE, needs={ago(): [ago(days=1)]}) == {ago(): ("newest",)}


def test_invalid_upload_ids_and_rules_are_refused():
    with pytest.raises(NamingError):
        keep(["manifest.json"], NONE)
    with pytest.raises(ValueError, match="negative"):
        KeepRules(last=-1)


@given(ids, rules)
def test_more_generous_rules_keep_all_uploads_of_stricter_ones(uploads, chosen):
    more = KeepRules(last=chosen.last + 1, daily=chosen.daily + 1, weekly=chosen.weekly + 1, monthly=chosen.monthly + 1)
    assert keep(uploads, chosen).keys() <= keep(uploads, more).keys() <= uploads


@given(ids, rules)
def test_the_newest_is_always_kept_and_no_more_than_the_rules_allow(uploads, chosen):
    kept = keep(uploads, chosen)
    assert not uploads or max(uploads, key=upload_time) in kept
    assert len(kept) <= max(chosen.last + chosen.daily + chosen.weekly + chosen.monthly, 1)
    assert list(kept) == sorted(kept, key=upload_time, reverse=True)


@given(ids, rules)
def test_pruning_again_deletes_nothing_more(uploads, chosen):
    kept = keep(uploads, chosen)
    assert keep(kept, chosen).keys() == kept.keys()


@given(ids, rules, st.data())
def test_every_upload_needed_by_a_kept_one_is_kept(uploads, chosen, data):
    named = st.sampled_from(sorted(uploads)) if uploads else st.nothing()
    needs = data.draw(st.dictionaries(named, st.sets(named, max_size=3), max_size=10)) if uploads else {}
    kept = keep(uploads, chosen, needs=needs)
    assert all(needs.get(upload, set()) <= kept.keys() for upload in kept)


def test_times_select_the_upload_of_a_day_and_ids_the_newest():
    made = [upload_id(NOON + timedelta(seconds=second), "laptop") for second in (3, 2, 1, 0)]
    days = [NOON - timedelta(days=day) for day in (0, 5, 5, 9)]
    kept = keep(made, KeepRules(last=1, daily=2, weekly=0, monthly=0), times=dict(zip(made, days, strict=True)))
    assert kept == {made[0]: ("newest", "last", "daily 2026-11-21"), made[1]: ("daily 2026-11-16",)}
    days.reverse()
    kept = keep(made, KeepRules(last=0, daily=1, weekly=0, monthly=0), times=dict(zip(made, days, strict=True)))
    assert kept == {made[0]: ("newest",), made[3]: ("daily 2026-11-21",)}
