"""Which rows of a copy are as in its main file: no statement in the WAL has changed or deleted them. Runs in the child.

DuckDB replays the WAL in memory. Its segments tell which rows it read from the main file, and which columns it has
updated since. Where the main file is the same as before, these rows need not be read again.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

from agent.adapters.duckdb.child.engine import Engine
from agent.adapters.duckdb.child.tables import Table

_Segment = tuple[int, str, str, int, bool, bool, int, int]
"""Row group, column in lower case, path, count of values, whether it is updated, whether it is in the main file, block,
offset in the block."""


class Stored:
    """The rows of a table that are as in the main file. `digest` covers where the main file has them."""

    def __init__(self, engine: Engine, table: Table) -> None:
        wanted = {*table.hashed_columns, "embedding"}
        segments = [segment for segment in _segments(engine, table) if segment[1] in wanted]
        self._ranges, self._rows = _stored_ranges(segments)
        places = [(*segment[:4], *segment[6:]) for segment in segments if segment[5]]
        self.digest = hashlib.sha256(json.dumps([table.hashes, places]).encode()).hexdigest()
        self._engine, self._table = engine, table

    def chunks(self, chunk_rows: int) -> set[int]:
        """Return the numbers of the chunks of which no row has changed or is missing."""
        found = self._engine.rows(
            f"SELECT rowid // ?, count(*) FROM {self._table.name} GROUP BY ALL",  # noqa: S608 - quoted
            [chunk_rows],
        )
        counts = {number: count for number, count in found if isinstance(number, int)}
        whole = set()
        for number, count in counts.items():
            first, end = number * chunk_rows, min((number + 1) * chunk_rows, self._rows)
            if count == end - first and any(start <= first and end <= stop for start, stop in self._ranges):
                whole.add(number)
        return whole

    def covers(self, chunks: Iterable[int], chunk_rows: int) -> bool:
        """Return whether these chunks are all that the table has."""
        return {*chunks} == {*range(-(-self._rows // chunk_rows))}


def _segments(engine: Engine, table: Table) -> list[_Segment]:
    return [
        (
            _number(group),
            str(column).lower(),
            str(path),
            _number(count),
            updated is not False,
            persistent is True,
            _number(block),
            _number(offset),
        )
        for group, column, path, count, updated, persistent, block, offset in engine.rows(
            "SELECT row_group_id, column_name, column_path, count, has_updates, persistent, block_id, block_offset"
            " FROM pragma_storage_info(?) ORDER BY row_group_id, column_id, column_path, segment_id",
            [table.name],
        )
    ]


def _stored_ranges(segments: Sequence[_Segment]) -> tuple[list[tuple[int, int]], int]:
    """Return the ranges of rowids that are as in the main file, joined, and the number of rowids."""
    ranges: list[tuple[int, int]] = []
    start = 0
    for group in sorted({segment[0] for segment in segments}):
        of_group = [segment for segment in segments if segment[0] == group]
        stored: dict[tuple[str, str], int] = {}
        for _, column, path, count, _, persistent, _, _ in of_group:
            if _counts_rows(path):
                stored[column, path] = stored.get((column, path), 0) + (count if persistent else 0)
        size = sum(segment[3] for segment in of_group if segment[1] == "id" and segment[2].count(",") == 0)
        stop = start + (0 if any(segment[4] for segment in of_group) else min(stored.values(), default=0))
        if ranges and ranges[-1][1] == start:
            ranges[-1] = ranges[-1][0], stop
        else:
            ranges.append((start, stop))
        start += size
    return ranges, start


def _counts_rows(path: str) -> bool:
    """Return whether the values in a segment are one for each row: those of a column, or whether they are NULL."""
    depth = path.count(",")
    return depth == 0 or (depth == 1 and path.endswith(" 0]"))


def _number(cell: object) -> int:
    return cell if isinstance(cell, int) else -1
