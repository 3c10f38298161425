"""Takes up what other processes of this user leave in the spool: asks, ended sessions, news of the archive."""

from contextlib import aclosing

import structlog

from agent.application.triggers.inbox import ArchiveNews, Inbox
from agent.application.triggers.publisher import Publisher
from agent.application.triggers.session_ends import accept
from agent.domain.errors import WireError
from agent.domain.events import SessionEnded, SyncAsked, is_for_single_sync
from agent.ports import Ledger, Spool, Watch

_log = structlog.get_logger()


class SpoolReader:
    """Reads the spool when it changes, and on `drain`."""

    def __init__(self, *, spool: Spool, watch: Watch, inbox: Inbox, publisher: Publisher, ledger: Ledger) -> None:
        self._spool, self._watch, self._inbox = spool, watch, inbox
        self._publisher, self._ledger = publisher, ledger

    async def run(self) -> None:
        """Take up notes until cancelled."""
        await self.drain()
        async with aclosing(self._watch.changes()) as changes:
            async for _ in changes:
                await self.drain()

    async def drain(self) -> None:
        """Take up every note that waits."""
        for note, event in await self._spool.waiting():
            if isinstance(event, SyncAsked):
                if await self.submit(event):
                    continue
            elif isinstance(event, SessionEnded):
                await self._publish_session_end(event)
            elif isinstance(event, ArchiveNews):
                await self._announce(event)
            else:
                _log.warning("note_refused", id=event.id, reason=f"{event.type} does not come through the spool")
            await self._spool.remove(note)

    async def drain_for_single_sync(self) -> None:
        """Take up the notes that a sync which begins now answers: session ends are accepted, which a result follows."""
        for note, event in await self._spool.waiting():
            if not is_for_single_sync(event):
                continue
            if isinstance(event, SessionEnded):
                await accept(self._ledger, self._inbox.readdressed(event))
            elif isinstance(event, ArchiveNews):
                await self._announce(event)
            await self._spool.remove(note)

    async def _publish_session_end(self, event: SessionEnded) -> None:
        """Put a session's end on the bus. In this spool it is of this machine and user: whatever system the hook was
        installed for, the memories that are to be safe now are those that this agent delivers.
        """
        ours = self._inbox.readdressed(event)
        if ours is not event:
            why, hint = f"it names the system {event.system_id}", "akosha-agent hook install"
            _log.warning("session_end_readdressed", id=event.id, system_id=ours.system_id, reason=why, hint=hint)
        try:
            await self._inbox.accept_session_end(ours)
        except WireError as error:
            _log.warning("note_refused", id=event.id[:80], reason=error.message)

    async def _announce(self, news: ArchiveNews) -> None:
        """Tell what a command has found out about the archive, or done to it; of another system it is refused."""
        try:
            self._inbox.check(news)
        except WireError as error:
            _log.warning("note_refused", id=news.id[:80], reason=error.message)
        else:
            await self._inbox.announce(news)

    async def submit(self, ask: SyncAsked) -> bool:
        """Say whether somebody waits for an outcome that is still to come.

        Then the note stays until there is one: the next agent here sees it, too.
        """
        if await self._ledger.outcome(ask.id) is not None:
            return False
        try:
            self._inbox.check(ask)
        except WireError as error:
            await self._publisher.refuse(ask, error.message, error.hint)
            return False
        return (await self._inbox.submit(ask)).request is not None
