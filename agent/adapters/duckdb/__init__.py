"""DuckDB files of another process: right copies of them, and what the copies hold.

source        where a database's files really are, and what they look like from outside
header        the 12,288 bytes that say which state of the database is the valid one
filecopy      one file through one descriptor
bracket       copying between two equal headers
taker         the port for snapshots
reader        the port for memories

children      processes that have the engine; `child` is their program, `engine` its inside, which alone imports duckdb
exchange      question and answer between a child and its parent, in `frames`
verification  the check of a copy
reading       pages of memories, in the child
folding       main file and sidecars become one; `merging` is its inside, in the child
tables        which tables hold memories, and the statements that read them
rows          the text, metadata and digest of a row
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.adapters.duckdb.child_process import Warm
    from agent.adapters.duckdb.folding import DuckdbFolder
    from agent.adapters.duckdb.reader import DuckdbMemoryReader
    from agent.adapters.duckdb.snapshot_taker import DuckdbSnapshotTaker

__all__ = ["DuckdbFolder", "DuckdbMemoryReader", "DuckdbSnapshotTaker", "Warm"]


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
    if name == "Warm":
        from agent.adapters.duckdb import child_process  # noqa: PLC0415

        return child_process.Warm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
