"""From the bus, which calls, to a loop, which asks: one result after the other, acked when the loop comes back."""

import asyncio
from collections.abc import Collection
from contextlib import suppress

from agent.domain.events import SyncFailed, SyncSkipped, SyncSucceeded
from agent.ports import Message

MOST_REMEMBERED = 10_000
"""Ids of results that the loop is through with: they may come again, and are dropped."""

Result = SyncSucceeded | SyncSkipped | SyncFailed

_Key = tuple[str, str]


class Turn:
    """A result on its way through the loop. `over` is set when the loop has come back for the next."""

    def __init__(self, result: Result) -> None:
        self.result, self.over = result, asyncio.Event()

    @property
    def key(self) -> _Key:
        """An id is its system's own."""
        return self.result.system_id, self.result.id


class Handover:
    """Results of the `wanted` classes, for one loop; everything else is acked at once.

    While the loop has one, the bus hears every `still_here_seconds` that it is at work.
    """

    def __init__(self, wanted: Collection[type[Result]], *, still_here_seconds: float) -> None:
        self._wanted, self._still_here = frozenset(wanted), still_here_seconds
        self._turns: dict[_Key, Turn] = {}
        self._next: asyncio.Queue[Turn] = asyncio.Queue()
        self._done: dict[_Key, None] = {}

    async def handle(self, message: Message) -> None:
        """`agent.ports.Handler`: returns when the loop is through with the result, and that is acked.

        One that comes again while the loop has it (the ack wait went by) is not given to the loop twice.
        """
        event = message.event
        if isinstance(event, SyncSucceeded | SyncSkipped | SyncFailed) and type(event) in self._wanted:
            turn = self._turn(event)
            while not await self._over(turn):
                await message.in_progress()
        await message.ack()

    async def next(self) -> Turn:
        """Return what the loop is to have next, when there is something."""
        return await self._next.get()

    def finish(self, turn: Turn) -> None:
        """The loop has come back. Whether the server hears the ack or not, it is not given this one again."""
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
        """Wait for it, a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._still_here):
                await turn.over.wait()
        return turn.over.is_set()
