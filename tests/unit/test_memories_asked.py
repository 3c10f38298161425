"""What the ledger is asked about memories, however many: a few questions, for each that is prepared is kept."""

import sqlite3
from contextlib import closing

import pytest

from agent.adapters.sqlite_ledger import schema
from agent.adapters.sqlite_ledger.memories import Memories
from tests.support.memories import seen
from tests.support.values import TARGET


class Listening(sqlite3.Connection):
    """Keeps the text of each question."""

    def execute(self, question, *parameters):
        self.__dict__.setdefault("asked", set()).add(question)
        return super().execute(question, *parameters)


@pytest.fixture
def connection():
    with closing(sqlite3.connect(":memory:", isolation_level=None, factory=Listening)) as connection:
        schema.migrate(connection)
        yield connection


def test_pages_of_any_length_are_asked_about_in_eleven_ways_at_most_and_answered_right(connection):
    memories, rows = Memories(connection), [seen(number) for number in range(1100)]
    connection.execute(
        "INSERT INTO targets VALUES (?, 'cloud', '', '', '', 0, 0, '', 0, NULL, '', NULL, NULL)", (TARGET.id,)
    )
    memories.deliver(TARGET, rows[1::2])
    connection.asked.clear()
    for length in (*range(1, 70), 511, 512, 513, 1100):
        assert memories.lacking(TARGET, rows[:length]) == rows[:length:2]
    assert len([question for question in connection.asked if " IN (" in question]) <= 11
