"""One sync, asked for: done here where nobody holds the state directory, else by the process that does."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Self

import structlog

from agent.domain import naming
from agent.domain.errors import AlreadyRunning, SettingsError
from agent.domain.events import SyncAsked, SyncProgress, SyncResult
from agent.domain.identity import Identity
from agent.domain.route import AUTO, MANUAL
from agent.ports import Message
from agent.settings import Settings
from agent.wiring import Home, build

LOOK_SECONDS = 0.1
WITHDRAW_SECONDS = 5.0

REACT = "react"
"""A holder of the state directory that does no syncs, and reads no notes."""

APART = "an agent and a reactor on one machine need a --state-dir each"

_log = structlog.get_logger()

Hear = Callable[[SyncProgress], None]
"""Called as a sync that is done here goes on, a few times a second."""

Waits = Callable[[AlreadyRunning], None]
"""Called every 0.1 s for as long as another process (the error tells which) holds the state directory."""


def _unheard(_: object) -> None:
    """For those who want the result alone."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Somebody asks for one sync: where, who, and what for."""

    home: Home
    identity: Identity
    ask: SyncAsked

    @classmethod
    async def prepare(
        cls,
        settings: Settings,
        *,
        method: str = AUTO,
        enable_fallback: bool = True,
        upload_reflections: bool = True,
        upload_knowledge_graph: bool = True,
    ) -> Self:
        """Make the state directory where there is none, and the question. Nothing is synced yet.

        Raises SettingsError where sync is switched off, StateError, NamingError.
        """
        if not settings.sync_enabled:
            raise SettingsError("sync is switched off", hint="set akosha_sync_enabled to true")
        home = Home.of(settings)
        identity = await asyncio.to_thread(home.prepare)
        ask = SyncAsked(
            id=str(uuid.uuid4()),
            time=home.clock.now(),
            system_id=identity.system_id,
            reason=MANUAL,
            method=method,
            enable_fallback=enable_fallback,
            upload_reflections=upload_reflections,
            upload_knowledge_graph=upload_knowledge_graph,
        )
        return cls(home, identity, ask)

    async def result(self, *, hear: Hear = _unheard, waits: Waits = _unheard) -> SyncResult:
        """Do it here if nobody holds the state directory; else leave a note and wait, and take over if the holder goes.

        In the end it takes the note back; cancelled, what runs here cleans up after itself. Several at once, in one
        process or in many, take turns. Raises SettingsError, StateError, and what keeps a sync from having a result.
        """
        note = ""
        try:
            while True:
                try:
                    with self.home.lock("sync", patient=False):
                        if note and (result := await self._outcome()):
                            return result
                        if note:
                            await self.home.withdraw_note(note)
                            note = ""
                        return await self._here(hear)
                except AlreadyRunning as holder:
                    if holder.command == REACT:
                        raise AlreadyRunning(
                            holder.message, pid=holder.pid, command=holder.command, hint=APART
                        ) from holder
                    waits(holder)
                    if not note:
                        note = await self._leave_note()
                if result := await self._outcome():
                    return result
                await self.home.clock.sleep(LOOK_SECONDS)
        finally:
            if note:
                await _seen_through(self.home.withdraw_note(note), "withdraw-note")

    async def trouble(self) -> str:
        """Return what keeps the sync waiting for its next attempt, "" for nothing. Raises StateError."""
        if not await self.home.has_ledger():
            return ""
        ledger = await self.home.read_ledger()
        try:
            for method, target in self.home.targets(self.identity).items():
                record = await ledger.record(target)
                if record.attempt_request == self.ask.id and record.attempts and record.retry_at:
                    at = f"{record.retry_at.astimezone():%H:%M:%S}"
                    return f"{method}: attempt {record.attempts} failed, the next one follows at {at}: {record.error}"
        finally:
            await ledger.aclose()
        return ""

    async def _here(self, hear: Hear) -> SyncResult:
        async def listen(message: Message) -> None:
            if isinstance(message.event, SyncProgress):
                hear(message.event)
            await message.ack()

        async with await build(self.home, self.identity, single_sync=True) as agent:
            await agent.bus.subscribe(naming.progress_subject(self.identity.system_id), listen)
            return await agent.once(self.ask)

    async def _leave_note(self) -> str:
        """Leave a note; none stays where the caller is cancelled while it is written."""
        writing = asyncio.create_task(self.home.leave_note(self.ask), name="leave-note")
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            await _seen_through(self._withdrawn(writing), "withdraw-note")
            raise

    async def _withdrawn(self, writing: asyncio.Task[str]) -> None:
        await self.home.withdraw_note(await writing)

    async def _outcome(self) -> SyncResult | None:
        if not await self.home.has_ledger():
            return None  # the agent that holds the directory is just making it
        ledger = await self.home.read_ledger()
        try:
            return await ledger.outcome(self.ask.id)
        finally:
            await ledger.aclose()


async def _seen_through(work: Coroutine[None, None, None], name: str) -> None:
    """Do it to its end, whoever cancels; a note that cannot be taken back is said, and harms nobody."""
    task = asyncio.create_task(work, name=name)
    await asyncio.wait({task}, timeout=WITHDRAW_SECONDS)
    if not task.done():
        task.cancel()
        _log.warning("note_stays", error=f"the spool did not answer within {WITHDRAW_SECONDS:g} s")
    elif error := task.exception():
        _log.warning("note_stays", error=str(error))
