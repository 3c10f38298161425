"""Hands results from the bus, which pushes, to a loop, which pulls: one at a time, acked when the loop continues."""

import asyncio
from collections.abc import Collection
from contextlib import suppress

from agent.domain.events import SyncFailed, SyncSkipped, SyncSucceeded
from agent.ports import Message

MOST_REMEMBERED = 10_000
"""Number of ids of acked results that are remembered, because the bus may deliver those results again."""

Result = SyncSucceeded | SyncSkipped | SyncFailed

_Key = tuple[str, str]


class Turn:
    """A result handed to the loop. `finished` is set when the loop requests the next one."""

    def __init__(self, result: Result) -> None:
        self.result, self.finished = result, asyncio.Event()

    @property
    def key(self) -> _Key:
        """System id and event id: ids are unique only within a system."""
        return self.result.system_id, self.result.id


class Handover:
    """Passes results of the `wanted` classes to one loop; other events are acked immediately.

    While the loop processes a result, the bus is notified every `progress_interval_seconds` that it is in progress.
    """

    def __init__(self, wanted: Collection[type[Result]], *, progress_interval_seconds: float) -> None:
        self._wanted, self._progress_interval = frozenset(wanted), progress_interval_seconds
        self._turns: dict[_Key, Turn] = {}
        self._next: asyncio.Queue[Turn] = asyncio.Queue()
        self._done: dict[_Key, None] = {}

    async def handle(self, message: Message) -> None:
        """Return when the loop has processed the result and it is acked. An `agent.ports.Handler`.

        A result that is delivered again while the loop processes it (the ack wait has passed) is not passed on twice.
        """
        event = message.event
        if isinstance(event, SyncSucceeded | SyncSkipped | SyncFailed) and type(event) in self._wanted:
            turn = self._turn(event)
            while not await self._is_finished(turn):
                await message.in_progress()
        await message.ack()

    async def next(self) -> Turn:
        """Wait for the next result."""
        return await self._next.get()

    def finish(self, turn: Turn) -> None:
        """Mark the result as processed. It is not passed on again, even if the ack is lost."""
        del self._turns[turn.key]
        self._done[turn.key] = None
        if len(self._done) > MOST_REMEMBERED:
            del self._done[next(iter(self._done))]
        turn.finished.set()

    def _turn(self, result: Result) -> Turn:
        turn = Turn(result)
        if turn.key in self._done:
            turn.finished.set()
            return turn
        if turn.key not in self._turns:
            self._turns[turn.key] = turn
            self._next.put_nowait(turn)
        return self._turns[turn.key]

    async def _is_finished(self, turn: Turn) -> bool:
        """Wait up to `progress_interval_seconds`; return whether the result has been processed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._progress_interval):
                await turn.finished.wait()
        return turn.finished.is_set()
