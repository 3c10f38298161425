"""Overdue: a database that its target has lacked for too long is announced once, and so is the end of that."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest

from agent.application.monitoring.overdue import OverdueMonitor
from agent.application.signal import Signal
from agent.domain.errors import CloudUploadError, SnapshotError
from agent.domain.events import DeliveryOverdue, DeliveryRecovered
from agent.domain.overdue import OverdueState
from agent.domain.routing import SyncPolicy
from agent.entrypoints.formatting import overdue_summary
from tests.support import values
from tests.support.agent import IDENTITY, simulated_agent
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger
from tests.support.values import NOON, OTHER_TARGET, TARGET

HOUR, DAY = 3600.0, 86_400.0
POLICY = SyncPolicy(
    enabled=True, on_session_end=True, force_method="auto", cloud_configured=True, enable_fallback=False
)


class World:
    """A monitor with its ledger. `change` and `deliver` are a new generation of a database here and at the target."""

    def __init__(self, *hours: float, policy: SyncPolicy = POLICY) -> None:
        self.clock = ManualClock(NOON)
        self.ledger = inline_ledger(self.clock)
        self.seen = {}
        self.target = TARGET
        self.unreadable = False
        self.hours = hours
        self.publisher = SimpleNamespace(policy=policy, methods={"cloud": self}, taker=self)
        self.signal = Signal(self.clock, "overdue")

    async def survey(self):
        if self.unreadable:
            raise SnapshotError("the directory is not mounted", transient=True)
        return dict(self.seen)

    @asynccontextmanager
    async def running(self):
        monitor = OverdueMonitor(
            hours=self.hours, identity=IDENTITY, publisher=self.publisher, ledger=self.ledger, clock=self.clock,
            recorder=SimpleNamespace(flush_soon=lambda: None), signal=self.signal,
        )  # fmt: skip
        task = asyncio.create_task(monitor.run())
        await self.clock.advance(0)
        try:
            yield self
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def change(self, generation: int, name: str = "reflection") -> None:
        self.seen[name] = values.fingerprint(name, generation)
        await self.check()

    async def remove(self, name: str) -> None:
        del self.seen[name]
        await self.check()

    async def check(self) -> None:
        self.signal.set()
        await self.clock.advance(0)

    async def deliver(self, generation: int, name: str = "reflection") -> None:
        await self.ledger.mark_owed(self.target, [name])
        await self.ledger.begin(self.target, values.intent(generation, f"r-{generation}", **{name: generation}))
        manifest = values.manifest(generation, f"r-{generation}", **{name: generation})
        seen = {name: values.fingerprint(name, generation)}
        await self.ledger.deliver(self.target, manifest, seen, {}, values.succeeded(manifest))
        await self.check()

    async def announced(self):
        entries = [one.event for one in await self.ledger.history()]
        return [event for event in entries if isinstance(event, DeliveryOverdue | DeliveryRecovered)]


async def test_a_database_that_waits_for_a_day_is_announced_once_and_so_is_its_delivery():
    async with World(24.0).running() as world:
        await world.change(1)
        await world.clock.advance(DAY - 1)
        assert await world.announced() == []
        await world.clock.advance(1)
        (event,) = await world.announced()
        assert (event.method, event.hours, event.databases, event.since) == ("cloud", 24.0, ("reflection",), NOON)
        await world.clock.advance(3 * DAY)
        assert len(await world.announced()) == 1
        await world.deliver(1)
        _, recovered = await world.announced()
        assert isinstance(recovered, DeliveryRecovered)
        assert recovered.since == event.since


async def test_each_threshold_is_announced_on_its_own():
    async with World(2.0, 30.0).running() as world:
        await world.change(1)
        await world.clock.advance(4 * HOUR)
        assert [event.hours for event in await world.announced()] == [2.0]
        await world.clock.advance(26 * HOUR)
        assert [event.hours for event in await world.announced()] == [2.0, 30.0]


async def test_the_end_is_announced_for_the_hours_that_were_set_when_the_database_became_overdue():
    world = World(24.0)
    async with world.running():
        await world.change(1)
        await world.clock.advance(DAY)
    world.hours = (48.0,)
    async with world.running():
        await world.clock.advance(HOUR)
        assert [event.hours for event in await world.announced()] == [24.0]
        await world.deliver(1)
        assert [(type(event), event.hours) for event in await world.announced()] == [
            (DeliveryOverdue, 24.0), (DeliveryRecovered, 24.0),
        ]  # fmt: skip
    world.hours = (24.0,)
    async with world.running():
        await world.clock.advance(90 * DAY)
        assert len(await world.announced()) == 2


async def test_a_database_that_changes_all_the_time_and_is_delivered_is_never_overdue_but_one_beside_it_is():
    async with World(2.0).running() as world:
        await world.change(1, "knowledge_graph")
        for generation in range(1, 30):
            await world.change(generation)
            await world.clock.advance(500)
            await world.change(generation + 1)  # pending again at once
            await world.deliver(generation)
        (event,) = await world.announced()
        assert event.databases == ("knowledge_graph",)


async def test_an_old_success_does_not_make_a_new_change_overdue():
    async with World(24.0).running() as world:
        await world.change(1)
        await world.deliver(1)
        await world.clock.advance(5 * DAY)
        await world.change(2)
        await world.clock.advance(23 * HOUR)
        assert await world.announced() == []
        await world.clock.advance(HOUR)
        assert len(await world.announced()) == 1


async def test_a_restart_keeps_the_time_and_announces_nothing_twice():
    world = World(24.0)
    async with world.running():
        await world.change(1)
        await world.clock.advance(23 * HOUR)
    async with world.running():
        await world.clock.advance(2 * HOUR)
        assert len(await world.announced()) == 1
    async with world.running():
        await world.clock.advance(DAY)
        assert len(await world.announced()) == 1


@pytest.mark.parametrize("restart", [True, False], ids=["start", "resume"])
async def test_after_a_start_and_after_a_suspend_the_agent_has_a_quarter_of_an_hour_to_sync(restart):
    world = World(24.0)
    async with world.running():
        await world.change(1)
        await world.clock.advance(HOUR)
        if not restart:
            world.clock.jump(timedelta(days=3))  # the event loop's clock stood still
            await world.clock.advance(899)
            world.signal.set()  # a first attempt has failed
            await world.clock.advance(800)
            assert await world.announced() == []
            await world.clock.advance(100)
            assert len(await world.announced()) == 1
            return
    await world.clock.advance(3 * DAY)
    async with world.running():
        await world.clock.advance(899)
        assert await world.announced() == []
        await world.clock.advance(1)
        assert len(await world.announced()) == 1


async def test_a_clock_that_was_set_back_starts_the_time_again():
    async with World(24.0).running() as world:
        await world.change(1)
        world.clock.jump(-timedelta(days=2))
        await world.clock.advance(DAY)
        assert await world.announced() == []
        await world.clock.advance(HOUR)
        assert len(await world.announced()) == 1


async def test_a_time_that_a_clock_without_a_battery_showed_does_not_count():
    async with World(24.0).running() as world:
        world.clock.jump(-timedelta(days=20 * 365))
        await world.change(1)
        world.clock.jump(timedelta(days=20 * 365))
        await world.clock.advance(HOUR)
        assert await world.announced() == []
        await world.clock.advance(DAY)
        (event,) = await world.announced()
        assert event.since >= NOON


@pytest.mark.parametrize("what", ["clock set back", "copies lost", "not mounted", "unreadable"])
async def test_what_is_overdue_has_not_recovered_before_a_delivery_and_its_end_is_announced_then(what):
    async with World(24.0).running() as world:
        await world.change(1)
        await world.deliver(1)
        for generation in (2, 3):
            await world.change(generation)
            await world.clock.advance(DAY)
            count = len(await world.announced())
            seen = dict(world.seen)
            if what == "clock set back":
                world.clock.jump(-timedelta(minutes=5))
            elif what == "copies lost":
                await world.ledger.forget(TARGET, ["reflection"])
            elif what == "not mounted":
                world.seen.clear()
            else:
                world.unreadable = True
            await world.check()
            await world.clock.advance(2 * DAY)
            assert len(await world.announced()) == count
            world.unreadable, world.seen = False, seen
            await world.deliver(generation)
        assert [type(event) for event in await world.announced()] == [DeliveryOverdue, DeliveryRecovered] * 2


async def test_an_earlier_delivery_to_another_target_is_no_delivery_after_a_change_to_it():
    async with World(24.0).running() as world:
        world.target = OTHER_TARGET
        await world.change(1)
        await world.deliver(1)
        world.target = TARGET
        await world.change(2)
        await world.clock.advance(DAY)
        world.target = OTHER_TARGET
        await world.check()
        assert [type(event) for event in await world.announced()] == [DeliveryOverdue]
        await world.deliver(2)
        assert [type(event) for event in await world.announced()] == [DeliveryOverdue, DeliveryRecovered]


async def test_what_was_delivered_does_not_end_it_while_another_database_is_late():
    async with World(24.0).running() as world:
        await world.change(1)
        await world.clock.advance(HOUR)
        await world.change(1, "knowledge_graph")
        await world.clock.advance(DAY)
        await world.deliver(1)
        assert [type(event) for event in await world.announced()] == [DeliveryOverdue]
        await world.deliver(1, "knowledge_graph")
        assert [type(event) for event in await world.announced()] == [DeliveryOverdue, DeliveryRecovered]


async def test_the_end_names_the_databases_that_were_removed_before_their_delivery():
    async with World(24.0).running() as world:
        await world.change(1)
        await world.change(1, "knowledge_graph")
        await world.clock.advance(DAY)
        await world.remove("knowledge_graph")
        assert len(await world.announced()) == 1
        await world.deliver(1)
        _, recovered = await world.announced()
        assert recovered.removed == ("knowledge_graph",)
        assert "knowledge_graph removed before delivery" in overdue_summary(recovered)


async def test_a_kill_after_an_announcement_does_not_lose_its_end(monkeypatch):
    world = World(24.0)
    async with world.running():
        await world.change(1)
        await world.clock.advance(DAY - 1)

    async def killed(key, value):
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(world.ledger, "note", killed)
        async with world.running():
            await world.clock.advance(1000)
    assert [type(event) for event in await world.announced()] == [DeliveryOverdue]
    async with world.running():
        await world.deliver(1)
    assert [type(event) for event in await world.announced()] == [DeliveryOverdue, DeliveryRecovered]


async def test_nothing_is_announced_while_sync_is_switched_off():
    policy = SyncPolicy(
        enabled=False, on_session_end=True, force_method="auto", cloud_configured=True, enable_fallback=False
    )
    async with World(24.0, policy=policy).running() as world:
        await world.change(1)
        await world.clock.advance(3 * DAY)
        assert await world.announced() == []


@pytest.mark.parametrize("text", ["", "[]", "5", '{"waiting": {"a": 5}, "announced": {}}', '{"waiting": {}}'])
def test_an_unreadable_note_is_an_empty_state(text):
    assert OverdueState.of(text) == OverdueState()


class ListedSender:
    def __init__(self) -> None:
        self.sent = []

    async def send(self, webhook, event):
        self.sent.append(event)


async def test_the_agent_sends_both_events_to_the_webhook_and_publishes_them():
    sender, down = ListedSender(), CloudUploadError("503", "cloud", transient=True)
    hook = {"url": "http://127.0.0.1:1/", "events": ["overdue", "recovered"], "overdue_hours": 0.3}
    async with simulated_agent([down] * 1000, agent_webhooks=[hook], webhook_sender=sender) as agent:
        agent.files.change(1)
        await agent.pass_time(0.4 * HOUR)
        (overdue,) = sender.sent
        assert "503" in overdue.error
        agent.method._script[:] = [1]
        await agent.pass_time(HOUR)
        assert [type(event) for event in sender.sent] == [DeliveryOverdue, DeliveryRecovered]
        assert all(event in agent.received for event in sender.sent)
