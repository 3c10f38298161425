"""Requests a sync when a session ends, and one more for all sessions that end while it runs.

A session end is answered by a result that has its ID in `caused_by`. It is open in the ledger from its acceptance until
that result is recorded, so that it is answered after a crash too. One from the spool or the control API is accepted
before it is published and before its note is removed, so that it cannot be lost.

Anyone on the bus can publish session ends. So that the ledger does not grow with forged ones, `NAMED` in
`NAMED_SECONDS` are accepted from the bus; the rest is answered by syncs that do not name them. After `BURST` requests,
the next ones follow at intervals of `REQUEST_SECONDS`.

The bus may lose a session end, and delivers none while the agent does not run or has no connection. `catch_up` reads
the newest one from the stream: one sync answers any number of them.
"""

from collections import deque
from collections.abc import Callable

import structlog

from agent.application.signal import Signal
from agent.application.triggers.publisher import Publisher
from agent.domain.errors import StateError, WireError
from agent.domain.events import CAUSED_BY_BYTES, Event, SessionEnded, SyncRequested, caused_by_bytes, limit_caused_by
from agent.domain.naming import session_subject
from agent.domain.routing import SESSION_END
from agent.ports import Clock, DurableBus, Ledger

NAMED = 300
NAMED_SECONDS = 3600.0
"""How many session ends of the bus are recorded one by one in this time. Duplicates and refused ones count too."""

BURST = 20
REQUEST_SECONDS = 60.0
"""How many requests are published without a pause, and the interval of later ones while session ends continue."""

NEWEST = "session_end"
"""Key of the ledger's note with the position of the newest session end in the stream."""

_log = structlog.get_logger()


class SessionEnds:
    """Accepts session ends: `handle` those of the bus, `accept` those of the spool and the control API.

    `busy` returns whether a sync is running. If none is, a request is considered lost `timeout_seconds` after its next
    attempt was due. Set `sync_finished` when a sync may have an outcome.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        ledger: Ledger,
        stream: DurableBus,
        clock: Clock,
        system_id: str,
        timeout_seconds: float,
        busy: Callable[[], bool],
    ) -> None:
        self._publisher, self._ledger, self._system_id = publisher, ledger, system_id
        self._timeout_seconds, self._busy = timeout_seconds, busy
        self._stream, self._clock = stream, clock
        self._ended, self.sync_finished = Signal(clock, "session-end"), Signal(clock, "session-sync")
        self._republish_due = self._unnamed = False
        self._received, self._received_since = 0, clock.monotonic()
        self._not_recorded: deque[Event] = deque(maxlen=NAMED)
        self._next_request = clock.monotonic() - BURST * REQUEST_SECONDS

    async def accept(self, event: SessionEnded) -> bool:
        """Record a session end, so that a result answers it. Return False if it was recorded before.

        Raises WireError if a result cannot name its ID, StateError.
        """
        if caused_by_bytes(event.id) > CAUSED_BY_BYTES:
            raise WireError(f"its ID is longer than the {CAUSED_BY_BYTES} bytes that a result can name")
        if not await self._ledger.accept(event):
            _log.debug("session_end_duplicate", id=event.id)
            return False
        _log.info("session_ended", session_id=event.session_id, reason=event.reason, system_id=event.system_id)
        self._ended.set()
        return True

    async def handle(self, event: Event) -> None:
        """Accept a session end of the bus. If the ledger cannot be written now, `run` tries again."""
        try:
            await self._accept_from_bus(event)
        except StateError as error:
            if not self._not_recorded:
                _log.warning("session_end_not_recorded", id=event.id, error=str(error))
            self._not_recorded.append(event)
            self._ended.set()

    async def catch_up(self) -> None:
        """Accept the newest session end in the stream, unless it was read before. Raises BusError, StateError.

        One that is not a valid event may hide others before it: a sync without names answers them.
        """
        newest = await self._stream.newest(session_subject(self._system_id))
        if newest is not None and newest.position != (await self._ledger.notes()).get(NEWEST):
            if newest.event is None:
                self._unnamed = True
                self._ended.set()
            else:
                await self._accept_from_bus(newest.event)
            await self._ledger.note(NEWEST, newest.position)

    def republish(self) -> None:
        """Publish the pending request again: it may be on a bus that is no longer used."""
        self._republish_due = True
        self.sync_finished.set()

    async def run(self) -> None:
        """Request syncs for all open session ends, those of an earlier process included, until cancelled.

        One request answers as many ends as one event can name.
        """
        while True:
            while self._not_recorded:
                await self._accept_from_bus(self._not_recorded[0])
                self._not_recorded.popleft()
            if await self._ledger.open_session_ends():
                await self._limit_rate()
                causes = limit_caused_by(await self._ledger.open_session_ends())
                self._republish_due = False
                request = await self._publisher.trigger_session_end(causes)
            elif self._unnamed:
                await self._clock.sleep(REQUEST_SECONDS)
                self._unnamed = False
                request = await self._publisher.trigger(SESSION_END)
            else:
                await self._ended.wait(None)
                continue
            if request is not None:
                await self._wait_for_outcome(request)

    async def _accept_from_bus(self, event: Event) -> None:
        """Accept a session end of this system, unless very many arrived in this period. Raises StateError."""
        if not isinstance(event, SessionEnded) or event.system_id != self._system_id:
            _log.warning("event_refused", id=event.id, type=event.type, reason="it is not a session end of this system")
            return
        now = self._clock.monotonic()
        if now - self._received_since >= NAMED_SECONDS:
            self._received, self._received_since = 0, now
        self._received += 1
        if self._received > NAMED:
            if self._received == NAMED + 1:
                _log.warning("session_ends_not_named", limit=NAMED)
            self._unnamed = True
            self._ended.set()
            return
        try:
            await self.accept(event)
        except WireError as error:
            _log.warning("event_refused", id=event.id[:80], type=event.type, reason=error.message)

    async def _limit_rate(self) -> None:
        """Wait for the time of the next request: at once for the first `BURST`, then one each `REQUEST_SECONDS`."""
        now = self._clock.monotonic()
        start = max(self._next_request, now - (BURST - 1) * REQUEST_SECONDS)
        self._next_request = start + REQUEST_SECONDS
        if start > now:
            await self._clock.sleep(start - now)

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
