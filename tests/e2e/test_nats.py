"""Agents on one NATS server: their own requests, session ends, remote control, and foreign messages."""

import asyncio
import json
import shutil
import signal
import socket

import nats
import pytest

from tests.support.bus_listener import ResultListener, listening
from tests.support.event_documents import check
from tests.support.machine import Machine
from tests.support.servers.nats import NatsServer, running_nats
from tests.support.servers.nats_credentials import Operator
from tests.support.waiting import wait_until

ENDED = "akosha.session.laptop.ended"


@pytest.fixture(scope="module")
def nats_of_module(tmp_path_factory):
    with running_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def server(nats_of_module):
    nats_of_module.restart(wipe=True)
    return nats_of_module


@pytest.fixture
def machine(server, tmp_path):
    return Machine(tmp_path / "machine", agent_nats_url=server.url)


def publish(server: NatsServer, *messages: tuple[str, bytes]) -> None:
    """Publish messages with a plain NATS client."""

    async def send() -> None:
        async with await nats.connect(server.url) as client:
            for subject, data in messages:
                await client.jetstream().publish(subject, data)

    asyncio.run(send())


def request(server: NatsServer, subject: str, data: bytes = b"") -> dict:
    async def response() -> dict:
        async with await nats.connect(server.url) as client:
            return json.loads((await client.request(subject, data, timeout=60)).data)

    return asyncio.run(response())


def session_end(number: int, **data: object) -> bytes:
    """Return the event that Session-Buddy publishes."""
    return json.dumps(
        {
            "specversion": "1.0", "id": f"session-{number}", "source": "urn:akosha-agent:laptop",
            "type": "akosha.session.ended.v1", "time": "2026-11-21T12:00:00Z",
            "data": {"session_id": f"{number}", "reason": "logout", **data},
        }
    ).encode()  # fmt: skip


def test_two_agents_with_one_system_id_do_only_their_own_requests(server, tmp_path):
    machines = [Machine(tmp_path / name, agent_nats_url=server.url) for name in ("one", "two")]
    with machines[0].run() as one, machines[1].run() as two, listening(server.url, pattern="akosha.>") as listener:
        for number, (machine, agent) in enumerate(zip(machines, (one, two), strict=True), start=1):
            machine.write(commits=number + 3)
            agent.logged("sync_succeeded")
            listener.wait(lambda number=number: len(listener.ids()) == number)
        for agent in (one, two):
            agent.logged("request_refused")
            assert len([line for line in agent.log.seen if line["event"] == "sync_requested"]) == 1
    assert [len(machine.manifests) for machine in machines] == [1, 1]
    assert {event["data"]["agent_id"] for event in listener.received if "agent_id" in event["data"]} == {
        manifest["agent_id"] for machine in machines for manifest in machine.manifests
    }
    for raw in listener.raw:
        check(raw)


def test_a_session_end_starts_a_sync_or_waits_for_the_next_agent(server, machine):
    """An event whose ID was handled already is ignored."""
    machine.set(agent_upload_on_change=False)
    machine.write(commits=2)
    with machine.run() as agent:
        agent.logged("bus_in_use", bus="nats")
        agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
        machine.write(commits=3)
        publish(server, (ENDED, session_end(1)))
        agent.logged("sync_succeeded", 2)
        assert [line["reason"] for line in agent.logged("sync_requested", 2)] == ["startup", "session_end"]
    publish(server, (ENDED, session_end(1, again=True)), (ENDED, session_end(2)))
    with machine.run() as agent:
        assert [line["session_id"] for line in agent.logged("session_ended")] == ["2"]
        publish(server, (ENDED, session_end(1)), (ENDED, session_end(2)), (ENDED, session_end(3)))
        assert [line["session_id"] for line in agent.logged("session_ended", 2)] == ["2", "3"]


def results_of(listener: ResultListener, *numbers: int) -> list[dict]:
    """Wait until results name each of these session ends, and return these results in order."""
    wanted = {f"session-{number}" for number in numbers}

    def found() -> list[dict]:
        return [event for event in listener.received if wanted & set(event["data"]["caused_by"])]

    listener.wait(lambda: {name for event in found() for name in event["data"]["caused_by"]} >= wanted)
    return found()


def test_each_session_end_has_a_result_that_names_it(server, machine):
    """Succeeded, skipped or failed; and skipped with the name of the setting that disables the sync."""

    def end_session(number: int, **changes: object) -> None:
        event = json.loads(session_end(number, system_id="laptop")) | {"source": "https://session-buddy.example/1"}
        publish(server, (ENDED, json.dumps(event | changes).encode()))

    def outcome(number: int) -> tuple[str, str]:
        (result,) = results_of(listener, number)
        check(json.dumps(result).encode())
        assert result["data"]["triggered_by"] == "session_end"
        return result["type"].split(".")[2], str(result["data"].get("why") or result["data"]["error"])

    machine.set(agent_upload_on_change=False)
    machine.write(commits=2)
    with listening(server.url) as listener:
        with machine.run() as agent:
            agent.logged("bus_in_use", bus="nats")
            agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
            machine.write(commits=3)
            end_session(1)
            assert outcome(1)[0] == "succeeded"
            end_session(1)
            end_session(2)
            assert outcome(2) == ("skipped", "nothing has changed since the last sync")
            end_session(2, source="/another")
            listener.wait(lambda: [event["data"]["caused_by"] for event in listener.received].count(["session-2"]) == 2)
            machine.write(commits=4)
            shutil.rmtree(machine.bucket)
            machine.bucket.write_bytes(b"a file")
            end_session(3)
            assert outcome(3)[0] == "failed"
        for number, setting in ((4, "upload_on_session_end"), (5, "sync_enabled")):
            machine.set(**{setting: False})
            with machine.run() as agent:
                end_session(number)
                assert outcome(number) == ("skipped", f"akosha_{setting} is false")
            machine.set(**{setting: None})


def test_an_accepted_session_end_has_a_result_after_a_kill(server, machine):
    machine.set(agent_upload_on_change=False)
    machine.write(commits=2)
    with listening(server.url) as listener:
        with machine.started("run") as agent:
            agent.logged("bus_in_use", bus="nats")
            agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
            machine.write(commits=3)
            publish(server, (ENDED, session_end(1)))
            agent.logged("session_ended")
            agent.process.kill()
        with machine.run():
            assert {event["data"]["success"] for event in results_of(listener, 1)} == {True}
    assert len(machine.manifests) == 2


def test_three_hundred_concurrent_session_ends_are_named_by_few_results(server, machine):
    numbers = range(1, 301)
    machine.set(agent_upload_on_change=False)
    machine.write(commits=2)
    with machine.run() as agent, listening(server.url) as listener:
        agent.logged("bus_in_use", bus="nats")
        agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
        machine.write(commits=3)
        publish(server, *((ENDED, session_end(number)) for number in numbers))
        found = results_of(listener, *numbers)
        assert found[0]["type"] == "akosha.sync.succeeded.v1"
        named = [name for event in found for name in event["data"]["caused_by"]]
        assert sorted(named) == sorted(f"session-{number}" for number in numbers), "each once"
        for raw in listener.raw:
            check(raw)
    assert len(machine.manifests) == 2


def test_foreign_session_ends_and_requests_are_refused(server, machine):
    """The agent logs what it refuses, and does not sync, not even for a modified copy of its own request."""
    machine.write(commits=3)
    with machine.run() as agent, listening(server.url, pattern="akosha.>") as listener:
        agent.logged("sync_succeeded")
        listener.wait(listener.ids)
        (own,) = (event for event in listener.received if event["type"] == "akosha.sync.requested.v1")
        forged = {**own, "id": "forged.cloud", "data": {**own["data"], "request_id": "forged"}}
        altered = {**own, "data": {**own["data"], "upload_reflections": False}}
        other = {**forged, "data": {**forged["data"], "agent_id": "f" * 32}}
        requests = [json.dumps(document).encode() for document in (forged, altered, other)]
        foreign = session_end(1, system_id="desktop").replace(b"laptop", b"desktop")
        junk = (b"\0\xff junk", b"{}", b"[" * 50_000, session_end(2).replace(b'"session-2"', b"7"), foreign)
        publish(
            server,
            *((own["subject"], data) for data in requests),
            *((ENDED, data) for data in junk),
            (ENDED, session_end(3, padding="x" * 70_000)),
        )
        refused = agent.logged("message_refused", len(junk) + 1)
        assert all(line["reason"] for line in refused)
        assert len(agent.logged("request_refused", 3)) == 3
        assert len([line for line in agent.log.seen if line["event"] == "sync_requested"]) == 1
        assert machine.sync()["outcome"] == "skipped"
    assert len(machine.manifests) == 1


def test_remote_control_answers_status_and_sync_if_enabled(server, machine):
    """The responses name no path, address or setting."""
    machine.set(agent_remote_control=True, agent_upload_on_change=False)
    machine.write(commits=2)
    with machine.run() as agent, listening(server.url, pattern="akosha.>") as listener:
        agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
        listener.wait(listener.ids)
        machine.write(commits=3)
        status = request(server, "akosha.agent.laptop.status")
        assert (status["system_id"], status["pending"], status["bus"]["name"]) == ("laptop", ["reflection"], "nats")
        accepted = request(server, "akosha.agent.laptop.sync")
        assert accepted["accepted"]
        listener.wait(lambda: len(listener.ids()) == 2)
        succeeded = [event["data"] for event in listener.received if event["type"] == "akosha.sync.succeeded.v1"]
        (_, result) = succeeded
        assert (result["request_id"], result["triggered_by"]) == (accepted["request_id"], "remote")
        status = request(server, "akosha.agent.laptop.status")
        assert (status["pending"], status["targets"]["cloud"]["newest_upload_id"]) == ([], result["upload_id"])
        assert not [path for path in (machine.home, machine.bucket, machine.data) if str(path) in str(status)]
        for data in (b"\xff", b"[]", b'{"method": "ftp"}', b'{"enable_fallback": 1}', b"{" * 100_000):
            assert request(server, "akosha.agent.laptop.sync", data)["error"]
        with pytest.raises(nats.errors.NoRespondersError):
            request(server, "akosha.agent.laptop.config")
    machine.set(agent_remote_control=None)
    with machine.run() as agent:
        agent.logged("bus_in_use", bus="nats")
        for command in ("status", "sync"):
            with pytest.raises(nats.errors.NoRespondersError):
                request(server, f"akosha.agent.laptop.{command}")


def test_the_agent_starts_without_a_silent_nats(tmp_path):
    """The server accepts connections and never answers: the sync is done, and the status names the reason."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        machine = Machine(tmp_path / "machine", agent_nats_url=f"nats://127.0.0.1:{port}")
        machine.write(commits=3)
        with machine.run() as agent:
            agent.logged("bus_in_use", bus="memory")
            agent.logged("sync_succeeded")
            status = machine.status()
            assert status["bus"]["text"].startswith("in this process: NATS at"), status["bus"]
            assert status["results_waiting"] == 1


def test_sighup_makes_the_agent_read_the_nats_credentials_again(tmp_path):
    """Even if no setting has changed and the connection is in use."""
    operator, file = Operator(), tmp_path / "agent.creds"
    file.touch(0o600)
    file.write_text(operator.credentials())
    with running_nats(tmp_path / "nats", config=operator.config) as server:
        machine = Machine(tmp_path / "machine", agent_nats_url=server.url, agent_nats_credentials_file=file)

        def users() -> set[str]:
            connections = server.monitor("/connz?auth=1")["connections"]
            return {one["authorized_user"] for one in connections if "authorized_user" in one}  # the others log in now

        with machine.run() as agent:
            agent.logged("bus_in_use", bus="nats")
            before = users()
            file.write_text(operator.credentials())
            agent.process.send_signal(signal.SIGHUP)
            assert before
            wait_until(lambda: (now := users()) and not now & before)
            machine.write(commits=3)
            agent.logged("sync_succeeded")
            assert machine.status(lambda found: not found["results_waiting"])["notes"]["bus"].startswith("nats")
