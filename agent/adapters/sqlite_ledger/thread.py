"""Work on the ledger's thread, done to its end whoever stops waiting for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger()


async def finished(thread: Executor, work: Callable[[], T], *, discard: Callable[[T], None] | None = None) -> T:
    """Do the work on the thread to its end, also where the caller is cancelled: then it is awaited, and not told.

    What it returned in vain goes to `discard`, on the same thread; what it raised in vain is logged.
    """
    future = asyncio.get_running_loop().run_in_executor(thread, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:

        def look(done: "asyncio.Future[T]") -> None:
            error = done.exception()
            if error is not None:
                _log.error("ledger_failed_unheard", error=str(error))
            elif discard is not None:
                thread.submit(discard, done.result())

        future.add_done_callback(look)
        await asyncio.wait([future])
        raise
