"""The ledger on SQLite: one file, one writer, as many readers as like."""

from agent.adapters.sqlite_ledger.file import damaged_ledgers, is_made, set_aside
from agent.adapters.sqlite_ledger.ledger import SqliteLedger

__all__ = ["SqliteLedger", "damaged_ledgers", "is_made", "set_aside"]
