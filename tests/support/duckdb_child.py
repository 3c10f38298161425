"""A child process that has ended, with given output: for tests of what the parent makes of it."""

import asyncio
from unittest import mock


class EndedChild:
    """Stands for `asyncio.subprocess.Process`."""

    pid = 1
    returncode: int | None = None

    def __init__(self, output: bytes, status: int = 0) -> None:
        self.stdin = mock.Mock(drain=mock.AsyncMock())
        self.stdout = asyncio.StreamReader()
        self.stdout.feed_data(output)
        self.stdout.feed_eof()
        self.status = status

    async def wait(self) -> int:
        return self.status

    def kill(self) -> None:
        self.returncode = self.status
