"""Control characters in a file name do not reach the terminal: commands print them as escapes."""

import pytest

from tests.support.machine import Machine

HOSTILE = "knowledge_graph_a\x1b[2J\nzq\u202ec.duckdb"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_every_command_escapes_control_characters_in_file_names(machine):
    machine.write(commits=2, entities=2)
    (machine.data / HOSTILE).write_bytes(b"no database")
    machine.sync()
    (machine.data / "knowledge_graph.duckdb").rename(machine.data / f"knowledge_graph_good{HOSTILE[15:]}")
    machine.call("sync")
    shown = machine.shown(
        ("sync",), ("status",), ("events",), ("uploads",), ("uploads", "show", "latest"), ("verify", "--deep"),
        ("doctor",), ("restore", "latest", "--to", str(machine.home / "restored")), ("memories",),
        ("prune", "--dry-run"),
    )  # fmt: skip
    assert "\\x1b[2J\\nzq\\u202ec" in shown
    assert not [char for char in shown if not (char.isprintable() or char == "\n")]
    assert "\nzq" not in shown
