"""Sessions that end: each causes a sync at once, and those that end while it runs cause one more."""

from collections.abc import Callable

import structlog

from agent.application.publisher import Publisher
from agent.application.wake import Wake
from agent.domain.events import SessionEnded, SyncRequested
from agent.domain.route import SESSION_END
from agent.ports import Clock, Ledger, Message

_log = structlog.get_logger()


class SessionEnds:
    """Takes session ends off the bus. An end whose id was handled before is ignored, however old it is.

    `busy` says whether a sync is under way; `patience` is how long, in seconds, a request may go unheard of otherwise.
    `settled` is to be rung when some sync may have come to an outcome.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        ledger: Ledger,
        clock: Clock,
        system_id: str,
        patience: float,
        busy: Callable[[], bool],
    ) -> None:
        self._publisher, self._ledger, self._system_id = publisher, ledger, system_id
        self._patience, self._busy = patience, busy
        self._ended, self.settled = Wake(clock, "session-end"), Wake(clock, "session-sync")
        self._awaited: SyncRequested | None = None

    async def handle(self, message: Message) -> None:
        """Take up one message; it is acked."""
        event = message.event
        if not isinstance(event, SessionEnded) or event.system_id != self._system_id:
            _log.warning("event_refused", id=event.id, type=event.type, why="it is no session's end of this system")
        elif await self._ledger.is_new(event):
            _log.info("session_ended", session_id=event.session_id, reason=event.reason, system_id=event.system_id)
            self._ended.ring()
        else:
            _log.debug("session_end_known", id=event.id)
        await message.ack()

    def ask_again(self) -> None:
        """A request that waits for its outcome may have stayed behind on another bus."""
        if self._awaited is not None:
            self._awaited = None
            self.settled.ring()
            self._ended.ring()

    async def run(self) -> None:
        """Ask for a sync for each end, or for all that came while one was under way."""
        while True:
            await self._ended.wait(None)
            self._awaited = await self._publisher.noticed(SESSION_END)
            while self._awaited is not None and not await self._has_outcome(self._awaited):
                # Requests are disposable: one that is lost is not waited for.
                if not await self.settled.wait(self._patience) and not self._busy():
                    break
            self._awaited = None

    async def _has_outcome(self, request: SyncRequested) -> bool:
        return await self._ledger.outcome(request.request_id) is not None
