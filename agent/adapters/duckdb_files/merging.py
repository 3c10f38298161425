"""A main file and its sidecars become one clean file, in the child. It holds the same afterwards: hashed twice."""

import re
from pathlib import Path

from agent.adapters.duckdb_files.engine import FOLDING_MEMORY_LIMITS, opened, quoted, reason
from agent.domain.databases import SIDECAR_SUFFIXES
from agent.domain.memories import Json

_NO_MEMORY = re.compile(r"out of memory|failed to (allocate|pin)", re.IGNORECASE)

Contents = dict[str, tuple[int, str]]
"""table -> rows, and a digest over all of them, whatever their order."""


def fold(copy: Path) -> Json:
    """Fold it; return the rows per table, or what stands in the way."""
    try:
        before = contents(copy)
        _checkpoint(copy)
        if left := [suffix for suffix in SIDECAR_SUFFIXES if copy.with_name(copy.name + suffix).exists()]:
            return {"error": f"the engine leaves {', '.join(left)}"}
        if contents(copy) != before:
            return {"error": "folded, it holds something else"}
        return {"rows": {name: count for name, (count, _) in before.items()}}
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


def contents(copy: Path) -> Contents:
    """Return what all tables hold. Leaves the copy's bytes alone."""
    with opened(copy) as engine:
        tables = list(
            engine.rows(
                "SELECT schema_name, table_name FROM duckdb_tables() "
                "WHERE database_name = 's' AND NOT internal ORDER BY ALL"
            )
        )
        found: Contents = {}
        for schema, table in tables:
            # The alias stands for the whole row, as long as no column has its name.
            source = f's.{quoted(str(schema))}.{quoted(str(table))} AS "the whole row"'
            for count, digest in engine.rows(
                f'SELECT count(*), sum(hash("the whole row"))::VARCHAR FROM {source}'  # noqa: S608 - quoted
            ):
                assert isinstance(count, int)
                found[str(table) if schema == "main" else f"{schema}.{table}"] = (count, str(digest))
        return found
