"""The running agent's front desk: what local processes may ask of it, whatever the door they come through."""

from collections.abc import AsyncGenerator, Mapping

from agent.application.status import Status
from agent.domain.events import Event, SyncAsked, SyncProgress, SyncRequested
from agent.domain.identity import Identity
from agent.ports import HistoryEntry


class Desk:
    """Answers at once, from what the agent knows; what takes time happens elsewhere."""

    @property
    def identity(self) -> Identity:
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether it watches and hears requests."""
        raise NotImplementedError

    def trouble(self) -> Mapping[str, str]:
        """Return what is stuck: name -> why, in words. Empty: all is well. The event loop itself is not in it: who
        gets an answer knows.
        """
        raise NotImplementedError

    async def status(self) -> Status:
        """Return how everything stands, as `akosha-agent status` shows it. Raises StateError."""
        raise NotImplementedError

    async def survey_problem(self) -> str:
        """Return why the databases cannot be seen, "" where they can."""
        raise NotImplementedError

    async def ask(self, ask: SyncAsked) -> SyncRequested | None:
        """Ask for a sync. None: it was refused, and its result says why. The same ask again changes nothing.

        Raises WireError where it is for another system, StateError.
        """
        raise NotImplementedError

    async def take(self, event: Event) -> bool:
        """Take an event of another process: a session's end or a SyncAsked; True where it is new.

        Raises WireError for any other type or system, BusError, StateError.
        """
        raise NotImplementedError

    def events(self, *, after: int | None) -> AsyncGenerator[HistoryEntry | SyncProgress, None]:
        """Yield the history after a position, then what happens, as it happens; None: from now on.

        Never ends by itself. Progress of running syncs comes in between, while it is told, and is not repeated. Raises
        StateError. A reader that is slow gets every entry, read from the ledger in batches, and misses progress; its
        memory is bounded.
        """
        raise NotImplementedError
