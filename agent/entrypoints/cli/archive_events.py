"""What a command has to tell of the archive: into the history and the outbox, whoever has the ledger."""

from agent.bootstrap.home import Home
from agent.domain.errors import AlreadyRunning
from agent.domain.events import UploadsPruned, UploadVerified


async def announce(home: Home, *events: UploadVerified | UploadsPruned) -> None:
    """Write down events of this system here where nobody holds the state directory; else leave them for who does.

    The agent that runs tells them, or the next one that does. Raises StateError.
    """
    try:
        with home.lock("announce", patient=False):
            ledger = await home.open_ledger()
            try:
                for event in events:
                    await ledger.announce(event)
            finally:
                await ledger.aclose()
    except AlreadyRunning:
        for event in events:
            await home.leave_note(event)
