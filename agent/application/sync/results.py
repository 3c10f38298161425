"""Records the outcome of a request and publishes it: ledger and outbox first, then the bus, then the outbox is cleared.

A result stays in the outbox from the transaction that recorded it until a bus has confirmed it. After a crash in
between, it is published again with the same ID.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

import structlog

from agent.application.signal import Signal
from agent.application.status_warnings import clear_warning, set_warning
from agent.domain.delivery_state import Target
from agent.domain.errors import AkoshaError, BusError, StateError, WireError
from agent.domain.events import (
    MethodError,
    SyncFailed,
    SyncRequested,
    SyncSkipped,
    SyncSucceeded,
    outcome_event_id,
    upload_event_id,
)
from agent.domain.manifest import Manifest
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Delivered, DurableBus, Ledger, Meter, NoMeter

FIRST_WAIT_SECONDS = 1.0
LAST_WAIT_SECONDS = 60.0
"""Delays before the next try after a transient error, doubling from the first to the last."""

UNEXPECTED = "bus_unexpected_error"
"""Code of the status warning that results wait because of an unexpected error of the bus."""

_log = structlog.get_logger()


class ResultRecorder:
    """Writes the outcome of each attempt to the ledger, counts it with `meter`, and publishes it.

    Only the result of an upload that was finished before a crash is written elsewhere: by `Ledger.adopt`.
    """

    def __init__(self, ledger: Ledger, bus: DurableBus, clock: Clock, meter: Meter | None = None) -> None:
        self._ledger, self._bus, self._clock, self._meter = ledger, bus, clock, meter or NoMeter()
        self._waiting, self._warned = False, True  # an earlier process may have set the warning
        self._republished = 0
        self._on_published: Callable[[], None] = lambda: None
        self._on_outbox_flushed: Callable[[], None] = lambda: None
        self._on_upload: Callable[[], None] = lambda: None
        self._signal = Signal(clock, "outbox")
        self._flushing = asyncio.Lock()

    def on_published(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each event that the bus has confirmed, before it leaves the outbox."""
        self._on_published = listener

    def on_outbox_flushed(self, listener: Callable[[], None]) -> None:
        """Call `listener` after a flush that published results."""
        self._on_outbox_flushed = listener

    def on_upload(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each recorded upload."""
        self._on_upload = listener

    async def delivered(self, target: Target, delivered: Delivered) -> None:
        """Record a delivery in one transaction; the next flush publishes its result."""
        result = delivered.result
        seen, problems = delivered.fingerprints, delivered.problems
        if delivered.manifest is None:
            await self._ledger.deliver_memories(target, seen, problems, result)
        else:
            await self._ledger.deliver(target, delivered.manifest, seen, problems, result)
        self._meter.outcome(result, raw_bytes=_raw_bytes_sent(delivered.manifest))
        _log.info(
            "sync_succeeded",
            request_id=result.request_id,
            upload_id=result.upload_id,
            method=result.method,
            system_id=result.system_id,
            files=len(result.files_uploaded),
            memories=result.memories,
            bytes_sent=result.bytes_transferred,
            duration_seconds=result.duration_seconds,
            **({"incomplete": result.incomplete} if result.incomplete else {}),
        )
        if delivered.manifest is not None:
            self._on_upload()

    async def skipped(self, target: Target | None, request: SyncRequested, *, method: str, reason: str) -> None:
        """Record that there was nothing to deliver. `target`: the one that has everything; None if none was checked."""
        result = SyncSkipped(
            id=outcome_event_id(request.request_id, "skipped"),
            time=self._clock.now(),
            system_id=request.system_id,
            request_id=request.request_id,
            method=method,
            success=True,
            triggered_by=request.reason,
            caused_by=request.caused_by,
            why=reason,
        )
        await self._ledger.settle(target, result)
        self._meter.outcome(result)
        _log.info(
            "sync_skipped", request_id=request.request_id, method=method, system_id=request.system_id, reason=reason
        )

    async def failed(
        self,
        target: Target,
        request: SyncRequested,
        errors: tuple[MethodError, ...],
        *,
        error: str,
        failures: int,
        retry_at: datetime | None,
        next_retry: datetime | None,
    ) -> None:
        """Record that a request failed at its last method, in one transaction. `retry_at`: end of the back-off.

        `next_retry`: time of the next retry of anything, for the result; None if none is scheduled.
        """
        result = replace(self._failure(request, errors), retry_at=next_retry)
        await self._ledger.give_up(target, error=error, failures=failures, retry_at=retry_at, result=result)
        self._meter.outcome(result)

    async def refused(self, request: SyncRequested, error: MethodError) -> None:
        """Record the failure of a request that cannot be carried out."""
        result = self._failure(request, (error,))
        await self._ledger.settle(None, result)
        self._meter.outcome(result)

    def _failure(self, request: SyncRequested, errors: tuple[MethodError, ...]) -> SyncFailed:
        return SyncFailed(
            id=outcome_event_id(request.request_id, "failed"),
            time=self._clock.now(),
            system_id=request.system_id,
            request_id=request.request_id,
            method=errors[-1].method if errors else "",
            success=False,
            error="; ".join(f"{e.method}: {e.error}" for e in errors),
            triggered_by=request.reason,
            caused_by=request.caused_by,
            errors=errors,
        )

    def flush_soon(self) -> None:
        """Wake the outbox loop."""
        self._signal.set()

    async def republish_since(self, since: datetime) -> int:
        """Put the results since then into the outbox again, because the bus has lost them. Return how many.

        An event that is being published meanwhile stays in the outbox even if the bus confirms it: the confirmation may
        come from the lost stream.
        """
        self._republished += 1
        return await self._ledger.republish_since(since)

    async def flush(self) -> None:
        """Publish everything in the outbox, oldest first. Raises the bus's errors.

        A second caller waits for the first.
        """
        async with self._flushing:
            published = False
            try:
                for result in await self._ledger.outbox():
                    republished = self._republished
                    try:
                        await self._bus.publish(result)
                    except WireError as error:  # it would block all others
                        _log.error("result_rejected", id=result.id, reason=str(error))
                    else:
                        self._on_published()
                        published = True
                    # No await between the check and the write: so the ledger runs a later `republish_since` after it.
                    if republished == self._republished:
                        await self._ledger.confirm(result)
            finally:
                if published:
                    self._on_outbox_flushed()

    async def run(self) -> None:
        """Publish the outbox until cancelled. After a transient error, try again after 1 s, doubling to 60 s.

        `flush_soon` ends the wait, but not before 1 s, and resets it to 1 s.
        """
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                await self.flush()
            except AkoshaError as error:
                if not (error.transient or isinstance(error, BusError)):
                    raise
                failed_at = self._clock.monotonic()
                await self._log_blocked(error)
                if await self._signal.wait(wait):
                    await self._clock.sleep(failed_at + FIRST_WAIT_SECONDS - self._clock.monotonic())
                    wait = FIRST_WAIT_SECONDS
                else:
                    wait = min(wait * 2, LAST_WAIT_SECONDS)
            else:
                wait, self._waiting = FIRST_WAIT_SECONDS, False
                await self._clear_warning()
                await self._signal.wait(None)

    async def _log_blocked(self, error: AkoshaError) -> None:
        """Warn once: `status` shows how many results wait, and the bus may be unavailable for days.

        An unexpected error that repeats becomes a status warning.
        """
        (_log.debug if self._waiting else _log.warning)("outbox_blocked", error=str(error))
        if error.unexpected and self._waiting:
            warning = StatusWarning(code=UNEXPECTED, message=f"results wait: {error.message}", hint=error.hint)
            with suppress(StateError):
                await set_warning(self._ledger, warning, self._clock)
                self._warned = True
        self._waiting = True

    async def _clear_warning(self) -> None:
        if self._warned:
            with suppress(StateError):
                await clear_warning(self._ledger, UNEXPECTED)
                self._warned = False


def _raw_bytes_sent(manifest: Manifest | None) -> int:
    """Return the size, before compression, of the database files and patches that went over the wire."""
    sent = [part.objects[-1] for part in manifest.parts if part.origin == "sent"] if manifest else []
    return sum(item.raw_size for item in sent)


def succeeded(manifest: Manifest, *, method: str, location: str, caused_by: tuple[str, ...] = ()) -> SyncSucceeded:
    """Return the result of an upload, with the same ID each time. `caused_by` is not in the manifest."""
    return SyncSucceeded(
        id=upload_event_id(manifest.upload_id, manifest.agent_id),
        time=manifest.uploaded_at,
        system_id=manifest.system_id,
        request_id=manifest.request_id,
        method=method,
        success=True,
        files_uploaded=(*manifest.keys, manifest.key),
        bytes_transferred=manifest.bytes_sent,
        duration_seconds=manifest.duration_seconds,
        upload_id=manifest.upload_id,
        triggered_by=manifest.triggered_by,
        caused_by=caused_by,
        location=location,
        manifest_key=manifest.key,
        incomplete=dict(manifest.incomplete),
        memories=manifest.memories.count if manifest.memories else 0,
        database_bytes=sum(part.raw_size for part in manifest.parts),
    )
