"""Kills (SIGKILL) between any two writes of the state table, and a restart: one upload, one result ID, nothing owed."""

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.support.machine import Done, Machine
from tests.support.session_buddy import REFLECTION, create, opened

pytestmark = pytest.mark.long

HERE = Path(__file__).parent


class KillableMachine(Machine):
    """A machine whose `sync` kills itself at a given point."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.published = tmp_path / "published.jsonl"

    def sync(self, point: str = "-") -> Done:
        killed = (sys.executable, str(HERE / "killed_sync.py"), point, str(self.published))
        return self.call(prefix=killed)

    @property
    def succeeded(self) -> list[str]:
        lines = self.published.read_text().splitlines() if self.published.exists() else []
        events = [json.loads(line) for line in lines]
        return [event["id"] for event in events if event["type"] == "akosha.sync.succeeded.v1"]


@pytest.fixture
def machine(tmp_path):
    machine = KillableMachine(tmp_path)
    create(machine.data, commits=20, entities=5)
    return machine


def kill_and_restart(machine: KillableMachine, point: str) -> None:
    killed = machine.sync(point)
    assert killed.code == -signal.SIGKILL, killed.err
    again = machine.sync()
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    "point",
    [
        "mark_owed:before",
        "mark_owed:after",
        "mirror:before",
        "mirror_record:before",
        "mirror_cleanup:before",
        "mirror:after",
        "begin:before",
        "begin:after",  # the point before the next write is the same, so it is not listed
        "put-file:after",
        "put-manifest:before",
        "put-manifest:after",
        "deliver:after",
        "publish:after",
        "confirm:after",
    ],
)
def test_a_kill_at_any_point_leaves_one_upload_and_one_result_id(machine, point):
    kill_and_restart(machine, point)
    assert len(machine.manifests) == 1
    (manifest,) = machine.manifests
    assert set(machine.succeeded) == {f"{manifest['upload_id']}.{manifest['agent_id'][:8]}.succeeded"}
    status = machine.status()
    assert status["pending"] == []
    assert {row["state"] for row in status["targets"][0]["databases"]} == {"clean"}


@pytest.mark.parametrize("point", ["make:after", "base:after", "patch:after", "retain:before"])
def test_a_kill_at_a_step_of_a_patched_upload_leaves_it_complete(machine, point):
    machine.constants["agent.domain.upload_plan:LEAST_PATCHED_BYTES"] = 2**18
    with opened(machine.data / REFLECTION) as base:
        base.execute("CREATE TABLE large AS SELECT n, md5(random()::VARCHAR) AS text FROM range(40000) AS rows(n)")
    assert machine.sync().code == 0
    with opened(machine.data / REFLECTION) as base:
        base.execute("CREATE TABLE extra AS SELECT 1")
    kill_and_restart(machine, f"patched-{point}")
    assert len(machine.manifests) == 2
    (main,) = (part for part in machine.manifests[-1]["parts"] if part["name"] == REFLECTION)
    assert len(main["layers"]) == 2
    assert machine.call("verify", "--deep").code == 0
    assert machine.status()["pending"] == []


def test_an_upload_killed_before_its_manifest_is_resumed(machine):
    killed = machine.sync("put-file:after")
    assert killed.code == -signal.SIGKILL
    (unfinished,) = (machine.bucket / "systems/laptop/uploads").iterdir()
    assert machine.sync().code == 0
    assert [manifest["upload_id"] for manifest in machine.manifests] == [unfinished.name]


def test_an_unfinished_upload_of_changed_databases_is_abandoned(machine):
    assert machine.sync("put-file:after").code == -signal.SIGKILL
    (unfinished,) = (machine.bucket / "systems/laptop/uploads").iterdir()
    create(machine.data.parent / "newer", commits=25, entities=6)
    for path in (machine.data.parent / "newer").iterdir():
        path.replace(machine.data / path.name)
    assert machine.sync().code == 0
    (manifest,) = machine.manifests
    assert manifest["upload_id"] > unfinished.name


def test_the_next_sync_deletes_metadata_without_an_object(machine):
    assert machine.sync("record:after").code == -signal.SIGKILL
    metadata = machine.bucket / ".akosha" / "metadata"
    assert [path.suffix for path in metadata.rglob("*") if path.is_file()] == [".json"]
    (machine.state / "ledger.sqlite").unlink()  # without the ledger, the upload is not resumed
    assert machine.sync().code == 0
    (manifest,) = machine.manifests
    left = [path for path in metadata.rglob("*") if manifest["upload_id"] not in path.as_posix()]
    assert [path.name for path in left] == ["systems", "laptop", "uploads"]
    records = {path.relative_to(metadata).as_posix() for path in metadata.rglob("*") if path.is_file()}
    assert all((machine.bucket / record.removesuffix(".json")).is_file() for record in records)


def test_the_next_sync_deletes_staged_copies_of_a_killed_run(machine):
    assert machine.sync("put-file:before").code == -signal.SIGKILL
    assert any(path.is_file() for path in (machine.state / "staging").rglob("*"))
    assert machine.sync().code == 0
    assert not any(path.is_file() for path in (machine.state / "staging").rglob("*"))


@pytest.mark.parametrize("point", ["count_attempt:after", "give_up:after"])
def test_a_kill_while_the_bucket_fails_leaves_the_databases_owed(machine, point):
    """A file is in place of the directory `systems`: every put fails until it is deleted."""
    machine.bucket.mkdir()
    (machine.bucket / "systems").write_text("a file")
    killed = machine.sync(point)
    if killed.code != -signal.SIGKILL:
        assert point.startswith("count_attempt"), killed.err
        assert killed.code == 1  # a permanent failure has no attempts to count
    assert machine.status()["pending"] == ["knowledge_graph", "reflection"]
    (machine.bucket / "systems").unlink()
    assert machine.sync().code == 0
    assert len(machine.manifests) == 1


@pytest.mark.parametrize("point", ["adopt:before", "adopt:after"])
def test_a_kill_while_a_lost_ledger_is_rebuilt_uploads_nothing_again(machine, point):
    assert machine.sync().code == 0
    for path in machine.state.glob("ledger*"):
        path.unlink()
    kill_and_restart(machine, point)
    assert len(machine.manifests) == 1
    assert len(set(machine.succeeded)) == 1
