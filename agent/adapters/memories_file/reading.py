"""A memories.json as a source of memories: line by line, each validated; whoever wrote it need not be trusted."""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import BinaryIO

from agent.adapters.memories_file.entry import decode
from agent.adapters.memories_file.writing import CLOSING, OPENING
from agent.domain.errors import SnapshotError, WireError
from agent.domain.memories import Memory, Seen

MAX_LINE_BYTES = 64 * 2**20
PAGE_ROWS = 200
PAGE_BYTES = 4 * 2**20
"""A page ends with the row that goes beyond this: memory holds a page and a line, not a file."""


class FileSource:
    """The memories in one file of one system. A page is read whole: what is asked for of it is there already."""

    def __init__(self, path: Path, system_id: str) -> None:
        self._path, self._system_id = path, system_id
        self._page: dict[Seen, Memory] = {}

    async def pages(self) -> AsyncGenerator[Sequence[Seen], None]:
        """Yield the rows in pages. Raises WireError for what is no memories.json, SnapshotError where it is gone."""
        reading = _Reading(self._path, self._system_id)
        while not reading.ended:
            self._page = {}
            self._page = await asyncio.to_thread(reading.next_page)
            if self._page:
                yield list(self._page)

    async def read(self, wanted: Sequence[Seen]) -> AsyncGenerator[Memory, None]:
        """Yield these memories of the page yielded last."""
        page = self._page
        for seen in wanted:
            yield page[seen]


class _Reading:
    """How far a file was read. Blocks."""

    def __init__(self, path: Path, system_id: str) -> None:
        self._path, self._system_id = path, system_id
        self._offset = self._line = 0
        self._another_must_follow = self._none_may_follow = False
        self.ended = False

    def next_page(self) -> dict[Seen, Memory]:
        """Return the next rows; none where the file has `ended`."""
        page: dict[Seen, Memory] = {}
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                if not self._line and self._next(file) != OPENING:
                    raise self._wrong(f"it is not {OPENING.decode()}")
                begun = file.tell()
                while not self.ended and len(page) < PAGE_ROWS and file.tell() - begun < PAGE_BYTES:
                    line = self._next(file)
                    if line == CLOSING:
                        self._end(file)
                    else:
                        memory = self._memory(line)
                        page[memory.seen] = memory
                self._offset = file.tell()
        except OSError as error:
            raise SnapshotError(f"{self._path.name} cannot be read: {os.strerror(error.errno or 0)}") from error
        return page

    def _next(self, file: BinaryIO) -> bytes:
        line = file.readline(MAX_LINE_BYTES + 1)
        self._line += 1
        if len(line) > MAX_LINE_BYTES:
            raise self._wrong(f"it has more than {MAX_LINE_BYTES:,} bytes")
        if not line.endswith(b"\n"):
            raise self._wrong("it is cut short")
        return line[:-1]

    def _memory(self, line: bytes) -> Memory:
        if self._none_may_follow:
            raise self._wrong("there is no comma before it")
        self._another_must_follow = line.endswith(b",")
        self._none_may_follow = not self._another_must_follow
        try:
            return decode(line.removesuffix(b","), self._system_id)
        except WireError as error:
            raise self._wrong(error.message) from error

    def _end(self, file: BinaryIO) -> None:
        if self._another_must_follow:
            raise self._wrong("there is a comma before it")
        if file.read(1):
            raise self._wrong("it is not the last")
        self.ended = True

    def _wrong(self, what: str) -> WireError:
        return WireError(f"memories.json, line {self._line}: {what}")
