"""The rows and a digest of each table of a copy, and folding a main file with its sidecars into one. In the child.

A database may use what an extension brings: index types, column types, functions in generated columns. Rows do not need
the extension, so what cannot be read here is left out by name, and the rest is read. A folded file holds the same as
before: hashed twice.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from agent.adapters.duckdb.engine import FOLDING_MEMORY_LIMITS, Engine, opened, quoted, reason, reason_in
from agent.domain.databases import SIDECAR_SUFFIXES
from agent.domain.memories import Json

_CANNOT = re.compile(
    r"\bversion\b|extension|encrypt|out of memory|not implemented|unknown index type|"
    r"(function|type|collation) with name .* does not exist",
    re.IGNORECASE,
)
"""What the engine says where it is sound but cannot read such a file."""


@dataclass(frozen=True, slots=True)
class Contents:
    """`tables`: name -> rows, and a digest over all of them, whatever their order.

    `unread`: table or `table.column` -> why the engine cannot read it.
    """

    tables: dict[str, tuple[int, str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, int]:
        return {name: count for name, (count, _) in self.tables.items()}


def is_inability(error: Exception) -> bool:
    """Say whether the engine lacks something to read this, rather than that the file is damaged."""
    return bool(_CANNOT.search(f"{type(error)} {error}"))


def contents(engine: Engine) -> Contents:
    """Read every column of every row, as far as this engine can. Raises what the engine raises for damage."""
    found = Contents()
    tables = list(
        engine.rows(
            "SELECT schema_name, table_name FROM duckdb_tables() "
            "WHERE database_name = 's' AND NOT internal ORDER BY ALL"
        )
    )
    for schema, table in tables:
        name = str(table) if schema == "main" else f"{schema}.{table}"
        try:
            # The alias means the whole row, as long as no column has its name.
            found.tables[name] = _hashed(engine, f"{_place(schema, table)} AS {_ROW}", _ROW)
        except Exception as error:
            if not is_inability(error):
                raise
            _by_columns(engine, str(schema), str(table), name, found)
    return found


_ROW = '"the whole row"'


def _by_columns(engine: Engine, schema: str, table: str, name: str, found: Contents) -> None:
    """Read a table column by column, for at least one of them cannot be read."""
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
            count, hashed = _hashed(engine, _place(schema, table), quoted(str(column)))
        except Exception as error:
            if not is_inability(error):
                raise
            found.unread[f"{name}.{column}"] = reason_in(error)
            continue
        counts.add(count)
        digest.update(f"{column} {hashed}\n".encode())
    if counts:
        found.tables[name] = max(counts), digest.hexdigest()


def _hashed(engine: Engine, source: str, what: str) -> tuple[int, str]:
    ((count, digest),) = engine.rows(f"SELECT count(*), sum(hash({what}))::VARCHAR FROM {source}")  # noqa: S608 - quoted
    assert isinstance(count, int)
    return count, str(digest)


def _place(schema: object, table: object) -> str:
    return f"s.{quoted(str(schema))}.{quoted(str(table))}"


_NO_MEMORY = re.compile(r"out of memory|failed to (allocate|pin)", re.IGNORECASE)


def fold(copy: Path) -> Json:
    """Fold it; return the rows per table, or the reason why it cannot be folded."""
    try:
        before = _contents(copy)
        _checkpoint(copy)
        if left := [suffix for suffix in SIDECAR_SUFFIXES if copy.with_name(copy.name + suffix).exists()]:
            return {"error": f"the engine leaves {', '.join(left)}"}
        if _contents(copy) != before:
            return {"error": "folded, it holds something else"}
        return {"rows": dict(before.rows)}
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is the answer
        return {"error": reason(error, copy.parent)}


def _checkpoint(copy: Path) -> None:
    """A checkpoint that came to nothing leaves main file and WAL as they were: with more memory it is tried again."""
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
    """Return what all tables hold. Leaves the copy's bytes alone."""
    with opened(copy) as engine:
        return contents(engine)
