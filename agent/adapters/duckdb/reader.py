"""The port: memories out of a staged copy. The parent's side; the child has the engine."""

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import tzinfo
from pathlib import Path
from typing import cast

import orjson

from agent.adapters.duckdb import child_process
from agent.adapters.duckdb.child_process import STALL_SECONDS, Exchange, Unanswered, Unreadable
from agent.adapters.duckdb.frames import BEGIN, OPEN, PAGE, READ, scratch_name
from agent.adapters.duckdb.rows import instant
from agent.domain.databases import KNOWLEDGE_GRAPH
from agent.domain.errors import SnapshotError
from agent.domain.memories import Json, Memory, RowState, check_kind
from agent.ports import MemorySource

_NAMED_GRAPH = f"{KNOWLEDGE_GRAPH}_"
_GROUP_ROWS = 100
_GROUP_BYTES = 2**20
"""Of so many rows, with so much text, an answer is at most, but for the last of them."""

_AGAIN = "it is tried again by itself"
_READ_HINT = "update akosha-agent where the file is newer than its engine; else restore it from an earlier upload"


class DuckdbMemoryReader:
    """Reads each copy in a child process of its own: the one of `warm` that has checked it, if it still waits.

    `timeout_seconds` bounds an answer, not the reading as a whole; `stall_seconds` how long there may be no progress.
    """

    def __init__(
        self,
        *,
        warm: child_process.WarmChildren | None = None,
        timeout_seconds: float = 600.0,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._warm = warm
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds

    @asynccontextmanager
    async def open(self, copy: Path, database: str, *, zone: tzinfo) -> AsyncIterator[MemorySource]:
        graph = database.removeprefix(_NAMED_GRAPH) if database.startswith(_NAMED_GRAPH) else ""
        try:
            child = (self._warm and self._warm.take(copy)) or await child_process.start(copy)
        except OSError as error:
            raise SnapshotError(
                f"the engine could not be started: {error.strerror}", hint=_AGAIN, transient=True
            ) from error
        try:
            source = _Source(Exchange(child, self._timeout_seconds, self._stall_seconds), database, zone)
            await source.open(graph)
            yield source
        finally:
            await child_process.end(child)
            scratch = copy.parent / scratch_name(child.pid)
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


class _Source:
    """One copy that is open. For one task at a time."""

    def __init__(self, exchange: Exchange, database: str, zone: tzinfo) -> None:
        self._exchange = exchange
        self._database = database
        self._zone = zone
        self._page: list[RowState] = []
        self._sizes: list[int] = []

    async def open(self, graph: str) -> None:
        """Have the engine open the copy, which is that of the named graph, if of any."""
        await self._ask(b"%s %s" % (OPEN, orjson.dumps(graph)), "tables")

    async def pages(self) -> AsyncGenerator[Sequence[RowState], None]:
        self._page = []
        await self._ask(BEGIN, "begun")
        while (entries := await self._next_page()) is not None:
            self._page = [
                RowState(database=self._database, kind=check_kind(kind), id=row_id, digest=digest, embedded=embedded)
                for kind, row_id, digest, embedded, _ in entries
            ]
            self._sizes = [entry[-1] for entry in entries]
            yield self._page
        self._page = []

    async def _next_page(self) -> list[tuple[str, str, str, bool, int]] | None:
        return cast("list[tuple[str, str, str, bool, int]] | None", await self._ask(PAGE, "page"))

    async def read(self, wanted: Sequence[RowState]) -> AsyncGenerator[Memory, None]:
        """Rows that are not of the page yielded last are a KeyError: the caller's mistake."""
        page = self._page
        positions = {seen: position for position, seen in enumerate(page)} if wanted else {}
        for group in self._groups([positions[seen] for seen in wanted]):
            command = b"%s %s" % (READ, orjson.dumps(group))
            rows = cast(list[tuple[str, str | None, str | None, dict[str, Json]]], await self._ask(command, "rows"))
            for position, (text, embedding, time, metadata) in zip(group, rows, strict=True):
                yield Memory(
                    row=page[position],
                    text=text,
                    embedding=embedding,
                    created_at=instant(time, self._zone),
                    metadata=metadata,
                )

    async def _ask(self, command: bytes, name: str) -> Json:
        try:
            return await self._exchange.ask(command, name)
        except Unreadable as error:
            raise SnapshotError(f"the engine cannot read it: {error}", hint=_READ_HINT) from error
        except Unanswered as error:
            if error.crashed:
                raise SnapshotError(f"the engine crashed on it ({error.what})") from error
            raise SnapshotError(f"the reading {error.what}", hint=_AGAIN, transient=True) from error

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
