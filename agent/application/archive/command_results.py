"""Records the results of the commands `verify` and `prune`: in the history and outbox, and in the status."""

from dataclasses import dataclass

from agent.application.archive.deep_schedule import forget_deleted
from agent.application.archive.prune_loop import update_held_warning
from agent.application.archive.verify_loop import record_verified
from agent.domain.delivery_state import Target
from agent.domain.events import UploadsPruned, UploadVerified
from agent.ports import Clock, Ledger


@dataclass(frozen=True, slots=True)
class CommandResults:
    """Used by the process that holds the state directory. `target` is the cloud target, None if there is none."""

    target: Target | None
    ledger: Ledger
    clock: Clock

    async def record(self, event: UploadVerified | UploadsPruned) -> None:
        """Record an event; ignore a duplicate. Raises StateError."""
        await self.ledger.announce(event)
        if self.target is None:
            return
        if isinstance(event, UploadVerified):
            await record_verified(event, self.target, self.ledger, self.clock)
        else:
            blocked = (event.error or "") if event.held else ""
            await update_held_warning(blocked, self.target, self.ledger, self.clock)
            await forget_deleted(event.upload_ids, self.ledger, self.clock)
