"""In-memory sources of memories, in place of copies of databases."""

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import tzinfo
from itertools import islice
from pathlib import Path

from agent.adapters import row_set_file
from agent.domain.errors import AkoshaError, SnapshotError
from agent.domain.memories import EMBEDDING_LENGTH, Kind, Memory, RowState
from agent.ports import RowDifference


def write_row_set(file: Path, rows: Iterable[RowState]) -> Path:
    """Write a row set in which the hash of a row is its digest, and 3 rows are a chunk; return the file."""
    hashes = [bytes.fromhex(row.digest) for row in rows]
    chunks = (row_set_file.Chunk(at, False, b"".join(hashes[at : at + 3])) for at in range(0, len(hashes), 3))
    row_set_file.write(file, row_set_file.NO_ORIGIN, chunks)
    return file


def digests(file: Path) -> set[str]:
    """Return the digests in a file of `write_row_set`."""
    return {each.hex() for chunk in row_set_file.read(file) for each in chunk.split()}


class ListedMemories:
    """A DatabaseSource over a list. `fail_at`: reading the page with this row, counted from 0, raises `error`.

    A row's digest is its hash. `comparable`: False if the rows cannot be compared. `listed_rows` and `read_rows`: how
    many rows were in pages, and were read.
    """

    def __init__(
        self,
        memories: Iterable[Memory],
        *,
        page_rows: int = 3,
        fail_at: int | None = None,
        error: AkoshaError | None = None,
        comparable: bool = True,
    ) -> None:
        self._memories, self._page_rows, self._fail_at = memories, page_rows, fail_at
        self._comparable, self._new, self._folder = comparable, memories, Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._error = error or SnapshotError("the rest cannot be read")
        self._page: dict[RowState, Memory] = {}
        self.read_rows = self.listed_rows = 0

    @property
    def known_rows(self) -> Path:
        return self._folder / "known"

    @property
    def _rows(self) -> Path:
        return self._folder / "rows"

    async def compare(self, main_sha256: str = "") -> RowDifference | None:
        if not self._comparable:
            return None
        known: set[str] = set()
        if self.known_rows.exists():
            known = digests(self.known_rows)
            self.known_rows.unlink()
        self._memories = memories = list(self._memories)
        self._new = [memory for memory in memories if memory.row.digest not in known]
        write_row_set(self._rows, (memory.row for memory in memories))
        size = sum(len(memory.text) + (4 * EMBEDDING_LENGTH if memory.embedding else 0) for memory in self._new)
        return RowDifference(rows=len(memories), new_rows=len(self._new), new_bytes=size)

    async def row_set(self, leave_out: Collection[tuple[Kind, str]] | None = None) -> Path:
        if self._fail_at is not None:
            raise self._error
        rows = [memory.row for memory in self._memories]
        if leave_out is not None:
            counts = Counter((row.kind, row.id) for row in rows)
            rows = [row for row in rows if counts[row.kind, row.id] == 1 and (row.kind, row.id) not in {*leave_out}]
        write_row_set(self._rows, rows)
        return self._rows

    async def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        rows, at = iter(self._new), 0
        while page := list(islice(rows, self._page_rows)):
            if self._fail_at is not None and at + len(page) > self._fail_at:
                raise self._error
            at += len(page)
            self.listed_rows += len(page)
            self._page = {memory.row: memory for memory in page}
            yield [memory.row for memory in page]

    async def read(self, wanted: Sequence[RowState]) -> AsyncGenerator[Memory, None]:
        for seen in wanted:
            self.read_rows += 1
            yield self._page[seen]


class ListedReader:
    """A MemoryReader: database -> its memories, or the error that opening it raises. `opened` lists the calls."""

    def __init__(self, databases: Mapping[str, ListedMemories | AkoshaError | Iterable[Memory]]) -> None:
        self.databases = databases
        self.opened: list[tuple[Path, str, tzinfo]] = []

    @asynccontextmanager
    async def open(self, copy: Path, database: str, *, zone: tzinfo) -> AsyncIterator[ListedMemories]:
        self.opened.append((copy, database, zone))
        source = self.databases[database]
        if isinstance(source, AkoshaError):
            raise source
        yield source if isinstance(source, ListedMemories) else ListedMemories(source)
