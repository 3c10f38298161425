"""NATS fails repeatedly while a real agent runs: each change has one upload and one result by ID."""

import asyncio
import contextlib
import random
import threading

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.errors import NoStreamResponseError, NotFoundError

from agent.domain.events import upload_event_id
from tests.support.bus_listener import ResultListener, listening
from tests.support.event_documents import check
from tests.support.machine import Machine, Running
from tests.support.servers.nats import NatsServer, delete_streams, running_nats

pytestmark = pytest.mark.long

ROUNDS = 7
"""Each failure once. `make faults` kills the server many times."""
SEED = 7
SMALL_STREAM = {"max_bytes": 2**20}
RESULT_SECONDS = 60.0
UPLOAD_SECONDS = 0.6
"""Approximate duration of an upload: the failure is triggered at a random moment of it."""


def machine_on(server: NatsServer, tmp_path, **settings: object) -> Machine:
    """Return a machine whose agent detects a dead NATS soon, and reconnects soon."""
    machine = Machine(
        tmp_path / "machine", agent_nats_url=server.url, agent_rescan_seconds=2, agent_prune="false",
        agent_log_level="DEBUG", **settings,
    )  # fmt: skip
    patience = {"connect": 1, "ping": 0.2, "ping_timeout": 0.3, "reconnect": 0.05, "reconnect_max": 0.2}
    machine.constants = {"agent.bootstrap.buses:PATIENCE": patience, "agent.bootstrap.buses:LIMITS": SMALL_STREAM}
    return machine


def kill(server: NatsServer, pause: threading.Event, rng: random.Random) -> None:
    server.kill()
    pause.wait(rng.uniform(0, UPLOAD_SECONDS))
    server.start()


def stop(server: NatsServer, pause: threading.Event, rng: random.Random) -> None:
    server.stop()
    pause.wait(rng.uniform(0, UPLOAD_SECONDS))
    server.start()


def freeze(server: NatsServer, pause: threading.Event, rng: random.Random) -> None:
    """Suspend the server for longer than the timeout of a ping."""
    server.pause()
    pause.wait(0.7 + rng.uniform(0, UPLOAD_SECONDS))
    server.resume()


def wipe(server: NatsServer, _pause: threading.Event, _rng: random.Random) -> None:
    server.restart(wipe=True)


def delete(server: NatsServer, _pause: threading.Event, _rng: random.Random) -> None:
    """Delete the stream while it is in use."""
    asyncio.run(delete_streams(server))


def fill(server: NatsServer, _pause: threading.Event, _rng: random.Random) -> None:
    """Fill the stream with other events, so that it drops the oldest, which the listener has received."""

    async def publish() -> None:
        async with await nats.connect(server.url) as client:
            jetstream = client.jetstream(timeout=10)
            for _ in range(24):
                await jetstream.publish("akosha.session.other.ended", b"x" * 50_000)
                while await has_pending(jetstream):
                    pass

    async def has_pending(jetstream: JetStreamContext) -> bool:
        try:
            return (await jetstream.consumer_info("AKOSHA_SYNC", "listener")).num_pending > 0
        except NotFoundError:  # deleted with the stream in the previous round, and not created again yet
            return True

    with contextlib.suppress(NoStreamResponseError):  # deleted in the previous round, and not created again yet
        asyncio.run(publish())


def without_jetstream(server: NatsServer, pause: threading.Event, rng: random.Random) -> None:
    server.jetstream = False
    server.restart()
    pause.wait(rng.uniform(0, UPLOAD_SECONDS))
    server.jetstream = True
    server.restart()


FAILURES = (kill, stop, freeze, wipe, delete, fill, without_jetstream)


@pytest.fixture
def server(tmp_path):
    with running_nats(tmp_path / "nats") as server:
        yield server


def upload_ids(machine: Machine) -> list[str]:
    return [upload_event_id(manifest["upload_id"], manifest["agent_id"]) for manifest in machine.manifests]


def test_each_change_has_one_upload_and_one_result_despite_nats_failures(server, tmp_path):
    rng, pause = random.Random(SEED), threading.Event()
    machine = machine_on(server, tmp_path)
    machine.write(commits=3)
    with machine.run() as agent, listening(server.url) as listener:
        agent.logged("bus_in_use", bus="nats")
        uploaded(agent, listener, machine, server, 1)
        for number in range(2, ROUNDS + 2):
            failure = FAILURES[number % len(FAILURES)]
            timer = threading.Timer(rng.uniform(0, UPLOAD_SECONDS), failure, (server, pause, rng))
            timer.start()
            machine.write(commits=number + 3)
            try:
                agent.logged("sync_succeeded", number)
            finally:
                timer.join()
            uploaded(agent, listener, machine, server, number)
        status = machine.status(lambda found: not found["pending"])
        assert {row["state"] for row in status["targets"][0]["databases"]} == {"clean"}
        assert set(listener.ids()) == set(upload_ids(machine))
        assert not [line for line in agent.log.seen if line.get("level") in ("error", "critical")], agent.log.raw
    for raw in listener.raw:
        check(raw)
    requested = [line["request_id"] for line in agent.log.seen if line["event"] == "sync_requested"]
    assert len(set(requested)) >= len(machine.manifests)


def uploaded(agent: Running, listener: ResultListener, machine: Machine, server: NatsServer, number: int) -> None:
    """Wait for the nth upload and its result, and check that there are no more uploads."""
    agent.logged("sync_succeeded", number)
    ids = upload_ids(machine)
    assert len(ids) == len(set(ids)) == number
    restart_if_broken(server)
    while not listener.wait_for(lambda: set(ids) <= {event["id"] for event in listener.received}, RESULT_SECONDS):
        assert restart_if_broken(server), listener.ids()


def restart_if_broken(server: NatsServer) -> bool:
    """Restart a server that cannot store messages; return whether it could not.

    nats-server 2.15.1 removes a deleted stream's folder after it has answered, and sometimes the folder of the stream
    that was created again under that name. It then refuses each message ("Critical write error") until a restart.
    """
    broken = "Critical write error" in server.output
    if broken:
        server.restart()
    return broken
