"""The ledger on SQLite: one file, one writer, as many readers as like."""

from agent.adapters.sqlite_ledger.file import is_made
from agent.adapters.sqlite_ledger.history import Codec
from agent.adapters.sqlite_ledger.ledger import SqliteLedger

__all__ = ["Codec", "SqliteLedger", "is_made"]
