"""Processes that are killed: the agent, its child, the writer."""

import random
import sys
from contextlib import suppress
from typing import ClassVar

import psutil

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World
from tests.faults import killed_run
from tests.support.machine import COMMAND
from tests.support.waiting import happens


class AgentKilled(Fault):
    row = "SIGKILL of the agent at a random moment"
    rounds = 250

    def strike(self, world: World, rng: random.Random) -> None:
        world.kill_agent()

    def heal(self, world: World, rng: random.Random) -> None:
        world.start_agent()


class AgentKilledAtPoint(Fault):
    """The agent kills itself before or after a write."""

    row = "SIGKILL of the agent at a named point"
    rounds = 250
    delayed = False
    points: ClassVar = [
        f"{name}:{when}"
        for name in ("manifest", "deliver", "confirm", "publish", "ack")
        for when in ("before", "after")
    ]

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.stop_agent() == 0
        world.prefix = (sys.executable, killed_run.__file__, rng.choice(self.points))
        world.start_agent()

    def heal(self, world: World, rng: random.Random) -> None:
        assert world.agent is not None
        happens(lambda: world.agent.process.poll() is not None, 60)
        world.kill_agent()
        world.prefix = (COMMAND,)
        world.start_agent()


class ChildKilled(Fault):
    row = "SIGKILL of the DuckDB child"
    rounds = 100

    def strike(self, world: World, rng: random.Random) -> None:
        happens(lambda: world.children("duckdb.child"), 2)
        for child in world.children("duckdb.child"):
            with suppress(psutil.NoSuchProcess):
                child.kill()


class WriterKilled(Fault):
    """What was committed since the last checkpoint is in the WAL only."""

    row = "SIGKILL of the writer"
    rounds = 100
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        world.commit(rng.randint(1, 3))
        world.crash_writer()
        world.settle()
        world.start_writer()
