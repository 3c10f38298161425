"""Results of the past in an agent's ledger, while no agent runs."""

import random
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from agent.adapters.system_clock import SystemClock
from agent.domain.events import (
    Event,
    MethodError,
    SyncFailed,
    SyncSkipped,
    SyncSucceeded,
    UploadVerified,
    archive_event_id,
    outcome_event_id,
    upload_event_id,
)
from agent.domain.naming import upload_id
from tests.support.ledger import inline_ledger

AGENT = "0" * 32


def add_results(ledger_file: Path, events: Iterable[Event]) -> None:
    """Add events that were published to a ledger's file. An empty ledger is created if there is none."""
    ledger_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ledger = inline_ledger(SystemClock(), ledger_file)
    with closing(ledger._connection) as connection:
        connection.execute("BEGIN")
        for event in events:
            ledger._history.add(event, published_at=event.time)
        connection.execute("COMMIT")


def succeeded(system_id: str, at: datetime, *, sent: int, seconds: float, size: int, location: str) -> SyncSucceeded:
    upload = upload_id(at, system_id)
    return SyncSucceeded(
        id=upload_event_id(upload, AGENT),
        time=at,
        system_id=system_id,
        request_id=f"{at:%Y%m%d%H%M%S}",
        method="cloud",
        success=True,
        files_uploaded=(f"systems/{system_id}/uploads/{upload}/reflection.duckdb",),
        bytes_transferred=sent,
        duration_seconds=seconds,
        upload_id=upload,
        triggered_by="file_change",
        location=location,
        manifest_key=f"systems/{system_id}/uploads/{upload}/manifest.json",
        incomplete={},
        database_bytes=size,
    )


def failed(system_id: str, at: datetime, error: str, *, seconds: float = 30.0) -> SyncFailed:
    request = f"{at:%Y%m%d%H%M%S}"
    return SyncFailed(
        id=outcome_event_id(request, "failed"),
        time=at,
        system_id=system_id,
        request_id=request,
        method="cloud",
        success=False,
        error=f"cloud: {error}",
        duration_seconds=seconds,
        triggered_by="file_change",
        errors=(MethodError(method="cloud", error=error),),
        retry_at=at + timedelta(minutes=2),
    )


def skipped(system_id: str, at: datetime) -> SyncSkipped:
    request = f"{at:%Y%m%d%H%M%S}"
    return SyncSkipped(
        id=outcome_event_id(request, "skipped"),
        time=at,
        system_id=system_id,
        request_id=request,
        method="cloud",
        success=True,
        triggered_by="manual",
        why="nothing has changed since the last upload",
    )


def verified(system_id: str, at: datetime, upload: str) -> UploadVerified:
    return UploadVerified(
        id=archive_event_id(upload, AGENT, "verified", at),
        time=at,
        system_id=system_id,
        upload_id=upload,
        whole=True,
        deep=False,
        objects=4,
        problems={},
        duration_seconds=0.4,
    )


def month_of(system_id: str, now: datetime, location: str) -> Iterator[Event]:
    """Yield the results of 30 days of work up to half an hour ago, with two hours in which the bucket was unreachable.

    The databases have 3.2 MB at the end.
    """
    chance = random.Random(7)
    size = 2_600_000
    for days in range(30, -1, -1):
        midnight = (now - timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)
        at = midnight + timedelta(hours=8, minutes=chance.randrange(90))
        newest = ""
        while at < min(midnight + timedelta(hours=19), now - timedelta(minutes=30)):
            if days == 9 and at.hour in (14, 15):
                yield failed(system_id, at, "the bucket memories cannot be reached (check the network)", seconds=4.2)
                at += timedelta(minutes=14)
                continue
            sent = int(chance.lognormvariate(*(12.6, 0.4) if chance.random() < 0.35 else (9.9, 0.7)))
            size += 3_000
            seconds = 0.7 + sent / 240_000 + chance.random() * 0.5
            event = succeeded(system_id, at, sent=sent, seconds=seconds, size=size, location=location)
            newest = event.upload_id or ""
            yield event
            if chance.random() < 0.08:
                yield skipped(system_id, at + timedelta(minutes=4))
            at += timedelta(minutes=40 + chance.randrange(130))
        if newest and days:
            yield verified(system_id, midnight + timedelta(hours=21), newest)
