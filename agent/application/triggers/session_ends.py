"""Sessions that end: each causes a sync at once, and those that end while it runs cause one more.

Every session's end is answered by a result that has its id in `caused_by`. From its acceptance until that result is
written it is open in the ledger, so a crash in between costs no answer.
"""

from collections.abc import Callable

import structlog

from agent.application.signal import Signal
from agent.application.triggers.publisher import Publisher
from agent.domain.events import CAUSED_BY_BYTES, SessionEnded, SyncRequested, caused_by_bytes, caused_by_one
from agent.ports import Clock, Ledger, Message

_log = structlog.get_logger()


class SessionEnds:
    """Takes session ends off the bus. An end that was accepted before is ignored, however old it is.

    `busy` says whether a sync is under way; `timeout_seconds` is how long, in seconds, a request may go unheard of
    otherwise, once its next attempt is due. Set `sync_finished` when a sync may have an outcome.
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
        """Take up one message; it is acked."""
        event = message.event
        if not isinstance(event, SessionEnded) or event.system_id != self._system_id:
            _log.warning("event_refused", id=event.id, type=event.type, reason="it is no session's end of this system")
        elif await accept(self._ledger, event):
            self._ended.set()
        await message.ack()

    def republish(self) -> None:
        """A request that waits for its outcome may have stayed behind on another bus: it is published once more."""
        self._republish_due = True
        self.sync_finished.set()

    async def run(self) -> None:
        """Ask for a sync for all ends that are open, those of an earlier life included; then for those that came since.

        As many as one event can name are answered together. Runs until cancelled.
        """
        while True:
            if not (causes := caused_by_one(await self._ledger.open_session_ends())):
                await self._ended.wait(None)
                continue
            self._republish_due = False
            request = await self._publisher.trigger_session_end(causes)
            if request is not None:
                await self._outcome_of(request)

    async def _outcome_of(self, request: SyncRequested) -> None:
        """Return when the request has an outcome; or when it is lost, as requests may be: its ends are open then."""
        while await self._ledger.outcome(request.request_id) is None:
            if self._republish_due:
                self._republish_due = False
                await self._publisher.republish(request)
            timeout_seconds = self._timeout_seconds + await self._until_next_try(request)
            if not await self.sync_finished.wait(timeout_seconds) and not self._busy():
                return

    async def _until_next_try(self, request: SyncRequested) -> float:
        """Return in how many seconds the request's next attempt is due; 0 where none is planned.

        A server may ask for 15 min: the request is not lost, and another one would not respect that time.
        """
        now = self._clock.now()
        planned = [
            (record.retry_at - now).total_seconds()
            for record in (await self._publisher.records()).values()
            if record.retry_at is not None and record.attempt_request == request.request_id
        ]
        return max([0.0, *planned])


async def accept(ledger: Ledger, event: SessionEnded) -> bool:
    """Say whether a session's end comes for the first time: then a result will answer it. Raises StateError."""
    if caused_by_bytes(event.id) > CAUSED_BY_BYTES:
        why = f"its id is longer than the {CAUSED_BY_BYTES} bytes that a result can name"
        _log.warning("event_refused", id=event.id[:80], type=event.type, reason=why)
        return False
    if not await ledger.accept(event):
        _log.debug("session_end_duplicate", id=event.id)
        return False
    _log.info("session_ended", session_id=event.session_id, reason=event.reason, system_id=event.system_id)
    return True
