"""What the clocks and the routes have to look like for the agent to be told that it woke up, or moved."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from agent.adapters.network_monitor import MachineNetworkMonitor
from agent.ports import NetworkChange
from tests.support.clock import ManualClock

HOME, ABROAD, NOWHERE = ("10.0.0.5", "2001:db8::5"), ("192.168.7.9", ""), ("", "")
WOKE, MOVED = NetworkChange.WOKE, NetworkChange.MOVED


class Machine:
    """Its clocks and its routes, and what was told of them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.asleep = 0.0
        self.addresses: tuple[str, ...] | None = HOME
        self.reported: list[NetworkChange] = []
        self.looks = 0

    def sleep(self, seconds: float) -> None:
        """As Linux and macOS do: the monotonic time stands still, the others go on."""
        self.asleep += seconds
        self.clock.jump(timedelta(seconds=seconds))

    async def look(self) -> list[NetworkChange]:
        """Let the next look happen, and return what was told at it."""
        self.reported.clear()
        await self.clock.advance(5)
        return self.reported

    def _source_addresses(self) -> tuple[str, ...] | None:
        self.looks += 1
        return self.addresses

    async def listen(self) -> None:
        network_monitor = MachineNetworkMonitor(
            self.clock, seconds_asleep=lambda: self.asleep, source_addresses=self._source_addresses
        )
        async for change in network_monitor.changes():
            self.reported.append(change)


@asynccontextmanager
async def a_machine() -> AsyncIterator[Machine]:
    machine = Machine()
    task = asyncio.create_task(machine.listen())
    await machine.clock.until_asleep()
    try:
        yield machine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_where_nothing_happens_nothing_is_reported():
    async with a_machine() as machine:
        await machine.clock.advance(3600)
        assert machine.reported == []
        assert machine.looks == 3600 / 5 + 1


@pytest.mark.parametrize(("seconds", "reported"), [(3, [WOKE]), (8 * 3600, [WOKE]), (1, [])])
async def test_a_sleep_is_reported_at_the_next_look_once_unless_it_was_a_nap(seconds, reported):
    async with a_machine() as machine:
        machine.sleep(seconds)
        assert await machine.look() == reported
        assert await machine.look() == []


@pytest.mark.parametrize(
    ("jump", "reported"),
    [
        (timedelta(hours=1), [WOKE]),  # a virtual machine that was halted tells it in no other way
        (timedelta(hours=-1), []),
        (timedelta(seconds=20), []),
    ],
    ids=["an-hour-forward", "an-hour-back", "20-s"],
)
async def test_a_wall_clock_that_was_set_far_forward_counts_as_a_sleep(jump, reported):
    async with a_machine() as machine:
        machine.clock.jump(jump)
        assert await machine.look() == reported
        assert await machine.look() == []


async def test_a_clock_that_is_slowly_corrected_is_no_sleep():
    async with a_machine() as machine:
        for _ in range(100):
            machine.clock.jump(timedelta(seconds=1))
            assert await machine.look() == []


async def test_another_address_is_another_network():
    async with a_machine() as machine:
        machine.addresses = ABROAD
        assert await machine.look() == [MOVED]
        assert await machine.look() == []


async def test_a_network_that_went_away_is_reported_when_there_is_one_again_also_the_same():
    async with a_machine() as machine:
        machine.addresses = NOWHERE
        assert await machine.look() == []
        assert await machine.look() == []
        machine.addresses = HOME
        assert await machine.look() == [MOVED]


async def test_what_cannot_be_found_out_is_no_change():
    async with a_machine() as machine:
        for machine.addresses in (None, HOME, None, None, HOME):
            assert await machine.look() == []


async def test_a_machine_that_wakes_elsewhere_has_done_both():
    async with a_machine() as machine:
        machine.sleep(600)
        machine.addresses = ABROAD
        assert await machine.look() == [WOKE, MOVED]
