"""In-memory sources of memories, in place of copies of databases."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import tzinfo
from itertools import islice
from pathlib import Path

from agent.domain.errors import AkoshaError, SnapshotError
from agent.domain.memories import Memory, RowState


class ListedMemories:
    """A MemorySource over a list. `fail_at`: reading the page with this row, counted from 0, raises `error`."""

    def __init__(
        self,
        memories: Iterable[Memory],
        *,
        page_rows: int = 3,
        fail_at: int | None = None,
        error: AkoshaError | None = None,
    ) -> None:
        self._memories, self._page_rows, self._fail_at = memories, page_rows, fail_at
        self._error = error or SnapshotError("the rest cannot be read")
        self._page: dict[RowState, Memory] = {}
        self.read_rows = 0

    async def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        rows, at = iter(self._memories), 0
        while page := list(islice(rows, self._page_rows)):
            if self._fail_at is not None and at + len(page) > self._fail_at:
                raise self._error
            at += len(page)
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
