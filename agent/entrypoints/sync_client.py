"""One sync: done in this process, or by the process that holds the state directory.

A running agent gets the request over its control socket, and reports progress and result there. Where the socket is
not available, or the connection breaks, the request is left as a note in the spool, and the ledger has the result. The
request has the same id on all ways, so it is carried out once.
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

POLL_SECONDS = 0.1
WITHDRAW_SECONDS = 5.0

NOTE_AFTER_SECONDS = 5.0
"""A request that the agent has accepted over its socket is left in the spool, too, if it has no result by then: another
agent may follow this one, and a bus may lose requests. The ledger is read as often."""

OBSTACLE_SECONDS = 1.0
"""How often obstacles are looked for while another process is waited for."""

REACT = "react"
"""The command of a holder that does no syncs and reads no notes."""

SEPARATE_STATE_DIRS = "an agent and a reactor on one machine need a --state-dir each"

_log = structlog.get_logger()

ProgressCallback = Callable[[SyncProgress], None]
"""Called a few times a second while the sync runs, here or in the agent."""

WaitCallback = Callable[[AlreadyRunning], None]
"""Called every 0.1 s while another process, which the error names, holds the state directory."""

MessageCallback = Callable[[str], None]
"""Called with a sentence for the user: what keeps the sync waiting; what becomes of it once it is cancelled."""

CodedMessageCallback = Callable[[str, str], None]
"""Called with a code and a sentence; only the first sentence of each code is passed on."""


def _ignore(_: object) -> None:
    """For callers that need the result alone."""


@dataclass(frozen=True, slots=True)
class SyncClient:
    """Requests one sync and waits for its result."""

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
        """Create the state directory where there is none, and the request. Nothing is synced yet.

        Raises SettingsError where sync is disabled, StateError, NamingError.
        """
        if not settings.sync_enabled:
            raise SettingsError("sync is disabled", hint="set akosha_sync_enabled to true")
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

    async def result(
        self,
        *,
        on_progress: ProgressCallback = _ignore,
        on_wait: WaitCallback = _ignore,
        on_message: MessageCallback = _ignore,
    ) -> SyncResult:
        """Sync here, or have the holder of the state directory do it; take over if that process ends without a result.

        Several at once, in one process or in many, take turns. When cancelled, it withdraws its note, and a sync here
        cleans up. Raises SettingsError, StateError, and errors that leave a sync without a result.
        """
        sent = set[str]()

        def message_once(code: str, text: str) -> None:
            if code not in sent:
                sent.add(code)
                on_message(text)

        delegated = _DelegatedSync(self, on_progress, message_once)
        watching: asyncio.Task[None] | None = None
        holder: AlreadyRunning | None = None
        try:
            while True:
                try:
                    with self.home.lock("sync", retry=False):
                        if result := await delegated.take_back():
                            return result
                        holder = None
                        await _cancel(watching)
                        return await self._sync_here(on_progress)
                except AlreadyRunning as error:
                    holder = error
                if holder.command == REACT:
                    raise AlreadyRunning(
                        holder.message, pid=holder.pid, command=holder.command, hint=SEPARATE_STATE_DIRS
                    ) from holder
                if watching is None:
                    watching = asyncio.create_task(self._watch_obstacles(message_once), name="watch-obstacles")
                on_wait(holder)
                if result := await delegated.poll(holder):
                    return result
                await self.home.clock.sleep(POLL_SECONDS)
        except asyncio.CancelledError:
            on_message(delegated.cancelled_message(holder) if holder else await self._cancelled_message())
            raise
        finally:
            await _cancel(watching)
            await delegated.close()

    async def obstacle(self) -> StatusWarning | None:
        """Return what prevents another process from syncing and the user can mend: it is stopped, or the disk is full.

        Raises StateError.
        """
        holder = await asyncio.to_thread(self.home.holder)
        if holder is not None and await asyncio.to_thread(self.home.is_stopped, holder.pid):
            return await asyncio.to_thread(unresponsive_warning, self.home, holder.pid, holder.command)
        return await self.home.disk_warning(self.identity)

    async def _watch_obstacles(self, message_once: CodedMessageCallback) -> None:
        while True:
            await self.home.clock.sleep(OBSTACLE_SECONDS)
            try:
                if found := await self.obstacle():
                    message_once(found.code, str(found))
            except StateError as error:
                _log.debug("obstacle_unknown", error=str(error))

    async def _cancelled_message(self) -> str:
        """Return what becomes of a sync that was cancelled in this process."""
        try:
            upload = await self._unfinished_upload()
        except StateError:  # it must not replace the cancellation
            return "stopped: what is pending goes with the next sync"
        if upload:
            return f"stopped: the next sync resumes the upload {upload} under the same id"
        return "stopped: no upload has begun; what is pending goes with the next sync"

    async def _unfinished_upload(self) -> str:
        """Return the id of an upload that has begun and not ended, "" for none. Raises StateError."""
        if not await self.home.has_ledger():
            return ""
        ledger = await self.home.read_ledger()
        try:
            intents = [(await ledger.record(target)).intent for target in self.home.targets(self.identity).values()]
        finally:
            await ledger.aclose()
        return next((intent.upload_id for intent in intents if intent), "")

    async def wait_reason(self) -> str:
        """Return what the sync waits for: an obstacle, or its next attempt; "" for nothing. Raises StateError."""
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

    async def _sync_here(self, on_progress: ProgressCallback) -> SyncResult:
        """Sync; under another system id where another machine owns the default one."""
        client = self
        while True:
            try:
                return await client._sync_once(on_progress)
            except SystemIdTaken as taken:
                identity = await asyncio.to_thread(self.home.rename, taken)
                client = replace(client, identity=identity, ask=replace(client.ask, system_id=identity.system_id))

    async def _sync_once(self, on_progress: ProgressCallback) -> SyncResult:
        async def handle(message: Message) -> None:
            if isinstance(message.event, SyncProgress):
                on_progress(message.event)
            await message.ack()

        async with await build(self.home, self.identity, single_sync=True) as agent:
            await agent.bus.subscribe(naming.progress_subject(self.identity.system_id), handle)
            return await agent.once(self.ask)

    async def outcome(self) -> tuple[SyncResult | None, int]:
        """Return the result in the ledger, and the position of its history before that. Raises StateError."""
        if not await self.home.has_ledger():
            return None, 0  # the agent that holds the directory is creating it
        ledger = await self.home.read_ledger()
        try:
            position = await ledger.last_position()
            return await ledger.outcome(self.ask.id), position
        finally:
            await ledger.aclose()


class _DelegatedSync:
    """The sync as a request to the process that holds the state directory."""

    def __init__(self, client: SyncClient, on_progress: ProgressCallback, message_once: CodedMessageCallback) -> None:
        self._client, self._home, self._on_progress, self._message_once = client, client.home, on_progress, message_once
        self._endpoint = Endpoint(client.home)
        self._note = ""
        self._requested = False  # a process may have the request: there may be a result
        self._accepted = False  # the agent has accepted it over its socket
        self._warned: set[str] = set()

    async def poll(self, holder: AlreadyRunning) -> SyncResult | None:
        """Make sure that the holder gets the request; return the result if there is one.

        While an agent reports over its socket, this waits for the result.
        """
        if holder.command == RUN and (client := await self._endpoint.client()):
            self._requested = True
            try:
                if result := await self._result_from_agent(client):
                    return result
            except AgentUnavailable as error:
                if error.unresponsive:
                    warning = await asyncio.to_thread(unresponsive_warning, self._home, holder.pid, holder.command)
                    self._message_once(warning.code, str(warning))
                    self._warn_once("agent_silent", pid=holder.pid, next_step="a note in its spool waits for it")
            self._endpoint.back_off()
        await self._leave_note()
        return (await self._client.outcome())[0]

    async def take_back(self) -> SyncResult | None:
        """Once no other process holds the directory: return the result that it left, or withdraw the note."""
        result = (await self._client.outcome())[0] if self._requested else None
        if result is None and self._note:
            await self._home.withdraw_note(self._note)
            self._note = ""
        return result

    def cancelled_message(self, holder: AlreadyRunning) -> str:
        """Return what becomes of the sync when this process no longer waits for it."""
        who = f"process {holder.pid} ({holder.command})"
        if self._accepted:
            return f"the agent ({who}) goes on with the sync: akosha-agent status shows it"
        if holder.command == RUN and self._requested:
            return f"the request is withdrawn; if {who} has begun the sync, it goes on there"
        return f"the request is withdrawn; {who} is not interrupted"

    async def close(self) -> None:
        """Withdraw the note, also while being cancelled."""
        if self._note:
            await _complete(self._home.withdraw_note(self._note), "withdraw-note")

    async def _result_from_agent(self, client: "ControlClient") -> SyncResult | None:
        """Send the request and wait for the result; None where the agent ends. Raises AgentUnavailable."""
        following = asyncio.create_task(self._follow(client), name="follow-sync")
        try:
            while not (await asyncio.wait({following}, timeout=NOTE_AFTER_SECONDS))[0]:
                try:
                    await self._leave_note()
                except StateError as error:  # the agent has the request: the sync has not failed yet
                    next_step = "the agent has the request all the same, and its result is waited for"
                    self._message_once("note_not_left", f"no note could be left: {error}; {next_step}")
                    self._warn_once("note_not_left", error=str(error), next_step=next_step)
                if result := (await self._client.outcome())[0]:
                    return result
            return following.result()
        finally:
            following.cancel()
            await asyncio.wait({following})
            if not following.cancelled() and (failure := following.exception()):
                _log.debug("agent_unavailable", error=str(failure))

    async def _follow(self, client: "ControlClient") -> SyncResult | None:
        ask = self._client.ask
        result, position = await self._client.outcome()
        if result is not None:
            return result
        async with client, client.events(after=position) as events:
            if not self._note:
                await client.ask(ask)
                self._accepted = True
            self._endpoint.reset_pause()
            async for item in events:
                if isinstance(item, SyncProgress):
                    self._on_progress(item)
                elif isinstance(item.event, SyncResult) and item.event.request_id == ask.id:
                    return item.event
        return None

    async def _leave_note(self) -> None:
        """Leave a note if there is none. When cancelled meanwhile, withdraw it once it is written."""
        if self._note:
            return
        self._requested = True
        writing = asyncio.create_task(self._home.leave_note(self._client.ask), name="leave-note")
        try:
            self._note = await asyncio.shield(writing)
        except asyncio.CancelledError:
            await _complete(self._withdraw(writing), "withdraw-note")
            raise

    async def _withdraw(self, writing: asyncio.Task[str]) -> None:
        await self._home.withdraw_note(await writing)

    def _warn_once(self, event: str, **fields: object) -> None:
        if event not in self._warned:
            self._warned.add(event)
            _log.warning(event, **fields)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait({task})


async def _complete(work: Coroutine[None, None, None], name: str) -> None:
    """Complete the withdrawal of a note, also while being cancelled. A note that stays is logged, and does no harm."""
    task = asyncio.create_task(work, name=name)
    await asyncio.wait({task}, timeout=WITHDRAW_SECONDS)
    if not task.done():
        task.cancel()
        _log.warning("note_not_withdrawn", error=f"the spool did not answer within {WITHDRAW_SECONDS:g} s")
    elif error := task.exception():
        _log.warning("note_not_withdrawn", error=str(error))
