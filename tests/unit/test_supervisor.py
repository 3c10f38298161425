"""Notifications to the supervisor of a running agent: ready, keep-alive and status."""

import asyncio
from contextlib import asynccontextmanager

from agent.domain.errors import StateError
from tests.support.agent import PERMANENT, simulated_agent

EVERY = 10.0


class Supervisor:
    """A supervisor that keeps its notifications in order."""

    def __init__(self, every: float | None = EVERY) -> None:
        self.keep_alive_seconds, self.notifications = every, []

    def ready(self) -> None:
        self.notifications.append("ready")

    def reloading(self) -> None:
        self.notifications.append("reloading")

    def status(self, text: str) -> None:
        self.notifications.append(text)

    def keep_alive(self) -> None:
        self.notifications.append("alive")

    def stopping(self) -> None:
        self.notifications.append("stopping")

    @property
    def keep_alives(self) -> int:
        return self.notifications.count("alive")

    @property
    def lines(self) -> list[str]:
        return [text for text in self.notifications if text not in ("ready", "alive")]


@asynccontextmanager
async def supervised(script=(), *, every: float | None = EVERY, **settings):
    supervisor = Supervisor(every)
    async with simulated_agent(script, running=False, supervisor=supervisor, **settings) as w:
        task = asyncio.create_task(w.agent.run())
        await w.settle()
        try:
            yield w, supervisor
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_the_agent_is_ready_once_it_watches_and_then_sends_keep_alives():
    async with supervised() as (w, supervisor):
        assert supervisor.notifications.index("ready") < supervisor.notifications.index("alive")
        before = supervisor.keep_alives
        await w.pass_time(10 * EVERY)
        assert supervisor.keep_alives - before == 10
        assert supervisor.notifications.count("ready") == 1


async def test_the_agent_is_not_ready_before_it_watches():
    supervisor, released = Supervisor(), asyncio.Event()
    async with simulated_agent(running=False, supervisor=supervisor) as w:
        changes = w.files.changes

        async def late():
            await released.wait()
            async for names in changes():
                yield names

        w.files.changes = late
        task = asyncio.create_task(w.agent.run())
        await w.pass_time(60)
        assert (supervisor.notifications, w.agent.agent_service.ready) == ([], False)
        released.set()
        await w.settle()
        assert ("ready" in supervisor.notifications, w.agent.agent_service.ready) == (True, True)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_without_a_watchdog_no_keep_alives_are_sent():
    async with supervised(every=None) as (w, supervisor):
        await w.pass_time(60)
        assert (supervisor.keep_alives, supervisor.notifications[0]) == (0, "ready")


async def test_a_stuck_watcher_stops_the_keep_alives_and_is_named():
    async with supervised(agent_rescan_seconds=20) as (w, supervisor):
        w.files.hang()
        await w.pass_time(150)
        before = supervisor.keep_alives
        await w.pass_time(10 * EVERY)
        assert supervisor.keep_alives == before
        assert "unhealthy: watch: no scan of its directory" in supervisor.lines[-1]
        assert "watch" in w.agent.agent_service.problems()
        w.files.stuck_from = None
        await w.pass_time(60)
        assert supervisor.keep_alives > before
        assert supervisor.lines[-1].startswith("nothing pending")


async def test_a_long_sync_does_not_stop_the_keep_alives():
    async with supervised([1]) as (w, supervisor):
        w.method.hold = asyncio.Event()
        w.files.change(1)
        await w.pass_time(3)
        before = supervisor.keep_alives
        await w.pass_time(300)
        assert supervisor.keep_alives - before == 30
        w.method.hold.set()


async def test_a_loop_that_waits_for_disk_space_is_reported_and_keep_alives_continue():
    async with supervised() as (w, supervisor):

        async def full():
            raise StateError("the disk is full", transient=True)

        waiting, w.notes.waiting = w.notes.waiting, full
        w.notes.set()
        await w.pass_time(50)
        assert w.agent.agent_service.problems() == {"spool": "the disk is full"}
        assert "the disk is full" in supervisor.lines[-1]
        before = supervisor.keep_alives
        await w.pass_time(300)
        assert supervisor.keep_alives - before == 30
        w.notes.waiting = waiting
        await w.pass_time(130)
        assert w.agent.agent_service.problems() == {}


async def test_each_change_of_pending_databases_uploads_and_errors_updates_the_status_line():
    async with supervised([PERMANENT, 1], agent_rescan_seconds=10_000) as (w, supervisor):
        assert supervisor.lines == ["nothing pending; last upload never"]
        w.files.change(1)
        await w.pass_time(3)
        assert supervisor.lines[-1] == "pending: reflection; last upload never; cloud failed 1 times: 403"
        await w.pass_time(40)
        assert supervisor.lines[-1].startswith("nothing pending; last upload 2026")
        notifications = len(supervisor.lines)
        await w.pass_time(100)
        assert len(supervisor.lines) == notifications
