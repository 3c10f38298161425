"""From the bus, which pushes, to a loop, which pulls: one result after the other, acked when the loop continues."""

import asyncio
from collections.abc import Collection
from contextlib import suppress

from agent.domain.events import SyncFailed, SyncSkipped, SyncSucceeded
from agent.ports import Message

MOST_REMEMBERED = 10_000
"""Ids of results that were acked: they may be delivered again, and are dropped."""

Result = SyncSucceeded | SyncSkipped | SyncFailed

_Key = tuple[str, str]


class Turn:
    """A result in the loop. `over` is set when the loop asks for the next."""

    def __init__(self, result: Result) -> None:
        self.result, self.over = result, asyncio.Event()

    @property
    def key(self) -> _Key:
        """Ids are unique within a system."""
        return self.result.system_id, self.result.id


class Handover:
    """Passes results of the `wanted` classes to one loop; other events are acked at once.

    While the loop has one, the bus is notified every `progress_interval_seconds` that it is in progress.
    """

    def __init__(self, wanted: Collection[type[Result]], *, progress_interval_seconds: float) -> None:
        self._wanted, self._progress_interval = frozenset(wanted), progress_interval_seconds
        self._turns: dict[_Key, Turn] = {}
        self._next: asyncio.Queue[Turn] = asyncio.Queue()
        self._done: dict[_Key, None] = {}

    async def handle(self, message: Message) -> None:
        """`agent.ports.Handler`: returns when the loop has processed the result, and it is acked.

        A result that is delivered again while the loop has it (the ack wait has passed) is not passed on twice.
        """
        event = message.event
        if isinstance(event, SyncSucceeded | SyncSkipped | SyncFailed) and type(event) in self._wanted:
            turn = self._turn(event)
            while not await self._over(turn):
                await message.in_progress()
        await message.ack()

    async def next(self) -> Turn:
        """Return the next result; waits for one."""
        return await self._next.get()

    def finish(self, turn: Turn) -> None:
        """Mark it as processed. It is not passed on again, also if the ack is lost."""
        del self._turns[turn.key]
        self._done[turn.key] = None
        if len(self._done) > MOST_REMEMBERED:
            del self._done[next(iter(self._done))]
        turn.over.set()

    def _turn(self, result: Result) -> Turn:
        turn = Turn(result)
        if turn.key in self._done:
            turn.over.set()
            return turn
        if turn.key not in self._turns:
            self._turns[turn.key] = turn
            self._next.put_nowait(turn)
        return self._turns[turn.key]

    async def _over(self, turn: Turn) -> bool:
        """Wait for it for `progress_interval_seconds`; return whether it is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._progress_interval):
                await turn.over.wait()
        return turn.over.is_set()
