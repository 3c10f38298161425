"""After sleep or a network change, owed databases are synced within seconds; a flapping network causes no storm."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import structlog

from agent.adapters.memory_bus import MemoryDurableBus
from agent.application.sync.stall import StallTimeout, sync_with_restarts
from agent.domain.errors import CloudUploadError
from agent.ports import NetworkChange, Unchanged
from tests.support import values
from tests.support.agent import PERMANENT, SimulatedAgent, simulated_agent

WOKE, MOVED = NetworkChange.WOKE, NetworkChange.MOVED
NEVER = 604_800
"""A rescan interval so long that only the network change can cause a sync."""


class ScriptedNetwork:
    """A network monitor that reports the changes that the test emits."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[NetworkChange] = asyncio.Queue()

    def emit(self, *changes: NetworkChange) -> None:
        for change in changes:
            self._queue.put_nowait(change)

    async def changes(self) -> AsyncGenerator[NetworkChange, None]:
        while True:
            yield await self._queue.get()


@asynccontextmanager
async def agent_on_network(script=(), **settings) -> AsyncIterator[tuple[SimulatedAgent, ScriptedNetwork]]:
    network = ScriptedNetwork()
    async with simulated_agent(
        script, running=False, agent_rescan_seconds=NEVER, network_monitor=network, **settings
    ) as w:
        task = asyncio.create_task(w.agent.run())
        await w.settle()
        try:
            yield w, network
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def fail_until_the_retry_is_minutes_away(w: SimulatedAgent) -> None:
    """Let attempts fail without a connection until the next retry is minutes away."""
    w.method.available = False
    w.files.change(1)
    await w.pass_time(220)
    record = await w.agent.ledger.record(w.method.target)
    assert record.retry_at - w.clock.now() > timedelta(minutes=3)


@pytest.fixture(autouse=True)
def logged():
    with structlog.testing.capture_logs() as lines:
        yield lines


def count_logged(logged, event: str) -> int:
    return sum(line["event"] == event for line in logged)


@pytest.mark.parametrize("change", [WOKE, MOVED], ids=["woke", "moved"])
async def test_a_network_change_retries_within_a_second_despite_the_back_off(change):
    async with agent_on_network([1]) as (w, network):
        await fail_until_the_retry_is_minutes_away(w)
        w.method.available = True
        network.emit(change)
        await w.pass_time(1)
        assert len(w.method.asked) == 1
        assert (await w.agent.ledger.record(w.method.target)).failures == 0


async def test_after_waking_an_unreachable_target_is_checked_again():
    async with agent_on_network([1]) as (w, network):
        await fail_until_the_retry_is_minutes_away(w)
        network.emit(WOKE)
        await w.pass_time(6)
        w.method.available = True
        await w.pass_time(5)
        assert len(w.method.asked) == 1


async def test_an_unreachable_target_causes_no_requests_after_a_network_change():
    async with agent_on_network() as (w, network):
        await fail_until_the_retry_is_minutes_away(w)
        before = len(w.reasons)
        network.emit(MOVED)
        await w.pass_time(120)
        assert len(w.reasons) == before


async def test_a_reachable_target_that_refuses_is_tried_once_per_network_change():
    async with agent_on_network([PERMANENT] * 99) as (w, network):
        w.files.change(1)
        await w.pass_time(600)
        before = len(w.method.asked)
        network.emit(MOVED)
        await w.pass_time(28)
        assert len(w.method.asked) == before + 1


async def test_without_a_network_change_the_back_off_is_kept():
    async with agent_on_network([1]) as (w, _):
        await fail_until_the_retry_is_minutes_away(w)
        w.method.available = True
        await w.pass_time(60)
        assert w.method.asked == []


async def test_after_waking_missed_changes_are_synced_without_the_minimum_interval():
    async with agent_on_network([1, 2]) as (w, network):
        w.files.change(1)
        await w.pass_time(3)
        w.files.change(2, notified=False)
        w.clock.jump(timedelta(hours=8))
        await w.pass_time(60)
        assert len(w.method.asked) == 1
        network.emit(WOKE)
        await w.pass_time(1)
        assert w.reasons == ["file_change", "file_change"]


async def test_with_upload_on_change_off_waking_syncs_nothing():
    async with agent_on_network([1], agent_upload_on_change=False) as (w, network):
        w.files.change(1, notified=False)
        network.emit(WOKE)
        await w.pass_time(60)
        assert w.reasons == []


@pytest.mark.parametrize("change", [WOKE, MOVED], ids=["woke", "moved"])
async def test_a_retry_time_that_passed_during_sleep_is_tried_at_once(change):
    async with agent_on_network() as (w, network):
        await fail_until_the_retry_is_minutes_away(w)
        tried = len(w.reasons)
        w.clock.jump(timedelta(hours=8))
        network.emit(change)
        await w.pass_time(1)
        assert len(w.reasons) == tried + 1


async def test_if_nothing_is_owed_a_network_change_requests_nothing():
    async with agent_on_network([1]) as (w, network):
        w.files.change(1)
        await w.pass_time(3)
        network.emit(WOKE, MOVED)
        await w.pass_time(120)
        assert w.reasons == ["file_change"]


async def test_waking_in_another_network_is_logged_as_one_change(logged):
    async with agent_on_network() as (w, network):
        network.emit(WOKE, MOVED)
        await w.pass_time(60)
        lines = [line for line in logged if line["event"] == "network_changed"]
        assert [line["changes"] for line in lines] == ["the machine woke up, the network changed"]


async def test_a_network_change_after_waking_is_handled_within_seconds():
    async with agent_on_network([1]) as (w, network):
        await fail_until_the_retry_is_minutes_away(w)
        network.emit(WOKE)
        await w.pass_time(1)
        w.method.available = True
        network.emit(MOVED)
        await w.pass_time(5)
        assert len(w.method.asked) == 1


async def test_a_flapping_network_is_handled_about_once_a_minute(logged):
    async with agent_on_network([PERMANENT] * 999) as (w, network):
        w.files.change(1)
        for _ in range(360):
            network.emit(MOVED)
            await w.pass_time(5)
        assert 20 <= count_logged(logged, "network_changed") <= 60
        assert len(w.method.asked) <= 3 * 40


async def test_after_the_flapping_the_next_network_change_is_handled_at_once(logged):
    async with agent_on_network() as (w, network):
        for _ in range(60):
            network.emit(MOVED)
            await w.clock.advance(5)
        await w.pass_time(200)
        before = count_logged(logged, "network_changed")
        network.emit(MOVED)
        await w.settle()
        assert count_logged(logged, "network_changed") == before + 1


async def test_a_network_change_notifies_the_bus_and_the_connection_pools(monkeypatch):
    calls = []
    monkeypatch.setattr(MemoryDurableBus, "check_connection", lambda _: calls.append("bus"))

    class Pool:
        async def drop_idle_connections(self) -> None:
            calls.append("pool")

    async with agent_on_network() as (w, network):
        w.agent.stall_monitor.register(Pool())
        network.emit(MOVED)
        await w.settle()
        assert calls == ["bus", "pool"]


async def test_during_a_sync_a_network_change_requests_no_other():
    async with agent_on_network([PERMANENT, 1]) as (w, network):
        w.files.change(1)
        await w.pass_time(3)
        w.method.hold = asyncio.Event()
        await w.pass_time(40)
        assert len(w.method.asked) == 2
        network.emit(WOKE)
        await w.pass_time(3)
        w.method.hold.set()
        await w.pass_time(20)
        assert w.reasons == ["file_change", "retry"]


CUT = CloudUploadError("no progress for 10 s", "cloud", StallTimeout(10), transient=True)
OTHER = CloudUploadError("500", "cloud", transient=True)


class Method:
    """A method that raises the scripted errors and then has nothing to do; reachable unless `away`."""

    name = "cloud"
    target = values.TARGET

    def __init__(self, *script: CloudUploadError, away: bool = False) -> None:
        self._script, self._away = list(script), away
        self.attempts = 0

    async def is_available(self) -> bool:
        return not self._away

    async def sync(self, request, report):
        self.attempts += 1
        if self._script:
            raise self._script.pop(0)
        return Unchanged(reason="nothing")

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("method", "attempts", "error"),
    [
        (Method(), 1, None),
        (Method(CUT), 2, None),
        (Method(CUT, CUT), 3, None),
        (Method(CUT, CUT, CUT), 3, CUT),
        (Method(CUT, OTHER), 2, OTHER),
        (Method(OTHER), 1, OTHER),
        (Method(CUT, away=True), 1, CUT),
    ],
    ids=["complete", "cut-once", "cut-twice", "always-cut", "cut-then-failed", "failed", "cut-and-unreachable"],
)
async def test_a_sync_cut_off_by_a_network_change_restarts_if_the_target_is_reachable(method, attempts, error):
    sync = sync_with_restarts(method, values.request(), None)
    if error is None:
        assert await sync == Unchanged(reason="nothing")
    else:
        with pytest.raises(CloudUploadError) as failure:
            await sync
        assert failure.value is error
    assert method.attempts == attempts
