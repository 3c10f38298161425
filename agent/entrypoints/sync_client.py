"""One sync, done in this process or by the process that holds the state directory.

A running agent gets the request over its control socket, and reports progress and result there. If the socket is not
available, or the connection breaks, the request is left as a note in the spool, and the result is read from the ledger.
Both carry the same request ID, so the sync is done once.
"""

import asyncio
import os
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import structlog

from agent.bootstrap.agent import build
from agent.bootstrap.home import RUN, Home
from agent.domain import naming
from agent.domain.errors import AgentUnavailable, AlreadyRunning, SettingsError, StateError, SystemIdTaken
from agent.domain.events import Event, SyncAsked, SyncProgress, SyncResult
from agent.domain.identity import Identity
from agent.domain.routing import AUTO, MANUAL
from agent.domain.status_warning import StatusWarning
from agent.entrypoints.control_client import Endpoint
from agent.entrypoints.status_document import unresponsive_warning
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.entrypoints.control_client.client import ControlClient

SYNC_DISABLED, ENABLE_SYNC = "sync is disabled", "set akosha_sync_enabled to true"

POLL_SECONDS = 0.1
WITHDRAW_SECONDS = 5.0

NOTE_AFTER_SECONDS = 5.0
"""A request accepted over the socket is also left in the spool if it has no result after this time: another agent may
replace this one, and a bus may lose requests. The ledger is read at the same interval."""

OBSTACLE_SECONDS = 1.0
"""Interval of the checks for obstacles while waiting for another process."""

REACT = "react"
"""The command whose process does no syncs and reads no notes."""

SEPARATE_STATE_DIRS = "an agent and akosha-agent react on one machine need separate state directories (--state-dir)"

_log = structlog.get_logger()

ProgressCallback = Callable[[SyncProgress], None]
"""Called a few times a second while the sync runs, here or in the agent."""

WaitCallback = Callable[[AlreadyRunning], None]
"""Called every 0.1 s while another process holds the state directory; the error names it."""

MessageCallback = Callable[[str], None]
"""Called with a sentence for the user: what blocks the sync, or what happens to it after it was cancelled."""

CodedMessageCallback = Callable[[str, str], None]
"""Called with a code and a sentence; only the first sentence per code is passed on."""


def _ignore(_: object) -> None:
    """The default callback, for callers that need only the result."""


@dataclass(frozen=True, slots=True)
class SyncClient:
    """Requests one sync and waits for its result.

    `data_dir`: the only directory whose databases may be synced, also by a running agent; None: that of its settings.
    """

    home: Home
    identity: Identity
    ask: SyncAsked
    data_dir: Path | None = None

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
        data_dir: Path | None = None,
    ) -> Self:
        """Create the request, and the state directory if it does not exist. Nothing is synced yet.

        Raises SettingsError if sync is disabled, StateError, NamingError.
        """
        if not settings.sync_enabled:
            raise SettingsError(SYNC_DISABLED, hint=ENABLE_SYNC)
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
        return cls(home, identity, ask, data_dir)

    async def result(
        self,
        *,
        on_progress: ProgressCallback = _ignore,
        on_wait: WaitCallback = _ignore,
        on_message: MessageCallback = _ignore,
    ) -> SyncResult:
        """Sync in this process, or ask the process that holds the state directory.

        If that process exits without a result, sync in this process.

        Concurrent calls, in one process or several, take turns. When cancelled, the note is withdrawn, and a sync in
        this process cleans up. Raises SettingsError (also if a running agent syncs another directory than `data_dir`),
        StateError, and errors that leave a sync without a result.
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
        """Return what blocks the sync and the user can fix: the other process is suspended, or the disk is full.

        Raises StateError.
        """
        holder = await asyncio.to_thread(self.home.holder)
        if holder is not None and await asyncio.to_thread(self.home.is_suspended, holder.pid):
            return await asyncio.to_thread(unresponsive_warning, self.home, holder.pid, holder.command)
        return await self.home.disk_warning(self.identity)

    async def _watch_obstacles(self, message_once: CodedMessageCallback) -> None:
        while True:
            await self.home.clock.sleep(OBSTACLE_SECONDS)
            try:
                if found := await self.obstacle():
                    message_once(found.code, f"{found}; waiting until this is corrected")
            except StateError as error:
                _log.debug("obstacle_unknown", error=str(error))

    async def _cancelled_message(self) -> str:
        """Return what happens to a sync that was cancelled in this process."""
        try:
            upload = await self._unfinished_upload()
        except StateError:  # it must not replace the cancellation
            return "stopped: the next sync sends what is pending"
        if upload:
            return f"stopped: the next sync resumes the upload {upload} under the same ID"
        return "stopped before an upload began: the next sync sends what is pending"

    async def _unfinished_upload(self) -> str:
        """Return the ID of an upload in progress, "" if there is none. Raises StateError."""
        if not await self.home.has_ledger():
            return ""
        ledger = await self.home.read_ledger()
        try:
            intents = [(await ledger.record(target)).intent for target in self.home.targets(self.identity).values()]
        finally:
            await ledger.aclose()
        return next((intent.upload_id for intent in intents if intent), "")

    async def wait_reason(self) -> str:
        """Return what the sync waits for: an obstacle, or its next attempt; "" if neither. Raises StateError."""
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
                    return f"{method}: attempt {record.attempts} failed, next attempt at {at}: {record.error}"
        finally:
            await ledger.aclose()
        return ""

    async def _sync_here(self, on_progress: ProgressCallback) -> SyncResult:
        """Sync; if another machine owns the default system ID, sync under another one."""
        client = self
        while True:
            try:
                return await client._sync_once(on_progress)
            except SystemIdTaken as taken:
                identity = await asyncio.to_thread(self.home.rename, taken)
                client = replace(client, identity=identity, ask=replace(client.ask, system_id=identity.system_id))

    async def _sync_once(self, on_progress: ProgressCallback) -> SyncResult:
        async def handle(event: Event) -> None:
            if isinstance(event, SyncProgress):
                on_progress(event)

        async with await build(self.home, self.identity, single_sync=True) as agent:
            await agent.bus.subscribe(naming.progress_subject(self.identity.system_id), handle)
            return await agent.once(self.ask)

    async def outcome(self) -> tuple[SyncResult | None, int]:
        """Return the result in the ledger, and the position of the newest history entry, read before the result.

        Raises StateError.
        """
        if not await self.home.has_ledger():
            return None, 0  # the process that holds the directory is still creating it
        ledger = await self.home.read_ledger()
        try:
            position = await ledger.last_position()
            return await ledger.outcome(self.ask.id), position
        finally:
            await ledger.aclose()


class _DelegatedSync:
    """A sync requested from the process that holds the state directory."""

    def __init__(self, client: SyncClient, on_progress: ProgressCallback, message_once: CodedMessageCallback) -> None:
        self._client, self._home, self._on_progress, self._message_once = client, client.home, on_progress, message_once
        self._endpoint = Endpoint(client.home)
        self._note = ""
        self._requested = False  # another process may have the request, so there may be a result
        self._accepted = False  # the agent has accepted the request over its socket
        self._warned: set[str] = set()

    async def poll(self, holder: AlreadyRunning) -> SyncResult | None:
        """Deliver the request to the holder; return the result if there is one.

        Waits for the result while an agent is connected over its socket.
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
                    self._warn_once("agent_silent", pid=holder.pid, next_step="a note in its spool has the request")
            self._endpoint.back_off()
        if holder.command == RUN and self._client.data_dir is not None:
            text = "the running agent does not answer, so it is unknown whether it syncs the given directory"
            self._message_once("data_dir_unknown", text)
        await self._leave_note()
        return (await self._client.outcome())[0]

    async def take_back(self) -> SyncResult | None:
        """Return the result that the former holder left, or withdraw the note. Call it with the directory locked."""
        result = (await self._client.outcome())[0] if self._requested else None
        if result is None and self._note:
            await self._home.withdraw_note(self._note)
            self._note = ""
        return result

    def cancelled_message(self, holder: AlreadyRunning) -> str:
        """Return what happens to the sync when this process no longer waits for it."""
        process = f"process {holder.pid} ({holder.command})"
        if self._accepted:
            return f"the agent ({process}) continues the sync: akosha-agent status shows it"
        if holder.command == RUN and self._requested:
            return f"the request was withdrawn; if {process} has already begun the sync, it continues"
        return f"the request was withdrawn; {process} is not interrupted"

    async def close(self) -> None:
        """Withdraw the note, also while being cancelled."""
        if self._note:
            await _complete(self._home.withdraw_note(self._note), "withdraw-note")

    async def _result_from_agent(self, client: "ControlClient") -> SyncResult | None:
        """Send the request and wait for the result; None if the agent ends first. Raises AgentUnavailable."""
        following = asyncio.create_task(self._follow(client), name="follow-sync")
        try:
            while not (await asyncio.wait({following}, timeout=NOTE_AFTER_SECONDS))[0]:
                try:
                    await self._leave_note()
                except StateError as error:  # the agent has the request, so the sync has not failed
                    next_step = "waiting for the agent, which has the request"
                    self._message_once("note_not_left", f"the note could not be written: {error}; {next_step}")
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
                await self._check_data_dir(client)
                await client.ask(ask)
                self._accepted = True
            self._endpoint.reset_pause()
            async for item in events:
                if isinstance(item, SyncProgress):
                    self._on_progress(item)
                elif isinstance(item.event, SyncResult) and item.event.request_id == ask.id:
                    return item.event
        return None

    async def _check_data_dir(self, client: "ControlClient") -> None:
        """Raise SettingsError if the agent syncs another directory than the one that was given."""
        if (wanted := self._client.data_dir) is None:
            return
        agents = Path((await client.status()).data_dir)
        if await asyncio.to_thread(os.path.realpath, agents) != await asyncio.to_thread(os.path.realpath, wanted):
            raise SettingsError(
                f"the running agent syncs {agents}, not {wanted}",
                hint="leave --data-dir out, or use another --state-dir for the other directory",
            )

    async def _leave_note(self) -> None:
        """Leave a note unless one was left. When cancelled meanwhile, withdraw it once it is written."""
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
    """Complete the withdrawal of a note, also while being cancelled. If it fails, log it: the note does no harm."""
    task = asyncio.create_task(work, name=name)
    await asyncio.wait({task}, timeout=WITHDRAW_SECONDS)
    if not task.done():
        task.cancel()
        _log.warning("note_not_withdrawn", error=f"the spool did not answer within {WITHDRAW_SECONDS:g} s")
    elif error := task.exception():
        _log.warning("note_not_withdrawn", error=str(error))
