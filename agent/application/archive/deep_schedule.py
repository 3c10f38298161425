"""Which upload is verified deep next, and which uploads a deep verification has found damaged."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from agent.application.status_warnings import clear_warning, set_warning
from agent.domain import naming
from agent.domain.errors import NamingError
from agent.domain.parsing import parse_json
from agent.domain.plain_text import problem_list
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

NOTE = "deep_verified"
EVERY = timedelta(days=7)
DAMAGED = "upload_damaged"

LONGEST_NAMED = 300
"""Maximum length of all problems of an upload in the warning."""

_DAMAGED_HINT = "restore another upload; akosha-agent verify ID --deep shows the damage"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSchedule:
    """Selects the next upload for a deep verification: one per week, the newest and the longest unverified in turn.

    ETags and digests show changes after an upload; only a deep verification reads the contents. A restore uses the
    newest upload, and later uploads copy objects from it, so it is verified often; older uploads get every second turn.

    `at` is the time of the last deep verification, `verified` the time for each upload. `newest_had_turn` is true if
    the last one verified the upload that was the newest then. `damaged` maps damaged uploads to their problems.
    """

    at: datetime | None = None
    verified: Mapping[str, datetime] = field(default_factory=dict)
    newest_had_turn: bool = False
    damaged: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_notes(cls, notes: Mapping[str, str]) -> Self:
        """Return the schedule in the ledger's notes; an empty schedule if it is missing or unreadable."""
        try:
            note = parse_json(notes[NOTE])
            return cls(
                at=datetime.fromisoformat(note["at"]) if note["at"] else None,
                verified={str(upload): datetime.fromisoformat(at) for upload, at in note["verified"].items()},
                newest_had_turn=bool(note["newest_had_turn"]),
                damaged={str(upload): str(problem) for upload, problem in note["damaged"].items()},
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            return cls()

    def note(self) -> str:
        """Return the schedule as a note for `from_notes`."""
        return json.dumps(
            {
                "at": self.at.isoformat() if self.at else None,
                "verified": {upload: at.isoformat() for upload, at in self.verified.items()},
                "newest_had_turn": self.newest_had_turn,
                "damaged": dict(self.damaged),
            }
        )

    def seconds_left(self, now: datetime) -> float:
        """Return the seconds until the next verification; 0 if the clock was set back since the last one."""
        if self.at is None or self.at > now:
            return 0.0
        return max(0.0, (self.at + EVERY - now).total_seconds())

    def next(self, newest_first: Sequence[str]) -> str | None:
        """Return the upload to verify next, None if there are no uploads."""
        if not newest_first:
            return None
        newest, *older = newest_first
        if not older or (newest not in self.verified and not self.newest_had_turn):
            return newest
        return min(older, key=self._unverified_since)

    def record(self, upload: str, newest_first: Sequence[str], at: datetime, problem: str) -> Self:
        """Return the schedule after a verification that found this problem ("": none).

        Deleted uploads are dropped. If an older upload is damaged, the newest is verified at once: an earlier version
        of the agent may have copied the damage into it.
        """
        existing = {*newest_first}
        is_newest = upload == newest_first[0]
        known = {each: time for each, time in {**self.verified, upload: at}.items() if each in existing}
        damaged = {each: reason for each, reason in self.damaged.items() if each in existing and each != upload}
        if problem:
            damaged[upload] = problem
        if problem and not is_newest:
            known.pop(newest_first[0], None)
            return replace(self, at=None, verified=known, newest_had_turn=False, damaged=damaged)
        return replace(self, at=at, verified=known, newest_had_turn=is_newest, damaged=damaged)

    def _unverified_since(self, upload: str) -> datetime:
        if upload in self.verified:
            return self.verified[upload]
        try:
            return naming.upload_time(upload)
        except NamingError:
            return datetime.min.replace(tzinfo=UTC)


async def forget_deleted(uploads: Iterable[str], ledger: Ledger, clock: Clock) -> None:
    """Remove uploads that do not exist any more from the list of damaged uploads. Raises StateError."""
    await record_damage(dict.fromkeys(uploads, ""), ledger, clock)


async def record_damage(found: Mapping[str, str], ledger: Ledger, clock: Clock) -> None:
    """Update the list of damaged uploads, and the warning: upload -> its problem, "" if it has none."""
    schedule = DeepSchedule.from_notes(await ledger.notes())
    damaged = {upload: problem for upload, problem in {**schedule.damaged, **found}.items() if problem}
    if damaged != schedule.damaged:
        schedule = replace(schedule, damaged=damaged)
        await ledger.note(NOTE, schedule.note())
        await update_damage_warning(schedule, ledger, clock)


async def update_damage_warning(schedule: DeepSchedule, ledger: Ledger, clock: Clock) -> None:
    """Set the warning that names the damaged uploads; clear it if there are none. Raises StateError."""
    if not schedule.damaged:
        await clear_warning(ledger, DAMAGED)
        return
    damage = "; ".join(f"{upload} ({problem})" for upload, problem in sorted(schedule.damaged.items()))
    warning = StatusWarning(code=DAMAGED, message=f"kept uploads are damaged: {damage}", hint=_DAMAGED_HINT)
    await set_warning(ledger, warning, clock)


def one_line(problems: Mapping[str, str]) -> str:
    """Return the problems of an upload as one line of limited length."""
    return problem_list(problems)[:LONGEST_NAMED]
