"""An upgraded agent continues the work of an earlier version (tests/support/data/state_of_53ebc98)."""

import gzip
import hashlib
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from agent.adapters.sqlite_ledger import schema
from agent.domain.upload_parts import PATCHES
from tests.support import session_buddy
from tests.support.bus_listener import listening
from tests.support.earlier_version import NotInCloneError, earlier_version
from tests.support.machine import Machine

pytest_plugins = ["tests.support.servers.fixtures"]

EARLIER = Path(__file__).parents[1] / "support" / "data" / "state_of_53ebc98"
DELIVERED, UNFINISHED = "20261129_192521_laptop", "20261129_192529_laptop"
RESULT_IN_OUTBOX = "20261129_192521_laptop.1f76a989.succeeded"
SESSION_END = "7ab6d0cd-abef-4290-898a-6cbd19d8887d"


def uploads(machine: Machine) -> Path:
    return machine.bucket / "systems" / "laptop" / "uploads"


def query(machine: Machine, statement: str) -> list[tuple]:
    ledger = sqlite3.connect(f"file:{machine.state / 'ledger.sqlite'}?mode=ro", uri=True)
    try:
        return ledger.execute(statement).fetchall()
    finally:
        ledger.close()


def restored_ledger(path: Path, bucket: Path) -> None:
    """Create the ledger from its SQL, in which `BUCKET` stands for the bucket's path, in the events' JSON too."""

    def with_path(blob: re.Match[str]) -> str:
        return f"X'{bytes.fromhex(blob[1]).replace(b'BUCKET', bytes(bucket)).hex()}'"

    sql = (EARLIER / "state" / "ledger.sql").read_text()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(re.sub(r"X'([0-9A-F]*)'", with_path, sql).replace("BUCKET", str(bucket)))
    connection.close()


@pytest.fixture
def machine(fresh_nats, tmp_path):
    """A machine whose agent was killed during an upload and then replaced by the current version."""
    machine = Machine(tmp_path, agent_nats_url=fresh_nats.url)
    shutil.copytree(EARLIER / "bucket", machine.bucket)
    for database in ("reflection.duckdb", "knowledge_graph.duckdb"):
        compressed = uploads(machine) / UNFINISHED / database
        (machine.data / database).write_bytes(gzip.decompress(compressed.read_bytes()))
    shutil.copytree(EARLIER / "state", machine.state, ignore=shutil.ignore_patterns("ledger.sql"))
    restored_ledger(machine.state / "ledger.sqlite", machine.bucket)
    left_over = machine.state / "staging" / "take-5914a5d4c40e4ad19e5adcdb86407b15" / "reflection.duckdb"
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(b"a copy")
    return machine


def test_the_ledger_of_an_earlier_version_is_read_without_migration(machine):
    (target,) = (one for one in machine.status()["targets"] if one["method"] == "cloud")
    assert {row["name"]: row["state"] for row in target["databases"]} == {
        "knowledge_graph": "delivered",
        "reflection": "intent",
    }
    assert [event["id"] for event in machine.events() if event["type"].endswith("succeeded.v1")] == [RESULT_IN_OUTBOX]
    assert query(machine, "PRAGMA user_version") == [(3,)]


def test_unfinished_work_of_an_earlier_version_is_completed_once(machine, fresh_nats):
    before = {path: path.read_bytes() for path in uploads(machine).rglob("*") if path.is_file()}
    sent = uploads(machine) / UNFINISHED / "reflection.duckdb"
    inode = sent.stat().st_ino
    with listening(fresh_nats.url) as listener, machine.run() as agent:
        agent.logged("session_ended", session_id="before the upgrade")
        listener.wait(lambda: any(SESSION_END in event["data"].get("caused_by", ()) for event in listener.received))
        status = machine.status(lambda found: not found["pending"])
        assert {row["state"] for row in status["targets"][0]["databases"]} == {"clean"}
    assert listener.ids() == [RESULT_IN_OUTBOX, f"{UNFINISHED}.1f76a989.succeeded"]
    assert [SESSION_END in event["data"].get("caused_by", ()) for event in listener.received].count(True) == 1

    assert {path: path.read_bytes() for path in before} == before
    assert sent.stat().st_ino == inode, "an object that is in the bucket is not sent again"
    assert [manifest["upload_id"] for manifest in machine.manifests] == [DELIVERED, UNFINISHED]
    assert (machine.manifests[1]["bytes_sent"], machine.manifests[1]["memories"]) == (0, None)
    assert machine.call("verify", UNFINISHED, "--deep").code == 0

    assert query(machine, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
    assert query(machine, "SELECT COUNT(*) FROM intents") == [(0,)]
    assert query(machine, "SELECT COUNT(*) FROM memories") == [(0,)], "a bucket has row sets instead"
    assert list((machine.state / "spool").glob("*.json")) == []
    assert machine.staged == []
    assert machine.sync()["outcome"] == "skipped"


@pytest.fixture
def patched(tmp_path):
    """A machine whose newest upload is a base and a patch, though its database is small."""
    machine = Machine(tmp_path)
    machine.constants = {"agent.domain.upload_plan:LEAST_PATCHED_BYTES": 0}
    machine.write(commits=400, entities=6)
    machine.sync()
    with session_buddy.opened(machine.data / "reflection.duckdb") as base:
        base.execute("CREATE TABLE extra AS SELECT * FROM range(50)")
    machine.sync()
    assert machine.manifests[-1]["parts"][1]["compression"] == PATCHES
    return machine


@pytest.fixture
def earlier(tmp_path):
    try:
        return earlier_version(tmp_path / "earlier")
    except NotInCloneError as error:
        pytest.skip(str(error))


def test_an_earlier_version_refuses_to_restore_an_upload_with_patches(patched, earlier, tmp_path):
    restored = tmp_path / "restored"
    done = patched.call("restore", "latest", "--to", str(restored), prefix=earlier)
    assert done.code != 0
    assert "update akosha-agent" in done.err
    assert not restored.exists() or not list(restored.glob("*.duckdb"))


def test_an_earlier_version_goes_on_with_whole_files_and_this_one_with_patches(patched, earlier, tmp_path):
    """The earlier version has a state directory of its own: it refuses the ledger of this one."""
    before, state = patched.manifests, patched.state
    assert "update akosha-agent" in patched.call("sync", prefix=earlier).err
    patched.state = tmp_path / "earlier-state"
    patched.sync(prefix=earlier)
    theirs = patched.manifests[-1]
    assert theirs["upload_id"] > before[-1]["upload_id"]
    assert {part["compression"] for part in theirs["parts"]} == {"gzip"}

    patched.state = state
    with session_buddy.opened(patched.data / "reflection.duckdb") as base:
        base.execute("INSERT INTO extra SELECT * FROM range(70)")
    patched.sync("--take-over")
    ours = patched.manifests[-1]
    assert ours["upload_id"] > theirs["upload_id"]
    for manifest in patched.manifests:
        upload = manifest["upload_id"]
        assert patched.call("verify", upload, "--deep").code == 0
        assert patched.call("restore", upload, "--to", str(tmp_path / upload)).code == 0
    digest = hashlib.sha256((patched.data / "reflection.duckdb").read_bytes()).hexdigest()
    assert hashlib.sha256((tmp_path / ours["upload_id"] / "reflection.duckdb").read_bytes()).hexdigest() == digest
