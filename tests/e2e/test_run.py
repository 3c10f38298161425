"""`run` while a program keeps writing: the uploads, the events, and the shutdown."""

import signal

import pytest

from tests.support import upload_contents
from tests.support.machine import Machine
from tests.support.servers.bucket import Bucket
from tests.support.servers.s3 import SECRET_KEY, aws_environment
from tests.support.servers.threaded_proxy import Gate, running_faulty_proxy
from tests.support.session_buddy import GRAPH, REFLECTION, Checker, Finding, Writer

pytest_plugins = ["tests.support.servers.fixtures"]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def checker():
    with Checker() as checker:
        yield checker


def assert_holds(checker, folder, *, commits: int, entities: int) -> None:
    """`commits` and `entities` are the writer's numbers of the last ones."""
    assert checker.check(folder / REFLECTION) == Finding(commits, ())
    assert checker.check(folder / GRAPH) == Finding(entities, ())


def test_every_commit_is_uploaded_while_the_session_continues(machine, tmp_path, checker):
    """First session, commits in the WAL, a checkpoint, a graph: each upload is complete and sends only what changed."""
    with Writer(machine.data, "--paused") as writer:
        writer.run("commit 3")
        assert (machine.data / REFLECTION).stat().st_size == 12_288
        with machine.run() as agent, machine.follow() as events:
            agent.logged("watch_mode", mode="native")
            for count, command in enumerate(("", "commit 2", "checkpoint", "commit 1", "graph 2"), start=1):
                if command:
                    with agent.suspended():  # it sees the changes when the last one is made, so there is one upload
                        writer.run(command)
                result = events.reported("succeeded", count)[-1]
                assert result["triggered_by"] == ("file_change" if command else "startup")
                manifest = machine.manifests[-1]
                folder = upload_contents.unpack(manifest, machine.object, tmp_path / f"{count}")
                assert_holds(checker, folder, commits=writer.commits, entities=writer.entities)
                origins = {part["name"]: part["origin"] for part in manifest["parts"]}
                assert origins.get(GRAPH) == ("sent" if command in ("", "graph 2") else "copied")
                if command == "commit 2":
                    assert origins[REFLECTION + ".wal"] == "sent"
                if command == "graph 2":
                    assert origins[REFLECTION] == origins[REFLECTION + ".wal"] == "copied"
            assert {line["mode"] for line in agent.log.seen if line["event"] == "watch_mode"} == {"native"}
            status = machine.status()
            assert (status["pending"], status["running"]["pid"], status["notes"]["watcher"]) == (
                [],
                agent.pid,
                "native",
            )
            requested, succeeded = events.reported("requested", 5), events.reported("succeeded", 5)
        assert writer.close() == 0
    assert [one["request_id"] for one in succeeded] == [one["request_id"] for one in requested][:5]
    assert len(machine.manifests) == len({one["upload_id"] for one in succeeded}) == 5
    assert machine.staged == []
    events_in_history = [
        (event["type"], event["id"]) for event in machine.events() if event["type"] != "akosha.sync.skipped.v1"
    ]
    assert [kind.split(".")[2] for kind, _ in events_in_history] == ["requested", "succeeded"] * 5
    assert len(set(events_in_history)) == len(events_in_history)
    assert machine.status()["running"] is None


def test_two_changes_during_an_upload_cause_one_more_upload(machine, moto, tmp_path, checker):
    bucket = Bucket(moto)
    machine.environ |= aws_environment()
    machine.secrets = (SECRET_KEY,)
    with running_faulty_proxy(moto.endpoint) as proxy, Writer(machine.data, "--paused") as writer:
        machine.set(cloud_endpoint=proxy.url, cloud_bucket=bucket.name, agent_log_level="DEBUG")
        writer.run("commit 3")
        writer.run("checkpoint")
        gate = Gate()
        proxy.on("put_object", gate.hold(), times=1)
        with machine.run() as agent, machine.follow() as events:
            gate.wait()
            for _ in range(2):
                seen = sum(line.get("event") == "files_changed" for line in agent.log.seen)
                writer.run("commit 1")
                agent.logged("files_changed", seen + 1)
            gate.open()
            events.reported("succeeded", 2)
            events.reported("requested", 2)
            assert machine.status()["pending"] == []
            assert machine.sync()["outcome"] == "skipped"
            assert agent.stop(signal.SIGINT) == 0
    manifests = bucket.manifests
    assert len(manifests) == 2
    sent = [(part["name"], part["sha256"]) for one in manifests for part in one["parts"] if part["origin"] == "sent"]
    # owner.json, and its candidate twice: a store that refuses the second has conditional puts.
    owner, memories = 3, sum(one["memories"] is not None for one in manifests)
    assert len(sent) == len(set(sent)) == proxy.count("put_object") - owner - len(manifests) - memories
    folder = upload_contents.unpack(manifests[-1], bucket.object, tmp_path / "arrived")
    assert_holds(checker, folder, commits=4, entities=-1)
