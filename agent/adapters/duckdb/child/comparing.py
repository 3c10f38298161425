"""Find the rows whose hashes are not in a row set. Runs in the child.

The hashes are made by DuckDB, from everything that a row's digest depends on: rows with equal hashes have equal
digests. A chunk that is equal in the row set is not looked at any further, so memory is only needed for what changed.
"""

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.adapters import row_set_file
from agent.adapters.duckdb.child.engine import Engine, OutOfMemory
from agent.adapters.duckdb.child.stored import Stored
from agent.adapters.duckdb.child.tables import HASH_SCHEME, Found, Table, create_entity_names, repeated_ids
from agent.adapters.row_set_file import Chunk
from agent.domain.memories import KINDS

CHUNK_ROWS = 8192
"""Number of rowids in a chunk."""

MOST_DIFFERENT = 2**18
"""Number of rows, in the database or in the row set, in chunks that differ: above it, all rows count as new."""

MOST_ROWS = 2**23
"""Number of rowids in all tables. With more, the rows are not compared: a small file may have billions of rows, and a
row set has 16 bytes for each."""

_KIND_CHUNKS = 2**48


class TooManyRows(Exception):  # noqa: N818 - a reason not to compare
    """The tables have more than MOST_ROWS rowids."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The number of rows, of those that are new, and of their bytes: text, and embeddings as in a database.

    `new`: the name of a table -> the rowids of its new rows, in order; None if all rows are new.
    """

    rows: int
    new_rows: int
    new_bytes: int
    new: Mapping[str, Sequence[int]] | None


class Comparing:
    """Makes the hashes of the rows of one copy."""

    def __init__(self, engine: Engine, graph: str, found: Mapping[str, Found], tables: Sequence[Table]) -> None:
        self._engine, self._graph, self._tables = engine, graph, tables
        if any(table.kind == "relationship" for table in tables):
            create_entity_names(engine, found)

    def compare(self, known: Path | None, rows: Path, main_sha256: str) -> Comparison:
        """Write the hashes of all rows to `rows`, and compare them with those in `known`.

        If `known` is of a copy with the same main file, the rows that the WAL left as they are there are not read.
        `main_sha256`: digest of the main file, "" if it is unknown. Raises TooManyRows, or DuckDB's errors.
        """
        if sum(table.last - table.first + 1 for table in self._tables) > MOST_ROWS:
            raise TooManyRows
        stored = self._stored_rows(main_sha256)
        difference = _Difference(row_set_file.read(known)) if known else None
        is_same = known is not None and stored.origin == row_set_file.read_origin(known) != row_set_file.NO_ORIGIN
        count = size = 0

        def chunks() -> Iterator[Chunk]:
            nonlocal count, size
            for table, at in self._ranges():
                number = KINDS.index(table.kind) * _KIND_CHUNKS + at
                is_stored = at in stored.chunks.get(table.name, ())
                if difference is not None and is_same and is_stored and (same := difference.take_stored(number)):
                    count += len(same.hashes) // row_set_file.HASH_BYTES
                    yield same
                    continue
                hashes, rowids, sizes = self._rows(table, at * CHUNK_ROWS, (at + 1) * CHUNK_ROWS - 1)
                if not rowids:
                    continue
                count, size = count + len(rowids), size + sum(sizes)
                chunk = Chunk(number, is_stored, hashes)
                if difference is not None:
                    difference.add(table.name, chunk, rowids, sizes)
                yield chunk

        row_set_file.write(rows, stored.origin, chunks())
        if difference is None:
            return Comparison(count, count, size, None)
        if difference.too_large:
            return self.compare(None, rows, main_sha256)
        new, new_bytes = difference.new()
        return Comparison(count, sum(map(len, new.values())), new_bytes, new)

    def leave_out(self, rows: Path, wanted: Iterable[tuple[str, str]]) -> None:
        """Remove the hashes of the rows with these kinds and IDs, and of rows with equal IDs, from the file."""
        ids: dict[str, list[str]] = {}
        for kind, row_id in wanted:
            ids.setdefault(kind, []).append(row_id)
        gone: set[bytes] = set()
        for table in self._tables:
            if listed := ids.get(table.kind, []) + repeated_ids(self._engine, table):
                parameters = [self._prefix(table), table.first, table.last, listed]
                for hashes, _, _ in self._engine.all_rows(table.hashes_of, parameters):
                    gone.update(row_set_file.split(bytes.fromhex(str(hashes or ""))))
        if not gone:
            return
        kept = rows.with_suffix(".kept")
        row_set_file.write(
            kept, row_set_file.read_origin(rows), (_without(chunk, gone) for chunk in row_set_file.read(rows))
        )
        kept.replace(rows)

    def _ranges(self) -> Iterator[tuple[Table, int]]:
        """Yield each table with the numbers of its ranges of rowids, in the order of chunks."""
        for table in sorted(self._tables, key=lambda table: KINDS.index(table.kind)):
            for at in range(table.first // CHUNK_ROWS, table.last // CHUNK_ROWS + 1):
                yield table, at

    def _stored_rows(self, main_sha256: str) -> "_StoredRows":
        """Return which chunks are as in the main file: none if its digest, or its layout, is unknown."""
        if not main_sha256:
            return _StoredRows(row_set_file.NO_ORIGIN, {})
        try:
            found = {table.name: (table, Stored(self._engine, table)) for table in self._tables}
            chunks = {name: stored.chunks(CHUNK_ROWS) for name, (_, stored) in found.items()}
        except Exception:  # noqa: BLE001 - then all rows are read, and errors are reported
            return _StoredRows(row_set_file.NO_ORIGIN, {})
        for name, (table, stored) in found.items():
            if table.kind == "entity" and not stored.covers(chunks[name], CHUNK_ROWS):
                # The names of entities are hashed with relationships.
                chunks |= {other: set() for other, (each, _) in found.items() if each.kind == "relationship"}
        layout = [[name, self._prefix(table), stored.digest] for name, (table, stored) in sorted(found.items())]
        origin = hashlib.sha256(json.dumps([main_sha256, CHUNK_ROWS, layout]).encode()).digest()
        return _StoredRows(origin, chunks)

    def _rows(self, table: Table, first: int, last: int) -> tuple[bytes, list[int], list[int]]:
        """Return hashes, rowids and bytes of the rows in a range of rowids."""
        try:
            ((hashes, rowids, sizes),) = self._engine.rows(table.hashes, [self._prefix(table), first, last])
        except OutOfMemory as error:
            if first == last:
                self._engine.more_memory(error)
                return self._rows(table, first, last)
            middle = (first + last) // 2
            one, other = self._rows(table, first, middle), self._rows(table, middle + 1, last)
            return one[0] + other[0], one[1] + other[1], one[2] + other[2]
        return bytes.fromhex(str(hashes or "")), _integers(rowids), _integers(sizes)

    def _prefix(self, table: Table) -> str:
        """Return what the hashes of all rows of a table depend on."""
        graph = self._graph if table.kind in ("entity", "relationship") else ""
        return json.dumps([HASH_SCHEME, table.kind, graph, table.hashed_columns])


@dataclass(frozen=True, slots=True)
class _StoredRows:
    """A digest of main file and layout, and by the name of a table the chunks of which all rows are as in the file."""

    origin: bytes
    chunks: Mapping[str, set[int]]


def _without(chunk: Chunk, gone: Container[bytes]) -> Chunk:
    hashes = b"".join(each for each in chunk.split() if each not in gone)
    return Chunk(chunk.number, chunk.stored and hashes == chunk.hashes, hashes)


class _Difference:
    """The chunks that differ from those of a row set. Chunks are added in the order of their numbers."""

    def __init__(self, known: Iterator[Chunk]) -> None:
        self._known = known
        self._next = next(known, None)
        self._old = bytearray()
        self._changed: list[tuple[str, Chunk, list[int], list[int]]] = []
        self._count = 0

    @property
    def too_large(self) -> bool:
        return max(self._count, len(self._old) // row_set_file.HASH_BYTES) > MOST_DIFFERENT

    def take_stored(self, number: int) -> Chunk | None:
        """Return the stored chunk of the row set with this number, None if it has none. It counts as equal."""
        self._advance_to(number)
        found = self._next
        if found is None or found.number != number or not found.stored:
            return None
        self._next = next(self._known, None)
        return found

    def add(self, table: str, chunk: Chunk, rowids: list[int], sizes: list[int]) -> None:
        """Compare a chunk with that of the row set."""
        self._advance_to(chunk.number)
        if self._next is not None and self._next.number == chunk.number:
            if self._next.hashes == chunk.hashes:
                self._next = next(self._known, None)
                return
            self._advance()
        self._count += len(rowids)
        if self.too_large:
            self._changed.clear()
        else:
            self._changed.append((table, chunk, rowids, sizes))

    def new(self) -> tuple[dict[str, list[int]], int]:
        """Return the rowids of the rows that are not in the row set, by table, and their bytes."""
        while self._next is not None:
            self._advance()
        known = set(row_set_file.split(self._old))
        new: dict[str, list[int]] = {}
        new_bytes = 0
        for table, chunk, rowids, sizes in self._changed:
            for each, rowid, size in zip(chunk.split(), rowids, sizes, strict=True):
                if each not in known:
                    new.setdefault(table, []).append(rowid)
                    new_bytes += size
        return {table: sorted(rowids) for table, rowids in new.items()}, new_bytes

    def _advance_to(self, number: int) -> None:
        while self._next is not None and self._next.number < number:
            self._advance()

    def _advance(self) -> None:
        assert self._next is not None
        if not self.too_large:
            self._old += self._next.hashes
        self._next = next(self._known, None)


def _integers(cell: object) -> list[int]:
    """Return a list of integers that DuckDB returned, empty for NULL."""
    return [each for each in cell if isinstance(each, int)] if isinstance(cell, list) else []
