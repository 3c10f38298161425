"""`events` over NATS, for one or all systems; its errors; and the bus in `status`."""

import signal

import pytest

from tests.support.machine import Machine

pytest_plugins = ["tests.support.servers.fixtures"]


@pytest.fixture
def machine(fresh_nats, tmp_path):
    machine = Machine(tmp_path / "laptop", agent_nats_url=fresh_nats.url)
    machine.constants = {"agent.bootstrap.buses:PATIENCE": {"reconnect": 0.1, "reconnect_max": 0.2}}
    return machine


def words(running, count: int) -> list[list[str]]:
    """Wait for `count` lines and return the words of each, without the time."""
    return [line["text"].split()[2:] for line in running.printed.wait(lambda _: True, count)]


def test_events_prints_results_of_one_or_all_systems_as_they_arrive(machine, fresh_nats, tmp_path):
    service = Machine(tmp_path / "desk", agent_nats_url=fresh_nats.url, system_id="desk")
    for one in (machine, service):
        one.write(commits=1)
    with (
        machine.run(),
        machine.started("events", "--follow", "--system", "*", "--durable", "all", "--json") as everything,
        machine.started("events", "--durable", "own") as own,
        machine.started("events", "--system", "desk", "--durable", "other") as other,
    ):
        here = everything.reported("succeeded", system_id="laptop")[0]
        there = service.sync()
        everything.reported("succeeded", system_id="desk", request_id=there["request_id"])
        assert words(own, 1)[0][:4] == ["sync.succeeded", f"{here['upload_id']}:", "2", "objects,"]
        assert words(other, 1)[0][:3] == ["sync.succeeded", "desk", f"{there['upload_id']}:"]
        document = everything.printed.seen[0]
        assert (document["specversion"], document["source"]) == ("1.0", "urn:akosha-agent:laptop")
        for following in (everything, own, other):
            assert following.stop(signal.SIGINT) == 128 + signal.SIGINT, "".join(following.log.raw)
            assert following.log.raw == []
    assert len(own.printed.raw) == len(other.printed.raw) == 1
    service.sync()
    with machine.started("events", "--system", "*", "--durable", "all") as again:
        assert words(again, 1)[-1][:4] == ["sync.skipped", "desk", "nothing", "has"]


def test_events_waits_for_nats(machine, fresh_nats):
    machine.write(commits=1)
    fresh_nats.kill()
    with machine.started("events", "--follow", "--system", "*", "--durable", "all", "--json") as following:
        (line,) = following.logged("nats_waiting")
        assert fresh_nats.url in line["reason"]
        fresh_nats.start()
        machine.sync()
        following.reported("succeeded")
        assert len(following.log.seen) == 1


def test_following_all_systems_needs_nats(tmp_path):
    alone = Machine(tmp_path / "alone")
    done = alone.call("events", "--follow", "--system", "*")
    assert (done.code, done.out) == (2, "")
    assert "akosha_agent_nats_url" in done.err
    assert not alone.state.exists()


def test_status_shows_the_bus_and_the_unpublished_results(machine, fresh_nats):
    machine.write(commits=1)
    fresh_nats.kill()
    with machine.run() as agent:
        agent.logged("bus_in_use", bus="memory")
        assert machine.status(lambda status: status["results_waiting"])["results_waiting"] == 1
        text = machine.call("status").out
        assert f"\nbus        in this process: NATS at {fresh_nats.url} cannot be reached" in text
        assert "\nresults    1 waits to be published\n" in text
        fresh_nats.start()
        status = machine.status(lambda status: status["bus"]["text"] == fresh_nats.url)
        assert status["bus"]["since"] > status["running"]["since"][:10]
        assert machine.status(lambda status: status["results_waiting"] == 0)["notes"]["stream"]
        text = machine.call("status").out
        assert f"\nbus        {fresh_nats.url}  (since 20" in text
        for absent in ("\nresults ", "stream"):
            assert absent not in text
    assert machine.status()["bus"] is None
