"""Whose turn it is to be verified deep: one kept upload a week, the newest and the longest waiting in turn.

ETags and digests show what changed after an upload; only a deep verification reads what is in it. The newest upload is
the one that a restore takes, and later uploads are copied from it; the older ones must not be forgotten over it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from agent.domain import naming
from agent.domain.errors import NamingError

NOTE = "deep_verified"
EVERY = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSchedule:
    """What the ledger's note says. `at` is the time of the last look, `verified` of the last one of each upload.

    `newest_had_turn`: the last look was at the newest upload of then. `damaged` says what is wrong with which uploads.
    """

    at: datetime | None = None
    verified: Mapping[str, datetime] = field(default_factory=dict)
    newest_had_turn: bool = False
    damaged: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def noted(cls, notes: Mapping[str, str]) -> Self:
        """Return what the ledger's notes say; nothing was verified where they say nothing that can be read."""
        try:
            note = json.loads(notes[NOTE])
            return cls(
                at=datetime.fromisoformat(note["at"]) if note["at"] else None,
                verified={str(upload): datetime.fromisoformat(at) for upload, at in note["verified"].items()},
                newest_had_turn=bool(note["newest_had_turn"]),
                damaged={str(upload): str(why) for upload, why in note["damaged"].items()},
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            return cls()

    def note(self) -> str:
        """Return it as `noted` reads it."""
        return json.dumps(
            {
                "at": self.at.isoformat() if self.at else None,
                "verified": {upload: at.isoformat() for upload, at in self.verified.items()},
                "newest_had_turn": self.newest_had_turn,
                "damaged": dict(self.damaged),
            }
        )

    def seconds_left(self, now: datetime) -> float:
        """Return how long it is until the next look; 0 where the clock was put back since the last one."""
        if self.at is None or self.at > now:
            return 0.0
        return max(0.0, (self.at + EVERY - now).total_seconds())

    def next(self, newest_first: Sequence[str]) -> str | None:
        """Return the upload whose turn it is, None where there is none."""
        if not newest_first:
            return None
        newest, *older = newest_first
        if not older or (newest not in self.verified and not self.newest_had_turn):
            return newest
        return min(older, key=self._waiting_since)

    def looked(self, upload: str, newest_first: Sequence[str], at: datetime, why: str) -> Self:
        """Return the note after a look; `why` says what is wrong with the upload, "" for nothing.

        Uploads that are gone are forgotten. Damage of an older one may have been copied into the newest by an earlier
        version: that is the next, at once.
        """
        there = {*newest_first}
        is_newest = upload == newest_first[0]
        known = {each: time for each, time in {**self.verified, upload: at}.items() if each in there}
        damaged = {each: reason for each, reason in self.damaged.items() if each in there and each != upload}
        if why:
            damaged[upload] = why
        if why and not is_newest:
            known.pop(newest_first[0], None)
            return replace(self, at=None, verified=known, newest_had_turn=False, damaged=damaged)
        return replace(self, at=at, verified=known, newest_had_turn=is_newest, damaged=damaged)

    def _waiting_since(self, upload: str) -> datetime:
        if upload in self.verified:
            return self.verified[upload]
        try:
            return naming.upload_time(upload)
        except NamingError:
            return datetime.min.replace(tzinfo=UTC)
