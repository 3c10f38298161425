"""The port: memories out of a staged copy. The parent's side; `child_reader` is the process that has the engine."""

import asyncio
import shutil
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import tzinfo
from pathlib import Path
from typing import NoReturn, cast

import orjson

from agent.adapters.duckdb_files import children
from agent.adapters.duckdb_files.frames import BEGIN, HEAD_BYTES, PAGE, READ, length_of, scratch_name
from agent.adapters.duckdb_files.rows import instant
from agent.domain.databases import KNOWLEDGE_GRAPH
from agent.domain.errors import SnapshotError
from agent.domain.memories import Json, Memory, Seen, check_kind
from agent.ports import MemorySource

CHILD = "agent.adapters.duckdb_files.child_reader"

_NAMED_GRAPH = f"{KNOWLEDGE_GRAPH}_"
_GROUP_ROWS = 100
_GROUP_BYTES = 2**20
"""Of so many rows, with so much text, an answer is at most, but for the last of them."""

_GOING_SECONDS = 5.0
_READ_HINT = "update akosha-agent where the file is newer than its engine; else restore it from an earlier upload"


class DuckdbMemoryReader:
    """Reads each copy in a child process of its own. `timeout_seconds` bounds an answer, not the reading as a whole."""

    def __init__(self, *, timeout_seconds: float = 600.0) -> None:
        self._timeout_seconds = timeout_seconds

    @asynccontextmanager
    async def open(self, copy: Path, database: str, *, zone: tzinfo) -> AsyncIterator[MemorySource]:
        graph = database.removeprefix(_NAMED_GRAPH) if database.startswith(_NAMED_GRAPH) else ""
        try:
            child = await children.start(CHILD, copy, graph)
        except OSError as error:
            raise SnapshotError(
                f"the engine could not be started: {error.strerror}", hint="it is tried again by itself", transient=True
            ) from error
        try:
            source = _Source(_Exchange(child, self._timeout_seconds), database, zone)
            await source.opened()
            yield source
        finally:
            await children.end(child)
            scratch = copy.parent / scratch_name(child.pid)
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


class _Source:
    """One copy that is open. For one task at a time."""

    def __init__(self, exchange: "_Exchange", database: str, zone: tzinfo) -> None:
        self._exchange = exchange
        self._database = database
        self._zone = zone
        self._page: list[Seen] = []
        self._sizes: list[int] = []

    async def opened(self) -> None:
        """Return when the engine has the copy open."""
        await self._exchange.answer("tables")

    async def pages(self) -> AsyncGenerator[Sequence[Seen], None]:
        self._page = []
        await self._exchange.ask(BEGIN, "begun")
        while entries := cast(list[tuple[str, str, str, bool, int]], await self._exchange.ask(PAGE, "page")):
            self._page = [
                Seen(database=self._database, kind=check_kind(kind), id=row_id, digest=digest, embedded=embedded)
                for kind, row_id, digest, embedded, _ in entries
            ]
            self._sizes = [entry[-1] for entry in entries]
            yield self._page
        self._page = []

    async def read(self, wanted: Sequence[Seen]) -> AsyncGenerator[Memory, None]:
        """Rows that are not of the page yielded last are a KeyError: the caller's mistake."""
        page = self._page
        positions = {seen: position for position, seen in enumerate(page)} if wanted else {}
        for group in self._groups([positions[seen] for seen in wanted]):
            command = b"%s %s" % (READ, orjson.dumps(group))
            rows = cast(
                list[tuple[str, str | None, str | None, dict[str, Json]]], await self._exchange.ask(command, "rows")
            )
            for position, (text, embedding, time, metadata) in zip(group, rows, strict=True):
                yield Memory(
                    seen=page[position],
                    text=text,
                    embedding=embedding,
                    created_at=instant(time, self._zone),
                    metadata=metadata,
                )

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


class _Exchange:
    """Question and answer, in lock-step. After one that was not carried through, nothing more is asked."""

    def __init__(self, child: Process, timeout_seconds: float) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._questions = child.stdin
        self._answers = child.stdout
        self._timeout_seconds = timeout_seconds
        self._sound = True

    async def ask(self, command: bytes, name: str) -> Json:
        """Ask, and return what the answer holds under `name`. Raises SnapshotError."""
        if not self._sound:
            raise SnapshotError("the reading was broken off before", hint="it is tried again by itself", transient=True)
        self._questions.write(command + b"\n")
        return await self.answer(name)

    async def answer(self, name: str) -> Json:
        """Return what the next answer holds under `name`. Raises SnapshotError."""
        self._sound = False
        try:
            async with asyncio.timeout(self._timeout_seconds):
                with suppress(ConnectionError):  # it has ended: what it said before is still to be read
                    await self._questions.drain()
                head = await self._answers.readexactly(HEAD_BYTES)
                document = orjson.loads(await self._answers.readexactly(length_of(head)))
        except TimeoutError as error:
            raise SnapshotError(
                f"the engine did not answer within {self._timeout_seconds:g} s",
                hint="it is tried again by itself",
                transient=True,
            ) from error
        except asyncio.IncompleteReadError as error:
            await self._died(error)
        if "error" in document:
            raise SnapshotError(f"the engine cannot read it: {document['error']}", hint=_READ_HINT)
        self._sound = True
        found: Json = document[name]
        return found

    async def _died(self, error: Exception) -> NoReturn:
        """Tell how it ended."""
        try:
            async with asyncio.timeout(_GOING_SECONDS):
                status = await self._child.wait()
        except TimeoutError:
            status = 0  # it shut its mouth and went on: `open` ends it
        if ended := children.signal_of(status):
            name, from_outside = ended
            if from_outside:
                raise SnapshotError(
                    f"the reading was killed ({name})", hint="it is tried again by itself", transient=True
                ) from error
            raise SnapshotError(f"the engine crashed on it ({name})") from error
        raise SnapshotError(
            f"the reading ended early (exit status {status})", hint="it is tried again by itself", transient=True
        ) from error
