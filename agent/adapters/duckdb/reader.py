"""Read memories from a staged copy: the parent's side. The child process runs DuckDB."""

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import tzinfo
from functools import partial
from pathlib import Path
from typing import TypeVar

import orjson

from agent.adapters.child_process import STALL_SECONDS, CommandFailed, Exchange, NoAnswer, checked, end
from agent.adapters.duckdb import child_process
from agent.adapters.duckdb.child_protocol import BEGIN, COMPARE, KNOWN, LEAVE_OUT, OPEN, PAGE, READ, ROWS, scratch_name
from agent.adapters.duckdb.rows import instant
from agent.domain.databases import KNOWLEDGE_GRAPH
from agent.domain.errors import SnapshotError
from agent.domain.memories import Json, Kind, Memory, RowState, check_kind
from agent.ports import DatabaseSource, RowDifference

T = TypeVar("T")

_NAMED_GRAPH = f"{KNOWLEDGE_GRAPH}_"
_GROUP_ROWS = 100
_GROUP_BYTES = 2**20
"""Maximum number of rows, and bytes of text, per answer; its last row may exceed the bytes."""

_RETRY_HINT = "the agent retries"
_READ_HINT = "update akosha-agent if the file is newer than its DuckDB; else restore it from an earlier upload"


class DuckdbMemoryReader:
    """Reads each copy in the child process of `warm`, or in its own child process.

    `timeout_seconds` limits a single answer; `stall_seconds` limits the time without progress.
    """

    def __init__(
        self,
        *,
        warm: child_process.WarmChild | None = None,
        timeout_seconds: float = 600.0,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._warm = warm
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds

    @asynccontextmanager
    async def open(self, copy: Path, database: str, *, zone: tzinfo) -> AsyncIterator[DatabaseSource]:
        graph = database.removeprefix(_NAMED_GRAPH) if database.startswith(_NAMED_GRAPH) else ""
        try:
            child = await (self._warm.take(copy) if self._warm else child_process.start(copy))
        except OSError as error:
            raise SnapshotError(
                f"DuckDB could not be started: {error.strerror}", hint=_RETRY_HINT, transient=True
            ) from error
        exchange, kept = Exchange(child, self._timeout_seconds, self._stall_seconds), False
        scratch = copy.parent / scratch_name(child.pid)
        try:
            source = _Source(exchange, database, zone, scratch)
            await source.open(graph)
            yield source
            if self._warm is not None and exchange.is_usable:
                kept = True
                await self._warm.keep(child)
        finally:
            if not kept:
                await end(child)
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


class _Source:
    """One open copy. Not for concurrent use. `folder`: for the files with row sets; the reader removes it."""

    def __init__(self, exchange: Exchange, database: str, zone: tzinfo, folder: Path) -> None:
        self._exchange = exchange
        self._folder = folder
        self._database = database
        self._zone = zone
        self._page: list[RowState] = []
        self._sizes: list[int] = []

    async def open(self, graph: str) -> None:
        """Open the copy. `graph` is the name of the knowledge graph, "" for an unnamed one or another database."""
        await self._ask(b"%s %s" % (OPEN, orjson.dumps(graph)), "tables", lambda count: checked(count, int))

    @property
    def known_rows(self) -> Path:
        return self._folder / KNOWN

    async def compare(self, main_sha256: str = "") -> RowDifference | None:
        return await self._ask(b"%s %s" % (COMPARE, orjson.dumps(main_sha256)), "rows", self._difference)

    @staticmethod
    def _difference(answer: Json) -> RowDifference | None:
        if answer is None:
            return None
        rows, new_rows, new_bytes = (checked(count, int) for count in checked(answer, list))
        return RowDifference(rows=rows, new_rows=new_rows, new_bytes=new_bytes)

    async def row_set(self, leave_out: Collection[tuple[Kind, str]] | None = None) -> Path:
        command = b"%s %s" % (LEAVE_OUT, orjson.dumps(None if leave_out is None else list(leave_out)))
        await self._ask(command, "rows", lambda done: checked(done, bool))
        return self._folder / ROWS

    async def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        self._page = []
        await self._ask(BEGIN, "started", lambda started: checked(started, bool))
        while (entries := await self._ask(PAGE, "page", self._entries)) is not None:
            self._page, self._sizes = [row for row, _ in entries], [size for _, size in entries]
            yield self._page
        self._page = []

    def _entries(self, answer: Json) -> list[tuple[RowState, int]] | None:
        """Return the rows of a page with the size of their texts, None for the end."""
        if answer is None:
            return None
        return [self._entry(*checked(entry, list)) for entry in checked(answer, list)]

    def _entry(self, kind: Json, row_id: Json, digest: Json, embedded: Json, size: Json) -> tuple[RowState, int]:
        row = RowState(
            database=self._database,
            kind=check_kind(checked(kind, str)),
            id=checked(row_id, str),
            digest=checked(digest, str),
            embedded=checked(embedded, bool),
        )
        return row, checked(size, int)

    async def read(self, wanted: Sequence[RowState]) -> AsyncGenerator[Memory, None]:
        """Read rows of the last page. Raises KeyError for other rows."""
        page = self._page
        positions = {row: position for position, row in enumerate(page)} if wanted else {}
        for group in self._groups([positions[row] for row in wanted]):
            command = b"%s %s" % (READ, orjson.dumps(group))
            for memory in await self._ask(command, "rows", partial(self._memories, [page[at] for at in group])):
                yield memory

    def _memories(self, rows: Sequence[RowState], answer: Json) -> list[Memory]:
        entries = [checked(entry, list) for entry in checked(answer, list)]
        return [self._memory(row, *entry) for row, entry in zip(rows, entries, strict=True)]

    def _memory(self, row: RowState, text: Json, embedding: Json, time: Json, metadata: Json) -> Memory:
        return Memory(
            row=row,
            text=checked(text, str),
            embedding=None if embedding is None else checked(embedding, str),
            created_at=None if time is None else instant(checked(time, str), self._zone),
            metadata=checked(metadata, dict),
        )

    async def _ask(self, command: bytes, name: str, read: Callable[[Json], T]) -> T:
        try:
            return await self._exchange.ask(command, name, read)
        except CommandFailed as error:
            raise SnapshotError(f"DuckDB cannot read it: {error}", hint=_READ_HINT) from error
        except NoAnswer as error:
            if error.crashed:
                raise SnapshotError(f"DuckDB crashed on it ({error.reason})") from error
            raise SnapshotError(f"the reader {error.reason}", hint=_RETRY_HINT, transient=True) from error

    def _groups(self, positions: Sequence[int]) -> Iterator[list[int]]:
        group: list[int] = []
        size = 0
        for position in positions:
            group.append(position)
            size += self._sizes[position]
            if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group
