"""Documents that many requests share: 50 open pages ask for the same at the same moment."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable

MakeDocument = Callable[[], Awaitable[bytes]]


class SharedCalls:
    """Runs a call once for all requests that wait for its result.

    A request never gets a result whose call began before the request: so it is as recent as that of a call of its own.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, asyncio.Task[bytes]] = {}
        """Calls that have not begun. They wait for the running one with the same key."""
        self._running: dict[Hashable, asyncio.Task[bytes]] = {}

    async def result(self, key: Hashable, call: MakeDocument) -> bytes:
        """Return the result of a call. Calls with the same key are the same call. Raises what it raises."""
        task = self._waiting.get(key)
        if task is None:
            task = asyncio.create_task(self._run(key, call), name=f"control-{key}")
            task.add_done_callback(_retrieve)
            self._waiting[key] = task
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Cancel all calls, and wait for their ends."""
        tasks = {*self._waiting.values(), *self._running.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, key: Hashable, call: MakeDocument) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        try:
            if running := self._running.get(key):
                await asyncio.wait({running})
            self._running[key] = self._waiting.pop(key)
            return await call()
        finally:
            for tasks in (self._waiting, self._running):
                if tasks.get(key) is task:
                    del tasks[key]


def _retrieve(task: asyncio.Task[bytes]) -> None:
    """Retrieve the error of a call that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
