"""The running agent: its loops, and who owns them. Every trigger ends in the publisher; the bus does the rest.

watch ----> debounce --+
spool, session ends ---+--> publisher --> bus --> uploaders --> recorder --> outbox --> bus
retry times, stat pass-+
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

import structlog

from agent.application.assembly import Assembly, Loop
from agent.domain import naming
from agent.domain.errors import AkoshaError, BusError
from agent.domain.events import SyncAsked, SyncResult, caused_by_one
from agent.domain.routing import STARTUP
from agent.ports import reset_clients

READY_SECONDS = 1.0
TELL_SECONDS = 10.0
"""How long a single sync, done, waits for a bus to tell its result to, and for the telling."""

PRUNE_SECONDS = 30.0
"""How long it may then take to prune."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Agent(Assembly):
    """Everything wired together. `run` is the service, `once` a single sync; use as an async context manager."""

    _stack: AsyncExitStack = field(default_factory=AsyncExitStack, init=False)

    async def __aenter__(self) -> Self:
        """Empty the staging directory and subscribe."""
        stack = self._stack
        stack.push_async_callback(self.ledger.aclose)
        for method in self.methods.values():
            stack.push_async_callback(method.aclose)
        stack.push_async_callback(self.taker.sweep)
        stack.push_async_callback(self.results_bus.aclose)
        stack.push_async_callback(self.bus.aclose)
        try:
            await self.taker.sweep()
            for subscriber in self.subscribers:
                name = subscriber.method.name
                subject = naming.request_subject(self.identity.system_id, name)
                await self.bus.subscribe(subject, subscriber.handle, durable=self.identity.durable(name))
        except BaseException:
            await stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the uploaders, which clean up after themselves, then let go of everything."""
        await self._stack.aclose()

    async def once(self, ask: SyncAsked) -> SyncResult:
        """Do one sync, retries and fallback included, and return its result. Raises what keeps it from having one.

        The result answers the ended sessions whose notes wait in the spool when it begins, and those that an earlier
        process has accepted and not answered.
        """
        caused_by = await self._session_ends_open()
        done = asyncio.create_task(self._outcome_of(ask, caused_by), name="once")
        fault = asyncio.create_task(self.faults.get(), name="faults")
        try:
            await asyncio.wait({done, fault}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise fault.result()
            await self._tell_results()
            if self.pruning is not None and await self.pruning.after_sync(PRUNE_SECONDS):
                await self._tell_results()
            return done.result()
        finally:
            for task in (done, fault):
                task.cancel()
            await asyncio.wait({done, fault})

    async def _session_ends_open(self) -> tuple[str, ...]:
        try:
            await self._spool_reader.take_over()
        except AkoshaError as error:  # they wait for the next sync, or agent: no reason to fail this one
            _log.warning("loop_interrupted", loop="spool", error=str(error))
        return caused_by_one(await self.ledger.open_ends())

    async def _outcome_of(self, ask: SyncAsked, caused_by: tuple[str, ...]) -> SyncResult:
        await self.publisher.asked(ask, caused_by=caused_by)
        while (result := await self.ledger.outcome(ask.id)) is None:
            await self.sync_finished.wait(None)
        return result

    async def _tell_results(self) -> None:
        """Tell the world, if it can be reached now; else the next agent that runs here does."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.results_bus.wait_until_ready()
            async with asyncio.timeout(TELL_SECONDS):
                await self.recorder.flush()
        except (BusError, TimeoutError):
            _log.warning(
                "outbox_blocked", why=self.results_bus.state.detail, then="the next agent that runs tells them"
            )

    async def _hear_faults(self) -> None:
        """What passes is told, and tried again by itself; a fault of ours takes the agent down, to be seen."""
        while True:
            error = await self.faults.get()
            if not (isinstance(error, AkoshaError) and error.transient):
                raise error
            _log.warning("sync_interrupted", error=str(error), system_id=self.identity.system_id)

    async def run(self) -> None:
        """Run until cancelled. A loop that fails takes the agent down with its error: nothing dies in silence."""
        session = naming.session_subject(self.identity.system_id)
        await self.bus.subscribe(session, self._session_ends.handle, durable=self.identity.durable("session"))
        if self.control is not None:
            await self._remote_control(self.control).begin()
        self._health.subscribed()
        loops = {"start": self._start, "faults": self._hear_faults, **self._loops()}
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                group.create_task(self._keep(name, loop), name=name)

    async def reset_clients(self) -> None:
        """Have stores, servers and buses read credentials and certificates again; retry targets that fail now."""
        await self.stall_monitor.reset_clients()
        await reset_clients(*{id(bus): bus for bus in (self.bus, self.results_bus)}.values())
        try:
            await self._retries.retry_recovered_targets(set(self.methods))
        except AkoshaError as error:  # the retry loop tries at its own time
            _log.warning("loop_interrupted", loop="retry", error=str(error))

    async def unanswered(self) -> Sequence[SyncAsked]:
        """Return what was asked of this agent and has no outcome yet: for the one that takes its place."""
        return await self._inbox.open_asks()

    async def _keep(self, name: str, loop: Loop) -> None:
        """Begin a loop again that was interrupted by what passes (a full disk, say); let everything else rise."""
        while True:
            try:
                return await loop()
            except AkoshaError as error:
                if not error.transient:
                    raise
                _log.warning("loop_interrupted", loop=name, error=str(error))
                self._health.interrupted(name, str(error))
            await self.clock.sleep(self.settings.agent_rescan_seconds)
            self._health.resumed(name)

    async def _start(self) -> None:
        """Ask for what changed while no agent ran, once the watch has begun: no change falls between the two."""
        _log.info("agent_started", system_id=self.identity.system_id, agent_id=self.identity.agent_id)
        await self._changes.begun.wait()
        for ask in self.left_over:
            await self._spool_reader.take_up(ask)
        await self.publisher.noticed(STARTUP)
