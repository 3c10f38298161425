"""Uploads are valid for Akosha's schema and readable by Akosha's ingestion."""

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
PREFIX = "answer: "


@pytest.fixture
def run_script(akosha_python, tmp_path):
    """Return a function that runs a script in Akosha's interpreter and returns its answers, decoded from JSON."""

    def run(program: str, *arguments: str, stdin: str = "") -> list:
        process = subprocess.run(
            [akosha_python, str(HERE / program), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=environment(tmp_path),
        )
        assert process.returncode == 0, process.stderr
        # Akosha also logs to standard output.
        return [json.loads(line[len(PREFIX) :]) for line in process.stdout.splitlines() if line.startswith(PREFIX)]

    return run


def test_akoshas_schema_accepts_every_manifest(machine, real_databases, run_script):
    """First, changed and carried, with some of the databases, a named graph, no compression, no memories."""
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
    (machine.data / GRAPH).write_bytes(b"not a database")
    machine.write(commits=3)
    (machine.data / f"{REFLECTION}.wal").unlink()
    machine.sync()
    manifests = machine.manifests
    assert len(manifests) == 4
    assert any(part["origin"] == "carried" for part in manifests[-1]["parts"])
    answers = run_script("schema_main.py", stdin="\n".join(json.dumps(manifest) for manifest in manifests))
    assert answers == [""] * len(manifests)
    without_offset = manifests[0] | {"uploaded_at": manifests[0]["uploaded_at"][:19]}
    assert run_script("schema_main.py", stdin=json.dumps(without_offset)) != [""]


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


def test_with_markers_akoshas_ingestion_finds_uploads_and_stores_their_memories(
    uploading, run_script, real_databases, system_id
):
    machine, bucket = uploading
    real_databases("first", machine.data)
    upload = machine.sync()["upload_id"]
    (answer,) = run_script("worker_main.py", bucket.server.endpoint, bucket.name, "get")
    assert answer["uploads"] == [[system_id, upload, 21 + 5]]
    conversations = json.loads(bucket.object(f"systems/{system_id}/uploads/{upload}/memories.json"))["conversations"]
    rows = {row[1]: row for row in answer["rows"]}
    assert len(conversations) == len(rows) == 26
    for one in conversations:
        system, _, content, _, metadata, square = rows[one["id"]]
        assert (system, content) == (system_id, one["content"])
        assert json.loads(metadata)["type"] == one["metadata"]["type"]
        assert square == pytest.approx(sum(number**2 for number in one.get("embedding", [])), abs=1e-3)

    for path in machine.data.iterdir():
        path.unlink()
    real_databases("closed", machine.data)
    second = machine.sync()["upload_id"]
    (answer,) = run_script("worker_main.py", bucket.server.endpoint, bucket.name, "get")
    assert [one[1] for one in answer["uploads"]] == [upload, second]
    assert len({row[1] for row in answer["rows"]}) == len(answer["rows"]) > 350


def test_without_markers_akoshas_ingestion_finds_nothing(uploading, run_script, real_databases):
    machine, bucket = uploading
    machine.set(ingestion_markers=False)
    real_databases("first", machine.data)
    machine.sync()
    assert run_script("worker_main.py", bucket.server.endpoint, bucket.name, "get") == [{"uploads": [], "rows": []}]


def test_with_oneirics_s3_adapter_akoshas_ingestion_finds_uploads_and_reads_none(uploading, run_script, real_databases):
    """The worker reads memories.json with a method that the adapter lacks, so that `react` is needed."""
    machine, bucket = uploading
    real_databases("first", machine.data)
    machine.sync()
    (answer,) = run_script("worker_main.py", bucket.server.endpoint, bucket.name)
    assert (len(answer["uploads"]), answer["rows"]) == (1, [])
