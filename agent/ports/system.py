"""The operating system: time, file changes, notes from other processes, and the supervisor."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Protocol

from agent.domain.events import Event


class Clock(Protocol):
    """The only source of time, except for `asyncio.timeout`, which uses the event loop's monotonic clock."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC. It may jump forward or backward."""
        ...

    def monotonic(self) -> float:
        """Return a time in seconds that never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for this time; return at once if it is not positive."""
        ...


class Watch(Protocol):
    """Reports changed files in a directory. It may miss changes; the periodic rescan detects those."""

    @property
    def mode(self) -> str:
        """How it watches now, for the status: `native`, `polling (reason)`, `waiting for the directory`."""
        ...

    @property
    def lag(self) -> float:
        """The delay in seconds between the newest of the last reported changes and its report.

        Computed from file times, and limited to the delay that reporting can cause; 0 if the file times tell nothing.
        """
        ...

    @property
    def scanned_at(self) -> float:
        """When it last scanned the directory, whatever it found (the clock's monotonic time)."""
        ...

    def changes(self) -> AsyncGenerator[frozenset[str], None]:
        """Yield sets of names of changed files; an empty set if only `mode` changed.

        The first set is empty and means that the watch has started: the caller must find earlier changes itself, later
        ones are reported. Never ends by itself, even if the directory is removed or replaced.
        """
        ...


class Spool(Protocol):
    """The notes that other processes of this user write to the state directory."""

    async def waiting(self) -> Sequence[tuple[str, Event]]:
        """Return (note, event) for every note, oldest first. Unreadable notes are moved aside and logged."""
        ...

    async def remove(self, note: str) -> None:
        """Remove a note that was handled."""
        ...


class Supervisor(Protocol):
    """systemd, or another supervisor that monitors the agent. Cheap; never raises."""

    @property
    def keep_alive_seconds(self) -> float | None:
        """The interval in seconds for `keep_alive`, None if there is no watchdog."""
        ...

    def ready(self) -> None:
        """Report that the agent watches files and receives requests. Also called after `reloading`."""
        ...

    def reloading(self) -> None:
        """Report that the settings are being reloaded."""
        ...

    def status(self, text: str) -> None:
        """Report the agent's state in one line, for people."""
        ...

    def keep_alive(self) -> None:
        """Reset the watchdog. Without a call for twice `keep_alive_seconds`, the supervisor ends the agent."""
        ...

    def stopping(self) -> None:
        """Report that the agent is stopping."""
        ...
