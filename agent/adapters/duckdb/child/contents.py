"""Row counts and digests of the tables of a copy, and folding of a main file and its sidecars. Runs in the child.

A database may use features of an extension: index types, column types, functions in generated columns. The rows do not
need the extension, so tables and columns that cannot be read are reported by name, and the others are read. Folding
compares the digests before and after, so that the contents stay the same.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.adapters.duckdb.child.engine import FOLDING_MEMORY_LIMITS, Engine, opened, quoted, reason, reason_in
from agent.domain.databases import SIDECAR_SUFFIXES
from agent.domain.memories import Json

_CANNOT = re.compile(
    r"\bversion\b|extension|encrypt|out of memory|not implemented|unknown index type|"
    r"(function|type|collation) with name .* does not exist",
    re.IGNORECASE,
)
"""Matches DuckDB's errors about files that it does not support, rather than damaged ones."""

_ROW = '"the whole row"'

_AT_ONCE = 64
"""Number of tables that one statement hashes. With a statement for each, even an empty table costs a millisecond."""

_NO_MEMORY = re.compile(r"out of memory|failed to (allocate|pin)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Contents:
    """`tables`: table name -> number of rows, and a digest of all rows that does not depend on their order.

    `unread`: table or `table.column` -> why DuckDB cannot read it.
    """

    tables: dict[str, tuple[int, str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, int]:
        return {name: count for name, (count, _) in self.tables.items()}


def is_unsupported(error: Exception) -> bool:
    """Return whether this DuckDB does not support the file, rather than that the file is damaged."""
    return bool(_CANNOT.search(f"{type(error)} {error}"))


def contents(engine: Engine, *, whole: bool = True) -> Contents:
    """Read every column of every row that DuckDB supports. Raises DuckDB's errors for damage.

    Without `whole`, count the rows, find the columns that DuckDB supports, and read no row. The digests are constant.
    """
    found = Contents()
    hashed = _hashed if whole else _counted
    tables = list(
        engine.rows(
            "SELECT schema_name, table_name FROM duckdb_tables() "
            "WHERE database_name = 's' AND NOT internal ORDER BY ALL"
        )
    )
    for start in range(0, len(tables), _AT_ONCE):
        some = [(str(schema), str(table)) for schema, table in tables[start : start + _AT_ONCE]]
        _hash_tables(engine, some, found, hashed)
    return found


_Hash = Callable[[Engine, Sequence[str], str], list[tuple[int, str]]]
"""Returns the number of rows of each source, and a digest of a value in them."""


def _hash_tables(engine: Engine, tables: Sequence[tuple[str, str]], found: Contents, hashed: _Hash) -> None:
    """Hash tables in one statement. If DuckDB cannot read one of them, hash each by itself, and that one by columns."""
    names = [table if schema == "main" else f"{schema}.{table}" for schema, table in tables]
    # The alias means the complete row, unless a column has its name.
    sources = [f"{_qualified(schema, table)} AS {_ROW}" for schema, table in tables]
    try:
        found.tables.update(zip(names, hashed(engine, sources, _ROW), strict=True))
    except Exception as error:
        if not is_unsupported(error):
            raise
        if len(tables) == 1:
            _by_columns(engine, *tables[0], names[0], found, hashed)
            return
        for table in tables:
            _hash_tables(engine, [table], found, hashed)


def _by_columns(engine: Engine, schema: str, table: str, name: str, found: Contents, hashed: _Hash) -> None:
    """Read a table column by column, because at least one column cannot be read."""
    columns = list(
        engine.rows(
            "SELECT column_name FROM duckdb_columns() WHERE database_name = 's' AND schema_name = ? AND table_name = ? "
            "ORDER BY column_index",
            [schema, table],
        )
    )
    digest = hashlib.sha256()
    counts = set()
    for (column,) in columns:
        try:
            ((count, value),) = hashed(engine, [_qualified(schema, table)], quoted(str(column)))
        except Exception as error:
            if not is_unsupported(error):
                raise
            found.unread[f"{name}.{column}"] = reason_in(error)
            continue
        counts.add(count)
        digest.update(f"{column} {value}\n".encode())
    if counts:
        found.tables[name] = max(counts), digest.hexdigest()


def _hashed(engine: Engine, sources: Sequence[str], value: str) -> list[tuple[int, str]]:
    """Return the number of rows of each source, and a digest of `value` in all of its rows."""
    statement = " UNION ALL ".join(
        f"SELECT {number}, count(*), sum(hash({value}))::VARCHAR FROM {source}"  # noqa: S608 - quoted
        for number, source in enumerate(sources)
    )
    hashed = {number: (int(str(count)), str(digest)) for number, count, digest in engine.all_rows(statement)}
    return [hashed[number] for number in range(len(sources))]


def _counted(engine: Engine, sources: Sequence[str], value: str) -> list[tuple[int, str]]:
    """Return the number of rows of each source, without a digest. DuckDB checks that it supports `value`."""
    statement = " UNION ALL ".join(
        f"SELECT {number}, (SELECT count(*) FROM {source}), (SELECT sum(hash({value})) FROM {source} WHERE false)"  # noqa: S608 - quoted
        for number, source in enumerate(sources)
    )
    counts = {number: int(str(count)) for number, count, _ in engine.rows(statement)}
    return [(counts[number], "") for number in range(len(sources))]


def _qualified(schema: object, table: object) -> str:
    return f"s.{quoted(str(schema))}.{quoted(str(table))}"


def fold(copy: Path) -> Json:
    """Fold the copy; return the rows per table, or the reason why it cannot be folded."""
    try:
        before = _contents(copy)
        _checkpoint(copy)
        if left := [suffix for suffix in SIDECAR_SUFFIXES if os.path.lexists(f"{copy}{suffix}")]:
            return {"error": f"DuckDB left {', '.join(left)}"}
        if _contents(copy) != before:
            return {"error": "its contents changed"}
        return {"rows": dict(before.rows)}
    except Exception as error:  # noqa: BLE001 - any error of DuckDB is the answer
        return {"error": reason(error, copy.parent)}


def _checkpoint(copy: Path) -> None:
    """Checkpoint the copy. A failed checkpoint changes neither main file nor WAL, so more memory is tried."""
    for limit in FOLDING_MEMORY_LIMITS:
        try:
            with opened(copy, folding=limit) as engine:
                for statement in ("CHECKPOINT s", "DETACH s"):
                    for _ in engine.rows(statement):
                        pass
        except Exception as error:
            if limit == FOLDING_MEMORY_LIMITS[-1] or not _NO_MEMORY.search(f"{type(error)} {error}"):
                raise
        else:
            return


def _contents(copy: Path) -> Contents:
    """Return the contents of all tables. Does not modify the copy."""
    with opened(copy) as engine:
        return contents(engine)
