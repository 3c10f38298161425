"""A FaultyProxy or a Link on a separate thread and event loop, for tests that run processes and block."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import TypeVar

from aiohttp import web

from tests.support.servers.faulty_proxy import Action, FaultyProxy, Forward
from tests.support.servers.link import Link

TIMEOUT = 180.0

T = TypeVar("T")


def running_faulty_proxy(upstream: str) -> AbstractContextManager[FaultyProxy]:
    """Run a FaultyProxy; its `seen`, `on` and `clear` may be used from any thread."""
    return running(FaultyProxy(upstream))


def running_link(port: int) -> AbstractContextManager[Link]:
    """Run a Link; its methods, except `open` and `close`, may be used from any thread."""
    return running(Link(port))


@contextmanager
def running(context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter a context on a separate thread and event loop, and yield what it yields."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()

    def run(work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(TIMEOUT)

    try:
        entered = run(context.__aenter__())
        try:
            yield entered
        finally:
            run(context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT)
        loop.close()


class Gate:
    """Blocks requests on their arrival until the gate is opened; other requests pass."""

    def __init__(self) -> None:
        self._arrived, self._open = threading.Event(), threading.Event()

    def hold(self) -> Action:
        async def action(_request: web.Request, forward: Forward) -> web.StreamResponse:
            self._arrived.set()
            await asyncio.to_thread(self._open.wait, TIMEOUT)
            return await forward()

        return action

    def wait(self) -> None:
        """Wait until a request has arrived."""
        assert self._arrived.wait(TIMEOUT)

    def open(self) -> None:
        self._open.set()
