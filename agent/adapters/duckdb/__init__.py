"""Consistent copies of DuckDB files that another process writes, and the contents of the copies.

snapshot_taker   implements `SnapshotTaker`
source           the files of a database, and the header of the main file
bracketed_copy   copies a database between two equal headers
mirror           implements `Mirror`
verification     verifies a copy
reader           implements `MemoryReader`
folding          merges a main file and its sidecars into one file

child_process    starts child processes that run DuckDB, and keeps some for the next reader
child_protocol   the commands and answers between parent and child
child            the child's program; only it imports duckdb
rows             the text, metadata and digest of a row
database_facts   facts about databases, for `doctor`
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.adapters.duckdb.child_process import WarmChild
    from agent.adapters.duckdb.folding import DuckdbWalMerger
    from agent.adapters.duckdb.mirror import MirrorDirectory
    from agent.adapters.duckdb.reader import DuckdbMemoryReader
    from agent.adapters.duckdb.snapshot_taker import DuckdbSnapshotTaker

__all__ = ["DuckdbMemoryReader", "DuckdbSnapshotTaker", "DuckdbWalMerger", "MirrorDirectory", "WarmChild"]


def __getattr__(name: str) -> object:
    """Import a class on first use: child processes import this package too, and start in half the time this way."""
    if name == "DuckdbSnapshotTaker":
        from agent.adapters.duckdb import snapshot_taker  # noqa: PLC0415

        return snapshot_taker.DuckdbSnapshotTaker
    if name == "DuckdbMemoryReader":
        from agent.adapters.duckdb import reader  # noqa: PLC0415

        return reader.DuckdbMemoryReader
    if name == "DuckdbWalMerger":
        from agent.adapters.duckdb import folding  # noqa: PLC0415

        return folding.DuckdbWalMerger
    if name == "MirrorDirectory":
        from agent.adapters.duckdb import mirror  # noqa: PLC0415

        return mirror.MirrorDirectory
    if name == "WarmChild":
        from agent.adapters.duckdb import child_process  # noqa: PLC0415

        return child_process.WarmChild
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
