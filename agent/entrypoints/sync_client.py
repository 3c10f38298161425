"""One sync, asked for: done here where nobody holds the state directory, else by the process that does.

A running agent is asked over its control socket, and tells its progress there. Where that is not to be had, and where
it breaks, a note in the spool asks, and the ledger has the result. The ask has one id on all ways: it is done once.
"""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import structlog

from agent.bootstrap.agent import build
from agent.bootstrap.home import RUN, Home
from agent.domain import naming
from agent.domain.errors import AgentUnavailable, AlreadyRunning, SettingsError, StateError, SystemIdTaken
from agent.domain.events import SyncAsked, SyncProgress, SyncResult
from agent.domain.identity import Identity
from agent.domain.routing import AUTO, MANUAL
from agent.domain.status_warning import StatusWarning
from agent.entrypoints.control_client import Endpoint
from agent.entrypoints.status_document import unresponsive_warning
from agent.ports import Message
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.entrypoints.control_client.client import ControlClient

LOOK_SECONDS = 0.1
WITHDRAW_SECONDS = 5.0

INSIST_SECONDS = 5.0
"""An ask that the agent has taken over the socket is left in the spool, too, when it is not done by then: another agent
may follow this one, and the bus that has it may go. The ledger is looked into as often."""

REACT = "react"
"""A holder of the state directory that does no syncs, and reads no notes."""

APART = "an agent and a reactor on one machine need a --state-dir each"

_log = structlog.get_logger()

Hear = Callable[[SyncProgress], None]
"""Called as the sync goes on, here or in the agent that does it, a few times a second."""

Waits = Callable[[AlreadyRunning], None]
"""Called every 0.1 s for as long as another process (the error tells which) holds the state directory."""

Says = Callable[[str], None]
"""Called with a sentence for a person who waits: what keeps the sync waiting; what becomes of it once cancelled."""


SaysOnce = Callable[[str, str], None]
"""Called with a code and a sentence; says it unless that code has been said."""

WATCH_SECONDS = 1.0
"""How often it is looked at what keeps another process from doing the sync."""


def _unheard(_: object) -> None:
    """For those who want the result alone."""


@dataclass(frozen=True, slots=True)
class SyncClient:
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
        take_over: bool = False,
        new_target: bool = False,
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
            take_over=take_over,
            new_target=new_target,
        )
        return cls(home, identity, ask)

    async def result(self, *, hear: Hear = _unheard, waits: Waits = _unheard, says: Says = _unheard) -> SyncResult:
        """Do it here if nobody holds the state directory; else ask who does, and wait, and take over if that one goes.

        In the end it takes its note back; cancelled, what runs here cleans up after itself. Several at once, in one
        process or in many, take turns. Raises SettingsError, StateError, and what keeps a sync from having a result.
        """
        said = set[str]()

        def say_once(code: str, text: str) -> None:
            if code not in said:
                said.add(code)
                says(text)

        waiting = _Waiting(self, hear, say_once)
        watching: asyncio.Task[None] | None = None
        holder: AlreadyRunning | None = None
        try:
            while True:
                try:
                    with self.home.lock("sync", patient=False):
                        if result := await waiting.over():
                            return result
                        holder = None
                        await _ended(watching)
                        return await self._here(hear)
                except AlreadyRunning as error:
                    holder = error
                if holder.command == REACT:
                    raise AlreadyRunning(holder.message, pid=holder.pid, command=holder.command, hint=APART) from holder
                if watching is None:
                    watching = asyncio.create_task(self._watch(say_once), name="watch-obstacles")
                waits(holder)
                if result := await waiting.once(holder):
                    return result
                await self.home.clock.sleep(LOOK_SECONDS)
        except asyncio.CancelledError:
            says(waiting.left_to(holder) if holder else await self._left_here())
            raise
        finally:
            await _ended(watching)
            await waiting.end()

    async def obstacle(self) -> StatusWarning | None:
        """Return what keeps another process from doing the sync and a person can mend. Raises StateError.

        That process is stopped; the disk has no room for the copies. None: nothing of the kind.
        """
        holder = await asyncio.to_thread(self.home.holder)
        if holder is not None and await asyncio.to_thread(self.home.is_stopped, holder.pid):
            return await asyncio.to_thread(unresponsive_warning, self.home, holder.pid, holder.command)
        return await self.home.disk_warning(self.identity)

    async def _watch(self, say_once: SaysOnce) -> None:
        """Look for obstacles for as long as another process is waited for."""
        while True:
            await self.home.clock.sleep(WATCH_SECONDS)
            try:
                if found := await self.obstacle():
                    say_once(found.code, str(found))
            except StateError as error:
                _log.debug("obstacle_unknown", error=str(error))

    async def _left_here(self) -> str:
        """Say what becomes of a sync that was cancelled in this process."""
        try:
            upload = await self._begun()
        except StateError:  # it must not take the cancellation's place
            return "stopped: what is pending goes with the next sync"
        if upload:
            return f"stopped: the next sync resumes the upload {upload} under the same id"
        return "stopped: no upload has begun; what is pending goes with the next sync"

    async def _begun(self) -> str:
        """Return the id of an upload that has begun and not ended, "" for none. Raises StateError."""
        if not await self.home.has_ledger():
            return ""
        ledger = await self.home.read_ledger()
        try:
            intents = [(await ledger.record(target)).intent for target in self.home.targets(self.identity).values()]
        finally:
            await ledger.aclose()
        return next((intent.upload_id for intent in intents if intent), "")

    async def trouble(self) -> str:
        """Return what the sync waits for, a person or its next attempt, "" for nothing. Raises StateError."""
        if found := await self.obstacle():
            return str(found)
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
        """Sync; under another system id where another machine owns the default one."""
        asking = self
        while True:
            try:
                return await asking._once(hear)
            except SystemIdTaken as taken:
                identity = await asyncio.to_thread(self.home.rename, taken)
                asking = replace(asking, identity=identity, ask=replace(asking.ask, system_id=identity.system_id))

    async def _once(self, hear: Hear) -> SyncResult:
        async def listen(message: Message) -> None:
            if isinstance(message.event, SyncProgress):
                hear(message.event)
            await message.ack()

        async with await build(self.home, self.identity, single_sync=True) as agent:
            await agent.bus.subscribe(naming.progress_subject(self.identity.system_id), listen)
            return await agent.once(self.ask)

    async def outcome(self) -> tuple[SyncResult | None, int]:
        """Return what the ledger has for it, and how far its history has come before. Raises StateError."""
        if not await self.home.has_ledger():
            return None, 0  # the agent that holds the directory is just making it
        ledger = await self.home.read_ledger()
        try:
            position = await ledger.last_position()
            return await ledger.outcome(self.ask.id), position
        finally:
            await ledger.aclose()


class _Waiting:
    """Another process is to do it: how it has been asked, and what has come of that."""

    def __init__(self, asking: SyncClient, hear: Hear, say_once: SaysOnce) -> None:
        self._asking, self._home, self._hear, self._say_once = asking, asking.home, hear, say_once
        self._endpoint = Endpoint(asking.home)
        self._note = ""
        self._asked = False  # somebody may have heard it: there may be a result
        self._taken = False  # the agent has accepted it over its socket
        self._warned: set[str] = set()

    async def once(self, holder: AlreadyRunning) -> SyncResult | None:
        """See to it that the holder is asked; return the result where there is one now.

        For as long as an agent tells over its socket how it goes on, it waits for that.
        """
        if holder.command == RUN and (client := await self._endpoint.client()):
            self._asked = True
            try:
                if result := await self._told_by(client):
                    return result
            except AgentUnavailable as error:
                if error.unresponsive:
                    silence = await asyncio.to_thread(unresponsive_warning, self._home, holder.pid, holder.command)
                    self._say_once(silence.code, str(silence))
                    self._log_once("agent_silent", pid=holder.pid, next_step="a note in its spool waits for it")
            self._endpoint.back_off()
        await self._insist()
        return (await self._asking.outcome())[0]

    async def over(self) -> SyncResult | None:
        """Nobody else holds the directory any more: return the result that was left, or take the ask back."""
        result = (await self._asking.outcome())[0] if self._asked else None
        if result is None and self._note:
            await self._home.withdraw_note(self._note)
            self._note = ""
        return result

    def left_to(self, holder: AlreadyRunning) -> str:
        """Say what becomes of the sync where nobody here waits for it any more."""
        who = f"process {holder.pid} ({holder.command})"
        if self._taken:
            return f"the agent ({who}) goes on with the sync: akosha-agent status shows it"
        if holder.command == RUN and self._asked:
            return f"the request is withdrawn; if {who} has begun the sync, it goes on there"
        return f"the request is withdrawn; {who} is not interrupted"

    async def end(self) -> None:
        """Take the note back, whoever cancels."""
        if self._note:
            await _seen_through(self._home.withdraw_note(self._note), "withdraw-note")

    async def _told_by(self, client: "ControlClient") -> SyncResult | None:
        """Ask, and wait for the result; None where the agent ends. Raises AgentUnavailable."""
        following = asyncio.create_task(self._follow(client), name="follow-sync")
        try:
            while not (await asyncio.wait({following}, timeout=INSIST_SECONDS))[0]:
                try:
                    await self._insist()
                except StateError as error:  # it has been taken: that is no failure yet
                    then = "the agent has been asked all the same: what becomes of it is waited for"
                    self._say_once("note_not_left", f"no note could be left: {error}; {then}")
                    self._log_once("note_not_left", error=str(error), next_step=then)
                if result := (await self._asking.outcome())[0]:
                    return result
            return following.result()
        finally:
            following.cancel()
            await asyncio.wait({following})
            if not following.cancelled() and (met := following.exception()):
                _log.debug("agent_unavailable", error=str(met))

    async def _follow(self, client: "ControlClient") -> SyncResult | None:
        ask = self._asking.ask
        result, position = await self._asking.outcome()
        if result is not None:
            return result
        async with client, client.events(after=position) as events:
            if not self._note:
                await client.ask(ask)
                self._taken = True
            self._endpoint.reset_pause()
            async for item in events:
                if isinstance(item, SyncProgress):
                    self._hear(item)
                elif isinstance(item.event, SyncResult) and item.event.request_id == ask.id:
                    return item.event
        return None

    async def _insist(self) -> None:
        """Leave a note where there is none; none stays where the caller is cancelled while it is written."""
        if self._note:
            return
        self._asked = True
        writing = asyncio.create_task(self._home.leave_note(self._asking.ask), name="leave-note")
        try:
            self._note = await asyncio.shield(writing)
        except asyncio.CancelledError:
            await _seen_through(self._withdrawn(writing), "withdraw-note")
            raise

    def _log_once(self, event: str, **fields: object) -> None:
        if event not in self._warned:
            self._warned.add(event)
            _log.warning(event, **fields)

    async def _withdrawn(self, writing: asyncio.Task[str]) -> None:
        await self._home.withdraw_note(await writing)


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})


async def _seen_through(work: Coroutine[None, None, None], name: str) -> None:
    """Do it to its end, whoever cancels; a note that cannot be taken back is said, and harms nobody."""
    task = asyncio.create_task(work, name=name)
    await asyncio.wait({task}, timeout=WITHDRAW_SECONDS)
    if not task.done():
        task.cancel()
        _log.warning("note_not_withdrawn", error=f"the spool did not answer within {WITHDRAW_SECONDS:g} s")
    elif error := task.exception():
        _log.warning("note_not_withdrawn", error=str(error))
