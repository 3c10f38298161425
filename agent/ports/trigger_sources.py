"""Where triggers come from."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from agent.domain.events import Event


class Watch(Protocol):
    """Tells that files in a directory changed. May miss some; the periodic pass is there for those."""

    @property
    def mode(self) -> str:
        """How it watches now, for the status: `native`, `polling (why)`, `waiting for the directory`."""
        ...

    @property
    def lag(self) -> float:
        """How many seconds ago the newest of the changes told last was made, for telling takes its time.

        As far as file times say so, and no more than the telling can have taken: 0 where they say nothing.
        """
        ...

    @property
    def looked(self) -> float:
        """When it last looked at the directory itself, whatever it saw (the clock's monotonic time)."""
        ...

    def changes(self) -> AsyncGenerator[frozenset[str], None]:
        """Yield sets of names of files that changed; an empty one where only `mode` did.

        The very first is empty, and says that the watch has begun: what changed before it was told is for the reader to
        see for itself, what changes from then on is told. Never ends by itself; survives what happens to the directory.
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
