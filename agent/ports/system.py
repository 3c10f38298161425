"""The system that the agent runs on: time, files that change, notes of other processes, and the supervisor."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Protocol

from agent.domain.events import Event


class Clock(Protocol):
    """The only source of time. Limits on an operation (`asyncio.timeout`) run on the loop's own monotonic clock."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC. It may jump either way."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds; at once where they are not positive."""
        ...


class Watch(Protocol):
    """Tells that files in a directory changed. May miss some; the periodic pass is there for those."""

    @property
    def mode(self) -> str:
        """How it watches now, for the status: `native`, `polling (why)`, `waiting for the directory`."""
        ...

    @property
    def lag(self) -> float:
        """How many seconds ago the newest of the changes reported last was made: reporting takes time.

        As far as file times say so, and no more than the telling can have taken: 0 where they say nothing.
        """
        ...

    @property
    def scanned_at(self) -> float:
        """When it last looked at the directory itself, whatever it saw (the clock's monotonic time)."""
        ...

    def changes(self) -> AsyncGenerator[frozenset[str], None]:
        """Yield sets of names of files that changed; an empty one where only `mode` did.

        The very first is empty, and says that the watch has begun: what changed before it is for the reader to
        find, what changes from then on is reported. Never ends by itself; survives what happens to the directory.
        """
        ...


class Spool(Protocol):
    """Notes that other processes of this user leave in the state directory."""

    async def waiting(self) -> Sequence[tuple[str, Event]]:
        """Return (note, event) for every note, oldest first. One that cannot be read is set aside and logged."""
        ...

    async def remove(self, note: str) -> None:
        """The note has been taken up."""
        ...


class Supervisor(Protocol):
    """systemd, or another supervisor that wants to know the state of the agent. Cheap; never raises."""

    @property
    def watchdog_seconds(self) -> float | None:
        """How often, in seconds, it wants a sign of life; None: never."""
        ...

    def ready(self) -> None:
        """The agent works: it watches, and hears requests. Also said after `reloading`."""
        ...

    def reloading(self) -> None:
        """The settings are being read again."""
        ...

    def status(self, text: str) -> None:
        """How it is, in one line, for people."""
        ...

    def keep_alive(self) -> None:
        """A sign of life. When it stays out for twice `watchdog_seconds`, the supervisor ends the agent."""
        ...

    def stopping(self) -> None:
        """The agent is coming to its end."""
        ...
