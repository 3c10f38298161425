"""Takes up what other processes of this user leave in the spool: asks for a sync, ended sessions."""

from contextlib import aclosing

import structlog

from agent.application.publisher import Publisher
from agent.domain.errors import WireError
from agent.domain.events import SessionEnded, SyncAsked
from agent.ports import EventBus, Ledger, Spool, Watch

_log = structlog.get_logger()


class SpoolReader:
    """Reads the spool when it changes, and when told to."""

    def __init__(
        self, *, spool: Spool, watch: Watch, publisher: Publisher, bus: EventBus, ledger: Ledger, system_id: str
    ) -> None:
        self._spool, self._watch, self._publisher = spool, watch, publisher
        self._bus, self._ledger, self._system_id = bus, ledger, system_id
        self._asked: set[str] = set()

    async def run(self) -> None:
        """Take up notes, for ever."""
        await self.empty()
        async with aclosing(self._watch.changes()) as changes:
            async for _ in changes:
                await self.empty()

    async def ask_again(self) -> None:
        """Publish once more what somebody waits for: the request may have stayed behind on another bus."""
        self._asked.clear()
        await self.empty()

    async def empty(self) -> None:
        """Take up every note that waits."""
        waiting = await self._spool.waiting()
        self._asked &= {event.id for _, event in waiting}  # who has an answer takes the note back
        for note, event in waiting:
            if isinstance(event, SyncAsked):
                await self._take_up(note, event)
                continue
            if event.system_id != self._system_id:
                _log.warning("note_refused", id=event.id, why=f"it is for the system {event.system_id}")
            elif isinstance(event, SessionEnded):
                await self._pass_on(event)
            else:
                _log.warning("note_refused", id=event.id, why=f"{event.type} does not come through the spool")
            await self._spool.remove(note)

    async def _pass_on(self, event: SessionEnded) -> None:
        try:
            await self._bus.publish(event)
        except WireError as error:
            _log.warning("note_refused", id=event.id[:80], why=str(error))

    async def _take_up(self, note: str, ask: SyncAsked) -> None:
        """Somebody waits for an outcome. The note stays until there is one: whoever runs next here sees it, too."""
        if await self._ledger.outcome(ask.id) is not None:
            self._asked.discard(ask.id)
            await self._spool.remove(note)
        elif ask.id in self._asked:
            return
        elif ask.system_id != self._system_id:
            cure = f"the agent that runs here is {self._system_id}'s: stop it, or use its settings"
            await self._publisher.refuse(ask, f"it is for the system {ask.system_id}", cure)
            await self._spool.remove(note)
        elif await self._publisher.asked(ask) is None:
            await self._spool.remove(note)
        else:
            self._asked.add(ask.id)
