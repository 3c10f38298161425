"""`status --watch`: what it shows of a sync that stops moving, and how often it asks the agent."""

import pytest

from agent.domain.events import SyncProgress
from agent.entrypoints.status_watch import AFTER_CHANGE_SECONDS, StatusWatch
from agent.settings import Settings
from tests.support import screens
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
            watch._asked_at, watch._due = watch._clock.seconds, float("inf")
            asked.append(watch._clock.seconds)
    assert len(asked) > 30
    assert len(asked) * STATUS_CPU_SECONDS / 600 < 0.001
