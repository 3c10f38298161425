"""memories.json: the memories of an upload, in the format of Akosha's ingestion: JSON, one entry per line.

A file is written in the staging directory, without a name, so that none is left: a thread encodes, hashes, compresses
and writes about a mebibyte at a time. The compressed bytes depend on the memories alone: the gzip header has neither
name nor time, and each line is compressed by a call of its own. An uncompressed file is read line by line, and every
line is validated, because its writer is not trusted. The embedding is the last field of an entry, with exactly the
digits that were read. `metadata` contains the row's metadata and the fields of its `RowState`.
"""

import asyncio
import hashlib
import json
import os
import re
import tempfile
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

import orjson

from agent.adapters.block_checksums import BLOCK_BYTES, BlockChecksums, ExpectedBlocks
from agent.adapters.disk_errors import FULL
from agent.domain.databases import database_of, main_name
from agent.domain.errors import SnapshotError, StagingFull, StateError, WireError
from agent.domain.memories import EMBEDDING_LENGTH, Memory, RowState, check_kind, memory_id
from agent.domain.upload_parts import Compression
from agent.ports import MemoriesDraft, MemorySource, WrittenMemories

__all__ = ["JsonMemoriesFile"]

T = TypeVar("T")

_OURS = frozenset({"type", "original_id", "database", "digest"})
_EMBEDDING = b',"embedding":'
_DIGEST = re.compile(r"[0-9a-f]{32}")

OPENING = b'{"conversations":['
CLOSING = b"]}"
PIECE_BYTES = 2**20

_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 4
"""Most of the bytes are digits of embeddings: level 6 makes the file 5 % smaller in 2.6 times the CPU time."""

_MOST_WAITING = 500

MAX_LINE_BYTES = 64 * 2**20
PAGE_ROWS = 200
PAGE_BYTES = 4 * 2**20
"""A page ends with the row that exceeds this size, so that memory is bounded by a page and a line."""


def encode(memory: Memory, system_id: str) -> bytes:
    """Return the memory as a line without newline. Raises SnapshotError if it cannot be represented in JSON."""
    row = memory.row
    ours = {"type": row.kind, "original_id": row.id, "database": row.database, "digest": row.digest}
    entry = {
        "id": memory_id(system_id, row),
        "content": memory.text,
        **({"timestamp": memory.created_at} if memory.created_at is not None else {}),
        "source": system_id,
        "metadata": {**memory.metadata, **ours},
    }
    try:
        if reserved := _OURS & memory.metadata.keys():
            raise ValueError(f"its metadata has reserved keys: {', '.join(sorted(reserved))}")
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if memory.embedding is not None:
            line = line[:-1] + _EMBEDDING + memory.embedding.replace("\n", " ").encode("ascii") + b"}"
    except (ValueError, TypeError, RecursionError) as error:
        raise SnapshotError(f"{row.database}: the {row.kind} {row.id} cannot be written: {error}") from error
    return line


def decode(line: bytes, system_id: str) -> Memory:
    """Return the memory in a line. Raises WireError if it is invalid."""
    head, embedding = _split(line)
    try:
        entry = orjson.loads(head)  # strict: no NaN, no lone surrogates
    except ValueError as error:
        raise WireError(f"it is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise WireError("it is not an object")
    if "embedding" in entry:
        raise WireError("its embedding is not an array at the end of the entry")
    metadata = dict(_field(entry, "metadata", dict))
    row = RowState(
        database=_database(metadata),
        kind=check_kind(_field(metadata, "type", str)),
        id=_field(metadata, "original_id", str),
        digest=_digest(metadata),
        embedded=embedding is not None,
    )
    if _field(entry, "id", str) != memory_id(system_id, row):
        raise WireError(f"id {entry['id'][:200]!r} is not that of {row.kind} {row.id[:100]!r} of {system_id}")
    if _field(entry, "source", str) != system_id:
        raise WireError(f"source {entry['source'][:200]!r} is not {system_id}")
    return Memory(
        row=row,
        text=_field(entry, "content", str),
        embedding=embedding,
        created_at=_time(entry),
        metadata={name: value for name, value in metadata.items() if name not in _OURS},
    )


def _split(line: bytes) -> tuple[bytes, str | None]:
    """Return the entry without its embedding, and the text of the embedding, None if it has none."""
    before, separator, rest = line.rpartition(_EMBEDDING)
    # An entry without an embedding ends with its metadata, so with two braces and not with "]}".
    if not separator or not (rest.startswith(b"[") and rest.endswith(b"]}")):
        return line, None
    embedding = rest[:-1]
    try:
        numbers = orjson.loads(embedding)  # strict: all of them finite
    except ValueError as error:
        raise WireError(f"its embedding is not JSON: {error}") from error
    if len(numbers) != EMBEDDING_LENGTH or not {*map(type, numbers)} <= {int, float}:
        raise WireError(f"its embedding is not {EMBEDDING_LENGTH} numbers")
    return before + b"}", embedding.decode()


def _field(document: Mapping[str, object], name: str, kind: type[T]) -> T:
    value = document.get(name)
    if not isinstance(value, kind) or value == "":
        raise WireError(f"its {name} is missing, empty or not {kind.__name__}")
    return value


def _database(metadata: Mapping[str, object]) -> str:
    database = _field(metadata, "database", str)
    if database_of(main_name(database)) != database:
        raise WireError(f"{database[:200]!r} is not the name of a database")
    return database


def _digest(metadata: Mapping[str, object]) -> str:
    digest = _field(metadata, "digest", str)
    if not _DIGEST.fullmatch(digest):
        raise WireError(f"{digest[:200]!r} is not a digest")
    return digest


def _time(entry: Mapping[str, object]) -> str | None:
    if "timestamp" not in entry:
        return None
    text = _field(entry, "timestamp", str)
    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            return text
    except ValueError:
        pass
    raise WireError(f"{text[:100]!r} is not a time with an offset")


class Draft:
    """A memories.json that is being written, in a new file without a name on the disk of `folder`."""

    def __init__(
        self, folder: Path, system_id: str, compression: Compression, make_room: Callable[[], bool] | None = None
    ) -> None:
        self._folder, self._system_id, self._compression = folder, system_id, compression
        self._make_room = make_room
        self._deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP) if compression == "gzip" else None
        self._waiting: list[Memory] = []
        self._waiting_size = 0
        # The thread of a cancelled call goes on; the next call waits for it here.
        self._lock = threading.Lock()
        self._file = -1
        self._discarded = False
        self._digest = hashlib.sha256()
        self._stored_blocks = BlockChecksums()
        self._raw_size = self._stored_size = self._count = 0

    async def begin(self) -> None:
        """Create the file."""
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
        return WrittenMemories(
            raw_size=self._raw_size,
            stored_size=self._stored_size,
            sha256=self._digest.hexdigest(),
            compression=self._compression,
            count=self._count,
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        expected = ExpectedBlocks("memories.json", self._stored_blocks.result())
        for offset in range(0, self._stored_size, BLOCK_BYTES):
            yield await asyncio.to_thread(self._read, offset, expected)

    async def discard(self) -> None:
        """Close the file, if it was created; its space is free then."""
        await asyncio.shield(asyncio.to_thread(self._discard))

    def _begin(self) -> None:
        with self._lock:
            if self._discarded:
                return
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                    self._file = os.dup(file.fileno())
            except OSError as error:
                raise self._translated(error) from error
            self._write(OPENING)

    def _append(self, memories: Sequence[Memory]) -> None:
        with self._lock:
            for memory in memories:
                line = encode(memory, self._system_id)
                self._write((b",\n" if self._count else b"\n") + line)
                self._count += 1

    def _finish(self) -> None:
        with self._lock:
            self._write(b"\n" + CLOSING + b"\n")
            if self._deflater is not None:
                self._store(self._deflater.flush())

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._raw_size += len(data)
        self._store(data if self._deflater is None else self._deflater.compress(data))

    def _store(self, data: bytes) -> None:
        self._stored_size += len(data)
        self._stored_blocks.update(memoryview(data))
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._file, rest) :]
            except OSError as error:
                if error.errno in FULL and self._make_room is not None and self._make_room():
                    continue
                raise self._translated(error) from error

    def _read(self, offset: int, expected: ExpectedBlocks) -> bytes:
        try:
            with self._lock:
                block = os.pread(self._file, BLOCK_BYTES, offset)
        except OSError as error:
            raise StateError(
                f"the staged memories cannot be read: {error.strerror}", hint=f"check {self._folder}", transient=True
            ) from error
        if not block:
            raise StateError("the staged memories became shorter", hint=f"check {self._folder}", transient=True)
        expected.check(offset, BlockChecksums(block))
        return block

    def _discard(self) -> None:
        with self._lock:
            self._discarded = True
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _translated(self, error: OSError) -> SnapshotError:
        reason, folder = error.strerror or type(error).__name__, self._folder
        if error.errno in FULL:
            return StagingFull(
                f"no room for the memories: {reason}",
                hint=f"free disk space for {folder}, or set akosha_agent_state_dir to a directory on a larger disk",
                transient=True,
            )
        return SnapshotError(f"the memories cannot be written: {reason}", hint=f"check {folder}", transient=True)


class FileSource:
    """The memories in one file of one system. Holds the complete memories of the last page."""

    def __init__(self, path: Path, system_id: str) -> None:
        self._path, self._system_id = path, system_id
        self._page: dict[RowState, Memory] = {}

    async def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        """Yield the rows in pages. Raises WireError if the file is invalid, SnapshotError if it cannot be read."""
        reading = _Reading(self._path, self._system_id)
        while not reading.ended:
            self._page = {}
            self._page = await asyncio.to_thread(reading.next_page)
            if self._page:
                yield list(self._page)

    async def read(self, wanted: Sequence[RowState]) -> AsyncGenerator[Memory, None]:
        """Yield these memories of the last page."""
        page = self._page
        for row in wanted:
            yield page[row]


class _Reading:
    """Reads a file page by page. Blocks."""

    def __init__(self, path: Path, system_id: str) -> None:
        self._path, self._system_id = path, system_id
        self._offset = self._line = 0
        self._entry_must_follow = self._entry_must_not_follow = False
        self.ended = False

    def next_page(self) -> dict[RowState, Memory]:
        """Return the next rows; none once the file has `ended`."""
        page: dict[RowState, Memory] = {}
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                if not self._line and self._next(file) != OPENING:
                    raise self._error(f"it is not {OPENING.decode()}")
                start = file.tell()
                while not self.ended and len(page) < PAGE_ROWS and file.tell() - start < PAGE_BYTES:
                    line = self._next(file)
                    if line == CLOSING:
                        self._end(file)
                    else:
                        memory = self._memory(line)
                        page[memory.row] = memory
                self._offset = file.tell()
        except OSError as error:
            raise SnapshotError(f"{self._path.name} cannot be read: {os.strerror(error.errno or 0)}") from error
        return page

    def _next(self, file: BinaryIO) -> bytes:
        line = file.readline(MAX_LINE_BYTES + 1)
        self._line += 1
        if len(line) > MAX_LINE_BYTES:
            raise self._error(f"it has more than {MAX_LINE_BYTES:,} bytes")
        if not line.endswith(b"\n"):
            raise self._error("it is incomplete")
        return line[:-1]

    def _memory(self, line: bytes) -> Memory:
        if self._entry_must_not_follow:
            raise self._error("there is no comma before it")
        self._entry_must_follow = line.endswith(b",")
        self._entry_must_not_follow = not self._entry_must_follow
        try:
            return decode(line.removesuffix(b","), self._system_id)
        except WireError as error:
            raise self._error(error.message) from error

    def _end(self, file: BinaryIO) -> None:
        if self._entry_must_follow:
            raise self._error("there is a comma before it")
        if file.read(1):
            raise self._error("it is not the last line")
        self.ended = True

    def _error(self, problem: str) -> WireError:
        return WireError(f"memories.json, line {self._line}: {problem}")


class JsonMemoriesFile:
    """Writes drafts of memories.json on the disk of `staging_dir`, and reads uncompressed memories.json files.

    `make_room` is called, in a thread, if that disk is full; it returns whether it has freed space.
    """

    def __init__(
        self, staging_dir: Path, compression: Compression = "gzip", make_room: Callable[[], bool] | None = None
    ) -> None:
        self._staging_dir, self._compression, self._make_room = staging_dir, compression, make_room

    @asynccontextmanager
    async def write(self, system_id: str) -> AsyncIterator[MemoriesDraft]:
        draft = Draft(self._staging_dir, system_id, self._compression, self._make_room)
        try:
            await draft.begin()
            yield draft
        finally:
            await draft.discard()

    def open(self, path: Path, system_id: str) -> MemorySource:
        return FileSource(path, system_id)
