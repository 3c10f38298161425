"""Question and answer between a child and its parent: the parent's side."""

import asyncio
from asyncio.subprocess import Process
from contextlib import suppress
from typing import NoReturn

import orjson

from agent.adapters.duckdb import warm_child
from agent.adapters.duckdb.frames import BEAT, HEAD_BYTES, length_of
from agent.domain.memories import Json

STALL_SECONDS = 60.0
"""How long a child may be silent while it owes an answer: it tells of progress every second."""

_SLICES = 6
"""In so many parts the silence is counted: where this process itself was stopped, or slept, that is one part."""

_GOING_SECONDS = 5.0


class Unreadable(Exception):  # noqa: N818 - an answer, in the engine's words
    """The engine is well, and cannot do it: its own words, without paths."""


class Unanswered(Exception):  # noqa: N818 - a turn of events; what it means is the asker's to say
    """There was no answer. `crashed`: the engine came down by itself, and the text is the signal's name."""

    def __init__(self, what: str, *, crashed: bool = False) -> None:
        super().__init__(what)
        self.what, self.crashed = what, crashed


class Exchange:
    """Question and answer, in lock-step. After one that was not carried through, nothing more is asked."""

    def __init__(self, child: Process, timeout_seconds: float, stall_seconds: float = STALL_SECONDS) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._questions = child.stdin
        self._answers = child.stdout
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds
        self._sound = True

    async def ask(self, command: bytes, name: str) -> Json:
        """Ask, and return what the answer holds under `name`. Raises Unreadable, Unanswered."""
        if not self._sound:
            raise Unanswered("was broken off before")
        self._questions.write(command + b"\n")
        self._sound = False
        try:
            async with asyncio.timeout(self._timeout_seconds):
                with suppress(ConnectionError):  # it has ended: what it said before is still to be read
                    await self._questions.drain()
                while (head := await self._head()) == BEAT:
                    pass
                document = orjson.loads(await self._answers.readexactly(length_of(head)))
        except TimeoutError as error:
            raise Unanswered(f"was not done after {self._timeout_seconds:g} s") from error
        except asyncio.IncompleteReadError as error:
            await self._died(error)
        if "error" in document:
            raise Unreadable(document["error"])
        self._sound = True
        found: Json = document[name]
        return found

    async def _head(self) -> bytes:
        """Return the next frame's head. Raises Unanswered where none comes for `stall_seconds`."""
        for _ in range(_SLICES):
            try:
                # Cancelled, it leaves what has come in the buffer.
                async with asyncio.timeout(self._stall_seconds / _SLICES):
                    return await self._answers.readexactly(HEAD_BYTES)
            except TimeoutError:
                continue
        raise Unanswered(f"made no progress for {self._stall_seconds:g} s")

    async def _died(self, error: Exception) -> NoReturn:
        """Tell how it ended."""
        try:
            async with asyncio.timeout(_GOING_SECONDS):
                status = await self._child.wait()
        except TimeoutError:
            status = 0  # it shut its mouth and went on: `open` ends it
        if ended := warm_child.signal_of(status):
            name, from_outside = ended
            raise Unanswered(f"was killed ({name})" if from_outside else name, crashed=not from_outside) from error
        raise Unanswered(f"ended early (exit status {status})") from error
