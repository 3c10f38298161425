"""The rate of a running operation is smoothed, and the remaining time is shown only while it means something."""

import pytest

from agent.domain.progress import MEANINGFUL_SECONDS, STALLED_SECONDS, Progress


def moved(rate, *, until, total=1000, start=0.0, every=0.1, progress=None):
    progress = progress or Progress("upload", total, at=start)
    for step in range(1, round((until - start) / every) + 1):
        progress.update(progress.done + rate * every, at=start + step * every)
    return progress


def test_a_steady_rate_is_reported_after_the_first_seconds():
    progress = moved(100, until=1)
    assert (progress.rate(at=1), progress.remaining_seconds(at=1)) == (None, None)
    progress = moved(100, until=4)
    assert progress.rate(at=4) == pytest.approx(100, rel=0.05)
    assert progress.remaining_seconds(at=4) == pytest.approx(6, rel=0.05)
    assert progress.fraction == pytest.approx(0.4)


@pytest.mark.parametrize("every", [0.1, 1.0, 3.0])
def test_the_rate_does_not_depend_on_the_interval_of_the_updates_nor_on_when_it_is_read(every):
    progress = moved(100, until=30, total=10_000, every=every)
    for at in (30, 30 + every / 2, 30 + every):
        assert progress.rate(at=at) == pytest.approx(100, rel=0.001)
    progress.update(progress.done + 50, at=30)  # at the same time
    progress.update(progress.done + 50, at=31)
    assert progress.rate(at=31) == pytest.approx(100, rel=0.001)


def test_a_change_of_the_rate_shows_within_seconds_and_without_a_jump():
    progress = moved(100, until=10, total=10_000)
    after_1 = moved(10, until=11, start=10, progress=progress).rate(at=11)
    after_15 = moved(10, until=25, start=11, progress=progress).rate(at=25)
    assert 60 < after_1 < 100
    assert 10 < after_15 < 20


def test_the_remaining_time_is_unknown_while_nothing_moves():
    progress = moved(100, until=4)
    later = 4 + STALLED_SECONDS + 0.1
    assert progress.remaining_seconds(at=later) is None
    assert progress.rate(at=later) < 20
    progress.update(progress.done + 1, at=later)
    assert progress.remaining_seconds(at=later) is not None


@pytest.mark.parametrize("total", [None, 0])
def test_without_a_total_there_is_a_rate_but_no_remaining_time(total):
    progress = moved(100, until=4, total=total)
    assert progress.rate(at=4) == pytest.approx(100, rel=0.05)
    assert (progress.remaining_seconds(at=4), progress.fraction) == (None, None)


def test_nothing_is_claimed_before_anything_has_moved():
    progress = Progress("upload", 1000, at=0)
    progress.update(0, at=MEANINGFUL_SECONDS * 10)
    assert (progress.rate(at=30), progress.remaining_seconds(at=30), progress.fraction) == (None, None, 0)


def test_progress_that_starts_over_or_exceeds_its_total_stays_in_range():
    progress = moved(100, until=5, total=400)
    assert (progress.fraction, progress.remaining_seconds(at=5)) == (1.0, 0)
    progress.update(10, at=5.1)
    assert 0 <= progress.rate(at=5.1) <= 100
    assert progress.remaining_seconds(at=5.1) > 0


def test_what_an_earlier_operation_did_counts_as_done_but_not_in_the_rate():
    progress = moved(100, until=2, total=10_000)
    progress.update(8_000, at=2.1, kept=7_800)
    assert (progress.fraction, progress.rate(at=3), progress.remaining_seconds(at=3)) == (0.8, None, None)
    for step in range(1, 51):
        progress.update(8_000 + 10 * step, at=2.1 + step / 10, kept=7_800)
    assert progress.rate(at=7.1) == pytest.approx(100, rel=0.05)
    assert progress.remaining_seconds(at=7.1) == pytest.approx(15, rel=0.05)


def test_what_was_done_before_the_progress_was_followed_is_not_in_the_rate():
    progress = moved(100, until=4, total=10_000, progress=Progress("upload", 10_000, at=0, done=5_000))
    assert progress.fraction == pytest.approx(0.54)
    assert progress.rate(at=4) == pytest.approx(100, rel=0.05)
