"""Queries about any number of memories use few distinct statements, because the connection caches each prepared one."""

import sqlite3
from contextlib import closing

import pytest

from agent.adapters.sqlite_ledger import schema
from agent.adapters.sqlite_ledger.memories import Memories
from tests.support.memories import seen
from tests.support.values import TARGET


class RecordingConnection(sqlite3.Connection):
    """A connection that records the text of each statement."""

    def execute(self, statement, *parameters):
        self.__dict__.setdefault("statements", set()).add(statement)
        return super().execute(statement, *parameters)


@pytest.fixture
def connection():
    with closing(sqlite3.connect(":memory:", isolation_level=None, factory=RecordingConnection)) as connection:
        schema.migrate(connection)
        yield connection


def test_queries_of_any_length_use_at_most_eleven_statements(connection):
    memories, rows = Memories(connection), [seen(number) for number in range(1100)]
    connection.execute(
        "INSERT INTO targets VALUES (?, 'cloud', '', '', '', 0, 0, '', 0, NULL, '', NULL, NULL)", (TARGET.id,)
    )
    memories.deliver(TARGET, rows[1::2])
    connection.statements.clear()
    for length in (*range(1, 70), 511, 512, 513, 1100):
        assert memories.lacking(TARGET, rows[:length]) == rows[:length:2]
    assert len([statement for statement in connection.statements if " IN (" in statement]) <= 11
