"""Kills (SIGKILL) of the agent between request, publish and confirm: one upload, and one result by its ID."""

import os
import signal
import sys
from pathlib import Path

import pytest

from agent.domain.events import upload_event_id
from tests.support.bus_listener import listening
from tests.support.machine import Machine
from tests.support.servers.nats import running_nats

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
POINTS = ("request:after", "publish:after", "confirm:after")
"""Those that differ with NATS. `make faults` has all."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_leaves_one_upload_and_one_result(server, tmp_path, point):
    system = f"laptop-{POINTS.index(point)}"
    machine = Machine(tmp_path / "machine", agent_nats_url=server.url, system_id=system)
    machine.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), machine.environ.get("PYTHONPATH", "")])
    machine.write(commits=3)
    with listening(server.url, durable=f"listener-{system}", pattern=f"akosha.sync.{system}.*") as listener:
        with machine.started("run", prefix=(sys.executable, str(HERE / "killed_run.py"), point)) as killed:
            assert killed.process.wait(60) == -signal.SIGKILL, killed.log.raw
        with machine.run():
            listener.wait(listener.ids)
            status = machine.status(lambda found: not found["pending"] and _clean(found))
            (manifest,) = machine.manifests
            assert set(listener.ids()) == {upload_event_id(manifest["upload_id"], manifest["agent_id"])}
            assert status["targets"][0]["newest_upload_id"] == manifest["upload_id"]


def _clean(status: dict) -> bool:
    return {row["state"] for row in status["targets"][0]["databases"]} == {"clean"}
