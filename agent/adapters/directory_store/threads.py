"""File work off the event loop, on threads that nobody has to wait for.

A network mount that has gone away can hold a system call for ever. In the loop's own executor such a thread would keep
the loop, and the process, from ending; a daemon thread of its own does not. Starting one costs some 50 microseconds.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def off_loop(work: Callable[[], T], *, name: str = "directory-store") -> T:
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
