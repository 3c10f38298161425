"""`events --system`, `--durable`, `--exec`: results as they come, over NATS or from the ledger, printed or acted on."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, NoReturn

import typer

from agent.bootstrap.buses import checked, nats_options
from agent.bootstrap.home import Home
from agent.domain.errors import NamingError, SettingsError
from agent.domain.events import SyncResult
from agent.entrypoints.cli.events import line, opened
from agent.entrypoints.cli.events_exec import Execution
from agent.entrypoints.control_client import follow
from agent.settings import Settings

EVERY = "*"

SeeTo = Callable[[SyncResult], Coroutine[Any, Any, None]]


async def consume(
    settings: Settings, *, system: str | None, durable: str | None, command: str | None, as_json: bool
) -> NoReturn:
    """Print each result, or run the command for it, until cancelled; one that was not seen through is not acked.

    Raises SettingsError for what makes no sense, StateError for a state directory that cannot be used.
    """
    home = Home.of(settings)
    own = ""
    if settings.over_nats:
        if system != EVERY:
            own = (await asyncio.to_thread(home.prepare)).system_id
        found = await _from_nats(settings, system=own if system is None else system, durable=durable)
    elif system is None and durable is None:
        found = _from_ledger(home)
    else:
        raise SettingsError(
            "--system and --durable follow results over NATS, and there is none",
            hint="set akosha_agent_nats_url (and akosha_agent_bus to auto); without it, events --follow and --exec "
            "follow this machine's own ledger",
        )
    if command is None:
        see_to = _printing(home, system=system not in (None, own), as_json=as_json)
    else:
        see_to = Execution(_told(command), home.clock, home.codec.encode).see_to
    async with aclosing(found):
        async for result in found:
            await see_to(result)
    raise AssertionError("results never end")


async def _from_nats(settings: Settings, *, system: str, durable: str | None) -> AsyncGenerator[SyncResult, None]:
    from agent.events_client import results  # noqa: PLC0415 - loaded where there is a NATS to talk to

    options = nats_options(settings, "akosha-agent events", own_durables=False)
    await asyncio.to_thread(checked, options)
    try:
        return results(options, system=system, durable=durable)
    except NamingError as error:
        raise SettingsError(error.message, hint=error.hint) from error


async def _from_ledger(home: Home) -> AsyncGenerator[SyncResult, None]:
    """Yield the results of this machine's agent, from now on."""
    from_the_first = not await home.has_ledger()
    ledger = await opened(home, wait=True)
    assert ledger is not None
    try:
        position = 0 if from_the_first else await ledger.last_position()
        async with aclosing(follow(home, ledger, after=position)) as entries:
            async for entry in entries:
                if isinstance(entry.event, SyncResult):
                    yield entry.event
    finally:
        await ledger.aclose()


def _printing(home: Home, *, system: bool, as_json: bool) -> SeeTo:
    async def show(result: SyncResult) -> None:
        typer.echo(home.codec.encode(result).decode() if as_json else line(result, system=system))

    return show


def _told(command: str) -> str:
    if not command.strip() or "\0" in command:
        raise SettingsError("--exec names no command", hint="--exec './notify.sh'")
    return command
