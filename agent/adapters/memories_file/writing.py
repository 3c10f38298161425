"""A memories.json in the making: encoded, hashed and written in steps of about a mebibyte, on a thread."""

import asyncio
import errno
import hashlib
import os
import threading
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import structlog

from agent.adapters.memories_file.entry import encode
from agent.domain.errors import SnapshotError, StagingFull, StateError
from agent.domain.memories import Memory
from agent.ports import WrittenMemories

OPENING = b'{"conversations":['
CLOSING = b"]}"
PIECE_BYTES = 2**20

_log = structlog.get_logger()

_MOST_WAITING = 500
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Draft:
    """The port, in one file of its own in `folder`."""

    def __init__(self, folder: Path, system_id: str) -> None:
        self._path = folder / f"memories-{uuid.uuid4().hex}.json"
        self._system_id = system_id
        self._waiting: list[Memory] = []
        self._waiting_size = 0
        # A cancelled caller leaves its thread behind: whoever comes next waits for it here.
        self._guard = threading.Lock()
        self._file = -1
        self._discarded = False
        self._digest = hashlib.sha256()
        self._size = self._count = 0

    async def begin(self) -> None:
        """Make the file."""
        await asyncio.to_thread(self._begin)

    async def add(self, memory: Memory) -> None:
        self._waiting.append(memory)
        self._waiting_size += len(memory.text) + len(memory.embedding or "")
        if self._waiting_size >= PIECE_BYTES or len(self._waiting) >= _MOST_WAITING:
            await self.flush()

    async def flush(self) -> None:
        waiting, self._waiting, self._waiting_size = self._waiting, [], 0
        if waiting:
            await asyncio.to_thread(self._append, waiting)

    async def finish(self) -> WrittenMemories:
        await self.flush()
        await asyncio.to_thread(self._finish)
        return WrittenMemories(size=self._size, sha256=self._digest.hexdigest(), count=self._count)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        offset = 0
        while offset < self._size:
            piece = await asyncio.to_thread(self._read, offset)
            offset += len(piece)
            yield piece

    async def discard(self) -> None:
        """Close and remove the file, also where it was never begun."""
        await asyncio.shield(asyncio.to_thread(self._discard))

    def _begin(self) -> None:
        with self._guard:
            if self._discarded:
                return
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = os.open(self._path, _CREATE, 0o600)
            except OSError as error:
                raise self._translated(error) from error
            self._write(OPENING)

    def _append(self, memories: Sequence[Memory]) -> None:
        with self._guard:
            for memory in memories:
                line = encode(memory, self._system_id)
                self._write((b",\n" if self._count else b"\n") + line)
                self._count += 1

    def _finish(self) -> None:
        with self._guard:
            self._write(b"\n" + CLOSING + b"\n")

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise self._translated(error) from error
        self._digest.update(data)
        self._size += len(data)

    def _read(self, offset: int) -> bytes:
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(offset)
                piece = file.read(PIECE_BYTES)
        except OSError as error:
            raise StateError(
                f"the staged memories cannot be read: {error.strerror}",
                hint=f"look at {self._path.parent}",
                transient=True,
            ) from error
        if not piece:
            raise StateError("the staged memories became shorter while they were read", transient=True)
        return piece

    def _discard(self) -> None:
        with self._guard:
            self._discarded = True
            if self._file < 0:
                return
            os.close(self._file)
            self._file = -1
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:  # the next sweep of the staging directory takes it
                _log.warning("staging_not_removed", path=str(self._path), why=error.strerror)

    def _translated(self, error: OSError) -> SnapshotError:
        reason, folder = error.strerror or type(error).__name__, self._path.parent
        if error.errno in _FULL:
            return StagingFull(
                f"no room for the memories: {reason}",
                hint=f"free some space for {folder}, or let akosha_agent_state_dir name a directory on a bigger disk",
                transient=True,
            )
        return SnapshotError(f"the memories cannot be written: {reason}", hint=f"look at {folder}", transient=True)
