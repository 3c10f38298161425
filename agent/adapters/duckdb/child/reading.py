"""Read memories from a copy, page by page. Runs in the child.

Memory holds one block of rows at a time, whatever the size of the database. The texts of a page are kept until the next
page, so that reading complete rows only needs their embeddings.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.adapters.duckdb.child.comparing import Comparing
from agent.adapters.duckdb.child.engine import Cell, Engine, OutOfMemory
from agent.adapters.duckdb.child.tables import SMALL_BYTES, Table, columns_of, entity_names, tables_of
from agent.adapters.duckdb.child_protocol import KNOWN, PAGE_ROWS, ROWS
from agent.adapters.duckdb.rows import Row, Values, digest, row_of
from agent.domain.memories import Json

BLOCK_BYTES = 4 * 2**20
"""Target for the text in a block. A block with more than four times as much is read again in smaller blocks."""


SCANNED_ROWS = 50_000
"""After this many rows that are not memories (no ID, no text) a page is returned even if it is empty."""


@dataclass(frozen=True, slots=True)
class _PageRow:
    """A row of the page. `row` is None if it is large; then it is read again by `Reading.read`."""

    table: Table
    rowid: int
    size: int
    embedded: bool
    row: Row | None


_Page = list[tuple[_PageRow, Json]]


class _BlockTooLarge(Exception):  # noqa: N818 - a smaller block succeeds
    """A block has too much text to hold in memory."""


class Unread(Exception):  # noqa: N818 - all other tables were read
    """Tables with memories that DuckDB cannot read, with the reasons."""


class Reading:
    """Reads one copy. Holds one block, the last page and the next page in memory.

    `folder`: where the files with hashes of rows are. It may not exist.
    """

    def __init__(self, engine: Engine, graph: str, folder: Path) -> None:
        self._engine = engine
        self._graph = graph
        self._folder = folder
        self._comparing: Comparing | None = None
        self._new: Mapping[str, Sequence[int]] | None = None
        self._columns = columns_of(engine)
        self.tables, self._unread = tables_of(engine, self._columns)
        self._pages = self._paged()
        self._page: _Page = []
        self._next: _Page | None = None
        self._prefetched = False

    def compare(self, main_sha256: str = "") -> Json:
        """Write the hashes of all rows; the pages have only the rows that are not in the known row set from now on.

        Return the number of rows, of those that are new, and of their bytes; None if the hashes cannot be made: then
        the pages have all rows. `main_sha256`: digest of the main file, "" if it is unknown.
        """
        known = self._folder / KNOWN
        self._new = None
        try:
            self._comparing = Comparing(self._engine, self._graph, self._columns, self.tables)
            found = self._comparing.compare(known if known.exists() else None, self._folder / ROWS, main_sha256)
        except Exception:  # noqa: BLE001 - the pages read in smaller steps, and report what cannot be read
            self._comparing = None
            return None
        self._new = found.new
        self.begin()
        return [found.rows, found.new_rows, found.new_bytes]

    def leave_out(self, wanted: Sequence[tuple[str, str]] | None) -> None:
        """Remove the hashes of rows with these kinds and IDs, and of rows with equal IDs; None: remove none.

        Raises Unread if DuckDB cannot read a table.
        """
        self._check_read()
        if self._comparing is not None and wanted is not None:
            self._comparing.leave_out(self._folder / ROWS, wanted)

    def begin(self) -> None:
        """Start over: the next page is the first."""
        self._pages, self._page, self._next, self._prefetched = self._paged(), [], None, False

    def page(self) -> list[Json] | None:
        """Return the row states of the next page, None at the end. An empty page is not the end.

        Raises Unread at the end if there are tables that DuckDB cannot read.
        """
        self.prefetch()
        page, self._next, self._prefetched = self._next, None, False
        self._page = page or []
        if page is None:
            self._check_read()
        return None if page is None else [state for _, state in self._page]

    def prefetch(self) -> None:
        """Read the next page before it is requested."""
        if not self._prefetched:
            self._next, self._prefetched = next(self._pages, None), True

    def read(self, positions: list[int]) -> list[Json]:
        """Return complete rows of the page."""
        wanted = [self._page[position][0] for position in positions]
        if not wanted:
            return []
        table = wanted[0].table
        embeddings = self._embeddings(table, sorted({each.rowid for each in wanted if each.embedded}))
        large = self._large_rows(table, sorted({each.rowid for each in wanted if each.row is None}))
        rows: list[Json] = []
        for each in wanted:
            row = each.row or large[each.rowid]
            assert row is not None
            rows.append([row.text, embeddings.get(each.rowid), row.time, row.metadata])
        return rows

    def _embeddings(self, table: Table, rowids: list[int]) -> dict[int, str]:
        if not rowids:
            return {}
        found = self._engine.all_rows(table.embedding, [rowids[0], rowids[-1], rowids])
        return {rowid: text for rowid, text in found if isinstance(rowid, int) and isinstance(text, str)}

    def _check_read(self) -> None:
        if self._unread:
            raise Unread(", ".join(f"{name} ({reason})" for name, reason in sorted(self._unread.items())))

    def _paged(self) -> Iterator[_Page]:
        """Yield pages of one table each; an empty page after SCANNED_ROWS rows without a memory."""
        for table in self.tables:
            page: _Page = []
            held = scanned = 0
            for block in self._blocks(table):
                scanned += len(block)
                for entry in self._page_rows(table, block):
                    page.append(entry)
                    held += entry[0].size if entry[0].row else 0
                    if len(page) == PAGE_ROWS or held > BLOCK_BYTES:
                        yield page
                        page, held, scanned = [], 0, 0
                if scanned >= SCANNED_ROWS:
                    yield page
                    page, held, scanned = [], 0, 0
            if page:
                yield page

    def _blocks(self, table: Table) -> Iterator[list[tuple[Cell, ...]]]:
        """Yield the rows of the table in ranges of rowids, each as wide as the size of its texts allows."""
        first, width = table.first, table.block
        wanted = None if self._new is None else self._new.get(table.name, ())
        while first <= table.last:
            if wanted is not None:
                if (at := bisect_left(wanted, first)) == len(wanted):
                    return
                first = wanted[at]
            # End at a multiple of the width, so that a block does not need two DuckDB vectors if one is enough.
            end = first + width - first % width
            try:
                some = wanted and wanted[bisect_left(wanted, first) : bisect_left(wanted, end)]
                block, size = self._block(table, first, end - 1, some)
            except (OutOfMemory, _BlockTooLarge) as error:
                if width == 1 and isinstance(error, OutOfMemory):
                    self._engine.more_memory(error)
                width = max(1, width // 4)
                continue
            yield block
            first = end
            if size > BLOCK_BYTES:
                width = max(1, width // 2)
            elif size < BLOCK_BYTES // 4:
                width = min(table.block, width * 2)

    def _block(
        self, table: Table, first: int, last: int, wanted: Sequence[int] | None
    ) -> tuple[list[tuple[Cell, ...]], int]:
        """Read the rows in a range of rowids, with `wanted` only these."""
        block, size, held = [], 0, 0
        statement = table.states if wanted is None else table.some_states
        for cells in self._engine.rows(statement, [first, last, *([] if wanted is None else [wanted])]):
            assert isinstance(cells[1], int)
            size += cells[1]
            held += cells[1] if cells[1] <= SMALL_BYTES else 0
            if held > 4 * BLOCK_BYTES:
                raise _BlockTooLarge
            block.append(cells)
        return block, size

    def _page_rows(self, table: Table, block: list[tuple[Cell, ...]]) -> Iterator[tuple[_PageRow, Json]]:
        rows = [_values(table, cells[3:]) for cells in block]
        names = self._names(table, rows)
        large: dict[int, Row | None] = {}
        for at, ((rowid, size, embedded, *_), values) in enumerate(zip(block, rows, strict=True)):
            assert isinstance(rowid, int)
            assert isinstance(size, int)
            if is_large := size > SMALL_BYTES:
                if rowid not in large:
                    large = self._large_rows(table, _next_large(block[at:]))
                row = large.pop(rowid)
            else:
                row = row_of(table.kind, values, graph=self._graph, names=names)
            if row is not None:
                state: Json = [row.kind, row.id, digest(row, embedded=bool(embedded)), bool(embedded), size]
                yield _PageRow(table, rowid, size, bool(embedded), None if is_large else row), state

    def _large_rows(self, table: Table, rowids: list[int]) -> dict[int, Row | None]:
        """Return rows by rowid. DuckDB may decompress the texts of 2,048 rows for each statement."""
        if not rowids:
            return {}
        found = self._engine.all_rows(table.rows, [rowids[0], rowids[-1], rowids])
        values = {rowid: _values(table, cells) for rowid, *cells in found if isinstance(rowid, int)}
        names = self._names(table, list(values.values()))
        return {rowid: row_of(table.kind, one, graph=self._graph, names=names) for rowid, one in values.items()}

    def _names(self, table: Table, rows: Sequence[Values]) -> Mapping[str, str]:
        """Return the names of the entities in the rows of relationships, by ID."""
        if table.kind != "relationship":
            return {}
        ids = {values[end] for values in rows for end in ("from_entity", "to_entity") if end in values}
        return entity_names(self._engine, self._columns, sorted(ids))


def _next_large(block: Sequence[tuple[Cell, ...]]) -> list[int]:
    """Return the rowids of the next large rows of a block: one, and more up to BLOCK_BYTES."""
    rowids, held = list[int](), 0
    for rowid, size, *_ in block:
        if isinstance(rowid, int) and isinstance(size, int) and size > SMALL_BYTES:
            held += size
            if rowids and held > BLOCK_BYTES:
                break
            rowids.append(rowid)
    return rowids


def _values(table: Table, cells: Sequence[Cell]) -> Values:
    return {name: cell for name, cell in zip(table.columns, cells, strict=True) if cell and isinstance(cell, str)}
