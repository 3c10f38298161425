"""A look at the ledger's file, beside whoever writes it: is it whole, and how large? Changes nothing."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agent.adapters.sqlite_ledger import schema
from agent.adapters.sqlite_ledger.file import damaged, open_for_reading, size_of, translated


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """Bytes on disk, with what SQLite keeps beside the file; the version of its tables."""

    size: int
    version: int


def examine(path: Path) -> LedgerFacts:
    """Check the whole file, as quickly as SQLite can. Blocks. Raises StateError: damaged, newer, closed to us."""
    with translated(path), closing(_opened(path)) as connection:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(str(verdict).splitlines()[0])
        return LedgerFacts(size_of(path), schema.version(connection))


def _opened(path: Path) -> sqlite3.Connection:
    """Where nobody has it open, SQLite would make its sidecars anew: then the file alone is the whole ledger."""
    if path.is_file() and not path.with_name(f"{path.name}-wal").exists():
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        try:
            schema.check_not_newer(schema.version(connection))
        except BaseException:
            connection.close()
            raise
        return connection
    return open_for_reading(path)
