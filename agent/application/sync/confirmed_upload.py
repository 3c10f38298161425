"""Remembers when the newest upload was last confirmed to be complete: `sync` need not ask the store each time."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta

from agent.domain.delivery_state import Target, TargetRecord
from agent.domain.parsing import parse_json
from agent.ports import Clock, Ledger

CONFIRMED_FOR = timedelta(hours=1)
"""For this long after an upload, or a check of the newest one, a person's sync without a change makes no request."""

PREFIX = "confirmed_upload "
"""Prefix of the notes in the ledger, one per target."""


class ConfirmedUpload:
    """The upload of a target that this ledger has confirmed: made, or found complete. Each method raises StateError."""

    def __init__(self, target: Target, ledger: Ledger, clock: Clock) -> None:
        self._target, self._ledger, self._clock = target, ledger, clock

    async def record(self, upload_id: str) -> None:
        """Record that this upload is complete now."""
        note = json.dumps({"upload_id": upload_id, "at": self._clock.now().isoformat()})
        await self._ledger.note(PREFIX + self._target.id, note)

    async def is_recent(self, record: TargetRecord) -> bool:
        """Return whether the newest upload was confirmed within CONFIRMED_FOR, and none is unfinished."""
        if record.intent is not None or record.newest_upload_id is None:
            return False
        try:
            note = parse_json((await self._ledger.notes())[PREFIX + self._target.id])
            age = self._clock.now() - datetime.fromisoformat(note["at"])
            confirmed = note["upload_id"]
        except (KeyError, ValueError, TypeError):
            return False
        return bool(confirmed == record.newest_upload_id) and timedelta(0) <= age < CONFIRMED_FOR


async def forget_confirmation(target: Target, ledger: Ledger) -> None:
    """Make the next sync check the newest upload, because it is damaged. Raises StateError."""
    await ledger.note(PREFIX + target.id, "")


def without_confirmations(notes: Mapping[str, str]) -> dict[str, str]:
    """Return the notes that are not confirmations."""
    return {key: text for key, text in notes.items() if not key.startswith(PREFIX)}
