"""`restore` on the command line: output, exit status, and the move to a new laptop."""

from datetime import datetime

import pytest

from tests.support.machine import Machine


@pytest.fixture
def laptop(tmp_path):
    laptop = Machine(tmp_path / "laptop")
    laptop.write(commits=5, entities=2)
    laptop.sync()
    return laptop


def test_restore_writes_the_uploaded_files_and_reports_them(laptop, tmp_path):
    to = tmp_path / "to"
    done = laptop.call("restore", "--to", str(to), "--json")
    assert (done.code, done.err) == (0, "")
    (upload,) = laptop.manifests
    assert done.json["upload_id"] == upload["upload_id"]
    rows = {one["database"]: one["rows"] for one in done.json["databases"]}
    assert (rows["reflection"]["conversations_v2"], rows["knowledge_graph"]["kg_entities"]) == (5, 2)
    assert {path.name: path.read_bytes() for path in to.iterdir()} == {
        path.name: path.read_bytes() for path in laptop.data.iterdir()
    }

    again = laptop.call("restore", upload["upload_id"][:11], "--to", str(to))
    assert (again.code, again.out) == (1, "")
    assert "reflection.duckdb" in again.err
    assert "--force" in again.err

    forced = laptop.call("restore", "--at", "2100-01-01 00:00", "--to", str(to), "--only", "reflection", "--force")
    assert forced.code == 0, forced.err
    uploaded = f"{datetime.fromisoformat(upload['uploaded_at']).astimezone():%Y-%m-%d %H:%M:%S}"
    assert f"restored {upload['upload_id']}, uploaded {uploaded}, to {to}" in forced.out
    assert "the existing reflection.duckdb was renamed to reflection.duckdb.before-restore-" in forced.out
    assert len(list(to.iterdir())) == 3


def test_one_restore_sets_up_a_new_laptop(laptop, tmp_path):
    new = Machine(tmp_path / "new", system_id="new-laptop", cloud_endpoint=laptop.bucket.as_uri())
    none = new.call("restore", "--to", str(new.data))
    assert none.code == 1
    assert "--system" in none.err
    assert list(new.data.iterdir()) == []
    done = new.call("restore", "--system", "laptop", "--to", str(new.data))
    assert (done.code, done.err) == (0, "")
    assert {path.name for path in new.data.iterdir()} == {path.name for path in laptop.data.iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["latest"], "--to"),
        (["latest", "--at", "2026-11-20 18:00", "--to", "x"], "--at"),
        (["--at", "tomorrow", "--to", "x"], "is not a time"),
        (["--system", "a/b", "--to", "x"], "--system"),
        (["--to", ""], "name of the directory is empty"),
    ],
    ids=["no-to", "two-answers", "no-time", "no-system", "empty-to"],
)
def test_invalid_arguments_are_usage_errors(tmp_path, words, message):
    machine = Machine(tmp_path)
    done = machine.call("restore", *words)
    assert done.code == 2
    assert message in done.err
    assert not (machine.home / "x").exists()
