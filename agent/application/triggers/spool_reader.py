"""Reads the notes of this user's other processes from the spool: sync requests, session ends, archive events."""

from contextlib import aclosing

import structlog

from agent.application.triggers.inbox import ArchiveEvent, Inbox
from agent.application.triggers.publisher import Publisher
from agent.domain.errors import WireError
from agent.domain.events import SessionEnded, SyncAsked, is_for_single_sync
from agent.ports import Ledger, Spool, Watch

_log = structlog.get_logger()


class SpoolReader:
    """Reads the spool at its start and whenever it changes."""

    def __init__(self, *, spool: Spool, watch: Watch, inbox: Inbox, publisher: Publisher, ledger: Ledger) -> None:
        self._spool, self._watch, self._inbox = spool, watch, inbox
        self._publisher, self._ledger = publisher, ledger

    async def run(self) -> None:
        """Read notes until cancelled."""
        await self.drain()
        async with aclosing(self._watch.changes()) as changes:
            async for _ in changes:
                await self.drain()

    async def drain(self) -> None:
        """Read every note, and remove it once its event is recorded. A request's note stays until it has an outcome."""
        for note, event in await self._spool.waiting():
            if isinstance(event, SyncAsked):
                if await self.submit(event):
                    continue
            elif isinstance(event, SessionEnded):
                await self._accept_session_end(event)
            elif isinstance(event, ArchiveEvent):
                await self._announce(event)
            else:
                _log.warning("note_refused", id=event.id, reason=f"{event.type} is not accepted through the spool")
            await self._spool.remove(note)

    async def drain_for_single_sync(self) -> None:
        """Read the notes that a single sync covers. Its result answers the session ends, which are accepted here."""
        for note, event in await self._spool.waiting():
            if not is_for_single_sync(event):
                continue
            if isinstance(event, SessionEnded):
                await self._accept_session_end(event)
            elif isinstance(event, ArchiveEvent):
                await self._announce(event)
            await self._spool.remove(note)

    async def _accept_session_end(self, event: SessionEnded) -> None:
        """Accept a session's end, with this system's ID.

        The hook may have been installed for another system. But a note in this spool comes from this machine and user,
        so the session's memories are those that this agent delivers.
        """
        ours = self._inbox.readdressed(event)
        if ours is not event:
            reason, hint = f"it names the system {event.system_id}", "akosha-agent hook install"
            _log.warning("session_end_readdressed", id=event.id, system_id=ours.system_id, reason=reason, hint=hint)
        try:
            await self._inbox.accept_session_end(ours)
        except WireError as error:
            _log.warning("note_refused", id=event.id[:80], reason=error.message)

    async def _announce(self, event: ArchiveEvent) -> None:
        """Record a command's archive event. Refuse one of another system."""
        try:
            self._inbox.check(event)
        except WireError as error:
            _log.warning("note_refused", id=event.id[:80], reason=error.message)
        else:
            await self._inbox.announce(event)

    async def submit(self, ask: SyncAsked) -> bool:
        """Submit a SyncAsked. Return whether its outcome is still pending.

        While it is pending, its note stays in the spool, so that the next agent sees it too.
        """
        if await self._ledger.outcome(ask.id) is not None:
            return False
        try:
            self._inbox.check(ask)
        except WireError as error:
            await self._publisher.refuse(ask, error.message, error.hint)
            return False
        return (await self._inbox.submit(ask)).request is not None
