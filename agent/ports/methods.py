"""Ways to deliver, and reporters of their progress."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.domain.databases import Fingerprint
from agent.domain.delivery_state import Problem, Target
from agent.domain.events import SyncRequested, SyncSucceeded
from agent.domain.manifest import Manifest


class Reporter(Protocol):
    """Receives the progress of a sync. Cheap; never raises."""

    def phase(self, name: str, total_bytes: int) -> None:
        """A phase (`snapshot`, `upload`) begins, in which so many bytes are to move."""
        ...

    def moved(self, count: int) -> None:
        """So many more bytes have moved."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A target has received an upload; what the ledger must remember of it, and the result to tell.

    `manifest` is None where the method makes no uploads: then memories were handed over.
    """

    manifest: Manifest | None
    fingerprints: Mapping[str, Fingerprint]
    problems: Mapping[str, Problem]
    result: SyncSucceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """The target already has everything; `reason` says so for people."""

    reason: str


class SyncMethod(Protocol):
    """A way to deliver to one target."""

    @property
    def name(self) -> str:
        """The method's name on routes and subjects: cloud, http, or another."""
        ...

    @property
    def target(self) -> Target: ...

    async def is_available(self) -> bool:
        """Say within 1 s whether an attempt makes sense. Never raises.

        False only for a definite no: a refused connection, no route, a name that does not exist. What is not known in
        time is True, and the attempt's own error says what is wrong.
        """
        ...

    async def sync(self, request: SyncRequested, report: Reporter) -> Delivered | Unchanged:
        """Deliver what the target lacks of what the request asks for.

        Writes the ledger up to and including the intent; what follows the delivery is the caller's. Raises SyncError,
        transient or permanent, with a hint; cancelled, it cleans up. Never returns a failure as a value.
        """
        ...

    async def aclose(self) -> None:
        """Close connections and end threads. Idempotent."""
        ...
