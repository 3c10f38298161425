"""Waiting for a condition that no event announces."""

import asyncio
from collections.abc import Callable

LIMIT_SECONDS = 60


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true. It is checked a hundred times a second. Raises TimeoutError after a minute."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)
