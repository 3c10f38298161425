"""A cancellation is never lost in nats-py.

It swallows some itself, and asyncio.wait_for, on which it builds, swallows one that meets the answer (before Python
3.12). Whoever is then not cancelled goes on for ever, and so does whoever waits for its end.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_cancellable() -> Iterator[None]:
    """Raise CancelledError at the end of the block if the task was told to end within it, however the block ended."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except Exception as error:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
