"""Who counts."""

from typing import Protocol

from agent.domain.events import SyncResult


class Meter(Protocol):
    """Counts what happens, for whoever watches over the agent. Cheap, callable from any thread; never raises."""

    def outcome(self, result: SyncResult, *, raw_bytes: int = 0) -> None:
        """A request has come to its result. `raw_bytes`: of the files that were sent, before compression."""
        ...

    def retried(self, method: str) -> None:
        """An attempt of a method failed, and another follows."""
        ...

    def snapshot(self, database: str, seconds: float, raw_bytes: int) -> None:
        """A database was copied, hashed and verified in so many seconds."""
        ...


class Unmetered:
    """A Meter for those who do not watch."""

    def outcome(self, result: SyncResult, *, raw_bytes: int = 0) -> None:
        pass

    def retried(self, method: str) -> None:
        pass

    def snapshot(self, database: str, seconds: float, raw_bytes: int) -> None:
        pass
