"""Servers that are killed: NATS, the S3 store, Akosha."""

import random

from tests.campaign.faults.fault import Fault
from tests.campaign.targets import AkoshaTarget
from tests.campaign.world import World


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
