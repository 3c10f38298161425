"""A main file and its sidecars become one clean file, in the child. It holds the same afterwards: hashed twice."""

import re
from pathlib import Path

from agent.adapters.duckdb.contents import Contents, contents
from agent.adapters.duckdb.engine import FOLDING_MEMORY_LIMITS, opened, reason
from agent.domain.databases import SIDECAR_SUFFIXES
from agent.domain.memories import Json

_NO_MEMORY = re.compile(r"out of memory|failed to (allocate|pin)", re.IGNORECASE)


def fold(copy: Path) -> Json:
    """Fold it; return the rows per table, or what stands in the way."""
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
