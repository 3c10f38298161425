"""Clocks that jump, time zones that change, processes that are suspended."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World
from tests.faults import shifted_clock
from tests.faults.shifted_clock import set_clock

KEPT = 5
SUCCEEDED = "akosha.sync.succeeded.v1"
YEARS = timedelta(days=4 * 365).total_seconds()
ZONES = ("Europe/Berlin", "America/St_Johns", "Asia/Kolkata", "Pacific/Apia", "UTC")
TURNS = (datetime(2027, 3, 28, 1, tzinfo=UTC), datetime(2027, 10, 31, 1, tzinfo=UTC))
"""When the clocks of Europe are set forward and back."""


class ShiftedClock(Fault):
    """The agent's clock is set. Uploads stay in order, and pruning keeps the newest."""

    rounds = 10
    bar = "IDs in the right order; the newest uploads are kept"

    def prepare(self, world: World) -> None:
        self.file, self.seconds = world.folder / "clock", 0.0
        self.set(0)
        world.prefix = (sys.executable, shifted_clock.__file__, str(self.file))
        world.machine.set(agent_keep_last=KEPT, agent_keep_daily=0, agent_keep_weekly=0, agent_keep_monthly=0)

    def set(self, seconds: float, zone: str = "UTC") -> None:
        """Add so many seconds to the system's time from now on."""
        self.seconds = seconds
        set_clock(self.file, seconds, zone)

    def check(self, world: World) -> Iterator[str]:
        """The IDs of uploads increase with their results, and the newest uploads outlive pruning."""
        announced = [event["data"]["upload_id"] for event in world.results() if event["type"] == SUCCEEDED]
        announced = [*dict.fromkeys(announced)]
        if announced != sorted(announced):
            yield f"uploads were announced in another order than that of their IDs: {announced}"
        pruned = world.machine.call("prune", prefix=world.prefix)
        kept = [manifest["upload_id"] for manifest in world.manifests()]
        if kept[-KEPT:] != announced[-KEPT:]:
            yield f"prune has kept {kept}, but {announced[-KEPT:]} are the newest: {pruned.out} {pruned.err}"


class ClockSet(ShiftedClock):
    """By minutes, a day or four years, and sometimes to the right time."""

    row = "Clock 10 minutes, a day or 4 years ahead or behind"

    def strike(self, world: World, rng: random.Random) -> None:
        before = self.seconds
        self.set(rng.choice((600, -600, 86_400, -86_400, YEARS, -YEARS, 0)))
        world.commit()
        if self.seconds > max(before, 0):
            world.warns("upload_id_ahead")


class TimeZoneChanged(ShiftedClock):
    """Uploads name the zone in which the databases store their times."""

    row = "Time zone changed"

    def strike(self, world: World, rng: random.Random) -> None:
        self.zone = rng.choice(ZONES)
        self.set(self.seconds, self.zone)
        world.commit()

    def check(self, world: World) -> Iterator[str]:
        yield from super().check(world)
        newest = world.manifests()[-1]
        if newest["time_zone"] != self.zone:
            yield f"{newest['upload_id']} has the zone {newest['time_zone']} instead of {self.zone}"


class SummerTime(TimeZoneChanged):
    """Clocks are set forward or back by an hour while changes are synced."""

    row = "Summer time begins and ends"

    def strike(self, world: World, rng: random.Random) -> None:
        self.zone = ZONES[0]
        turn = rng.choice(TURNS)
        self.set((turn - datetime.now(UTC)).total_seconds() - 2, self.zone)
        world.commit()
        world.settle()
        time.sleep(2)
        world.commit()


class Suspended(ShiftedClock):
    """The agent is suspended, and its clock jumps, as after a sleep."""

    row = "Suspended (SIGSTOP) while the clock goes on"
    rounds = 5
    bar = "the first sync follows within 60 s"
    calm_seconds = 60

    def strike(self, world: World, rng: random.Random) -> None:
        os.kill(world.pid, signal.SIGSTOP)
        self.set(self.seconds + rng.uniform(60, 3600))
        time.sleep(1)
        os.kill(world.pid, signal.SIGCONT)
        world.said("network_changed")
        world.commit()
