"""Find the rows whose hashes are not in a row set. Runs in the child.

The hashes are made by DuckDB, from everything that a row's digest depends on: rows with equal hashes have equal
digests. A chunk that is equal in the row set is not looked at any further, so memory is only needed for what changed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.adapters import row_set_file
from agent.adapters.duckdb.child.engine import Engine, OutOfMemory
from agent.adapters.duckdb.child.tables import HASH_SCHEME, Found, Table, create_entity_names
from agent.adapters.row_set_file import Chunk
from agent.domain.memories import KINDS

CHUNK_ROWS = 8192
"""Number of rowids in a chunk."""

MOST_DIFFERENT = 2**18
"""Number of rows, in the database or in the row set, in chunks that differ: above it, all rows count as new."""

_KIND_CHUNKS = 2**48


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

    def compare(self, known: Path | None, rows: Path) -> Comparison:
        """Write the hashes of all rows to `rows`, and compare them with those in `known`."""
        difference = _Difference(row_set_file.read(known)) if known else None
        count = size = 0

        def chunks() -> Iterator[Chunk]:
            nonlocal count, size
            for table, chunk, rowids, sizes in self._chunks():
                count, size = count + len(rowids), size + sum(sizes)
                if difference is not None:
                    difference.add(table.name, chunk, rowids, sizes)
                yield chunk

        row_set_file.write(rows, chunks())
        if difference is None or difference.too_large:
            return Comparison(count, count, size, None)
        new, new_bytes = difference.new()
        return Comparison(count, sum(map(len, new.values())), new_bytes, new)

    def leave_out(self, rows: Path, wanted: Iterable[tuple[str, str]]) -> None:
        """Remove the hashes of the rows with these kinds and IDs from the file."""
        ids: dict[str, list[str]] = {}
        for kind, row_id in wanted:
            ids.setdefault(kind, []).append(row_id)
        gone: set[bytes] = set()
        for table in self._tables:
            if table.kind in ids:
                parameters = [self._prefix(table), table.first, table.last, ids[table.kind]]
                for hashes, _, _ in self._engine.rows(table.hashes_of, parameters):
                    gone.update(row_set_file.split(bytes.fromhex(str(hashes or ""))))
        if not gone:
            return
        kept = rows.with_suffix(".kept")
        row_set_file.write(
            kept,
            (
                Chunk(chunk.number, b"".join(each for each in chunk.split() if each not in gone))
                for chunk in row_set_file.read(rows)
            ),
        )
        kept.replace(rows)

    def _chunks(self) -> Iterator[tuple[Table, Chunk, list[int], list[int]]]:
        """Yield table, chunk, rowids and bytes of the rows of each chunk that is not empty."""
        for table in sorted(self._tables, key=lambda table: KINDS.index(table.kind)):
            for number in range(table.first // CHUNK_ROWS, table.last // CHUNK_ROWS + 1):
                hashes, rowids, sizes = self._rows(table, number * CHUNK_ROWS, (number + 1) * CHUNK_ROWS - 1)
                if rowids:
                    yield table, Chunk(KINDS.index(table.kind) * _KIND_CHUNKS + number, hashes), rowids, sizes

    def _rows(self, table: Table, first: int, last: int) -> tuple[bytes, list[int], list[int]]:
        """Return hashes, rowids and bytes of the rows in a range of rowids."""
        try:
            ((hashes, rowids, sizes),) = self._engine.rows(table.hashes, [self._prefix(table), first, last])
        except OutOfMemory:
            if first == last:
                raise
            middle = (first + last) // 2
            one, other = self._rows(table, first, middle), self._rows(table, middle + 1, last)
            return one[0] + other[0], one[1] + other[1], one[2] + other[2]
        return bytes.fromhex(str(hashes or "")), _integers(rowids), _integers(sizes)

    def _prefix(self, table: Table) -> str:
        """Return what the hashes of all rows of a table depend on."""
        graph = self._graph if table.kind in ("entity", "relationship") else ""
        return json.dumps([HASH_SCHEME, table.kind, graph, table.hashed_columns])


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

    def add(self, table: str, chunk: Chunk, rowids: list[int], sizes: list[int]) -> None:
        """Compare a chunk with that of the row set."""
        while self._next is not None and self._next.number < chunk.number:
            self._advance()
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

    def _advance(self) -> None:
        assert self._next is not None
        if not self.too_large:
            self._old += self._next.hashes
        self._next = next(self._known, None)


def _integers(cell: object) -> list[int]:
    """Return a list of integers that DuckDB returned, empty for NULL."""
    return [each for each in cell if isinstance(each, int)] if isinstance(cell, list) else []
