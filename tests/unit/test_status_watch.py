"""`status --watch`: what it shows of a sync that stops moving, and how often it asks the agent."""

import pytest

from agent.domain.events import SyncProgress
from agent.entrypoints.status_watch import AFTER_CHANGE_SECONDS, StatusWatch
from agent.ports import HistoryEntry
from agent.settings import Settings
from tests.support import screens, values
from tests.support.values import NOON

STATUS_CPU_SECONDS = 0.0053
"""CPU time that a request for the status costs the agent."""


class Clock:
    seconds = 100.0

    def monotonic(self):
        return self.seconds


@pytest.fixture
def watch():
    watch = StatusWatch(Settings(), lambda *_: None)
    watch._clock, watch._due = Clock(), float("inf")
    return watch


def progress(done):
    return SyncProgress(
        id=f"p{done}", time=NOON, system_id="laptop", request_id="r", method="cloud", phase="upload",
        done_bytes=done, total_bytes=100,
    )  # fmt: skip


def test_progress_that_stops_is_no_longer_shown_and_the_agent_is_asked(watch):
    watch._take(progress(42))
    assert watch._with_progress(screens.OWED).activity.done_bytes == 42
    assert watch._due == float("inf")
    watch._clock.seconds += 11
    assert watch._with_progress(screens.OWED).activity is None
    assert watch._due <= watch._clock.seconds


def test_while_files_change_the_agent_spends_less_than_a_thousandth_of_a_core_on_the_status(watch):
    asked = []
    for _ in range(600):
        watch._refresh(pause=AFTER_CHANGE_SECONDS, delay=1)
        watch._clock.seconds += 1
        if watch._clock.seconds >= watch._due:
            watch._asks_now()
            asked.append(watch._clock.seconds)
    assert len(asked) > 30
    assert len(asked) * STATUS_CPU_SECONDS / 600 < 0.001


def test_a_storm_of_events_costs_the_agent_less_than_a_thousandth_of_a_core_and_calm_nothing(watch):
    asked = []
    for tenth in range(6000):
        watch._take(HistoryEntry(tenth, values.request()))
        watch._clock.seconds += 0.1
        if watch._clock.seconds >= watch._due:
            watch._asks_now()
            asked.append(watch._clock.seconds)
    assert asked[1] - asked[0] < 1, "the first events are shown at once"
    assert len(asked) > 30
    assert len(asked) * STATUS_CPU_SECONDS / 600 < 0.001
    watch._clock.seconds += 60
    watch._asks_now()
    for _ in range(600):
        watch._with_progress(screens.SAFE)
        watch._clock.seconds += 1
        assert watch._due == float("inf")
    watch._take(HistoryEntry(0, values.request()))
    assert watch._due <= watch._clock.seconds
