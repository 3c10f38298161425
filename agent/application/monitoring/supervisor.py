"""Notify the service manager: readiness, watchdog pings and a status line."""

import structlog

from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.health import HealthMonitor
from agent.application.monitoring.status import Status
from agent.application.signal import Signal
from agent.domain.errors import AkoshaError
from agent.domain.plain_text import problem_list
from agent.ports import Clock, Ledger, Supervisor

_log = structlog.get_logger()


class SupervisorLoop:
    """The two loops that notify the service manager. Watchdog pings stop while a component is stuck."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        agent_service: AgentService,
        health: HealthMonitor,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._supervisor, self._agent_service, self._health, self._clock = supervisor, agent_service, health, clock
        self._signal = Signal(clock, "supervision")
        ledger.on_history(self._signal.set)
        health.on_change(self._signal.set)

    async def watchdog_loop(self) -> None:
        """Report readiness; then send watchdog pings, if the service manager expects them, until cancelled."""
        await self._health.until_ready()
        self._supervisor.ready()
        every = self._supervisor.keep_alive_seconds
        while every is not None:
            if not self._health.stuck:
                self._supervisor.keep_alive()
            await self._clock.sleep(every)

    async def status_loop(self) -> None:
        """Send a status line whenever it has changed, until cancelled."""
        await self._health.until_ready()
        last_line = ""
        while True:
            line = await self._line()
            if line != last_line:
                self._supervisor.status(line)
                last_line = line
            await self._signal.wait(None)

    async def _line(self) -> str:
        if problems := self._health.problems():
            return "unhealthy: " + problem_list(problems)
        try:
            return line(await self._agent_service.brief_status())
        except AkoshaError as error:
            return f"unhealthy: {error.message}"


def line(status: Status) -> str:
    """Return a status in one line."""
    parts = [f"pending: {', '.join(status.pending)}" if status.pending else "nothing pending"]
    if status.targets:
        first = status.targets[0]
        when = f"{first.last_success:%Y-%m-%d %H:%M:%S} UTC" if first.last_success else "never"
        parts.append(f"last upload {first.newest_upload_id or when}")
        if first.failures:
            parts.append(f"{first.method} failed {first.failures} times: {first.error}")
    else:
        parts.append("no sync method is set up")
    return "; ".join(parts)
