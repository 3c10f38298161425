"""`run`: the agent until it is stopped. At a SIGHUP settings and credentials are read again.

Other settings build a new agent; with the same ones, stores, servers and buses build new clients.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

import structlog

from agent.application.agent import Agent
from agent.application.monitoring.agent_service import AgentService
from agent.bootstrap import agent as agent_bootstrap
from agent.bootstrap.home import Home
from agent.bootstrap.metrics import Metering, metering
from agent.domain.errors import AkoshaError, LedgerDamaged, SettingsError, SystemIdTaken
from agent.domain.events import SyncAsked
from agent.entrypoints import control_api, logs
from agent.entrypoints.cli.command import CommandGroup, LogMode, Options
from agent.entrypoints.shutdown import first_of, on_hangup
from agent.ports import Supervisor
from agent.settings import Loaded, Settings
from agent.settings.model import FIELDS
from agent.settings.validators import PREFIX

LOG_KEYS = frozenset({"agent_log_level", "agent_log_format", "agent_log_file", "agent_log_file_mb"})
"""Settings that come into force without a new agent."""

app = CommandGroup()

_log = structlog.get_logger()


@app.command(stopped=0)
async def run(options: Options) -> NoReturn:
    """Watch the databases and sync what changes, until stopped (Ctrl-C or SIGTERM)."""
    loaded = options.load(LogMode.SETTING, to_file=True)
    await run_until_stopped(loaded.settings, partial(options.read, LogMode.SETTING, to_file=True))


async def run_until_stopped(settings: Settings, loading: Callable[[], Loaded]) -> NoReturn:
    """Run until cancelled, with what `loading` gives from a SIGHUP on. Raises what took the agent down.

    The state directory is held from the first agent to the last. Settings that are wrong, or that no agent can be
    built with, are told of (`settings_refused`), and the old ones stay.
    """
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    supervisor = agent_bootstrap.supervisor()
    with home.lock("run"):
        try:
            await ReloadLoop(loading, supervisor).run(settings)
        finally:
            _log.info("agent_stopped", system_id=identity.system_id)


class AgentInstance:
    """One agent at work, with the settings it was built with; what it leaves unanswered its successor is to take."""

    def __init__(
        self, settings: Settings, supervisor: Supervisor, counts: Metering, unanswered: Sequence[SyncAsked]
    ) -> None:
        self.settings, self.unanswered = settings, unanswered
        self._supervisor, self._counts = supervisor, counts
        self._agent_service: AgentService | None = None
        self._agent: Agent | None = None
        self.task = asyncio.create_task(self._live(), name="agent")

    @property
    def works(self) -> bool:
        """Whether it has come so far that it watches and hears requests."""
        return self._agent_service is not None and self._agent_service.ready

    async def reset_clients(self) -> None:
        """Have its next calls read credentials and certificates again."""
        if self._agent is not None:
            await self._agent.reset_clients()

    async def end(self) -> None:
        """Cancel it and see it end, also while being cancelled: it cleans up, and the command limits the time."""
        if self.task.done():
            return
        interrupted = False
        self.task.cancel()
        while not self.task.done():
            try:
                await asyncio.wait({self.task})
            except asyncio.CancelledError:
                interrupted = True
                self._supervisor.stopping()
        if not self.task.cancelled() and (error := self.task.exception()) is not None:
            _log.error("agent_ended_badly", error=str(error), exc_info=error)
        if interrupted:
            raise asyncio.CancelledError

    async def _live(self) -> None:
        home = Home.of(self.settings)
        identity = await asyncio.to_thread(home.prepare)
        await asyncio.to_thread(home.remember_setting)
        try:
            async with await agent_bootstrap.build(
                home, identity, meter=self._counts.meter, supervisor=self._supervisor, unanswered=self.unanswered
            ) as agent:
                self._agent, self._agent_service, self._counts.ledger_bytes = (
                    agent,
                    agent.agent_service,
                    agent.ledger.size,
                )
                metrics = partial(self._counts.exposition, agent.agent_service)
                try:
                    async with control_api.serve(
                        agent.agent_service, self.settings, state_dir=home.state.path, metrics=metrics
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
    """One agent after the other: each time that the settings, or a default system id, have changed."""

    def __init__(self, loading: Callable[[], Loaded], supervisor: Supervisor) -> None:
        self._loading, self._supervisor, self._counts = loading, supervisor, metering()
        self._hung_up = asyncio.Event()
        self._ledger_replaced = False

    async def run(self, settings: Settings) -> NoReturn:
        """Run until cancelled. Raises what took an agent down that worked, or the first one."""
        on_hangup(self._hung_up.set)
        unanswered: Sequence[SyncAsked] = ()
        before: Settings | None = None
        while True:
            life = AgentInstance(settings, self._supervisor, self._counts, unanswered)
            try:
                new = await self._changed(life)
                before = life.settings if life.works or before is None else before
            except asyncio.CancelledError:
                self._supervisor.stopping()
                raise
            except LedgerDamaged as error:
                if self._ledger_replaced:
                    raise
                await life.end()
                self._ledger_replaced = await asyncio.to_thread(Home.of(life.settings).set_ledger_aside, error)
                new = life.settings
            except SystemIdTaken as taken:
                identity = await asyncio.to_thread(Home.of(life.settings).rename, taken)
                life.unanswered = [replace(ask, system_id=identity.system_id) for ask in life.unanswered]
                new = life.settings
            except AkoshaError as error:
                if life.works or before is None:
                    raise
                self._refuse(error, before)
                new, before = before, None
            finally:
                await life.end()
            self._supervisor.alive()  # what comes now takes no longer than the ending did
            settings, unanswered = new, life.unanswered

    async def _changed(self, life: AgentInstance) -> Settings:
        """Return the settings that another agent has to work with. Raises what took this one down."""
        while True:
            hung_up = asyncio.create_task(self._hung_up.wait(), name="hangup")
            try:
                await asyncio.wait({life.task, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hung_up.cancel()
            if life.task.done():
                life.task.result()
            self._hung_up.clear()
            self._supervisor.reloading()
            self._supervisor.alive()
            new = await self._loaded(life.settings)
            changed = _changed_keys(life.settings, new)
            if changed:
                _log.info("settings_changed", keys=sorted(PREFIX + key for key in changed))
            if not changed <= LOG_KEYS:
                return new
            life.settings = new
            await life.reset_clients()
            if life.works:
                self._supervisor.ready()

    async def _loaded(self, current: Settings) -> Settings:
        """Return the settings as they are now; the current ones, and say why, where those cannot be used."""
        try:
            loaded = await asyncio.to_thread(self._loading)
            new = loaded.settings
            if new.agent_state_dir != current.agent_state_dir:
                raise SettingsError(
                    f"akosha_agent_state_dir is {new.agent_state_dir} now: that needs a restart",
                    hint="akosha-agent service restart",
                )
            await asyncio.to_thread(Home.of(new).prepare)
        except AkoshaError as error:
            self._refuse(error, current)
            return current
        for warning in loaded.warnings:
            _log.warning("settings", warning=warning)
        if not _changed_keys(current, new):
            _log.info("settings_unchanged", then="credentials and certificates are read again")
        return new

    def _refuse(self, error: AkoshaError, kept: Settings) -> None:
        """Say that the settings stay as they were, and why; the logs go on as those say."""
        logs.configure(kept.agent_log_level, kept.agent_log_format, logs.LogLocation.of(kept))
        _log.error("settings_refused", why=error.message, hint=error.hint, then="the old ones stay in force")
        self._supervisor.status(f"settings refused, the old ones stay in force: {logs.redacted(str(error))}")


def _changed_keys(old: Settings, new: Settings) -> set[str]:
    return {key for key in FIELDS if getattr(old, key) != getattr(new, key)}
