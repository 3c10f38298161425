"""Reads the events of all systems that a bus stores, for programs that watch a fleet."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from agent.domain.events import Event
from agent.ports.bus import Handler


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEntry:
    """A stored message: its subject, its position, and when the server stored it.

    `event` is None if the message is not a valid event of its subject; `problem` is then the reason.
    """

    subject: str
    sequence: int
    stored_at: datetime
    event: Event | None
    problem: str = ""


class EventReader(Protocol):
    """Reads stored events without a consumer, and changes nothing on the server. Every failure is a BusError."""

    @property
    def location(self) -> str:
        """The servers' addresses, without secrets."""
        ...

    async def subjects(self, pattern: str) -> Mapping[str, int]:
        """Return the subjects that match `pattern` and have stored messages, with the number of messages."""
        ...

    async def newest(self, subjects: Collection[str]) -> Mapping[str, StreamEntry]:
        """Return the newest message of each of these subjects. A subject without a message is left out.

        So is one whose message the client library cannot read.
        """
        ...

    async def first_after(self, subject: str, sequence: int) -> tuple[StreamEntry, int] | None:
        """Return the first message of a subject after a position, and the number of messages from it on; else None."""
        ...

    async def follow(self, patterns: Collection[str], handler: Handler, reconnected: Callable[[], None]) -> None:
        """Pass new events whose subject matches one of the patterns to `handler` until the reader is closed.

        `reconnected` is called when events may have been missed: read the stored ones again. It must be cheap.
        """
        ...

    @property
    def problem(self) -> str:
        """The reason why `follow` delivers no events now, else ""."""
        ...

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        ...
