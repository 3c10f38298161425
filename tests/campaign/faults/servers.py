"""Servers that are killed or give wrong answers: NATS, the S3 store, Akosha."""

import random
from collections.abc import Iterator
from typing import ClassVar

from tests.campaign.faults.fault import Fault
from tests.campaign.targets import AkoshaTarget
from tests.campaign.world import World
from tests.support.servers.faulty_proxy import Action, ending, lose_the_answer, refuse, reset


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


class StoreAnswers(Fault):
    """Some requests of the sync fail; later ones succeed."""

    row = "The S3 server resets, refuses, loses answers"
    rounds = 300
    bar = "recovers by itself; the agent never exits"
    target = "s3"
    delayed = False
    operations: ClassVar = ("put_object", "list_objects_v2", "head_object", "get_object", "copy_object")

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.target.proxy is not None
        for _ in range(rng.randint(1, 3)):
            world.target.proxy.on(rng.choice(self.operations), rng.choice([*_failures(rng)]), times=rng.randint(1, 4))


def _failures(rng: random.Random) -> Iterator[Action]:
    yield from (
        refuse(status, code) for status, code in ((500, "InternalError"), (503, "SlowDown"), (429, "Throttling"))
    )
    yield reset(after=0)
    yield lose_the_answer()
    yield ending("manifest.json", lose_the_answer())
