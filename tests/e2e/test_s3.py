"""Working and failing S3 stores, from the command line to the bucket."""

import re
import signal
import sqlite3
import threading

import pytest

from tests.support import upload_contents
from tests.support.machine import Machine
from tests.support.servers.bucket import Bucket
from tests.support.servers.faulty_proxy import refuse, stall
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY, aws_environment
from tests.support.servers.threaded_proxy import Gate, running_faulty_proxy
from tests.support.session_buddy import GRAPH, REFLECTION, Checker, Finding

pytestmark = pytest.mark.long

pytest_plugins = ["tests.support.servers.fixtures"]

TOKEN = "canary-token"


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path, http_token=TOKEN)
    machine.environ |= aws_environment()
    machine.secrets = (SECRET_KEY, TOKEN)
    yield machine
    files = [path for path in machine.state.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files for secret in machine.secrets if secret.encode() in path.read_bytes()]


@pytest.fixture
def bucket(moto):
    return Bucket(moto)


@pytest.fixture
def proxy(moto, bucket, machine):
    with running_faulty_proxy(moto.endpoint) as proxy:
        machine.set(cloud_endpoint=proxy.url, cloud_bucket=bucket.name)
        yield proxy


@pytest.mark.parametrize("what", ["newest", "bucket"])
def test_a_newest_upload_that_another_program_deleted_is_noticed_by_uploads_and_the_next_sync(machine, bucket, what):
    machine.set(cloud_endpoint=bucket.server.endpoint, cloud_bucket=bucket.name)
    machine.write(commits=4)
    machine.sync()
    machine.write(commits=5)
    newest = machine.sync()["upload_id"]
    bucket.delete(key for key in bucket.all_keys if what == "bucket" or newest in key)
    if what == "bucket":
        bucket.delete_bucket()
    assert machine.call("uploads").code == (1 if what == "bucket" else 0)
    assert machine.status()["verdict"]["text"].startswith(f"The newest upload, {newest}, is missing")
    if what == "bucket":
        assert "does not exist" in machine.sync(code=1)["error"]
    else:
        assert machine.sync()["upload_id"] > newest


def large(machine) -> None:
    """Create a database of several parts of 1 MiB after compression."""
    import duckdb

    machine.set(chunk_size_mb=1)
    with duckdb.connect(str(machine.data / REFLECTION)) as base:
        base.execute("CREATE TABLE numbers AS SELECT random() AS n FROM range(400_000)")


def origins(manifest) -> dict[str, str]:
    return {part["name"]: part["origin"] for part in manifest["parts"]}


@pytest.mark.parametrize("name", ["moto", "rclone"])
def test_a_change_sends_only_changed_objects_and_the_upload_is_complete(machine, name, request, tmp_path):
    bucket = Bucket(request.getfixturevalue(name))
    machine.set(cloud_endpoint=bucket.server.endpoint, cloud_bucket=bucket.name)
    machine.write(commits=20, entities=5)
    first = machine.sync()
    machine.write(commits=25)
    second = machine.sync()
    machine.write(commits=30)
    (machine.data / GRAPH).write_bytes(b"no database")
    third = machine.sync()
    assert "not a complete DuckDB database" in machine.sync(code=1)["error"]
    manifests = bucket.manifests
    assert [one["upload_id"] for one in manifests] == [one["upload_id"] for one in (first, second, third)]
    assert sorted(key for one in (first, second, third) for key in one["files_uploaded"]) == bucket.keys
    assert origins(manifests[1]) == {GRAPH: "copied", REFLECTION: "sent"}
    assert origins(manifests[2]) == {GRAPH: "carried", REFLECTION: "sent"}
    (carried,) = (part for part in manifests[2]["parts"] if part["name"] == GRAPH)
    assert carried["carried_from"] in (first["upload_id"], second["upload_id"])
    assert list(third["incomplete"]) == list(manifests[2]["incomplete"]) == ["knowledge_graph"]
    with Checker() as checker:
        for manifest, last in zip(manifests, (19, 24, 29), strict=True):
            folder = upload_contents.unpack(manifest, bucket.object, tmp_path / manifest["upload_id"])
            assert checker.check(folder / REFLECTION) == Finding(last, ())
            assert checker.check(folder / GRAPH) == Finding(4, ())
    status = machine.status()
    assert status["pending"] == ["knowledge_graph"]


def test_the_store_copies_unchanged_objects_or_the_agent_sends_them(machine, bucket, proxy, tmp_path):
    machine.write(commits=2, entities=2)
    machine.sync()
    # owner.json, and its candidate twice: a store that refuses the second has conditional puts.
    assert (proxy.count("put_object"), proxy.count("copy_object")) == (3 + 3, 0)
    machine.write(commits=3)
    machine.sync()
    assert (proxy.count("put_object"), proxy.count("copy_object")) == (3 + 6, 1)
    proxy.on("copy_object", refuse(501, "NotImplemented"))
    machine.write(commits=4)
    machine.sync()
    assert (proxy.count("put_object"), proxy.count("copy_object")) == (3 + 10, 2)
    last = bucket.manifests[-1]
    assert origins(last) == {GRAPH: "copied", REFLECTION: "sent"}
    folder = upload_contents.unpack(last, bucket.object, tmp_path / "arrived")
    assert upload_contents.rows(folder)["knowledge_graph"]["kg_entities"] == 2


def test_a_failing_store_is_retried_as_configured_and_then_backs_off(machine, bucket, proxy):
    machine.write(commits=1)
    proxy.on("put_object", refuse(500, "InternalError", secret=SECRET_KEY), times=5)
    proxy.on("put_object", refuse(503, "SlowDown", secret=SECRET_KEY))
    done = machine.call("sync", "--json", "-v")
    result = done.json
    assert (done.code, result["success"], result["outcome"]) == (1, False, "failed")
    assert "SlowDown, status 503" in result["error"]
    assert ("status 500" in done.err, "status 503" in done.err) == (True, True)
    delays = [float(text) for text in re.findall(r'"delay_seconds": ([0-9.]+)', done.err)]
    assert [round(delay / 0.05 / 2**n) for n, delay in enumerate(delays)] == [1, 1, 1]
    target, fallback = machine.status()["targets"]
    assert (fallback["method"], bool(fallback["error"])) == ("http", True)
    assert (target["failures"], bool(target["next_try"]), bool(result["retry_at"])) == (1, True, True)
    assert (
        "  next try     none, because no agent is running (akosha-agent sync tries now)\n" in machine.call("status").out
    )
    assert (bucket.manifests, machine.staged) == ([], [])
    proxy.clear()
    machine.sync()
    (target,) = machine.status()["targets"]
    assert (target["failures"], target["next_try"], target["error"]) == (0, None, "")
    assert len(bucket.manifests) == 1


def test_a_refusal_is_not_retried_and_names_the_fix(machine, bucket, proxy):
    machine.write(commits=1)
    proxy.on("put_object", refuse(403, "AccessDenied", secret=SECRET_KEY))
    denied = machine.call("sync", "--json", "-v")
    assert denied.code == 1
    assert "allow s3:PutObject" in denied.json["error"]
    assert proxy.count("put_object") == 1
    machine.set(cloud_bucket="not-created")
    missing = machine.call("sync", "--json", "-v")
    assert missing.code == 1
    assert "create the bucket, or set akosha_cloud_bucket" in missing.json["error"]
    for done in (denied, missing):
        assert "sync_retry_scheduled" not in done.err


def test_a_stalled_upload_fails_after_the_timeout(machine, bucket, proxy):
    machine.write(commits=1)
    machine.set(upload_timeout_seconds=1, max_retries=0)
    proxy.on("put_object", stall(threading.Event()))
    result = machine.sync(code=1)
    assert "no progress for 1 s (akosha_upload_timeout_seconds sets the limit)" in result["error"]
    assert (bucket.keys, machine.staged) == ([], [])


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [("run", signal.SIGTERM, 0), ("sync", signal.SIGTERM, 143), ("sync", signal.SIGINT, 130)],
)
def test_a_stopped_upload_is_continued(machine, bucket, proxy, command, number, code):
    large(machine)
    reached = threading.Event()
    proxy.on("upload_part", stall(reached, at=100_000))
    with machine.started(command) as working:
        assert reached.wait(60)
        assert bucket.pending_uploads == 1
        working.process.send_signal(number)
        assert working.stop(number) == code  # twice: from the terminal, and from a wrapper that forwards it
        done = working.end()
    assert "Traceback" not in done.err
    resumable = re.findall(
        r"^akosha-agent: stopped: the next sync resumes the upload (\S+) under the same ID$", done.err, re.MULTILINE
    )
    assert len(resumable) == (command == "sync")
    assert (bucket.pending_uploads, bucket.keys, machine.staged) == (1, [], [])
    assert machine.status()["pending"] == ["reflection"]
    proxy.clear()
    resumed = machine.sync()["upload_id"]
    assert (bucket.pending_uploads, proxy.count("create_multipart_upload")) == (0, 1)
    assert resumed == bucket.manifests[0]["upload_id"]
    assert resumable in ([], [resumed])


def test_ctrl_c_during_an_agents_sync_says_that_the_agent_continues(machine, bucket, proxy):
    gate = Gate()
    machine.set(agent_upload_on_change="false")
    machine.write(commits=1)
    with machine.run() as agent:
        agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
        proxy.on("put_object", gate.hold(), times=1)
        machine.write(commits=2)
        with machine.started("sync") as syncing:
            gate.wait()
            assert syncing.stop(signal.SIGINT) == 130
            message = syncing.end().err
        gate.open()
        agent.logged("sync_succeeded", 2)
    assert message == (
        f"akosha-agent: the agent (process {agent.pid} (run)) continues the sync: akosha-agent status shows it\n"
    )
    assert len(bucket.manifests) == 2


def test_put_get_and_list_permissions_suffice_and_others_are_logged(machine, bucket, proxy):
    large(machine)
    for operation in ("delete_object", "abort_multipart_upload", "list_multipart_uploads", "list_parts"):
        proxy.on(operation, refuse(403, "AccessDenied"))
    machine.set(agent_log_level="INFO", max_retries=1)
    proxy.on("upload_part", refuse(500, "InternalError"), times=20)
    failed = machine.call("sync", "--json", "-v")
    assert failed.code == 1
    assert '"event": "leftovers_not_removed"' in failed.err
    assert "allow s3:ListBucketMultipartUploads" in failed.err
    assert '"event": "parts_sent_again"' in failed.err
    assert "allow s3:ListMultipartUploadParts" in failed.err
    assert '"event": "parts_not_removed"' in failed.err
    proxy._rules = [rule for rule in proxy._rules if rule.operation != "upload_part"]
    assert machine.sync()["success"]
    assert len(bucket.manifests) == 1


def test_every_command_uses_the_endpoint_of_the_aws_configuration(machine, bucket, tmp_path):
    endpoint = bucket.server.endpoint
    machine.set(cloud_endpoint=None, cloud_bucket=bucket.name)
    config = tmp_path / "aws-config"
    config.write_text(f"[default]\nendpoint_url = {endpoint}\n")
    machine.environ["AWS_CONFIG_FILE"] = str(config)
    machine.write(commits=1, entities=0)
    first = machine.sync()
    assert first["location"] == f"s3://{bucket.name} at {endpoint.removeprefix('http://')}"
    assert [one["upload_id"] for one in bucket.manifests] == [first["upload_id"]]
    (target,) = machine.status()["targets"]
    assert (target["endpoint"], target["bucket"]) == (endpoint, bucket.name)
    shown = machine.call("config").out
    assert endpoint in shown
    assert "endpoint_url of profile default" in shown
    found = machine.call("doctor", "--json").json
    (checked,) = (one for one in found["checks"] if one["name"] == "bucket")
    assert endpoint.removeprefix("http://") in checked["found"]


def test_a_ledger_without_the_endpoint_adopts_the_uploads_of_the_bucket(machine, bucket):
    """Earlier versions left the endpoint of AWS_ENDPOINT_URL out of the ledger."""
    machine.set(cloud_endpoint=bucket.server.endpoint, cloud_bucket=bucket.name)
    machine.write(commits=2, entities=1)
    first = machine.sync()
    with sqlite3.connect(machine.state / "ledger.sqlite") as ledger:
        for (table,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in ledger.execute(f"PRAGMA table_info({table})")]
            if "endpoint" in columns:
                ledger.execute(f"UPDATE {table} SET endpoint = '' WHERE endpoint = ?", [bucket.server.endpoint])
    machine.set(cloud_endpoint=None)
    machine.environ["AWS_ENDPOINT_URL"] = bucket.server.endpoint
    again = machine.sync()
    assert again["outcome"] == "skipped"
    assert [one["upload_id"] for one in bucket.manifests] == [first["upload_id"]]
    machine.write(commits=3)
    third = machine.sync()
    assert third["outcome"] == "succeeded"
    (target,) = (one for one in machine.status()["targets"] if one["endpoint"])
    assert target["newest_upload_id"] == third["upload_id"]


def credentials_in_a_file(machine, folder):
    """Move the credentials to a file that only the AWS library reads."""
    path = folder / "credentials"
    path.write_text(f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del machine.environ[name]
    machine.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(path)


@pytest.mark.parametrize("credentials", ["environment", "file"])
def test_secrets_and_control_characters_of_a_response_are_not_shown(machine, proxy, credentials, tmp_path):
    """No command, event or file of the state directory has the secret; the error shows the code with escapes."""
    if credentials == "file":
        credentials_in_a_file(machine, tmp_path)
    machine.write(commits=2)
    hostile = f"Odd{SECRET_KEY}&#x202e;{'x' * 9000}"
    for operation in ("put_object", "list_objects_v2", "get_object", "head_object", "create_multipart_upload"):
        proxy.on(operation, refuse(400, hostile, secret=SECRET_KEY))
    with machine.run(), machine.follow() as following:
        result = machine.sync(code=1)
        following.reported("failed")
        machine.call("status")
        machine.call("events")
        machine.call("doctor")
        machine.call("uploads")
        (target,) = (one for one in machine.status()["targets"] if one["method"] == "cloud")
    for text in (result["error"], target["error"]):
        assert "Odd********\\u202exxx" in text
        assert len(text) < 3000
