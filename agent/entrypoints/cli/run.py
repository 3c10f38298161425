"""`run`: run the agent until it is stopped. On SIGHUP it reads settings and credentials again.

If settings have changed, a new agent replaces the running one; else the running one creates new clients.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

import structlog

from agent.application.agent import Agent
from agent.bootstrap import agent as agent_bootstrap
from agent.bootstrap.home import Home
from agent.bootstrap.metrics import Metering, metering
from agent.bootstrap.webhooks import webhook_sender
from agent.domain.errors import AkoshaError, LedgerDamaged, SettingsError, SystemIdTaken
from agent.domain.events import SyncAsked
from agent.entrypoints import control_api, logs
from agent.entrypoints.cli.command import CommandGroup, LogMode, Options
from agent.entrypoints.formatting import event_summary
from agent.entrypoints.narrator import log_text, narrated
from agent.entrypoints.shutdown import first_of, on_hangup
from agent.ports import Supervisor
from agent.settings import Loaded, Settings
from agent.settings.model import FIELDS
from agent.settings.validators import PREFIX

LOG_KEYS = frozenset({"agent_log_level", "agent_log_format", "agent_log_file", "agent_log_file_mb"})
"""Settings that take effect without a new agent."""

REPLACED_SECONDS = 60.0
"""A ledger that is damaged again so soon after it was replaced ends the process: perhaps the disk is failing."""

app = CommandGroup()

_log = structlog.get_logger()


@app.command(stopped=0)
async def run(options: Options) -> NoReturn:
    """Watch the databases and sync changes until stopped (Ctrl-C or SIGTERM)."""
    read = partial(options.read, LogMode.SETTING, to_file=True, on_terminal=log_text)
    loaded = options.load(LogMode.SETTING, to_file=True, on_terminal=log_text)
    await run_until_stopped(loaded.settings, read)


async def run_until_stopped(settings: Settings, load: Callable[[], Loaded]) -> NoReturn:
    """Run until cancelled; `load` reads the settings again on SIGHUP. Raises the error that ended the agent.

    The state directory stays locked while one agent replaces another. Invalid settings, and settings with which no
    agent can start, are refused (`settings_refused`); the previous ones stay in effect.
    """
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    supervisor = agent_bootstrap.supervisor()
    with home.lock("run"):
        try:
            await ReloadLoop(load, supervisor).run(settings)
        finally:
            _log.info("agent_stopped", system_id=identity.system_id)


class AgentInstance:
    """One agent, running in `task`, and its settings.

    `unanswered` are sync requests without a result: the next instance takes them over.
    """

    def __init__(
        self, settings: Settings, supervisor: Supervisor, metering: Metering, unanswered: Sequence[SyncAsked]
    ) -> None:
        self.settings, self.unanswered = settings, unanswered
        self._supervisor, self._metering = supervisor, metering
        self._agent: Agent | None = None
        self.task = asyncio.create_task(self._run(), name="agent")

    @property
    def ready(self) -> bool:
        """Whether the agent watches the databases and accepts requests."""
        return self._agent is not None and self._agent.agent_service.ready

    async def reset_clients(self) -> None:
        """Make the agent's next calls read credentials and certificates again."""
        if self._agent is not None:
            await self._agent.reset_clients()

    async def stop(self) -> None:
        """Cancel the agent and wait for its clean-up, even if cancelled meanwhile: the command limits the time."""
        if self.task.done():
            return
        cancelled = False
        self.task.cancel()
        while not self.task.done():
            try:
                await asyncio.wait({self.task})
            except asyncio.CancelledError:
                cancelled = True
                self._supervisor.stopping()
        if not self.task.cancelled() and (error := self.task.exception()) is not None:
            _log.error("agent_failed", error=str(error), exc_info=error)
        if cancelled:
            raise asyncio.CancelledError

    async def _run(self) -> None:
        home = Home.of(self.settings)
        identity = await asyncio.to_thread(home.prepare)
        await asyncio.to_thread(home.remember_setting)
        try:
            async with await agent_bootstrap.build(
                home,
                identity,
                meter=self._metering.meter,
                supervisor=self._supervisor,
                unanswered=self.unanswered,
                webhook_sender=webhook_sender(home, event_summary),
            ) as agent:
                self._agent, self._metering.ledger_bytes = agent, agent.ledger.size
                service = agent.agent_service
                metrics = partial(self._metering.exposition, service)
                try:
                    async with (
                        control_api.serve(service, self.settings, state_dir=home.state.path, metrics=metrics),
                        narrated(service, self.settings),
                    ):
                        await agent.run()
                except asyncio.CancelledError:
                    self.unanswered = await agent.open_asks()
                    raise
                except ExceptionGroup as group:
                    if group.subgroup(SystemIdTaken):
                        self.unanswered = await agent.open_asks()
                    raise
        except* AkoshaError as group:
            raise first_of(group) from group


class ReloadLoop:
    """Runs the agent, and replaces it when the settings or the default system ID have changed."""

    def __init__(self, load: Callable[[], Loaded], supervisor: Supervisor) -> None:
        self._load, self._supervisor, self._metering = load, supervisor, metering()
        self._hangup = asyncio.Event()
        self._replaced_at: float | None = None

    async def run(self, settings: Settings) -> NoReturn:
        """Run until cancelled. Raises the error of the first agent, or of a later one that was ready."""
        on_hangup(self._hangup.set)
        unanswered: Sequence[SyncAsked] = ()
        fallback: Settings | None = None  # the settings of the last agent that was ready
        while True:
            instance = AgentInstance(settings, self._supervisor, self._metering, unanswered)
            try:
                settings = await self._changed_settings(instance)
                if instance.ready or fallback is None:
                    fallback = instance.settings
            except asyncio.CancelledError:
                self._supervisor.stopping()
                raise
            except LedgerDamaged as error:
                now, last = time.monotonic(), self._replaced_at
                if last is not None and now - last < REPLACED_SECONDS:
                    raise
                await instance.stop()
                settings, self._replaced_at = instance.settings, now
                await asyncio.to_thread(Home.of(settings).set_ledger_aside, error)
            except SystemIdTaken as taken:
                settings = instance.settings
                identity = await asyncio.to_thread(Home.of(settings).rename, taken)
                instance.unanswered = [replace(ask, system_id=identity.system_id) for ask in instance.unanswered]
            except AkoshaError as error:
                if instance.ready or fallback is None:
                    raise
                self._refuse(error, fallback)
                settings, fallback = fallback, None
            finally:
                await instance.stop()
            self._supervisor.keep_alive()  # building the next agent takes no longer than stopping this one
            unanswered = instance.unanswered

    async def _changed_settings(self, instance: AgentInstance) -> Settings:
        """Wait for changed settings that need a new agent. Raises the error that ended this agent."""
        while True:
            hangup = asyncio.create_task(self._hangup.wait(), name="hangup")
            try:
                await asyncio.wait({instance.task, hangup}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hangup.cancel()
            if instance.task.done():
                instance.task.result()
            self._hangup.clear()
            self._supervisor.reloading()
            self._supervisor.keep_alive()
            settings = await self._reloaded(instance.settings)
            changed = _changed_keys(instance.settings, settings)
            if changed:
                _log.info("settings_changed", keys=sorted(PREFIX + key for key in changed))
            if not changed <= LOG_KEYS:
                return settings
            instance.settings = settings
            await instance.reset_clients()
            if instance.ready:
                self._supervisor.ready()

    async def _reloaded(self, current: Settings) -> Settings:
        """Read the settings again; if they cannot be used, log that and return the current ones."""
        try:
            loaded = await asyncio.to_thread(self._load)
            settings = loaded.settings
            if settings.agent_state_dir != current.agent_state_dir:
                raise SettingsError(
                    f"akosha_agent_state_dir was changed to {settings.agent_state_dir}, which needs a restart",
                    hint="akosha-agent service restart",
                )
            await asyncio.to_thread(Home.of(settings).prepare)
        except AkoshaError as error:
            self._refuse(error, current)
            return current
        for warning in loaded.warnings:
            _log.warning("settings", warning=warning)
        if not _changed_keys(current, settings):
            _log.info("settings_unchanged", next_step="credentials and certificates are read again")
        return settings

    def _refuse(self, error: AkoshaError, current: Settings) -> None:
        """Log and report that the new settings are refused; configure logging from the previous ones."""
        render = log_text if logs.is_rendered_by(log_text) else None
        location = logs.LogLocation.of(current)
        logs.configure(current.agent_log_level, current.agent_log_format, location, on_terminal=render)
        _log.error(
            "settings_refused", reason=error.message, hint=error.hint, next_step="the previous settings stay in effect"
        )
        self._supervisor.status(f"settings refused, the previous ones stay in effect: {logs.redacted(str(error))}")


def _changed_keys(old: Settings, new: Settings) -> set[str]:
    return {key for key in FIELDS if getattr(old, key) != getattr(new, key)}
