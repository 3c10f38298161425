"""The ledger on SQLite: one file, one writer, any number of readers."""

from agent.adapters.sqlite_ledger.file import damaged_ledgers, is_created, set_aside
from agent.adapters.sqlite_ledger.ledger import SqliteLedger

__all__ = ["SqliteLedger", "damaged_ledgers", "is_created", "set_aside"]
