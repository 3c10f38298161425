"""Warnings in the status: setting and clearing them, and their notes in the ledger."""

from datetime import timedelta

import pytest

from agent.application.monitoring.status import describe
from agent.application.status_warnings import clear_warning, set_warning, warnings_in, without_warnings
from agent.domain.status_warning import StatusWarning
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger

CLOCK_AHEAD = StatusWarning(code="clock_ahead", message="the newest upload is 3 days ahead", hint="set the clock")


@pytest.fixture
async def ledger(tmp_path):
    opened = inline_ledger(ManualClock())
    yield opened
    await opened.aclose()


def status_of(notes, *computed):
    return describe(
        system_id="laptop", agent_id="a", route=(), records=(), memory_counts={}, survey={}, notes=notes,
        results_waiting=0, running=False, warnings=computed,
    )  # fmt: skip


async def test_a_warning_is_in_the_status_until_it_is_cleared(ledger):
    clock = ManualClock()
    assert await set_warning(ledger, CLOCK_AHEAD, clock)
    status = status_of(await ledger.notes())
    assert [str(warning) for warning in status.warnings] == ["the newest upload is 3 days ahead (set the clock)"]
    assert status.notes == {}
    assert await clear_warning(ledger, "clock_ahead")
    assert status_of(await ledger.notes()).warnings == ()
    assert not await clear_warning(ledger, "clock_ahead")


async def test_a_warning_set_again_keeps_its_first_time(ledger):
    clock = ManualClock()
    await set_warning(ledger, CLOCK_AHEAD, clock)
    (first,) = warnings_in(await ledger.notes())
    await clock.advance(60)
    changed = StatusWarning(code="clock_ahead", message="the newest upload is 2 days ahead")
    assert not await set_warning(ledger, changed, clock)
    (now,) = warnings_in(await ledger.notes())
    assert (now.since, now.message) == (first.since, "the newest upload is 2 days ahead")
    assert clock.now() - first.since == timedelta(seconds=60)


def test_computed_warnings_precede_those_of_the_ledger():
    notes = {"warning.kept": CLOCK_AHEAD.encode(), "watcher": "inotify"}
    status = status_of(notes, StatusWarning(code="disk_full", message="the disk is full"))
    assert [warning.code for warning in status.warnings] == ["disk_full", "kept"]
    assert without_warnings(notes) == status.notes == {"watcher": "inotify"}


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"message": 1}', "not json", '{"since": "x"}'])
def test_an_invalid_note_is_not_a_warning(text):
    assert warnings_in({"warning.odd": text}) == ()
