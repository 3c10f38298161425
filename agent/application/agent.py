"""The running agent: its loops, and who owns them. Every trigger ends in the publisher; the bus does the rest.

watch ----> debounce --+
spool, session ends ---+--> publisher --> bus --> uploaders --> recorder --> outbox --> bus
retry times, stat pass-+
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Self

import structlog

from agent.application.publisher import NO_TARGET, NO_TARGET_CURE, Publisher
from agent.application.recorder import Recorder
from agent.application.uploader import Uploader
from agent.application.wake import Wake
from agent.domain import naming
from agent.domain.debounce import Debounce, DebounceRules
from agent.domain.errors import AkoshaError
from agent.domain.events import SessionEnded, SyncAsked, SyncResult
from agent.domain.identity import Identity
from agent.domain.route import FILE_CHANGE, LAST_TARGET_BACKOFF, RETRY, SESSION_END, STARTUP
from agent.domain.states import due, next_try
from agent.ports import Clock, EventBus, Ledger, Message, SnapshotTaker, Spool, SyncMethod, Watch
from agent.settings import Settings

RETRY_SLACK_SECONDS = 1.0
"""Targets that failed one after the other are retried together."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Agent:
    """Everything wired together. `run` is the service, `once` a single sync; use as an async context manager."""

    settings: Settings
    identity: Identity
    clock: Clock
    bus: EventBus
    ledger: Ledger
    taker: SnapshotTaker
    methods: Mapping[str, SyncMethod]
    uploaders: Sequence[Uploader]
    publisher: Publisher
    recorder: Recorder
    watch: Watch
    spool: Spool
    spool_watch: Watch
    flight: asyncio.Lock
    """Held while a sync runs."""
    settled: Wake
    """Rung by the uploaders after each outcome: retry times may have changed."""
    faults: asyncio.Queue[Exception]
    """What the uploaders met that is no outcome."""

    _debounce: Debounce = field(default_factory=Debounce, init=False)
    _noticed: Wake = field(init=False)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack, init=False)
    _mode: str = field(default="", init=False)
    _reachable: dict[str, bool] = field(default_factory=dict, init=False)
    _watching: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _asked: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._noticed = Wake(self.clock, "debounce")

    async def __aenter__(self) -> Self:
        """Empty the staging directory and subscribe."""
        stack = self._stack
        stack.push_async_callback(self.ledger.aclose)
        for method in self.methods.values():
            stack.push_async_callback(method.aclose)
        stack.push_async_callback(self.taker.sweep)
        stack.push_async_callback(self.bus.aclose)
        try:
            await self.taker.sweep()
            for uploader in self.uploaders:
                name = uploader.method.name
                subject = naming.request_subject(self.identity.system_id, name)
                await self.bus.subscribe(subject, uploader.handle, durable=self.identity.durable(name))
        except BaseException:
            await stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the uploaders, which clean up after themselves, then let go of everything."""
        await self._stack.aclose()

    async def once(self, ask: SyncAsked) -> SyncResult:
        """Do one sync, retries and fallback included, and return its result. Raises what keeps it from having one."""
        done: asyncio.Future[SyncResult] = asyncio.get_running_loop().create_future()

        async def hear(message: Message) -> None:
            await message.ack()
            if isinstance(message.event, SyncResult) and message.event.request_id == ask.id and not done.done():
                done.set_result(message.event)

        await self.bus.subscribe(naming.results_pattern(self.identity.system_id), hear)
        alongside = [
            asyncio.create_task(self.recorder.run(), name="outbox"),
            asyncio.create_task(self._raise_fault(), name="faults"),
        ]
        try:
            for task in alongside:
                task.add_done_callback(lambda ended: _fail_with(ended, done))
            await self.publisher.asked(ask)
            result = await done
            await self.recorder.flush()
            return result
        finally:
            for task in alongside:
                task.cancel()
            await asyncio.gather(*alongside, return_exceptions=True)

    async def _raise_fault(self) -> None:
        raise await self.faults.get()

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
        await self.bus.subscribe(session, self._session_ended, durable=self.identity.durable("session"))
        if not self.methods:
            _log.warning("no_target", why=NO_TARGET, cure=NO_TARGET_CURE, system_id=self.identity.system_id)
        async with asyncio.TaskGroup() as group:
            for name, loop in {
                "start": self._start,
                "watch": self._watch,
                "debounce": self._sync_on_change,
                "retry": self._sync_on_time,
                "stat-pass": self._look_again,
                "spool": self._read_spool,
                "outbox": self.recorder.run,
                "faults": self._hear_faults,
            }.items():
                group.create_task(self._keep(name, loop), name=name)

    async def _keep(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Begin a loop again that was interrupted by what passes (a full disk, say); let everything else rise."""
        while True:
            try:
                return await loop()
            except AkoshaError as error:
                if not error.transient:
                    raise
                _log.warning("loop_interrupted", loop=name, error=str(error))
            await self.clock.sleep(self.settings.agent_rescan_seconds)

    async def _start(self) -> None:
        """Ask for what changed while no agent ran, once the watch has begun: no change falls between the two."""
        _log.info("agent_started", system_id=self.identity.system_id, agent_id=self.identity.agent_id)
        await self._watching.wait()
        await self.publisher.noticed(STARTUP)

    async def _watch(self) -> None:
        async with aclosing(self.watch.changes()) as changes:
            async for names in changes:
                self._watching.set()
                await self._note_mode()
                if names:
                    _log.debug("files_changed", names=sorted(names))
                    self._changed(self.watch.lag)

    async def _note_mode(self) -> None:
        if self.watch.mode != self._mode:
            self._mode = self.watch.mode
            await self.ledger.note("watcher", self._mode)

    def _changed(self, ago: float = 0.0) -> None:
        self._debounce = self._debounce.changed(self.clock.monotonic() - ago)
        self._noticed.ring()

    async def _sync_on_change(self) -> None:
        s = self.settings
        rules = DebounceRules(s.agent_quiet_seconds, s.agent_deadline_seconds, s.agent_min_interval_seconds)
        while True:
            due = self._debounce.due(rules) if s.agent_upload_on_change else None
            now = self.clock.monotonic()
            if due is None or due > now:
                await self._noticed.wait(None if due is None else due - now)
                continue
            burst, self._debounce = self._debounce, self._debounce.taken()
            try:
                request = await self.publisher.noticed(FILE_CHANGE)
            except BaseException:
                self._debounce = self._debounce.restored(burst)
                raise
            if request is not None:
                self._debounce = self._debounce.fired(now)

    async def _sync_on_time(self) -> None:
        """Retry what failed when its time has come; the times are the ledger's, so a restart changes nothing."""
        while True:
            records, survey = await self.publisher.records(), await self.publisher.survey()
            times = [at for record in records.values() if (at := next_try(record, survey)) is not None]
            if not times:
                await self.settled.wait(None)
                continue
            wait = min((min(times) - self.clock.now()).total_seconds(), LAST_TARGET_BACKOFF.total_seconds())
            if await self.settled.wait(wait + RETRY_SLACK_SECONDS):
                continue
            if not self.flight.locked():
                await self.publisher.noticed(RETRY)
            await self.settled.wait(self.settings.agent_rescan_seconds)

    async def _look_again(self) -> None:
        """Every now and then: has the watcher missed something, is a target back?"""
        while True:
            await self.clock.sleep(self.settings.agent_rescan_seconds)
            await self._note_mode()
            await self._empty_spool()
            if self.flight.locked():
                continue
            survey = await self.publisher.survey()
            records = await self.publisher.records()
            primary = next((records[name] for name in self.settings.route if name in records), None)
            quiet = primary is not None and self._debounce.first is None
            if primary and quiet and due(primary, survey, self.clock.now(), urgent=False):
                self._changed()
            await self._welcome_back()

    async def _welcome_back(self) -> None:
        """A target that was out of reach and can be reached again need not wait for its time."""
        for name, record in (await self.publisher.records()).items():
            if not record.failures:
                self._reachable.pop(name, None)
                continue
            before, now = self._reachable.get(name), await self.methods[name].is_available()
            self._reachable[name] = now
            if before is False and now:
                _log.info("target_back", method=name, system_id=self.identity.system_id)
                await self.ledger.reset(record.target)
                await self.publisher.noticed(RETRY)
                self.settled.ring()

    async def _read_spool(self) -> None:
        await self._empty_spool()
        async with aclosing(self.spool_watch.changes()) as changes:
            async for _ in changes:
                await self._empty_spool()

    async def _empty_spool(self) -> None:
        for note, event in await self.spool.waiting():
            if isinstance(event, SyncAsked):
                await self._take_up(note, event)
                continue
            if event.system_id != self.identity.system_id:
                _log.warning("note_refused", id=event.id, why=f"it is for the system {event.system_id}")
            elif isinstance(event, SessionEnded):
                await self.bus.publish(event)
            else:
                _log.warning("note_refused", id=event.id, why=f"{event.type} does not come through the spool")
            await self.spool.remove(note)

    async def _take_up(self, note: str, ask: SyncAsked) -> None:
        """Somebody waits for an outcome. The note stays until there is one: whoever runs next here sees it, too."""
        if await self.ledger.outcome(ask.id) is not None:
            self._asked.discard(ask.id)
            await self.spool.remove(note)
        elif ask.id in self._asked:
            return
        elif ask.system_id != self.identity.system_id:
            cure = f"the agent that runs here is {self.identity.system_id}'s: stop it, or use its settings"
            await self.publisher.refuse(ask, f"it is for the system {ask.system_id}", cure)
            await self.spool.remove(note)
        elif await self.publisher.asked(ask) is None:
            await self.spool.remove(note)
        else:
            self._asked.add(ask.id)

    async def _session_ended(self, message: Message) -> None:
        if self.settings.upload_on_session_end:
            await self.publisher.noticed(SESSION_END)
        await message.ack()


def _fail_with(task: asyncio.Task[None], waiting: asyncio.Future[SyncResult]) -> None:
    """Whoever waits for a result learns why none will come."""
    if not waiting.done() and not task.cancelled() and (error := task.exception()):
        waiting.set_exception(error)
