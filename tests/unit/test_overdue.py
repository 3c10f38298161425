"""Overdue: a database that its target has lacked for too long is announced once, and so is the end of that."""

from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from agent.application.monitoring.overdue import OverdueState
from agent.domain.errors import CloudUploadError, SnapshotError
from agent.domain.events import DeliveryOverdue, DeliveryRecovered
from tests.support.agent import simulated_agent

HOUR, DAY = 3600.0, 86_400.0
DOWN = CloudUploadError("503", "cloud", transient=True)
URLS = ("http://127.0.0.1:1/a", "http://127.0.0.1:1/b")


class SilentSender:
    async def send(self, webhook, event):
        pass


def hooks(*hours: float):
    return [
        {"url": url, "events": ["overdue", "recovered"], "overdue_hours": each}
        for url, each in zip(URLS, hours, strict=False)
    ]


@asynccontextmanager
async def watched(script=(), *, hours=(24.0,), **more):
    async with simulated_agent(script, agent_webhooks=hooks(*hours), webhook_sender=SilentSender(), **more) as agent:
        yield agent


async def announced(agent):
    entries = await agent.agent.ledger.history(limit=100_000)
    return [one.event for one in entries if isinstance(one.event, DeliveryOverdue | DeliveryRecovered)]


async def test_a_target_that_fails_for_a_day_is_announced_once_and_so_is_the_next_success(world_is_down):
    agent = world_is_down
    agent.files.change(1)
    started = agent.clock.now()
    await agent.pass_time(DAY - HOUR)
    assert await announced(agent) == []
    await agent.pass_time(3 * HOUR)
    (event,) = await announced(agent)
    assert (event.method, event.hours, event.databases) == ("cloud", 24.0, ("reflection",))
    assert event.since - started <= timedelta(minutes=15)
    assert "503" in event.error
    await agent.pass_time(3 * DAY)
    assert len(await announced(agent)) == 1
    agent.method._script[:] = [1]
    await agent.pass_time(DAY)
    _, recovered = await announced(agent)
    assert isinstance(recovered, DeliveryRecovered)
    assert recovered.since == event.since
    assert recovered in agent.received


@pytest.fixture
async def world_is_down():
    async with watched([DOWN] * 10_000) as agent:
        yield agent


async def test_each_threshold_is_announced_on_its_own():
    async with watched([DOWN] * 10_000, hours=(2.0, 30.0)) as agent:
        agent.files.change(1)
        await agent.pass_time(4 * HOUR)
        assert [event.hours for event in await announced(agent)] == [2.0]
        await agent.pass_time(30 * HOUR)
        assert [event.hours for event in await announced(agent)] == [2.0, 30.0]


async def test_a_database_that_changes_all_the_time_and_is_delivered_is_never_overdue():
    async with watched(range(1, 60), hours=(2.0,)) as agent:
        for generation in range(1, 60):
            agent.files.change(generation)
            await agent.pass_time(310)
        assert await announced(agent) == []
        assert len(agent.method.asked) > 50


async def test_an_old_success_does_not_make_a_new_change_overdue():
    async with watched([1]) as agent:
        agent.files.change(1)
        await agent.pass_time(10 * DAY)
        agent.method._script[:] = [DOWN] * 10_000
        agent.files.change(2)
        await agent.pass_time(23 * HOUR)
        assert await announced(agent) == []
        await agent.pass_time(2 * HOUR)
        assert len(await announced(agent)) == 1


async def test_after_a_suspend_the_agent_first_syncs():
    async with watched([DOWN, DOWN, 1]) as agent:
        agent.files.change(1)
        await agent.pass_time(2000)
        agent.clock.jump(timedelta(days=3))
        await agent.pass_time(2 * HOUR)
        assert await announced(agent) == []
        assert len(agent.method.asked) == 3


async def test_what_is_pending_stays_overdue_while_the_databases_cannot_be_read(world_is_down, monkeypatch):
    agent = world_is_down
    agent.files.change(1)
    await agent.pass_time(26 * HOUR)

    async def unreadable():
        raise SnapshotError("the directory is not mounted", transient=True)

    monkeypatch.setattr(agent.files, "survey", unreadable)
    await agent.pass_time(DAY)
    assert len(await announced(agent)) == 1


async def test_nothing_is_announced_while_sync_is_switched_off():
    async with watched(sync_enabled=False) as agent:
        agent.files.change(1)
        await agent.pass_time(3 * DAY)
        assert await announced(agent) == []


@pytest.mark.parametrize("text", ["", "[]", "5", '{"waiting": {"a": 5}, "announced": {}}', '{"waiting": {}}'])
def test_an_unreadable_note_is_an_empty_state(text):
    assert OverdueState.of(text) == OverdueState()
