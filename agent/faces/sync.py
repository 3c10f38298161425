"""`sync`: one sync now, done here, or by the agent that runs."""

import asyncio
import json
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from agent.domain import naming
from agent.domain.errors import AlreadyRunning, SettingsError
from agent.domain.events import SyncAsked, SyncProgress, SyncResult
from agent.domain.identity import Identity
from agent.domain.route import MANUAL
from agent.faces.results import contract, sentence
from agent.ports import Message
from agent.settings import Settings
from agent.wiring import Home, build

LOOK_SECONDS = 0.1
WITHDRAW_SECONDS = 5.0

_log = structlog.get_logger()

Show = Callable[[SyncProgress], None]


async def sync_once(settings: Settings, *, method: str, enable_fallback: bool, as_json: bool) -> int:
    """Sync and print the result. Returns 0 (uploaded or unchanged) or 1 (failed)."""
    if not settings.sync_enabled:
        raise SettingsError("sync is switched off", hint="set akosha_sync_enabled to true")
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    ask = SyncAsked(
        id=str(uuid.uuid4()),
        time=home.clock.now(),
        system_id=identity.system_id,
        reason=MANUAL,
        method=method,
        enable_fallback=enable_fallback,
    )
    with _progress_bar() as show:
        result = await _here_or_there(home, identity, ask, show)
    if as_json:
        typer.echo(json.dumps(contract(result), indent=2))
    else:
        typer.echo(sentence(result), err=not result.success)
    return 0 if result.success else 1


async def _here_or_there(home: Home, identity: Identity, ask: SyncAsked, show: Show) -> SyncResult:
    """Do it here if nobody holds the state directory; else leave a note and wait, and take over if the holder goes."""
    note = ""
    try:
        while True:
            try:
                with home.lock("sync", patient=False):
                    if note and (result := await _outcome(home, ask)):
                        return result
                    if note:
                        await home.withdraw_note(note)
                    return await _here(home, identity, ask, show)
            except AlreadyRunning:
                if not note:
                    note = await _leave_note(home, ask)
            if result := await _outcome(home, ask):
                return result
            await home.clock.sleep(LOOK_SECONDS)
    except asyncio.CancelledError:
        if note:
            await _seen_through(home.withdraw_note(note), "withdraw-note")
        raise


async def _leave_note(home: Home, ask: SyncAsked) -> str:
    """Leave a note; none stays where the caller is cancelled while it is written."""
    writing = asyncio.create_task(home.leave_note(ask), name="leave-note")
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        await _seen_through(_withdrawn(home, writing), "withdraw-note")
        raise


async def _withdrawn(home: Home, writing: asyncio.Task[str]) -> None:
    await home.withdraw_note(await writing)


async def _seen_through(work: Coroutine[None, None, None], name: str) -> None:
    """Do it to its end, whoever cancels; a note that cannot be taken back is said, and harms nobody."""
    task = asyncio.create_task(work, name=name)
    await asyncio.wait({task}, timeout=WITHDRAW_SECONDS)
    if not task.done():
        task.cancel()
        _log.warning("note_stays", error=f"the spool did not answer within {WITHDRAW_SECONDS:g} s")
    elif error := task.exception():
        _log.warning("note_stays", error=str(error))


async def _here(home: Home, identity: Identity, ask: SyncAsked, show: Show) -> SyncResult:
    async def hear(message: Message) -> None:
        if isinstance(message.event, SyncProgress):
            show(message.event)
        await message.ack()

    async with await build(home, identity, single_sync=True) as agent:
        await agent.bus.subscribe(naming.progress_subject(identity.system_id), hear)
        return await agent.once(ask)


async def _outcome(home: Home, ask: SyncAsked) -> SyncResult | None:
    if not await home.has_ledger():
        return None  # the agent that holds the directory is just making it
    ledger = await home.read_ledger()
    try:
        return await ledger.outcome(ask.id)
    finally:
        await ledger.aclose()


@contextmanager
def _progress_bar() -> Iterator[Show]:
    """Show progress on a terminal; none in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (TextColumn("{task.description:<9}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}
        waiting = bar.add_task("sync", total=None)

        def show(event: SyncProgress) -> None:
            bar.update(waiting, visible=False)
            if event.phase not in tasks:
                tasks[event.phase] = bar.add_task(event.phase, total=event.total_bytes)
            bar.update(tasks[event.phase], completed=event.done_bytes, total=event.total_bytes)

        yield show
