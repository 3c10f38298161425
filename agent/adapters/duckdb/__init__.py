"""DuckDB files of another process: consistent copies of them, and the contents of the copies.

snapshot_taker   the port for snapshots
source           the files of a database as they look from outside, and the header of the main file
bracketed_copy   copying between two equal headers
verification     the check of a copy
reader           the port for memories
folding          main file and sidecars become one

child_process    processes that have the engine, and requests to them in `frames`: the parent's side
child            the program of a child
engine           the engine in a child: the only module that imports duckdb
contents         rows and digests of tables, and folding, in the child
reading          pages of memories, in the child
tables           which tables hold memories, and the statements that read them
rows             the text, metadata and digest of a row
database_facts   facts about databases, for diagnosis
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.adapters.duckdb.child_process import WarmChildren
    from agent.adapters.duckdb.folding import DuckdbFolder
    from agent.adapters.duckdb.reader import DuckdbMemoryReader
    from agent.adapters.duckdb.snapshot_taker import DuckdbSnapshotTaker

__all__ = ["DuckdbFolder", "DuckdbMemoryReader", "DuckdbSnapshotTaker", "WarmChildren"]


def __getattr__(name: str) -> object:
    """Import a port when it is asked for: the children pass here too, and start in half the time without it."""
    if name == "DuckdbSnapshotTaker":
        from agent.adapters.duckdb import snapshot_taker  # noqa: PLC0415

        return snapshot_taker.DuckdbSnapshotTaker
    if name == "DuckdbMemoryReader":
        from agent.adapters.duckdb import reader  # noqa: PLC0415

        return reader.DuckdbMemoryReader
    if name == "DuckdbFolder":
        from agent.adapters.duckdb import folding  # noqa: PLC0415

        return folding.DuckdbFolder
    if name == "WarmChildren":
        from agent.adapters.duckdb import child_process  # noqa: PLC0415

        return child_process.WarmChildren
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
