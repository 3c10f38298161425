"""`akosha-agent prune`, its JSON output, and the automatic prune of the agent."""

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.s3 import S3Store
from tests.support import uploads
from tests.support.machine import Machine
from tests.support.servers.faulty_proxy import refuse
from tests.support.servers.s3 import aws_environment
from tests.support.servers.threaded_proxy import Gate, running_faulty_proxy

pytest_plugins = ["tests.support.servers.fixtures"]

LAPTOP = "laptop"
KEEP_TWO = ("--keep-last", "2", "--keep-daily", "0", "--keep-weekly", "0", "--keep-monthly", "0")
PREFIX = f"systems/{LAPTOP}/uploads"


def fill(store, count=5, *, system_id=LAPTOP, of=None):
    """Put one upload for each of the last `count` days into a store; return the IDs, newest first. `of`: the owner."""
    ids = uploads.days(count, system_id, newest=datetime.now(UTC) - timedelta(days=1))

    async def work():
        if of is not None:
            owner = of.owner(system_id)
            await store.create(owner.key, owner.encode())
        for upload in ids:
            await uploads.put(store, upload, system_id)
        await store.aclose()

    asyncio.run(work())
    return ids


def uploads_in(store, system_id=LAPTOP):
    async def work():
        try:
            return await uploads.uploads_in(store, system_id)
        finally:
            await store.aclose()

    return asyncio.run(work())


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_dry_run_prints_what_a_prune_deletes_and_keeps(machine):
    store = DirectoryStore(machine.bucket)
    ids, others = fill(store, of=machine), fill(store, 3, system_id="other")
    left = (
        machine.bucket / PREFIX / uploads.upload_id(datetime.now(UTC) - timedelta(days=9), LAPTOP) / "reflection.duckdb"
    )
    left.parent.mkdir()
    left.write_bytes(b"left over")
    os.utime(left, (0, 0))

    shown = machine.call("prune", "--dry-run", *KEEP_TWO)
    assert shown.code == 0, shown.err
    assert "dry run: 3 of 5 uploads would be deleted; nothing was deleted" in shown.out
    assert "keep    newest, keep_last" in shown.out
    assert not [line for line in shown.out.splitlines() if line != line.rstrip()]
    planned = machine.call("prune", "--dry-run", "--json", *KEEP_TWO).json
    assert (planned["dry_run"], planned["deleted"], planned["leftovers"]) == (True, ids[2:], 1)
    assert [kept["upload_id"] for kept in planned["kept"]] == ids[:2]
    assert uploads_in(store)[0] == ids

    done = machine.call("prune", "--json", *KEEP_TWO)
    assert (done.code, done.json["deleted"], done.json["leftovers"], done.json["error"]) == (0, ids[2:], 1, None)
    assert done.json["bytes_freed"] == planned["bytes_freed"]
    assert uploads_in(store) == (ids[:2], [])
    assert uploads_in(store, "other") == (others, [])
    (event,) = machine.events()
    assert (event["type"], event["data"]["upload_ids"]) == ("akosha.archive.pruned.v1", ids[2:])
    again = machine.call("prune", *KEEP_TWO)
    assert (again.code, again.out) == (0, "nothing was deleted; 2 uploads are kept\n")


def test_a_prune_with_a_damaged_newest_upload_deletes_nothing_and_exits_1(machine):
    ids = fill(DirectoryStore(machine.bucket), of=machine)
    path = machine.bucket / PREFIX / ids[0] / "reflection.duckdb"
    path.write_bytes(path.read_bytes().swapcase())
    for options in ((), ("--dry-run",)):
        done = machine.call("prune", *KEEP_TWO, *options)
        assert done.code == 1
        assert f"nothing was deleted: {ids[0]} is damaged: reflection.duckdb" in done.err
    document = machine.call("prune", *KEEP_TWO, "--json").json
    assert (document["dry_run"], document["deleted"]) == (False, [])
    assert ids[0] in document["error"]
    assert uploads_in(DirectoryStore(machine.bucket))[0] == ids


def test_a_prune_keeps_the_upload_that_the_next_sync_copies_from(machine):
    """The upload that the ledger names is kept, so the next sync copies the unchanged object within the store."""
    fill(DirectoryStore(machine.bucket), of=machine)
    machine.write(commits=5, entities=2)
    machine.set(agent_keep_last=1, agent_keep_daily=0, agent_keep_weekly=0, agent_keep_monthly=0)
    first = machine.sync()
    complete, _ = uploads_in(DirectoryStore(machine.bucket))
    assert complete == [first["upload_id"]], "the sync prunes after its upload"
    assert machine.call("prune", *KEEP_TWO).code == 0
    machine.write(commits=9)
    second = machine.sync()
    (manifest,) = machine.manifests
    assert manifest["upload_id"] == second["upload_id"]
    origins = {part["name"]: part["origin"] for part in manifest["parts"]}
    assert origins == {"knowledge_graph.duckdb": "copied", "reflection.duckdb": "sent"}
    kinds = [event["type"].split(".")[2] for event in machine.events()]
    assert kinds.count("pruned") == 2
    assert kinds[-3:] == ["requested", "succeeded", "pruned"]


def test_the_running_agent_prunes_unless_disabled(machine):
    fill(DirectoryStore(machine.bucket), of=machine)
    machine.write(commits=5)
    machine.set(agent_keep_last=2, agent_keep_daily=0, agent_keep_weekly=0, agent_keep_monthly=0, agent_prune="false")
    machine.sync()
    assert len(machine.manifests) == 6
    machine.set(agent_prune=None)
    with machine.run() as agent:
        machine.write(commits=6)
        (pruned,) = agent.logged("uploads_pruned")
        assert pruned["count"] == 5
        assert len(machine.manifests) == 2


def test_invalid_numbers_or_a_missing_bucket_are_usage_errors(machine):
    assert machine.call("prune", "--keep-last", "-1").code == 2
    machine.set(cloud_endpoint=None)
    done = machine.call("prune")
    assert (done.code, "akosha_cloud_bucket" in done.err) == (2, True)


@pytest.fixture
def bucket(moto, tmp_path, aws):
    """A machine whose bucket is on moto behind a proxy, the proxy, and a function that opens the bucket directly."""
    name = moto.new_bucket()
    with running_faulty_proxy(moto.endpoint) as proxy:
        machine = Machine(tmp_path, cloud_endpoint=proxy.url, cloud_bucket=name)
        machine.environ |= aws_environment()
        yield machine, proxy, lambda: S3Store(bucket=name, endpoint=moto.endpoint, region="auto")


def test_a_denied_deletion_shows_a_lifecycle_rule_and_exits_1(bucket):
    machine, proxy, store = bucket
    ids = fill(store(), 4, of=machine)
    for operation in ("delete_object", "delete_objects"):
        proxy.on(operation, refuse(403, "AccessDenied"))
    for _ in range(2):
        done = machine.call("prune", *KEEP_TWO)
        assert done.code == 1
        assert "s3:DeleteObject" in done.err
        assert f'"Prefix": "{PREFIX}/"' in done.err
        assert "npx wrangler r2 bucket lifecycle add" in done.err
    output = machine.call("prune", "--json", *KEEP_TWO)
    assert (output.code, output.json["deleted"], output.json["lifecycle"].keys()) == (1, [], {"s3", "r2"})
    assert uploads_in(store()) == (ids, [])


@pytest.mark.long
@pytest.mark.parametrize("batch", ["the manifests", "the objects"])
def test_a_prune_killed_during_a_batch_leaves_no_incomplete_upload_listed(bucket, batch):
    machine, proxy, store = bucket
    ids, gate = fill(store(), 14, of=machine), Gate()
    if batch == "the objects":
        proxy.on("delete_objects", lambda _, forward: forward(), times=1)
    proxy.on("delete_objects", gate.hold(), times=1)
    with machine.started("prune", *KEEP_TWO) as pruning:
        gate.wait()
        assert pruning.stop(signal.SIGKILL) == -signal.SIGKILL
    gate.open()
    complete, _ = uploads_in(store())
    assert complete[:2] == ids[:2]
    assert machine.call("prune", *KEEP_TWO).code == 0
    assert uploads_in(store())[0] == ids[:2]
    machine.write(commits=3)
    assert machine.sync()["success"]


def test_settings_in_the_working_directory_cannot_delete_uploads(machine):
    """./settings names other retention rules and another system: a sync that is started there ignores them."""
    store = DirectoryStore(machine.bucket)
    ids, others = fill(store, 4, of=machine), fill(store, 4, system_id="victim")
    machine.set(system_id=None)
    user = machine.home / ".claude" / "settings" / "local.yaml"
    user.parent.mkdir(parents=True)
    user.write_text(f"akosha_system_id: {LAPTOP}\n")
    clone = machine.home / "clone"
    (clone / "settings").mkdir(parents=True)
    rules = "".join(f"akosha_agent_keep_{kind}: 0\n" for kind in ("daily", "weekly", "monthly"))
    (clone / "settings" / "local.yaml").write_text(f"{rules}akosha_agent_keep_last: 1\nakosha_system_id: victim\n")
    machine.write(commits=2)
    done = machine.call("sync", "--json", cwd=clone)
    assert done.code == 0, done.err
    assert done.json["upload_id"].endswith(f"_{LAPTOP}")
    assert done.err.count("are ignored: files in the working directory") == 1
    assert uploads_in(DirectoryStore(machine.bucket)) == ([done.json["upload_id"], *ids], [])
    assert uploads_in(DirectoryStore(machine.bucket), "victim") == (others, [])
