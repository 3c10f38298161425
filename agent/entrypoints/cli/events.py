"""`events`: the ledger's history; or results as they are published, printed or passed to a shell command."""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Annotated, Any, NoReturn

import structlog
import typer

from agent.bootstrap.buses import check_nats_options, nats_options
from agent.bootstrap.home import Home
from agent.domain.errors import NamingError, SettingsError
from agent.domain.events import Event, SyncResult
from agent.domain.plain_text import printable, printable_json
from agent.entrypoints.cli.command import CommandGroup, LogMode, Options
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.control_client import POLL_SECONDS as HISTORY_POLL_SECONDS, follow_history, read_history
from agent.entrypoints.formatting import event_summary, local_time
from agent.ports import Clock, Ledger
from agent.settings import Settings

EVERY = "*"

FIRST_WAIT_SECONDS = 1.0
LAST_WAIT_SECONDS = 60.0
"""Delays before a failed command is run again: the first, doubling up to the last."""

END_SECONDS = 5.0
"""How long a command may take to exit after SIGTERM before it is killed."""

POLL_SECONDS = 0.05

app = CommandGroup()

_log = structlog.get_logger()


@app.command()
async def events(
    options: Options,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing events as they happen.")] = False,
    as_json: AsJson = False,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            metavar="SYSTEM",
            help="Follow the results of this system, or of all systems ('*', quoted), over NATS.",
            show_default=False,
        ),
    ] = None,
    durable: Annotated[
        str | None,
        typer.Option(
            "--durable",
            metavar="NAME",
            help="Follow results over NATS with a durable consumer of this name: results published while this command "
            "was not running are shown, too.",
            show_default=False,
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Run a shell command for each result, with the event (JSON) on stdin; repeat until it exits with 0.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Show sync requests and results, oldest first; or follow results from any machine.

    With --system, --durable or --exec: only results, until Ctrl-C.
    """
    listing = system is None and durable is None and command is None
    mode = LogMode.NOTHING if listing and not follow else LogMode.WARNINGS
    settings = options.load(mode).settings
    if listing:
        return await show_history(settings, follow=follow, as_json=as_json)
    return await consume_results(settings, system=system, durable=durable, command=command, as_json=as_json)


async def show_history(settings: Settings, *, follow: bool, as_json: bool) -> int:
    """Print events, oldest first; with `follow`, also new ones until cancelled. Returns 0."""
    home = Home.of(settings)
    ledger = await _open_ledger(home, wait=follow)
    if ledger is None:
        typer.echo("there are no events yet: no agent has run with this state directory", err=True)
        return 0
    try:
        found = follow_history(home, ledger, after=0) if follow else read_history(ledger, after=0)
        async with aclosing(found):
            async for entry in found:
                typer.echo(_json_line(home, entry.event) if as_json else line(entry.event))
    finally:
        await ledger.aclose()
    return 0


def line(event: Event, *, system: bool = False) -> str:
    """Return an event as one line, with its system ID if `system` is set.

    Control characters are escaped: the line may quote names and texts from a bucket or a bus.
    """
    kind = event.type.removeprefix("akosha.").rsplit(".", 1)[0]
    system_id = f"{event.system_id}  " if system else ""
    return printable(f"{local_time(event.time)}  {kind:<16}  {system_id}{event_summary(event)}".rstrip())


def _json_line(home: Home, event: Event) -> str:
    return printable_json(home.codec.encode(event).decode())


async def _open_ledger(home: Home, *, wait: bool) -> Ledger | None:
    """Open the ledger for reading. If it does not exist, wait for it, or return None if `wait` is false."""
    while not await home.has_ledger():
        if not wait:
            return None
        await home.clock.sleep(HISTORY_POLL_SECONDS)
    return await home.read_ledger()


async def consume_results(
    settings: Settings, *, system: str | None, durable: str | None, command: str | None, as_json: bool
) -> NoReturn:
    """Print each result, or run the command for it, until cancelled. A result is acked once that has succeeded.

    Raises SettingsError if the options need NATS and it is not configured, StateError if the state directory cannot be
    used.
    """
    home = Home.of(settings)
    own = ""
    if settings.over_nats:
        if system != EVERY:
            own = (await asyncio.to_thread(home.prepare)).system_id
        found = await _results_from_nats(settings, system=own if system is None else system, durable=durable)
    elif system is None and durable is None:
        found = _results_from_ledger(home)
    else:
        raise SettingsError(
            "--system and --durable need NATS, which is not configured",
            hint="set akosha_agent_nats_url (and akosha_agent_bus to auto); without NATS, events --follow and --exec "
            "follow this machine's own results",
        )
    if command is None:
        handle = _printing(home, system=system not in (None, own), as_json=as_json)
    else:
        handle = Execution(_checked_command(command), home.clock, home.codec.encode).handle
    async with aclosing(found):
        async for result in found:
            await handle(result)
    raise AssertionError("results never end")


async def _results_from_nats(
    settings: Settings, *, system: str, durable: str | None
) -> AsyncGenerator[SyncResult, None]:
    from agent.events_client import results  # noqa: PLC0415 - imports the NATS client

    options = nats_options(settings, "akosha-agent events")
    await asyncio.to_thread(check_nats_options, options)
    try:
        return results(options, system=system, durable=durable)
    except NamingError as error:
        raise SettingsError(error.message, hint=error.hint) from error


async def _results_from_ledger(home: Home) -> AsyncGenerator[SyncResult, None]:
    """Yield the results of this machine's agent, from now on."""
    from_start = not await home.has_ledger()
    ledger = await _open_ledger(home, wait=True)
    assert ledger is not None
    try:
        position = 0 if from_start else await ledger.last_position()
        async with aclosing(follow_history(home, ledger, after=position)) as entries:
            async for entry in entries:
                if isinstance(entry.event, SyncResult):
                    yield entry.event
    finally:
        await ledger.aclose()


def _printing(home: Home, *, system: bool, as_json: bool) -> Callable[[SyncResult], Coroutine[Any, Any, None]]:
    async def show(result: SyncResult) -> None:
        typer.echo(_json_line(home, result) if as_json else line(result, system=system))

    return show


def _checked_command(command: str) -> str:
    if not command.strip() or "\0" in command:
        raise SettingsError("--exec has no command", hint="for example: --exec './notify.sh'")
    return command


class Execution:
    """Runs a shell command in its own session for each result, with the event as written by `encode` on stdin."""

    def __init__(self, command: str, clock: Clock, encode: Callable[[SyncResult], bytes]) -> None:
        self._command, self._clock, self._encode = command, clock, encode

    async def handle(self, result: SyncResult) -> None:
        """Run the command until it exits with 0, without a limit. When cancelled, end the command."""
        wait = FIRST_WAIT_SECONDS
        while failure := await self._run(result):
            _log.warning("command_failed", **failure, id=result.id, system_id=result.system_id, delay_seconds=wait)
            await self._clock.sleep(wait)
            wait = min(wait * 2, LAST_WAIT_SECONDS)

    async def _run(self, result: SyncResult) -> Mapping[str, object]:
        """Run the command once; return the log keys of a failure, or an empty mapping."""
        starting = asyncio.create_task(self._start(result), name="command-start")
        try:
            process = await asyncio.shield(starting)
        except OSError as error:
            return {"error": str(error)}
        except asyncio.CancelledError:
            with suppress(OSError):
                await self._end(await starting)
            raise
        try:
            await process.communicate(self._encode(result) + b"\n")
        except BaseException:
            await self._end(process)
            raise
        return {"exit_code": process.returncode} if process.returncode else {}

    async def _start(self, result: SyncResult) -> Process:
        """Start the command. A caller that is cancelled meanwhile must await this: the shell may already run."""
        return await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", self._command, stdin=PIPE, env=_environment(result), start_new_session=True
        )

    async def _end(self, process: Process) -> None:
        """Send SIGTERM to the command's process group; after END_SECONDS, send SIGKILL."""
        group, deadline = process.pid, self._clock.monotonic() + END_SECONDS
        _signal_group(group, signal.SIGTERM)
        while _is_alive(group) and self._clock.monotonic() < deadline:
            await self._clock.sleep(POLL_SECONDS)
        _signal_group(group, signal.SIGKILL)
        await process.wait()


def _environment(result: SyncResult) -> dict[str, str]:
    """Return this process's environment plus the main fields of the result.

    Control characters are escaped: any program on the bus can send them, and the command may print or log the fields.
    """
    facts = {
        "AKOSHA_EVENT_SYSTEM_ID": result.system_id,
        "AKOSHA_EVENT_OUTCOME": result.type.split(".")[2],
        "AKOSHA_EVENT_UPLOAD_ID": result.upload_id or "",
        "AKOSHA_EVENT_ID": result.id,
    }
    return os.environ | {name: printable(text) for name, text in facts.items()}


def _signal_group(group: int, number: signal.Signals | int) -> bool:
    """Signal a process group; return False if it has no process left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM if only zombies are left
        return False
    return True


def _is_alive(group: int) -> bool:
    return _signal_group(group, 0)
