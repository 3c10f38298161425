"""Servers that are killed: NATS, the S3 store, Akosha."""

import random

from tests.campaign.checks import stored_once
from tests.campaign.faults.fault import Fault
from tests.campaign.targets import AkoshaTarget
from tests.campaign.world import SAY_SECONDS, NotSettled, World
from tests.support.servers.s3 import Rclone
from tests.support.waiting import happens


class NatsKilled(Fault):
    row = "SIGKILL of nats-server"
    rounds = 100

    def strike(self, world: World, rng: random.Random) -> None:
        world.nats.kill()

    def heal(self, world: World, rng: random.Random) -> None:
        world.nats.start()


class StoreKilled(Fault):
    """A store that is down keeps its data."""

    row = "SIGKILL of the S3 server"
    rounds = 100
    target = "rclone"

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.target.server is not None
        world.target.server.kill()

    def heal(self, world: World, rng: random.Random) -> None:
        assert world.target.server is not None
        world.target.server.start()


class AkoshaKilled(Fault):
    """An Akosha that is killed keeps its memories, or loses them, which the probe of a person's sync finds."""

    row = "SIGKILL of Akosha"
    rounds = 100
    target = "akosha"

    def strike(self, world: World, rng: random.Random) -> None:
        assert isinstance(world.target, AkoshaTarget)
        world.target.server.kill()
        if rng.random() < 0.5:
            world.target.server.forget()

    def heal(self, world: World, rng: random.Random) -> None:
        assert world.target.server is not None
        world.target.server.start()
        world.settle()
        world.machine.call("sync")


class CloudDown(Fault):
    """The S3 server is killed or suspended until Akosha has the memories. Later the bucket gets the databases, too."""

    row = "Akosha as the fallback of an S3 server that is down"
    rounds = 20
    bar = "Akosha gets the memories, then the bucket gets the databases"
    target = "fallback"
    delayed = False

    def prepare(self, world: World) -> None:
        world.machine.set(max_retries=0, upload_timeout_seconds=2)

    def strike(self, world: World, rng: random.Random) -> None:
        assert isinstance(world.target.server, Rclone)
        server = world.target.server
        take_down, self.bring_back = rng.choice(((server.kill, server.start), (server.pause, server.resume)))
        take_down()

    def heal(self, world: World, rng: random.Random) -> None:
        arrived = happens(lambda: not [*stored_once(world, world.target.memories)], SAY_SECONDS)
        lines = world.last_lines()
        self.bring_back()
        if not arrived:
            raise NotSettled(f"Akosha has not got the memories: {lines}")
