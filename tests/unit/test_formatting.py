"""Lines about events for terminals."""

import time
from datetime import UTC, datetime

import pytest

from agent.domain.events import IngestFailed
from agent.entrypoints.formatting import ingest_summary, local_time

LAST = datetime.max.replace(tzinfo=UTC)


@pytest.fixture
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("zone", ["XXX-14"], indirect=True)
def test_a_time_that_the_local_zone_cannot_represent_is_shown_unconverted(zone):
    """Any program that may publish on NATS chooses the times in its events."""
    event = IngestFailed(id="e", time=LAST, system_id="mac", upload_id="u", error="no answer", retry_at=LAST)
    assert ingest_summary(event) == "u: no answer; next attempt at 23:59:59"
    assert local_time(LAST) == "9999-12-31 23:59:59"
