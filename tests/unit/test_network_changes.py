"""After sleep, or in another network: what is owed follows within seconds, and a network that flaps makes no storm."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import structlog

from agent.adapters.memory_bus import MemoryBus
from agent.application.sync.stall import StallTimeout, sync_with_restarts
from agent.domain.errors import CloudUploadError
from agent.ports import NetworkChange, Unchanged
from tests.support import values
from tests.support.agent import PERMANENT, SimulatedAgent, simulated_agent

WOKE, MOVED = NetworkChange.WOKE, NetworkChange.MOVED
NEVER = 604_800
"""No pass every now and then that could do what is to be proved of an upheaval."""


class TheWorldOutside:
    """Surroundings in which happens what a test says."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[NetworkChange] = asyncio.Queue()

    def happens(self, *changes: NetworkChange) -> None:
        for change in changes:
            self._queue.put_nowait(change)

    async def changes(self) -> AsyncGenerator[NetworkChange, None]:
        while True:
            yield await self._queue.get()


@asynccontextmanager
async def roaming(script=(), **settings) -> AsyncIterator[tuple[SimulatedAgent, TheWorldOutside]]:
    outside = TheWorldOutside()
    async with simulated_agent(
        script, running=False, agent_rescan_seconds=NEVER, network_monitor=outside, **settings
    ) as w:
        task = asyncio.create_task(w.agent.run())
        await w.settle()
        try:
            yield w, outside
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until_it_is_minutes_away(w: SimulatedAgent) -> None:
    """Fail for want of a connection, until the next try is minutes away."""
    w.method.available = False
    w.files.change(1)
    await w.pass_time(220)
    record = await w.agent.ledger.record(w.method.target)
    assert record.retry_at - w.clock.now() > timedelta(minutes=3)


@pytest.fixture(autouse=True)
def logged():
    with structlog.testing.capture_logs() as lines:
        yield lines


def said(logged, event: str) -> int:
    return sum(line["event"] == event for line in logged)


@pytest.mark.parametrize("what", [WOKE, MOVED], ids=["woke", "moved"])
async def test_what_could_not_be_delivered_follows_within_a_second_though_its_time_is_minutes_away(what):
    async with roaming([1]) as (w, outside):
        await until_it_is_minutes_away(w)
        w.method.available = True
        outside.happens(what)
        await w.pass_time(1)
        assert len(w.method.asked) == 1
        assert (await w.agent.ledger.record(w.method.target)).failures == 0


async def test_a_network_that_comes_up_slowly_is_looked_for_again():
    async with roaming([1]) as (w, outside):
        await until_it_is_minutes_away(w)
        outside.happens(WOKE)
        await w.pass_time(6)
        w.method.available = True
        await w.pass_time(5)
        assert len(w.method.asked) == 1


async def test_what_is_not_reachable_at_the_network_change_is_not_asked_for_again_and_again():
    async with roaming() as (w, outside):
        await until_it_is_minutes_away(w)
        before = len(w.reasons)
        outside.happens(MOVED)
        await w.pass_time(120)
        assert len(w.reasons) == before


async def test_a_target_that_can_be_reached_and_refuses_is_tried_once_a_network_change():
    async with roaming([PERMANENT] * 99) as (w, outside):
        w.files.change(1)
        await w.pass_time(600)
        before = len(w.method.asked)
        outside.happens(MOVED)
        await w.pass_time(28)
        assert len(w.method.asked) == before + 1


async def test_without_a_network_change_its_time_is_waited_for():
    async with roaming([1]) as (w, _):
        await until_it_is_minutes_away(w)
        w.method.available = True
        await w.pass_time(60)
        assert w.method.asked == []


async def test_a_machine_that_wakes_syncs_what_the_watch_missed_and_waits_for_no_interval():
    async with roaming([1, 2]) as (w, outside):
        w.files.change(1)
        await w.pass_time(3)
        w.files.change(2, notified=False)
        w.clock.jump(timedelta(hours=8))
        await w.pass_time(60)
        assert len(w.method.asked) == 1
        outside.happens(WOKE)
        await w.pass_time(1)
        assert w.reasons == ["file_change", "file_change"]


async def test_where_session_ends_alone_are_synced_a_machine_that_wakes_syncs_nothing():
    async with roaming([1], agent_upload_on_change=False) as (w, outside):
        w.files.change(1, notified=False)
        outside.happens(WOKE)
        await w.pass_time(60)
        assert w.reasons == []


@pytest.mark.parametrize("what", [WOKE, MOVED], ids=["woke", "moved"])
async def test_a_time_that_came_while_the_machine_slept_is_not_waited_for(what):
    async with roaming() as (w, outside):
        await until_it_is_minutes_away(w)
        tried = len(w.reasons)
        w.clock.jump(timedelta(hours=8))
        outside.happens(what)
        await w.pass_time(1)
        assert len(w.reasons) == tried + 1


async def test_where_nothing_is_owed_a_network_change_asks_for_nothing():
    async with roaming([1]) as (w, outside):
        w.files.change(1)
        await w.pass_time(3)
        outside.happens(WOKE, MOVED)
        await w.pass_time(120)
        assert w.reasons == ["file_change"]


async def test_waking_up_elsewhere_is_one_network_change_and_one_line(logged):
    async with roaming() as (w, outside):
        outside.happens(WOKE, MOVED)
        await w.pass_time(60)
        lines = [line for line in logged if line["event"] == "network_changed"]
        assert [line["changes"] for line in lines] == ["the machine woke up, the network changed"]


async def test_a_network_that_comes_after_the_waking_is_answered_within_seconds():
    async with roaming([1]) as (w, outside):
        await until_it_is_minutes_away(w)
        outside.happens(WOKE)
        await w.pass_time(1)
        w.method.available = True
        outside.happens(MOVED)
        await w.pass_time(5)
        assert len(w.method.asked) == 1


async def test_a_network_that_flaps_for_half_an_hour_is_answered_about_once_a_minute(logged):
    async with roaming([PERMANENT] * 999) as (w, outside):
        w.files.change(1)
        for _ in range(360):
            outside.happens(MOVED)
            await w.pass_time(5)
        assert 20 <= said(logged, "network_changed") <= 60
        assert len(w.method.asked) <= 3 * 40


async def test_after_the_flapping_the_next_network_change_is_answered_at_once(logged):
    async with roaming() as (w, outside):
        for _ in range(60):
            outside.happens(MOVED)
            await w.clock.advance(5)
        await w.pass_time(200)
        before = said(logged, "network_changed")
        outside.happens(MOVED)
        await w.settle()
        assert said(logged, "network_changed") == before + 1


async def test_the_bus_is_reported_and_the_methods_connections(monkeypatch):
    notified = []
    monkeypatch.setattr(MemoryBus, "check_connection", lambda _: notified.append("bus"))

    class Pool:
        async def drop_idle_connections(self) -> None:
            notified.append("pool")

    async with roaming() as (w, outside):
        w.agent.stall_monitor.register(Pool())
        outside.happens(MOVED)
        await w.settle()
        assert notified == ["bus", "pool"]


async def test_while_a_sync_runs_no_other_is_asked_for():
    async with roaming([PERMANENT, 1]) as (w, outside):
        w.files.change(1)
        await w.pass_time(3)
        w.method.hold = asyncio.Event()
        await w.pass_time(40)
        assert len(w.method.asked) == 2
        outside.happens(WOKE)
        await w.pass_time(3)
        w.method.hold.set()
        await w.pass_time(20)
        assert w.reasons == ["file_change", "retry"]


CUT = CloudUploadError("no progress for 10 s", "cloud", StallTimeout(10), transient=True)
OTHER = CloudUploadError("500", "cloud", transient=True)


class Method:
    """Fails as its script says, then has nothing to do; can be reached but for `away`."""

    name = "cloud"
    target = values.TARGET

    def __init__(self, *script: CloudUploadError, away: bool = False) -> None:
        self._script, self._away = list(script), away
        self.begun = 0

    async def is_available(self) -> bool:
        return not self._away

    async def sync(self, request, report):
        self.begun += 1
        if self._script:
            raise self._script.pop(0)
        return Unchanged(reason="nothing")

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("method", "begun", "error"),
    [
        (Method(), 1, None),
        (Method(CUT), 2, None),
        (Method(CUT, CUT), 3, None),
        (Method(CUT, CUT, CUT), 3, CUT),
        (Method(CUT, OTHER), 2, OTHER),
        (Method(OTHER), 1, OTHER),
        (Method(CUT, away=True), 1, CUT),
    ],
    ids=["whole", "cut-once", "cut-twice", "cut-for-ever", "cut-then-failed", "failed", "cut-and-gone"],
)
async def test_what_was_cut_off_by_a_network_change_restarts_where_it_can(method, begun, error):
    sync = sync_with_restarts(method, values.request(), None)
    if error is None:
        assert await sync == Unchanged(reason="nothing")
    else:
        with pytest.raises(CloudUploadError) as failure:
            await sync
        assert failure.value is error
    assert method.begun == begun
