"""Lines about events for terminals."""

import json
import time
from datetime import UTC, datetime

import pytest

from agent.domain.events import IngestFailed
from agent.entrypoints.formatting import ingest_summary, json_value, local_time

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


def test_a_time_in_json_is_rfc_3339():
    assert (
        json.dumps(datetime(2026, 11, 30, 9, 37, 19, tzinfo=UTC), default=json_value) == '"2026-11-30T09:37:19+00:00"'
    )
