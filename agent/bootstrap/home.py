"""The agent's state directory, ledger and spool, used with or without a running agent."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog

from agent.adapters.duckdb import DuckdbSnapshotTaker, MirrorDirectory, WarmChild
from agent.adapters.machine_id import machine_id
from agent.adapters.spool import SpoolDirectory
from agent.adapters.sqlite_ledger import SqliteLedger, is_created
from agent.adapters.state_directory import Holder, StateDirectory, is_suspended
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.application.monitoring.status import disk_warning
from agent.application.status_warnings import notes_waiting
from agent.application.sync.ownership import Ownership
from agent.bootstrap.ledger import aside_if_damaged, open_for_holder, set_ledger_aside
from agent.bootstrap.stores import MEBIBYTE, ownership_of, targets_of
from agent.domain.delivery_state import Target, TargetRecord
from agent.domain.errors import LedgerDamaged, SnapshotError, SystemIdTaken
from agent.domain.events import Event, is_for_single_sync
from agent.domain.identity import Identity, Machine
from agent.domain.naming import sanitise_system_id
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Codec, Ledger, Meter, ObjectStore, SnapshotTaker
from agent.settings import Settings

RUN = "run"
"""The command of a lock holder that is a running agent."""

_log = structlog.get_logger()

LEDGER_EVENT_BYTES = 16 * MEBIBYTE
"""Maximum size of events in the ledger, large enough for a result with hundreds of files."""


def event_codec() -> Codec:
    """Return the codec of the events that commands print as JSON."""
    return CloudEventsCodec()


@dataclass(frozen=True, slots=True)
class Home:
    """The agent's state directory and data directory, for entrypoints, with or without a running agent."""

    settings: Settings
    state: StateDirectory
    clock: Clock
    codec: CloudEventsCodec

    @classmethod
    def of(cls, settings: Settings) -> "Home":
        """Return the home of these settings, without access to files."""
        return cls(settings, StateDirectory(settings.agent_state_dir), SystemClock(), CloudEventsCodec())

    def prepare(self) -> Identity:
        """Create the state directory if it does not exist, and return the agent's identity. Raises StateError."""
        self.state.prepare(self.settings.agent_data_dir)
        return self.state.identity(socket.gethostname(), self.settings.system_id)

    def remember_setting(self) -> None:
        """Store this agent's `akosha_system_id` for `with_agent_system_id`. Blocks. Raises StateError."""
        chosen = self.settings.system_id
        self.state.remember_setting(chosen and sanitise_system_id(chosen))

    def with_agent_system_id(self) -> "Home":
        """Return this home with the `akosha_system_id` of the state directory's agent.

        That is the setting of the running agent; if none runs, that of these settings, or else of the last agent that
        ran. Blocks.
        """
        holder = self.holder()
        runs = holder is not None and holder.command == RUN
        stored = self.state.remembered_setting()
        if stored is None or (self.settings.system_id and not runs):
            return self
        return Home.of(self.settings.model_copy(update={"system_id": stored}))

    def rename(self, taken: SystemIdTaken) -> Identity:
        """Change the default system ID, because another machine owns it. Blocks. Raises StateError."""
        self.state.rename(taken.instead)
        _log.warning("system_id_suffixed", system_id=taken.instead, reason=taken.message, hint=taken.hint)
        return self.prepare()

    @contextmanager
    def lock(self, command: str, *, retry: bool = True) -> Iterator[None]:
        """Hold the state directory for as long as the block runs. Raises AlreadyRunning; without `retry`, at once.

        Where the block ends with LedgerDamaged, the ledger is moved aside: the next holder opens a new one.
        """
        with self.state.lock(command, retry=retry), aside_if_damaged(self.state.ledger_file, self.clock):
            yield

    def holder(self) -> Holder | None:
        """Return the process that holds the state directory, None if there is none."""
        return self.state.holder()

    @staticmethod
    def is_suspended(pid: int) -> bool:
        """Return whether a process is suspended, so that it cannot answer; False for 0, an unknown process."""
        return is_suspended(pid) if pid else False

    async def disk_warning(self, identity: Identity) -> StatusWarning | None:
        """Return the warning that the state directory's disk is too full for the next sync, None if it is not.

        Raises StateError.
        """
        taker = self.taker()
        try:
            survey = await taker.survey()
        except SnapshotError:
            return None  # reported elsewhere
        return disk_warning(
            str(self.settings.agent_state_dir), await taker.free_bytes(), await self._records(identity), survey
        )

    async def _records(self, identity: Identity) -> list[TargetRecord]:
        """Return the records of the route's targets, in the route's order."""
        possible = self.targets(identity)
        targets = [possible[method] for method in self.settings.route if method in possible]
        if not await self.has_ledger():
            return [TargetRecord(target) for target in targets]
        ledger = await self.read_ledger()
        try:
            return [await ledger.record(target) for target in targets]
        finally:
            await ledger.aclose()

    async def leave_note(self, event: Event) -> str:
        """Write a note with an event for the running agent to the spool, and return the note's name."""
        return await self._spool().write(event)

    async def withdraw_note(self, note: str) -> None:
        """Remove a note, if the agent has not handled it yet."""
        await self._spool().remove(note)

    async def waiting_notes(self) -> tuple[StatusWarning, ...]:
        """Return the warning that notes are waiting although no agent runs; else nothing. Raises StateError."""
        holder = await asyncio.to_thread(self.holder)
        if holder is not None and holder.command == RUN:
            return ()
        return notes_waiting(await self._spool().count(is_for_single_sync))

    @property
    def ledger_codec(self) -> CloudEventsCodec:
        """The codec of events in the ledger, which accepts larger events than a bus."""
        return CloudEventsCodec(max_bytes=LEDGER_EVENT_BYTES)

    async def open_ledger(self) -> Ledger:
        """Open the ledger for writing. If this process holds the state directory, replace a damaged ledger.

        Raises StateError.
        """
        return await open_for_holder(self.state.ledger_file, self.ledger_codec, self.clock, is_held=self._is_held)

    async def read_ledger(self) -> Ledger:
        """Open the ledger for reading, while an agent may write it. Raises StateError if it does not exist."""
        return await SqliteLedger.open(self.state.ledger_file, self.ledger_codec, clock=self.clock, read_only=True)

    async def has_ledger(self) -> bool:
        """Return whether there is a ledger for `read_ledger`, which the first agent creates."""
        return await asyncio.to_thread(is_created, self.state.ledger_file)

    def mirror(self) -> MirrorDirectory:
        """Return the mirror. Only the process that holds the state directory may use it, except for its size."""
        makes_patches = self.settings.cloud_configured and self.settings.enable_deduplication
        return MirrorDirectory(self.state.mirror, is_on=self.settings.agent_mirror, makes_patches=makes_patches)

    def taker(
        self, warm: WarmChild | None = None, meter: Meter | None = None, mirror: MirrorDirectory | None = None
    ) -> SnapshotTaker:
        """Return the snapshot taker. Its child processes wait in `warm` for the reader of its copies."""
        return DuckdbSnapshotTaker(
            self.settings.agent_data_dir,
            self.state.staging,
            clock=self.clock,
            warm=warm,
            mirror=mirror or self.mirror(),
            meter=meter,
        )

    def machine(self) -> Machine:
        """Return this machine as an owner of uploads. Blocks. Raises StateError."""
        data_dir = self.settings.agent_data_dir.resolve()
        return Machine.of(machine_id(self.state.path), data_dir, socket.gethostname(), self.state.path.resolve())

    @asynccontextmanager
    async def ownership(self, identity: Identity, store: ObjectStore) -> AsyncIterator[Ownership]:
        """Open the ownership of this agent's uploads in the cloud target, read-only: an agent may be running.

        Raises StateError.
        """
        machine = await asyncio.to_thread(self.machine)
        ledger = await self.read_ledger() if await self.has_ledger() else None
        ownership = ownership_of(self.settings, identity, machine, store, ledger, self.clock, keeps_warning=False)
        try:
            yield ownership
        finally:
            await ownership.aclose()
            if ledger is not None:
                await ledger.aclose()

    def targets(self, identity: Identity) -> dict[str, Target]:
        """Return the targets of all available methods, by method."""
        return targets_of(self.settings, identity.system_id)

    def set_ledger_aside(self, error: LedgerDamaged) -> None:
        """Move the damaged ledger aside. The caller holds the state directory and has closed the ledger."""
        set_ledger_aside(self.state.ledger_file, self.clock, error)

    def _is_held(self) -> bool:
        holder = self.holder()
        return holder is not None and holder.pid == os.getpid()

    def _spool(self) -> SpoolDirectory:
        return SpoolDirectory(self.state.spool, self.codec)
