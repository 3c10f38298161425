"""Waiting for a condition that no event announces."""

import asyncio
import time
from collections.abc import Callable

LIMIT_SECONDS = 60


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true. It is checked a hundred times a second. Raises TimeoutError after a minute."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait as `until` does, in a test without an event loop."""
    if not happens(condition, LIMIT_SECONDS):
        raise TimeoutError


def happens(condition: Callable[[], object], seconds: float) -> bool:
    """Return whether the condition becomes true within `seconds`. It is checked a hundred times a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
