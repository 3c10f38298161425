"""What lies in the bucket, as Akosha's own schema and Akosha's own ingestion see it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop.real import environment
from tests.support.machine import Machine
from tests.support.servers.bucket import Bucket
from tests.support.servers.s3 import aws_environment
from tests.support.session_buddy import GRAPH, REFLECTION

HERE = Path(__file__).parent
MARK = "answer: "


@pytest.fixture
def asked(akosha_python, tmp_path):
    """Return a function that runs one of our programs with Akosha's interpreter and returns what it says, as JSON."""

    def ask(program: str, *arguments: str, reported: str = "") -> list:
        done = subprocess.run(
            [akosha_python, str(HERE / program), *arguments],
            input=reported,
            capture_output=True,
            text=True,
            env=environment(tmp_path),
        )
        assert done.returncode == 0, done.stderr
        # Akosha's own log goes to standard output as well.
        return [json.loads(line[len(MARK) :]) for line in done.stdout.splitlines() if line.startswith(MARK)]

    return ask


def test_akosha_takes_every_manifest_that_is_written(machine, real_databases, asked):
    """First, changed, carried over, part of the databases, a named graph, without compression, without memories."""
    machine.set(force_method="cloud", cloud_endpoint=machine.bucket.as_uri(), system_id="my.mac.local  (work)")
    real_databases("first", machine.data)
    machine.sync()
    for path in machine.data.iterdir():
        path.unlink()
    real_databases("closed", machine.data)
    machine.sync()
    machine.set(enable_compression=False)
    shutil.copyfile(machine.data / GRAPH, machine.data / "knowledge_graph_my_graph.duckdb")
    real_databases("mid", machine.data)
    machine.sync()
    (machine.data / GRAPH).write_bytes(b"no database")
    machine.write(commits=3)
    (machine.data / f"{REFLECTION}.wal").unlink()
    machine.sync()
    manifests = machine.manifests
    assert len(manifests) == 4
    assert any(part["origin"] == "carried" for part in manifests[-1]["parts"])
    answers = asked("schema_main.py", reported="\n".join(json.dumps(manifest) for manifest in manifests))
    assert answers == [""] * len(manifests)
    naive = manifests[0] | {"uploaded_at": manifests[0]["uploaded_at"][:19]}
    assert asked("schema_main.py", reported=json.dumps(naive)) != [""]


@pytest.fixture
def uploading(tmp_path, moto, system_id):
    bucket = Bucket(moto)
    machine = Machine(
        tmp_path / "uploading",
        cloud_endpoint=moto.endpoint,
        cloud_bucket=bucket.name,
        system_id=system_id,
        enable_fallback=False,
        ingestion_markers=True,
    )
    machine.environ |= aws_environment()
    return machine, bucket


def test_with_the_markers_akoshas_own_ingestion_finds_uploads_and_reads_their_memories(
    uploading, asked, real_databases, system_id
):
    machine, bucket = uploading
    real_databases("first", machine.data)
    upload = machine.sync()["upload_id"]
    (found,) = asked("worker_main.py", bucket.server.endpoint, bucket.name, "get")
    assert found["uploads"] == [[system_id, upload, 21 + 5]]
    reported = json.loads(bucket.object(f"systems/{system_id}/uploads/{upload}/memories.json"))["conversations"]
    rows = {row[1]: row for row in found["rows"]}
    assert len(reported) == len(rows) == 26
    for one in reported:
        system, _, content, _, metadata, square = rows[one["id"]]
        assert (system, content) == (system_id, one["content"])
        assert json.loads(metadata)["type"] == one["metadata"]["type"]
        assert square == pytest.approx(sum(number**2 for number in one.get("embedding", [])), abs=1e-3)

    for path in machine.data.iterdir():
        path.unlink()
    real_databases("closed", machine.data)
    second = machine.sync()["upload_id"]
    (found,) = asked("worker_main.py", bucket.server.endpoint, bucket.name, "get")
    assert [one[1] for one in found["uploads"]] == [upload, second]
    assert len({row[1] for row in found["rows"]}) == len(found["rows"]) > 350


def test_without_the_markers_it_finds_nothing(uploading, asked, real_databases):
    machine, bucket = uploading
    machine.set(ingestion_markers=False)
    real_databases("first", machine.data)
    machine.sync()
    assert asked("worker_main.py", bucket.server.endpoint, bucket.name, "get") == [{"uploads": [], "rows": []}]


def test_with_oneirics_s3_adapter_as_it_is_it_finds_uploads_and_reads_none(uploading, asked, real_databases):
    """The worker asks for memories.json by a method that the adapter has not got: a reason for `react`."""
    machine, bucket = uploading
    real_databases("first", machine.data)
    machine.sync()
    (found,) = asked("worker_main.py", bucket.server.endpoint, bucket.name)
    assert (len(found["uploads"]), found["rows"]) == (1, [])
