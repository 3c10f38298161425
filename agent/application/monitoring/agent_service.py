"""The requests that local processes can make to the running agent, over any interface."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from agent.application.monitoring.event_stream import EventStream
from agent.application.monitoring.health import HealthMonitor
from agent.application.monitoring.status import NextSync, Status, describe, disk_warning, last_upload_bytes
from agent.application.status_warnings import PORT_UNAVAILABLE, clear_warning, set_warning
from agent.application.sync.subscriber import SyncSubscriber
from agent.application.triggers.file_changes import FileChanges
from agent.application.triggers.inbox import Inbox
from agent.domain.databases import NO_DATABASES, Survey
from agent.domain.delivery_state import Target
from agent.domain.errors import BusError, SnapshotError, StateError, WireError
from agent.domain.events import Event, SessionEnded, SyncAsked, SyncProgress, SyncRequested, SyncResult
from agent.domain.identity import Identity
from agent.domain.routing import SESSION_END
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, DurableBus, HistoryEntry, Ledger, MemoryCounts, SnapshotTaker, VolatileBus


class AgentService:
    """Answers from the state that the agent has, without waiting. A requested sync runs in the background."""

    def __init__(
        self,
        *,
        route: Sequence[str],
        state_dir: Path,
        identity: Identity,
        ledger: Ledger,
        bus: VolatileBus,
        results_bus: DurableBus,
        taker: SnapshotTaker,
        clock: Clock,
        subscribers: Sequence[SyncSubscriber],
        file_changes: FileChanges,
        inbox: Inbox,
        event_stream: EventStream,
        health: HealthMonitor,
        request_verification: Callable[[], Awaitable[None]],
        warnings: Callable[[], Awaitable[Sequence[StatusWarning]]] | None = None,
    ) -> None:
        self._route, self._state_dir, self._identity = route, state_dir, identity
        self._ledger, self._bus, self._results_bus = ledger, bus, results_bus
        self._taker, self._clock = taker, clock
        self._subscribers, self._file_changes = {one.method.name: one for one in subscribers}, file_changes
        self._inbox, self._event_stream, self._health = inbox, event_stream, health
        self._request_verification, self._warnings = request_verification, warnings

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def ready(self) -> bool:
        """Whether the agent watches the databases and receives requests."""
        return self._health.ready

    def problems(self) -> Mapping[str, str]:
        """Return component -> reason for what is stuck or interrupted. A stuck event loop cannot report itself."""
        return self._health.problems()

    async def status(self) -> Status:
        """Return the status that `akosha-agent status` shows. Raises StateError."""
        warnings = await self._warnings() if self._warnings else ()
        return await self._described(await self._memory_counts(), warnings)

    async def status_for_metrics(self) -> Status:
        """Return the status without the warnings that read the target: a scrape must not wake its disk."""
        return await self._described(await self._memory_counts())

    async def brief_status(self) -> Status:
        """Return `status_for_metrics` without the counts of memories, which are slow for millions of memories."""
        return await self._described({})

    async def survey_problem(self) -> str:
        """Return why no databases were found, "" if there are some."""
        return (await self._survey())[1]

    async def request_sync(self, ask: SyncAsked) -> SyncRequested | None:
        """Request a sync. Return None if it was refused; its result has the reason. Repeating an ask has no effect.

        Raises WireError if the ask is for another system, BusError if no bus accepts requests, StateError.
        """
        self._inbox.check(ask)
        self._check_bus()
        return (await self._inbox.submit(ask)).request

    async def outcome(self, request_id: str) -> SyncResult | None:
        """Return the result of a request, None if it has none yet. Raises StateError."""
        return await self._ledger.outcome(request_id)

    async def accept(self, event: Event) -> bool:
        """Accept a SessionEnded or SyncAsked of another process. Return whether it is new.

        Raises WireError for any other type or system, BusError if no bus accepts the request, StateError.
        """
        if not isinstance(event, SessionEnded | SyncAsked):
            raise WireError(f"{event.type} is not accepted from other processes")
        self._inbox.check(event)
        if isinstance(event, SessionEnded):
            return await self._inbox.accept_session_end(event)
        self._check_bus()
        return (await self._inbox.submit(event)).new

    async def last_position(self) -> int:
        """Return the position of the newest history entry, for `events`. Raises StateError."""
        return await self._ledger.last_position()

    async def past_events(
        self, *, before: int | None, limit: int, types: Collection[type[Event]]
    ) -> Sequence[HistoryEntry]:
        """Return up to `limit` events of these types before a position (None: up to the newest), newest first.

        Raises StateError.
        """
        return await self._ledger.past_events(before=before, limit=limit, types=types)

    async def request_verification(self) -> None:
        """Have the newest upload verified now, or as soon as no sync runs and the bucket can be reached.

        The result is an UploadVerified event. Raises SettingsError if the agent does not verify uploads, NoSuchObject
        if there is none, StateError.
        """
        await self._request_verification()

    async def report_port(self, problem: StatusWarning | None) -> None:
        """Set the warning that the port of the settings is not open, or clear that of an earlier agent.

        It is stored, so that `doctor` has it. A ledger that cannot be written does not keep the agent from starting.
        """
        with suppress(StateError):  # the log has the problem
            if problem is not None:
                await set_warning(self._ledger, problem, self._clock)
            else:
                await clear_warning(self._ledger, PORT_UNAVAILABLE)

    def events(self, *, after: int | None) -> AsyncGenerator[HistoryEntry | SyncProgress, None]:
        """Yield the history after a position (None: the newest), then new entries and progress as they happen.

        Does not end. A slow reader gets every history entry, read from the ledger in batches, but misses some progress
        events, so that memory is bounded. A position beyond the newest entry belongs to an earlier ledger: then the
        complete history follows. Raises StateError.
        """
        return self._event_stream.events(after=after)

    def _targets(self) -> Sequence[Target]:
        return [self._subscribers[name].method.target for name in self._route if name in self._subscribers]

    def upcoming(self) -> NextSync | None:
        """Return the sync that the agent requests next because of changes; None if none waits."""
        if not self._file_changes.enabled:
            return NextSync(at=None, reason=SESSION_END)
        upcoming = self._file_changes.next_request()
        if upcoming is None:
            return None
        seconds, reason = upcoming
        return NextSync(at=self._clock.now() + timedelta(seconds=max(seconds, 0)), reason=reason)

    async def _memory_counts(self) -> Mapping[str, MemoryCounts]:
        return {target.method: await self._ledger.memories().counts(target) for target in self._targets()}

    async def _described(
        self, memory_counts: Mapping[str, MemoryCounts], warnings: Sequence[StatusWarning] = ()
    ) -> Status:
        survey, _ = await self._survey()
        records = [await self._ledger.record(target) for target in self._targets()]
        full = disk_warning(str(self._state_dir), await self._taker.free_bytes(), records, survey)
        return describe(
            system_id=self._identity.system_id,
            agent_id=self._identity.agent_id,
            route=self._route,
            records=records,
            memory_counts=memory_counts,
            survey=survey,
            notes=dict(await self._ledger.notes()),
            results_waiting=len(await self._ledger.outbox()),
            running=True,
            warnings=(*((full,) if full else ()), *warnings),
            default_system_id=self._identity.is_default,
            last_bytes=await last_upload_bytes(self._ledger, records, self._identity.agent_id),
            activity=next((one.activity for one in self._subscribers.values() if one.activity), None),
            next_sync=self.upcoming(),
            unhealthy=self._health.problems(),
            consumers=self._results_bus.consumers,
        )

    async def _survey(self) -> tuple[Survey, str]:
        try:
            survey = await self._taker.survey()
            return survey, "" if survey else NO_DATABASES
        except SnapshotError as error:
            return {}, str(error)

    def _check_bus(self) -> None:
        """Raise BusError at once: publishing may wait for a bus for hours."""
        state = self._bus.state
        if not state.ready:
            raise BusError(
                f"the event bus cannot be reached: {state.detail}",
                hint="write a note to the spool, as akosha-agent does: the agent reads it when the bus is back",
                transient=True,
            )
