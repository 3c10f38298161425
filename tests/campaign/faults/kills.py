"""Processes that are killed: the agent, its child, the writer."""

import random
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

import psutil

from tests.campaign.faults.fault import Fault
from tests.campaign.world import NotSettled, World
from tests.faults import killed_run
from tests.support.ledger import downgrade
from tests.support.machine import COMMAND
from tests.support.waiting import happens

LATER_SECONDS = 1.0
"""How long after everything has arrived a point may be reached: a message is acknowledged, a prune runs."""


OF_MAIN_FILE = frozenset({"reflection", "make-patch", "patch", "base"})
"""Points that only an upload of a changed main file reaches."""


def send_in_parts(world: World) -> None:
    """Let the agent send parts of 20 KiB, and whole files: a patch of a small database is one part."""
    world.machine.constants["agent.bootstrap.methods:MEBIBYTE"] = 2**12
    world.machine.set(agent_mirror=False)


class AgentKilled(Fault):
    row = "SIGKILL of the agent at a random moment"
    rounds = 200

    def strike(self, world: World, rng: random.Random) -> None:
        world.kill_agent()

    def heal(self, world: World, rng: random.Random) -> None:
        world.start_agent()


class AgentKilledAtPoint(Fault):
    """The agent kills itself before or after a step: a copy, a write to the ledger, an object, a message, a prune."""

    row = "SIGKILL of the agent at a named point"
    rounds = 250
    delayed = False
    points: ClassVar = [f"{name}:{when}" for name in killed_run.CALLS for when in ("before", "after")]

    def __init__(self) -> None:
        super().__init__()
        self.struck.update(dict.fromkeys(self.points, 0))

    def strike(self, world: World, rng: random.Random) -> None:
        point = rng.choice(self.points)
        if point.partition(":")[0] in OF_MAIN_FILE:
            world.writer.run("checkpoint")  # other commits change the WAL only
        self.start_deadly(world, point)

    def start_deadly(self, world: World, point: str, prepare: Callable[[], object] = lambda: None) -> None:
        """Replace the agent by one that kills itself at the point. `prepare` runs while no agent runs."""
        assert world.stop_agent() == 0
        prepare()
        self.point = point
        world.prefix = (sys.executable, killed_run.__file__, point)
        world.start_agent()

    def heal(self, world: World, rng: random.Random) -> None:
        """Count the kill if the agent has reached the point, and start another agent."""
        assert world.agent is not None
        world.settle(or_ended=True)
        happens(lambda: world.agent.process.poll() is not None, LATER_SECONDS)
        code = world.agent.process.returncode
        if code not in (-signal.SIGKILL, None):
            raise NotSettled(f"the agent ended by itself: {world.last_lines()}")
        self.struck[self.point] += code is not None
        world.kill_agent()
        world.prefix = (COMMAND,)
        world.start_agent()


class AgentKilledInMultipart(AgentKilledAtPoint):
    """The agent kills itself twice while it sends an object in parts: the second one continues the first one's put."""

    row = "S3: SIGKILL of the agent while it sends or resumes a file in parts"
    rounds = 100
    typical_seconds = 10.0
    target = "s3"
    points: ClassVar = [f"{name}:{when}" for name in killed_run.MULTIPART for when in ("before", "after")]

    def prepare(self, world: World) -> None:
        send_in_parts(world)

    def strike(self, world: World, rng: random.Random) -> None:
        """Let the agent send a main file: a WAL is one part."""
        self.start_deadly(world, rng.choice(self.points), lambda: world.writer.run("checkpoint"))

    def heal(self, world: World, rng: random.Random) -> None:
        """Let a second agent kill itself if the first one has."""
        assert world.agent is not None
        world.settle(or_ended=True)
        if happens(lambda: world.agent.process.poll() is not None, LATER_SECONDS):
            world.kill_agent()
            self.struck[self.point] += 1
            self.point = rng.choice(self.points)
            world.prefix = (sys.executable, killed_run.__file__, self.point)
            world.start_agent()
        super().heal(world, rng)


class AgentKilledInMigration(AgentKilledAtPoint):
    """An agent with the ledger of an earlier version kills itself while it migrates the ledger."""

    row = "SIGKILL of the agent in a migration of the ledger"
    rounds = 50
    points: ClassVar = [f"migration:{number}" for number in killed_run.MIGRATIONS]

    def strike(self, world: World, rng: random.Random) -> None:
        number = rng.choice(killed_run.MIGRATIONS)
        version = rng.randrange(number)
        self.start_deadly(world, f"migration:{number}", lambda: downgrade(world.ledger, version))


class ChildKilled(Fault):
    row = "SIGKILL of the DuckDB child"
    rounds = 100
    module: ClassVar = "duckdb.child"

    def strike(self, world: World, rng: random.Random) -> None:
        happens(lambda: world.children(self.module), 2)
        for child in world.children(self.module):
            with suppress(psutil.NoSuchProcess):
                child.kill()


class PatchChildKilled(ChildKilled):
    """The whole file is sent."""

    row = "SIGKILL of the child that makes a patch"
    rounds = 50
    module = "patches.child"
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        world.writer.run("checkpoint")  # other commits change the WAL only
        happens(lambda: world.children(self.module), 5)
        super().strike(world, rng)


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
