"""A FaultyProxy on a separate thread and event loop, for tests that run processes and block."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

from aiohttp import web

from tests.support.servers.faulty_proxy import Action, FaultyProxy, Forward

TIMEOUT = 180.0


@contextmanager
def running_faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a FaultyProxy; its `seen` and `on` may be used from any thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="front")
    thread.start()

    def run(work: Coroutine[None, None, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(TIMEOUT)

    proxy = FaultyProxy(upstream)
    try:
        run(proxy.__aenter__())
        try:
            yield proxy
        finally:
            run(proxy.__aexit__())
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
