"""Servers that are killed or give wrong answers: NATS, the S3 store, Akosha."""

import random
from collections.abc import Iterator
from typing import ClassVar

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World
from tests.support.servers.faulty_proxy import Action, ending, lose_the_answer, refuse, reset


class NatsKilled(Fault):
    row = "SIGKILL of nats-server"
    rounds = 100

    def strike(self, world: World, rng: random.Random) -> None:
        world.nats.kill()

    def heal(self, world: World, rng: random.Random) -> None:
        world.nats.start()


class StoreAnswers(Fault):
    """Some requests of the sync fail; later ones succeed."""

    row = "The S3 server resets, refuses, loses answers"
    rounds = 300
    target = "s3"
    delayed = False
    operations: ClassVar = ("put_object", "list_objects_v2", "head_object", "get_object", "copy_object")

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.proxy is not None
        for _ in range(rng.randint(1, 3)):
            world.proxy.on(rng.choice(self.operations), rng.choice([*_failures(rng)]), times=rng.randint(1, 4))


def _failures(rng: random.Random) -> Iterator[Action]:
    yield from (
        refuse(status, code) for status, code in ((500, "InternalError"), (503, "SlowDown"), (429, "Throttling"))
    )
    yield reset(after=0)
    yield lose_the_answer()
    yield ending("manifest.json", lose_the_answer())
