"""`events --exec`: runs a command for each result, from NATS or the ledger, until it succeeds."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.machine import TIMEOUT, Machine, Running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

pytest_plugins = ["tests.support.servers.fixtures"]

FAILS_TWICE = """
number=$(($(cat number 2>/dev/null || echo 0) + 1)); echo $number > number
cat > event-$number.json
echo "run $number: $AKOSHA_EVENT_SYSTEM_ID $AKOSHA_EVENT_OUTCOME $AKOSHA_EVENT_ID ($AKOSHA_EVENT_UPLOAD_ID)"
[ $number -ge 3 ] || exit $((number + 40))
"""
ENDS_ON_SIGTERM = "trap 'echo stopped; exit 1' TERM; sleep 30 & echo $! > pid; echo started $AKOSHA_EVENT_ID; wait"


@pytest.fixture
def machine(fresh_nats, tmp_path):
    return Machine(tmp_path / "laptop", agent_nats_url=fresh_nats.url)


def results(machine: Machine) -> list[dict]:
    return [event for event in machine.events() if event["type"] != "akosha.sync.requested.v1"]


def printed(running: Running, text: str, count: int = 1) -> list[str]:
    """Wait for `count` lines that start with `text`, and return them."""
    found = running.printed.wait(lambda line: line.get("text", "").startswith(text), count)
    return [line["text"].rstrip("\n") for line in found]


def until_settled(server, name: str, count: int) -> None:
    """Wait until a durable consumer has `count` acknowledged events and no pending one."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        (account,) = server.monitor("/jsz?consumers=true")["account_details"]
        (stream,) = account["stream_detail"]
        (found,) = [one for one in stream["consumer_detail"] if one["name"] == name]
        if (found["ack_floor"]["consumer_seq"], found["num_ack_pending"]) == (count, 0):
            return
        assert time.monotonic() < deadline, found
        threading.Event().wait(0.005)


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_command_runs_until_it_succeeds_and_later_results_wait(machine, fresh_nats):
    machine.write(commits=1)
    upload = machine.sync()["upload_id"]
    machine.sync()
    with machine.started("events", "--exec", FAILS_TWICE, "--durable", "hook") as following:
        failures = following.logged("command_failed", 2)
        assert [(one["exit_code"], one["delay_seconds"]) for one in failures] == [(41, 1.0), (42, 2.0)]
        runs = printed(following, "run ", 4)
        until_settled(fresh_nats, "hook", 2)
        assert following.stop(signal.SIGINT) == 128 + signal.SIGINT
    machine.sync()
    with machine.started("events", "--exec", "cat", "--durable", "hook") as following:
        following.printed.wait(lambda _: True)
    lines = machine.call("events", "--json").out.splitlines(keepends=True)
    texts = [line for line in lines if "akosha.sync.requested.v1" not in line]
    first, second, _ = (json.loads(text)["id"] for text in texts)
    assert runs == [
        *(f"run {number}: laptop succeeded {first} ({upload})" for number in (1, 2, 3)),
        f"run 4: laptop skipped {second} ()",
    ]
    given = [(machine.home / f"event-{number}.json").read_text() for number in (1, 2, 3, 4)]
    assert [*given, *following.printed.raw] == [texts[0], texts[0], *texts]


def test_a_signal_stops_the_command_and_its_result_is_delivered_again(machine):
    machine.write(commits=1)
    machine.sync()
    (result,) = results(machine)
    with machine.started("events", "--exec", ENDS_ON_SIGTERM, "--durable", "hook") as following:
        assert printed(following, "started") == [f"started {result['id']}"]
        child = int((machine.home / "pid").read_text())
        assert is_running(child)
        assert following.stop(signal.SIGTERM) == 128 + signal.SIGTERM, "".join(following.log.raw)
        wait_until(lambda: not is_running(child))  # a killed process may need a moment
    assert following.printed.raw[-1] == "stopped\n"
    with machine.started("events", "--exec", "echo again $AKOSHA_EVENT_ID", "--durable", "hook") as following:
        assert printed(following, "again") == [f"again {result['id']}"]


def test_without_nats_a_command_runs_for_each_result_in_the_ledger(tmp_path):
    alone = Machine(tmp_path / "alone")
    alone.write(commits=1)
    command = "[ -e failed ] || { touch failed; exit 3; }; echo run $AKOSHA_EVENT_ID"
    with alone.started("events", "--exec", command) as following, alone.run():
        (failure,) = following.logged("command_failed")
        assert failure["exit_code"] == 3
        alone.sync()
        assert printed(following, "run", 2) == [f"run {result['id']}" for result in results(alone)]
        assert following.stop(signal.SIGINT) == 128 + signal.SIGINT
