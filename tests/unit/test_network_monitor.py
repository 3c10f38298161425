"""The network monitor reports sleep and network changes from the clocks and the source addresses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from agent.adapters.network_monitor import MachineNetworkMonitor
from agent.ports import NetworkChange
from tests.support.clock import ManualClock

HOME, ABROAD, OFFLINE = ("10.0.0.5", "2001:db8::5"), ("192.168.7.9", ""), ("", "")
WOKE, MOVED = NetworkChange.WOKE, NetworkChange.MOVED


class Machine:
    """Scripted clocks and source addresses of a machine, and the changes reported for them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.asleep = 0.0
        self.addresses: tuple[str, ...] | None = HOME
        self.reported: list[NetworkChange] = []
        self.checks = 0

    def sleep(self, seconds: float) -> None:
        """Sleep like Linux and macOS: the monotonic clock stops, the other clocks continue."""
        self.asleep += seconds
        self.clock.jump(timedelta(seconds=seconds))

    async def next_check(self) -> list[NetworkChange]:
        """Run the next check and return the changes that it reports."""
        self.reported.clear()
        await self.clock.advance(5)
        return self.reported

    def _source_addresses(self) -> tuple[str, ...] | None:
        self.checks += 1
        return self.addresses

    async def listen(self) -> None:
        network_monitor = MachineNetworkMonitor(
            self.clock, seconds_asleep=lambda: self.asleep, source_addresses=self._source_addresses
        )
        async for change in network_monitor.changes():
            self.reported.append(change)


@asynccontextmanager
async def monitored_machine() -> AsyncIterator[Machine]:
    machine = Machine()
    task = asyncio.create_task(machine.listen())
    await machine.clock.until_asleep()
    try:
        yield machine
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_without_changes_nothing_is_reported():
    async with monitored_machine() as machine:
        await machine.clock.advance(3600)
        assert machine.reported == []
        assert machine.checks == 3600 / 5 + 1


@pytest.mark.parametrize(("seconds", "reported"), [(3, [WOKE]), (8 * 3600, [WOKE]), (1, [])])
async def test_a_sleep_is_reported_once_unless_it_was_short(seconds, reported):
    async with monitored_machine() as machine:
        machine.sleep(seconds)
        assert await machine.next_check() == reported
        assert await machine.next_check() == []


@pytest.mark.parametrize(
    ("jump", "reported"),
    [
        (timedelta(hours=1), [WOKE]),  # the only sign of a virtual machine that was paused
        (timedelta(hours=-1), []),
        (timedelta(seconds=20), []),
    ],
    ids=["an-hour-forward", "an-hour-back", "20-s"],
)
async def test_a_wall_clock_set_far_forward_counts_as_sleep(jump, reported):
    async with monitored_machine() as machine:
        machine.clock.jump(jump)
        assert await machine.next_check() == reported
        assert await machine.next_check() == []


async def test_a_slowly_corrected_clock_is_not_a_sleep():
    async with monitored_machine() as machine:
        for _ in range(100):
            machine.clock.jump(timedelta(seconds=1))
            assert await machine.next_check() == []


async def test_another_address_is_another_network():
    async with monitored_machine() as machine:
        machine.addresses = ABROAD
        assert await machine.next_check() == [MOVED]
        assert await machine.next_check() == []


async def test_after_an_outage_even_the_same_network_is_reported():
    async with monitored_machine() as machine:
        machine.addresses = OFFLINE
        assert await machine.next_check() == []
        assert await machine.next_check() == []
        machine.addresses = HOME
        assert await machine.next_check() == [MOVED]


async def test_unknown_addresses_are_not_a_change():
    async with monitored_machine() as machine:
        for machine.addresses in (None, HOME, None, None, HOME):
            assert await machine.next_check() == []


async def test_waking_in_another_network_reports_both_changes():
    async with monitored_machine() as machine:
        machine.sleep(600)
        machine.addresses = ABROAD
        assert await machine.next_check() == [WOKE, MOVED]
