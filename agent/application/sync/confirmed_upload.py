"""Notes about the newest upload: when it was confirmed to be complete, and whether its manifest was sent.

So `sync` need not ask the store each time, and an unfinished upload is changed only while it cannot have a manifest.
"""

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

SENT_PREFIX = "sent_manifest "
"""The same, for `SentManifest`."""


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


class SentManifest:
    """The upload of a target whose manifest was sent, perhaps without an answer. Each method raises StateError.

    The manifest may still appear in the store, so the upload's objects must stay those that it names.
    """

    def __init__(self, target: Target, ledger: Ledger) -> None:
        self._key, self._ledger = SENT_PREFIX + target.id, ledger

    async def record(self, upload_id: str) -> None:
        """Record that the manifest of this upload is sent now."""
        await self._ledger.note(self._key, upload_id)

    async def is_of(self, upload_id: str) -> bool:
        """Return whether the manifest of this upload was sent."""
        return (await self._ledger.notes()).get(self._key) == upload_id


async def forget_confirmation(target: Target, ledger: Ledger) -> None:
    """Make the next sync check the newest upload, because it is damaged. Raises StateError."""
    await ledger.note(PREFIX + target.id, "")


def without_confirmations(notes: Mapping[str, str]) -> dict[str, str]:
    """Return the notes that are not those of this module."""
    return {key: text for key, text in notes.items() if not key.startswith((PREFIX, SENT_PREFIX))}
