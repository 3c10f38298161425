"""Passes results that the bus delivers to a loop that requests them one at a time.

A result is acked when the loop requests the next one.
"""

import asyncio
from collections.abc import Collection

from agent.domain.events import Event, SyncFailed, SyncSkipped, SyncSucceeded

MOST_REMEMBERED = 10_000
"""Number of IDs of processed results that are remembered, because the bus may deliver those results again."""

Result = SyncSucceeded | SyncSkipped | SyncFailed

_Key = tuple[str, str]


class PendingResult:
    """A result passed to the loop. `finished` is set when the loop requests the next one."""

    def __init__(self, result: Result) -> None:
        self.result, self.finished = result, asyncio.Event()

    @property
    def key(self) -> _Key:
        """System ID and event ID: IDs are unique only within a system."""
        return self.result.system_id, self.result.id


class Handover:
    """Passes results of the `wanted` classes to one loop, each once; ignores other events."""

    def __init__(self, wanted: Collection[type[Result]]) -> None:
        self._wanted = frozenset(wanted)
        self._pending: dict[_Key, PendingResult] = {}
        self._next: asyncio.Queue[PendingResult] = asyncio.Queue()
        self._done: dict[_Key, None] = {}

    async def handle(self, event: Event) -> None:
        """Return when the loop has processed the result. An `agent.ports.Handler`."""
        if isinstance(event, SyncSucceeded | SyncSkipped | SyncFailed) and type(event) in self._wanted:
            await self._pending_result(event).finished.wait()

    async def next(self) -> PendingResult:
        """Wait for the next result."""
        return await self._next.get()

    def finish(self, pending: PendingResult) -> None:
        """Mark the result as processed. It is not passed on again, even if the ack is lost."""
        del self._pending[pending.key]
        self._done[pending.key] = None
        if len(self._done) > MOST_REMEMBERED:
            del self._done[next(iter(self._done))]
        pending.finished.set()

    def _pending_result(self, result: Result) -> PendingResult:
        """Return the result if it is being processed or was processed; otherwise pass it to the loop."""
        pending = PendingResult(result)
        if pending.key in self._done:
            pending.finished.set()
            return pending
        if pending.key not in self._pending:
            self._pending[pending.key] = pending
            self._next.put_nowait(pending)
        return self._pending[pending.key]
