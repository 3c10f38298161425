"""A manifest that somebody with access to the bucket has changed: it controls no terminal and stops no sync."""

import json
import shutil

import pytest

from tests.support.machine import Machine

EVIL = "\x1b]0;owned\x07\nforged line\u202e\x9b2J"


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.write(commits=2, entities=2)
    made.sync()
    return made


def forge(machine: Machine, **fields: object) -> None:
    """Change fields of the only manifest, and forget what this machine knows about the bucket."""
    (path,) = machine.bucket.glob("systems/*/uploads/*/manifest.json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))
    shutil.rmtree(machine.bucket / ".akosha")
    shutil.rmtree(machine.state)


def test_no_text_of_a_manifest_reaches_a_terminal_unescaped(machine):
    (found,) = machine.manifests
    parts = [part | {"verified": False, "unverified_reason": EVIL} for part in found["parts"]]
    texts = dict.fromkeys(("triggered_by", "agent_version", "time_zone", "request_id", "agent_id"), EVIL)
    listed = {name: {EVIL: EVIL} for name in ("incomplete", "without_memories")}
    forge(machine, parts=parts, metadata={"rows": {EVIL: {EVIL: 3}}}, **texts, **listed)
    restored = machine.home / "restored"
    shown = machine.shown(
        ("uploads", "show", "latest"), ("uploads", "show", "latest", "--json"), ("uploads",), ("verify", "--deep"),
        ("restore", "latest", "--to", str(restored)), ("sync",), ("status",), ("doctor",), ("doctor", "--json"),
        ("events",), ("events", "--json"), ("prune", "--dry-run"),
    )  # fmt: skip
    assert "\\x1b]0;owned" in shown
    assert not [char for char in shown if not (char.isprintable() or char == "\n")]
    assert "\nforged line" not in shown
    assert (restored / "reflection.duckdb").exists()


@pytest.mark.parametrize(
    "fields",
    [{"uploaded_at": "0001-01-01T00:00:00+14:00"}, {"bytes_sent": 10**30}, {"duration_seconds": float("nan")}],
    ids=lambda fields: next(iter(fields)),
)
def test_an_impossible_value_in_a_manifest_does_not_stop_the_next_sync(machine, fields):
    forge(machine, **fields)
    machine.write(commits=3, entities=2)
    result = machine.sync()
    assert (result["outcome"], result["method"]) == ("succeeded", "cloud")
    assert len(machine.manifests) == 2
