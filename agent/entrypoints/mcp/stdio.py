"""Standard input and output as the protocol's two streams: a JSON-RPC message a line.

They are read and written by threads of their own, which nobody waits for: a client that keeps its end open, or does not
read, can neither hold up the loop nor keep the process from ending.
"""

import asyncio
import fcntl
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from agent.entrypoints.mcp.sdk import SessionMessage, ValidationError, decoded, encoded

STDIN, STDOUT, STDERR = 0, 1, 2
AT_ONCE = 65_536
LAST_WORD_SECONDS = 1.0

_log = structlog.get_logger()

T = TypeVar("T")
Heard = MemoryObjectReceiveStream[SessionMessage | Exception]
Said = MemoryObjectSendStream[SessionMessage]


@dataclass(frozen=True, slots=True)
class Wire:
    """The descriptors that the client is at the other end of."""

    incoming: int
    outgoing: int


def claim() -> Wire:
    """Take standard input and output for the protocol alone.

    From now on whatever else reads the one finds its end, and whatever else is printed goes to standard error; child
    processes inherit neither.
    """
    wire = Wire(_moved(STDIN), _moved(STDOUT))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, STDIN)
    os.close(nothing)
    os.dup2(STDERR, STDOUT)
    return wire


@asynccontextmanager
async def streams(wire: Wire) -> AsyncIterator[tuple[Heard, Said]]:
    """Yield what the client says, which ends when it goes, and what it is told."""
    heard_here, heard = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    said, said_here = anyio.create_memory_object_stream[SessionMessage](0)
    hearing = asyncio.create_task(_hear(wire.incoming, heard_here), name="stdin")
    saying = asyncio.create_task(_say(wire.outgoing, said_here), name="stdout")
    try:
        yield heard, said
    finally:
        said.close()
        await asyncio.wait({saying}, timeout=LAST_WORD_SECONDS)  # who has closed the one end may read the other yet
        hearing.cancel()
        saying.cancel()
        await asyncio.wait({hearing, saying})
        for end in (heard_here, heard, said_here):
            end.close()
    for task in (hearing, saying):
        if not task.cancelled():
            task.result()


async def _hear(descriptor: int, heard: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    more = threading.Semaphore(1)

    def read() -> None:
        for line in _lines(descriptor):
            more.acquire()  # one line at a time: who sends faster than is understood waits
            if not _put(loop, lines.put_nowait, line):
                return
        _put(loop, lines.put_nowait, None)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    async with heard:
        with suppress(anyio.BrokenResourceError):  # nobody listens any more
            while (line := await lines.get()) is not None:
                more.release()
                try:
                    item: SessionMessage | Exception = decoded(line)
                except ValidationError as error:
                    _log.warning("not_understood", bytes=len(line))
                    item = error
                await heard.send(item)


async def _say(descriptor: int, said: MemoryObjectReceiveStream[SessionMessage]) -> None:
    loop = asyncio.get_running_loop()
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    written: asyncio.Queue[OSError | None] = asyncio.Queue()

    def write() -> None:
        while True:
            try:
                _write(descriptor, waiting.get())
                failed = None
            except OSError as error:
                failed = error
            if not _put(loop, written.put_nowait, failed):
                return

    threading.Thread(target=write, name="stdout", daemon=True).start()
    async with said:
        async for message in said:
            waiting.put(encoded(message))
            if error := await written.get():
                _log.info("client_gone", error=str(error))
                return


def _put(loop: asyncio.AbstractEventLoop, put: Callable[[T], None], what: T) -> bool:
    """Put something from a thread into a queue of the loop; False where that has ended."""
    try:
        loop.call_soon_threadsafe(put, what)
    except RuntimeError:
        return False
    return True


def _lines(descriptor: int) -> Iterator[bytes]:
    """Yield lines until the other end closes; a last one without its end was cut off, and is none."""
    rest = b""
    while chunk := _read(descriptor):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from filter(bytes.strip, whole)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, AT_ONCE)
    except OSError:  # a terminal that has gone says so like this
        return b""


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _moved(descriptor: int) -> int:
    """Return a copy that no child process inherits, out of the range of the standard ones."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
