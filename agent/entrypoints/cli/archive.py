"""What the commands on the archive share: whose uploads, whether its disk is mounted, and how they record events."""

import asyncio

from agent.application.archive.catalog import Catalog
from agent.bootstrap.home import Home
from agent.domain.errors import AlreadyRunning, NamingError, SettingsError
from agent.domain.events import UploadsPruned, UploadVerified
from agent.domain.naming import check_system_id
from agent.settings import Settings


async def system_of(settings: Settings, system: str | None) -> str:
    """Return the system that `--system` names; None: this machine's. Raises SettingsError, StateError."""
    if system is None:
        return (await asyncio.to_thread(Home.of(settings).prepare)).system_id
    try:
        return check_system_id(system)
    except NamingError as error:
        raise SettingsError(f"--system: {error.message}", hint=error.hint) from error


async def check_mounted(settings: Settings, archive: Catalog, system: str | None) -> None:
    """Raise NotOwner where nothing is found in this machine's own directory because its disk is not mounted.

    `system` is what `--system` names: another system's uploads say nothing of a disk here. Raises StateError.
    """
    if system is None:
        home = Home.of(settings)
        async with home.ownership(await asyncio.to_thread(home.prepare), archive.store) as ownership:
            await ownership.check_mounted()


async def record_events(home: Home, *events: UploadVerified | UploadsPruned) -> None:
    """Record events of this system through the process that holds the ledger lock: this one, where none does.

    They go into the history and the outbox, from which an agent publishes them. Raises StateError.
    """
    try:
        with home.lock("announce", retry=False):
            ledger = await home.open_ledger()
            try:
                for event in events:
                    await ledger.announce(event)
            finally:
                await ledger.aclose()
    except AlreadyRunning:
        for event in events:
            await home.leave_note(event)
