"""Sync methods, their outcomes, and progress reporters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.domain.databases import Fingerprint
from agent.domain.delivery_state import Problem, Target
from agent.domain.events import SyncRequested, SyncSucceeded
from agent.domain.manifest import Manifest


class Reporter(Protocol):
    """Receives the progress of a sync or another long operation. Cheap; never raises."""

    def phase(self, name: str, total_bytes: int) -> None:
        """Report that a phase (`snapshot`, `upload`) with this number of bytes begins."""
        ...

    def moved(self, count: int) -> None:
        """Report `count` more bytes of the phase as done."""
        ...

    def kept(self, count: int) -> None:
        """Report `count` more bytes of the phase as done before: they are not part of the rate."""
        ...


class NoReporter:
    """A Reporter that does nothing."""

    def phase(self, name: str, total_bytes: int) -> None: ...

    def moved(self, count: int) -> None: ...

    def kept(self, count: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A target has received an upload, or memories: what the ledger must record, and the result to publish.

    `manifest` is None if the method delivers memories instead of uploads.
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
    """Delivers to one target."""

    @property
    def name(self) -> str:
        """The method's name in routes and subjects: cloud, http, or another."""
        ...

    @property
    def target(self) -> Target: ...

    async def is_available(self) -> bool:
        """Return within 1 s whether the target may be reachable. Never raises.

        False only if it certainly is not: a refused connection, no route, a name that does not exist. If that is not
        known in time, return True: the attempt's error says what is wrong.
        """
        ...

    async def sync(self, request: SyncRequested, report: Reporter) -> Delivered | Unchanged:
        """Deliver what the target lacks of the requested databases.

        The method writes the ledger up to and including the intent; the caller records the outcome. Raises SyncError,
        transient or permanent, with a hint. It cleans up when it is cancelled. It never returns a failure as a value.
        """
        ...

    async def aclose(self) -> None:
        """Close connections and end threads. Idempotent."""
        ...
