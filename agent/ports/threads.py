"""Blocking work off the event loop, on threads that nobody has to wait for.

A network mount that has gone away, or a name server, can hold a system call without limit. In the loop's own executor
such a thread would keep the loop, and the process, from ending; a daemon thread of its own does not. Starting one costs
some 50 microseconds.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonExecutor(ThreadPoolExecutor):
    """A loop's default executor (name look-ups, for one) with daemon threads: nobody waits for one that hangs."""

    def __init__(self, name: str) -> None:
        super().__init__(max_workers=1)  # never used: each call has a thread of its own
        self._name = name

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the base class says, on a daemon thread of its own."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
                future.set_exception(error)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future


async def off_loop(work: Callable[[], T], *, name: str = "off-loop") -> T:
    """Return what `work` returns, raise what it raises. Cancelled, it goes on without anybody listening."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type] # None only where T is
        else:
            done.set_exception(error)

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            failure = error
        # A loop that has closed in the meantime has nobody waiting.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
