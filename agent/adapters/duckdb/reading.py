"""Memories read out of a copy, page by page, in the child that has it open.

Whatever the size of the database, a block of rows at a time is here, kept until the next, so that rows that are wanted
whole need only their embeddings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.adapters.duckdb.engine import Cell, Engine, OutOfMemory
from agent.adapters.duckdb.frames import PAGE_ROWS
from agent.adapters.duckdb.rows import Row, Values, digest, row_of
from agent.adapters.duckdb.tables import SMALL_BYTES, Table, entity_names, tables_of
from agent.domain.memories import Json

BLOCK_BYTES = 4 * 2**20
"""How much text of a block is aimed at; four times as much is read again in smaller blocks."""


SCANNED_ROWS = 50_000
"""After so many rows that are no memories (no id, no text) an answer is given all the same."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A row of the page: `row` is None where it is large, and is read again when it is wanted."""

    table: Table
    at: int
    size: int
    embedded: bool
    row: Row | None


_Page = list[tuple[_Shown, Json]]


class _TooMuch(Exception):  # noqa: N818 - asked for less, it goes
    """A block has more text than may be held here."""


class Unread(Exception):  # noqa: N818 - the rest was read
    """Tables with memories that this engine cannot read, and why."""


class Reading:
    """One copy being read. What it holds is one block, the page that was shown last, and the next."""

    def __init__(self, engine: Engine, graph: str) -> None:
        self._engine = engine
        self._graph = graph
        self.tables, self._unread = tables_of(engine)
        self._pages = self._paged()
        self._page: _Page = []
        self._ahead: _Page | None = None
        self._looked = False

    def begin(self) -> None:
        """Let the next page be the first."""
        self._pages, self._page, self._ahead, self._looked = self._paged(), [], None, False

    def page(self) -> list[Json] | None:
        """Return the next page's rows as they are seen, None at the end. One that is empty is not the end.

        Raises Unread there where the engine cannot read a table: all rows of the others have come by then.
        """
        self.look_ahead()
        ahead, self._ahead, self._looked = self._ahead, None, False
        self._page = ahead or []
        if ahead is None and self._unread:
            raise Unread(", ".join(f"{name} ({why})" for name, why in sorted(self._unread.items())))
        return None if ahead is None else [seen for _, seen in self._page]

    def look_ahead(self) -> None:
        """Get the page after this one ready, while nobody asks."""
        if not self._looked:
            self._ahead, self._looked = next(self._pages, None), True

    def read(self, positions: list[int]) -> list[Json]:
        """Return rows of the page, whole."""
        wanted = [self._page[position][0] for position in positions]
        if not wanted:
            return []
        embeddings = self._embeddings(wanted[0].table, sorted({shown.at for shown in wanted if shown.embedded}))
        rows: list[Json] = []
        for shown in wanted:
            row = shown.row or self._large(shown.table, shown.at)
            assert row is not None
            rows.append([row.text, embeddings.get(shown.at), row.time, row.metadata])
        return rows

    def _embeddings(self, table: Table, ats: list[int]) -> dict[int, str]:
        if not ats:
            return {}
        found = self._engine.rows(table.embedding, [ats[0], ats[-1], ats])
        return {at: text for at, text in found if isinstance(at, int) and isinstance(text, str)}

    def _paged(self) -> Iterator[_Page]:
        """Yield pages; none of them is of two tables. After SCANNED_ROWS there is one, be it empty."""
        for table in self.tables:
            page: _Page = []
            held = scanned = 0
            for block in self._blocks(table):
                scanned += len(block)
                for entry in self._shown(table, block):
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
        """Yield the rows of the table, range after range, each as wide as its texts allow."""
        at, width = table.first, table.block
        while at <= table.last:
            # Up to the next multiple of its width: so it never takes two of the engine's vectors where one would do.
            end = at + width - at % width
            try:
                block, size = self._block(table, at, end - 1)
            except (OutOfMemory, _TooMuch):
                if width == 1:
                    raise
                width = max(1, width // 4)
                continue
            yield block
            at = end
            if size > BLOCK_BYTES:
                width = max(1, width // 2)
            elif size < BLOCK_BYTES // 4:
                width = min(table.block, width * 2)

    def _block(self, table: Table, first: int, last: int) -> tuple[list[tuple[Cell, ...]], int]:
        block, size, held = [], 0, 0
        for cells in self._engine.rows(table.seeing, [first, last]):
            assert isinstance(cells[1], int)
            size += cells[1]
            held += cells[1] if cells[1] <= SMALL_BYTES else 0
            if held > 4 * BLOCK_BYTES:
                raise _TooMuch
            block.append(cells)
        return block, size

    def _shown(self, table: Table, block: list[tuple[Cell, ...]]) -> Iterator[tuple[_Shown, Json]]:
        rows = [_values(table, cells[3:]) for cells in block]
        names = self._names(table, rows)
        for (at, size, embedded, *_), values in zip(block, rows, strict=True):
            assert isinstance(at, int)
            assert isinstance(size, int)
            large = size > SMALL_BYTES
            row = self._large(table, at) if large else row_of(table.kind, values, graph=self._graph, names=names)
            if row is not None:
                seen: Json = [row.kind, row.id, digest(row, embedded=bool(embedded)), bool(embedded), size]
                yield _Shown(table, at, size, bool(embedded), None if large else row), seen

    def _large(self, table: Table, at: int) -> Row | None:
        for cells in self._engine.rows(table.whole, [at]):
            values = _values(table, cells)
            return row_of(table.kind, values, graph=self._graph, names=self._names(table, [values]))
        return None

    def _names(self, table: Table, rows: Sequence[Values]) -> Mapping[str, str]:
        """Return the names of the entities that relationships lead to."""
        if table.kind != "relationship":
            return {}
        ids = {values[end] for values in rows for end in ("from_entity", "to_entity") if end in values}
        return entity_names(self._engine, sorted(ids))


def _values(table: Table, cells: Sequence[Cell]) -> Values:
    return {name: cell for name, cell in zip(table.columns, cells, strict=True) if cell and isinstance(cell, str)}
