"""Connections to the S3 store, NATS and Akosha that fail, although the servers run.

A fault lasts until the agent has met it, and for a random time after that; broken connections stay broken. Then the
agent must go on by itself. It may not have waited on a connection for longer than twice its limit.
"""

import random
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar
from urllib.parse import urlsplit

from tests.campaign.faults.fault import Fault
from tests.campaign.faults.kills import send_in_parts
from tests.campaign.world import World
from tests.support.servers.link import Pass, Silent, at_rate, dripping, ending
from tests.support.servers.threaded_proxy import running_link
from tests.support.waiting import happens

MEET_SECONDS = 3.0
"""Longest time in which the agent meets a fault. It may not: a connection may end after more bytes than it sends."""

LAST_SECONDS = 1.0
"""Longest time that a fault lasts after that."""

LIMIT_SECONDS = 2

HALF_OPEN, SLOW = "half-open", "slow"

WAYS: Mapping[str, Callable[[int], Pass]] = {
    "reset": lambda after: ending(after, ConnectionResetError),
    "truncated": lambda after: ending(after, EOFError),
    "stalled": lambda after: ending(after, Silent),
    "slow-loris": lambda _: dripping(0.05),
    SLOW: lambda _: at_rate(64 * 1024),
}
"""How connections fail, in one direction, after so many bytes of all of them."""


class Line(Fault):
    """The agent's connections to a server fail; in HALF_OPEN only those that are open, and neither side is told."""

    bar = "recovers by itself; no wait is longer than twice the limit; the agent never exits"
    delayed = False
    limit_seconds: ClassVar[float] = LIMIT_SECONDS
    """The agent's limit for a connection without progress."""

    @abstractmethod
    def port(self, world: World) -> int:
        """Return the server's port."""

    @abstractmethod
    def connect(self, world: World, port: int) -> None:
        """Make the agent connect to a port instead."""

    def prepare(self, world: World) -> None:
        self.link = world.enter(running_link(self.port(world)))
        self.connect(world, self.link.port)

    def after(self, rng: random.Random) -> int:
        """Return how many bytes pass before the connections fail."""
        return rng.choice((0, rng.randrange(500), rng.randrange(8000)))

    def strike(self, world: World, rng: random.Random) -> None:
        self.link.waits.clear()
        self.way = rng.choice((HALF_OPEN, *WAYS))
        after = self.after(rng)
        if self.way == HALF_OPEN:
            self.link.lose()
        else:
            self.link.fail(**{rng.choice(("requests", "answers")): WAYS[self.way](after)})

    def heal(self, world: World, rng: random.Random) -> None:
        if self.way == SLOW:
            world.settle()
        else:
            happens(lambda: self.link.waits or self.link.waiting, MEET_SECONDS)
            threading.Event().wait(rng.uniform(0, LAST_SECONDS))
        self.link.fail()

    def check(self, world: World) -> Iterator[str]:
        longest = max(self.link.waits + self.link.waiting, default=0.0)
        if longest > 2 * self.limit_seconds:
            yield f"{self.way}: the agent waited {longest:.1f} s on a connection; its limit is {self.limit_seconds:g} s"


class StoreLine(Line):
    row = "S3: connections reset, truncated, stalled, slow, half-open"
    rounds = 60
    target = "rclone"

    def port(self, world: World) -> int:
        return urlsplit(str(world.target.settings["cloud_endpoint"])).port

    def connect(self, world: World, port: int) -> None:
        world.machine.set(cloud_endpoint=f"http://127.0.0.1:{port}", upload_timeout_seconds=LIMIT_SECONDS)


class StoreLineInParts(StoreLine):
    """The databases are sent in small parts, so that most of them are interrupted in the middle."""

    row = "S3: connections fail while a file is sent in parts"
    rounds = 60

    def prepare(self, world: World) -> None:
        send_in_parts(world)
        super().prepare(world)

    def after(self, rng: random.Random) -> int:
        return rng.randrange(300_000)

    def strike(self, world: World, rng: random.Random) -> None:
        super().strike(world, rng)
        world.writer.run("checkpoint")  # a WAL is one part


class NatsLine(Line):
    row = "NATS: connections reset, truncated, stalled, slow, half-open"
    rounds = 50
    limit_seconds = 1.5

    def port(self, world: World) -> int:
        return world.nats.port

    def connect(self, world: World, port: int) -> None:
        world.machine.set(agent_nats_url=f"nats://127.0.0.1:{port}")
        patience = {"connect": 1.5, "ping": 0.5, "ping_timeout": 1.0, "reconnect": 0.05, "reconnect_max": 0.2}
        world.machine.constants["agent.bootstrap.buses:PATIENCE"] = patience


class AkoshaLine(Line):
    row = "Akosha: connections reset, truncated, stalled, slow, half-open"
    rounds = 30
    target = "akosha"

    def port(self, world: World) -> int:
        return urlsplit(str(world.target.settings["http_endpoint"])).port

    def connect(self, world: World, port: int) -> None:
        world.machine.set(http_endpoint=f"http://127.0.0.1:{port}/mcp", upload_timeout_seconds=LIMIT_SECONDS)
