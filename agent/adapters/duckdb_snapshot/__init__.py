"""Right copies of live DuckDB databases.

source        where a database's files really are, and what they look like from outside
header        the 12,288 bytes that say which state of the database is the valid one
filecopy      one file through one descriptor
bracket       copying between two equal headers
verification  the parent's side of the check; `child` is the process that runs it, and alone imports duckdb
taker         the port
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.adapters.duckdb_snapshot.taker import DuckdbSnapshotTaker

__all__ = ["DuckdbSnapshotTaker"]


def __getattr__(name: str) -> object:
    """Import the taker when it is asked for: the child passes here too, and starts in half the time without it."""
    if name == "DuckdbSnapshotTaker":
        from agent.adapters.duckdb_snapshot import taker  # noqa: PLC0415

        return taker.DuckdbSnapshotTaker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
