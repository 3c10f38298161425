"""The agent's state directory, ledger and spool, used with or without a running agent."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog

from agent.adapters.duckdb import DuckdbSnapshotTaker, WarmChildren
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
from agent.ports import Clock, Ledger, Meter, ObjectStore, SnapshotTaker
from agent.settings import Settings

RUN = "run"
"""The command of the holder that is an agent."""

_log = structlog.get_logger()

LEDGER_EVENT_BYTES = 16 * MEBIBYTE
"""What the agent itself wrote, it must be able to read: a result may name hundreds of files."""


@dataclass(frozen=True, slots=True)
class Home:
    """What entrypoints use of the agent's state directory and data directory, with or without a running agent."""

    settings: Settings
    state: StateDirectory
    clock: Clock
    codec: CloudEventsCodec

    @classmethod
    def of(cls, settings: Settings) -> "Home":
        """Return the home of these settings; nothing is made or read yet."""
        return cls(settings, StateDirectory(settings.agent_state_dir), SystemClock(), CloudEventsCodec())

    def prepare(self) -> Identity:
        """Make the state directory where there is none, and return who this agent is. Raises StateError."""
        self.state.prepare(self.settings.agent_data_dir)
        return self.state.identity(socket.gethostname(), self.settings.system_id)

    def remember_setting(self) -> None:
        """Keep this agent's `akosha_system_id` for `as_the_agent`. Blocks. Raises StateError."""
        chosen = self.settings.system_id
        self.state.remember_setting(chosen and sanitise_system_id(chosen))

    def with_agent_system_id(self) -> "Home":
        """Return this home under the system id of the agent of the state directory, for callers that name none.

        The agent that runs decides; where none does, the settings do, and without them the agent that ran last. Blocks.
        """
        holder = self.holder()
        runs = holder is not None and holder.command == RUN
        known = self.state.remembered_setting()
        if known is None or (self.settings.system_id and not runs):
            return self
        return Home.of(self.settings.model_copy(update={"system_id": known}))

    def rename(self, taken: SystemIdTaken) -> Identity:
        """Take another default system id, because another machine owns this one. Blocks. Raises StateError."""
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
        """Return who holds the state directory now."""
        return self.state.holder()

    @staticmethod
    def is_suspended(pid: int) -> bool:
        """Return whether a process is suspended, so that it cannot answer; False for 0, an unknown process."""
        return is_suspended(pid) if pid else False

    async def disk_warning(self, identity: Identity) -> StatusWarning | None:
        """Return the warning that the state directory has no room for the next sync, None where it has.

        Raises StateError.
        """
        taker = self.taker()
        try:
            survey = await taker.survey()
        except SnapshotError:
            return None  # it is said elsewhere that the databases cannot be seen
        return disk_warning(
            str(self.settings.agent_state_dir), await taker.free_bytes(), await self._records(identity), survey
        )

    async def _records(self, identity: Identity) -> list[TargetRecord]:
        """Return the records of the route's targets, in its order."""
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
        """Leave an event for the running agent; return the note's name."""
        return await self._spool().write(event)

    async def withdraw_note(self, note: str) -> None:
        """Take a note back; one that was taken up is gone already."""
        await self._spool().remove(note)

    async def waiting_notes(self) -> tuple[StatusWarning, ...]:
        """Return the warning that notes wait for an agent where none runs, nothing otherwise. Raises StateError."""
        holder = await asyncio.to_thread(self.holder)
        if holder is not None and holder.command == RUN:
            return ()
        return notes_waiting(await self._spool().count(is_for_single_sync))

    @property
    def ledger_codec(self) -> CloudEventsCodec:
        """The codec of events in the ledger: it takes larger ones than a bus does."""
        return CloudEventsCodec(max_bytes=LEDGER_EVENT_BYTES)

    async def open_ledger(self) -> Ledger:
        """Open the ledger for writing. Raises StateError.

        A damaged one is replaced where this process holds the state directory.
        """
        return await open_for_holder(self.state.ledger_file, self.ledger_codec, self.clock, held=self._is_held)

    async def read_ledger(self) -> Ledger:
        """Open the ledger for reading, beside an agent that may be writing. Raises StateError where there is none."""
        return await SqliteLedger.open(self.state.ledger_file, self.ledger_codec, clock=self.clock, read_only=True)

    async def has_ledger(self) -> bool:
        """Say whether an agent has ever run here. From then on, `read_ledger` finds one."""
        return await asyncio.to_thread(is_created, self.state.ledger_file)

    def taker(self, warm: WarmChildren | None = None, meter: Meter | None = None) -> SnapshotTaker:
        """Return what looks at, and copies, the databases. `warm`: where children wait for who reads the copies."""
        return DuckdbSnapshotTaker(
            self.settings.agent_data_dir, self.state.staging, clock=self.clock, warm=warm, meter=meter
        )

    def machine(self) -> Machine:
        """Return this machine, as the owner of uploads. Blocks. Raises StateError."""
        data_dir = self.settings.agent_data_dir.resolve()
        return Machine.of(machine_id(self.state.path), data_dir, socket.gethostname())

    @asynccontextmanager
    async def ownership(self, identity: Identity, store: ObjectStore) -> AsyncIterator[Ownership]:
        """Return the ownership of this agent's uploads in the cloud target, beside an agent that may run.

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
        """Return the targets of all methods that can be asked for, by method."""
        return targets_of(self.settings, identity.system_id)

    def set_ledger_aside(self, error: LedgerDamaged) -> bool:
        """Move the damaged ledger aside. The caller holds the state directory, and has closed the ledger."""
        set_ledger_aside(self.state.ledger_file, self.clock, error)
        return True

    def _is_held(self) -> bool:
        holder = self.holder()
        return holder is not None and holder.pid == os.getpid()

    def _spool(self) -> SpoolDirectory:
        return SpoolDirectory(self.state.spool, self.codec)
