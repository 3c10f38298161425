"""Requests a sync when a session ends, and one more for all sessions that end while it runs.

Every session end is answered by a result that has its ID in `caused_by`. It is open in the ledger from its acceptance
until that result is recorded, so that it is answered after a crash too.
"""

from collections.abc import Callable

import structlog

from agent.application.signal import Signal
from agent.application.triggers.publisher import Publisher
from agent.domain.events import CAUSED_BY_BYTES, SessionEnded, SyncRequested, caused_by_bytes, limit_caused_by
from agent.ports import Clock, Ledger, Message

_log = structlog.get_logger()


class SessionEnds:
    """Takes session ends off the bus. An end that was accepted before is ignored, however old it is.

    `busy` returns whether a sync is running. If none is, a request is considered lost `timeout_seconds` after its next
    attempt was due. Set `sync_finished` when a sync may have an outcome.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        ledger: Ledger,
        clock: Clock,
        system_id: str,
        timeout_seconds: float,
        busy: Callable[[], bool],
    ) -> None:
        self._publisher, self._ledger, self._system_id = publisher, ledger, system_id
        self._timeout_seconds, self._busy = timeout_seconds, busy
        self._clock = clock
        self._ended, self.sync_finished = Signal(clock, "session-end"), Signal(clock, "session-sync")
        self._republish_due = False

    async def handle(self, message: Message) -> None:
        """Accept the session end of a message, and ack the message."""
        event = message.event
        if not isinstance(event, SessionEnded) or event.system_id != self._system_id:
            _log.warning("event_refused", id=event.id, type=event.type, reason="it is not a session end of this system")
        elif await accept(self._ledger, event):
            self._ended.set()
        await message.ack()

    def republish(self) -> None:
        """Publish the pending request again: it may be on a bus that is no longer used."""
        self._republish_due = True
        self.sync_finished.set()

    async def run(self) -> None:
        """Request syncs for all open session ends, those of an earlier process included, until cancelled.

        One request answers as many ends as one event can name.
        """
        while True:
            if not (causes := limit_caused_by(await self._ledger.open_session_ends())):
                await self._ended.wait(None)
                continue
            self._republish_due = False
            request = await self._publisher.trigger_session_end(causes)
            if request is not None:
                await self._wait_for_outcome(request)

    async def _wait_for_outcome(self, request: SyncRequested) -> None:
        """Wait until the request has an outcome, or is considered lost; then its ends are still open."""
        while await self._ledger.outcome(request.request_id) is None:
            if self._republish_due:
                self._republish_due = False
                await self._publisher.republish(request)
            timeout_seconds = self._timeout_seconds + await self._seconds_until_retry(request)
            if not await self.sync_finished.wait(timeout_seconds) and not self._busy():
                return

    async def _seconds_until_retry(self, request: SyncRequested) -> float:
        """Return the seconds until the request's next attempt; 0 if none is scheduled.

        A server may ask for a delay of 15 min. The request is not lost then, and a second one would ignore the delay.
        """
        now = self._clock.now()
        delays = [
            (record.retry_at - now).total_seconds()
            for record in (await self._publisher.records()).values()
            if record.retry_at is not None and record.attempt_request == request.request_id
        ]
        return max([0.0, *delays])


async def accept(ledger: Ledger, event: SessionEnded) -> bool:
    """Accept a session end, so that a result answers it. Return False if it is refused. Raises StateError."""
    if caused_by_bytes(event.id) > CAUSED_BY_BYTES:
        reason = f"its ID is longer than the {CAUSED_BY_BYTES} bytes that a result can name"
        _log.warning("event_refused", id=event.id[:80], type=event.type, reason=reason)
        return False
    if not await ledger.accept(event):
        _log.debug("session_end_duplicate", id=event.id)
        return False
    _log.info("session_ended", session_id=event.session_id, reason=event.reason, system_id=event.system_id)
    return True
