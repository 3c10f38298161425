"""The agent verifies its own uploads: the newest shallow, every so many hours, and one kept upload a week deep.

Damage is published as an event and kept for the status; of the newest upload, what is still on this machine is owed
again, so that the next upload has it and is whole. A bucket that cannot be reached says nothing about an upload: it is
tried again later.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self

import structlog

from agent.application.archive.verify import Verifier, VerifyResult
from agent.application.monitoring.status import VERIFIED, VerifyStatus
from agent.application.signal import Signal
from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.results import ResultRecorder
from agent.domain import naming
from agent.domain.delivery_state import Target
from agent.domain.errors import LedgerDamaged, NamingError, SnapshotError, StateError, StoreError
from agent.domain.events import UploadVerified
from agent.domain.identity import Identity
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger, SnapshotTaker

FIRST_SECONDS = 60.0
"""Time after the start until the first verification: what has waited is synced before."""

MOST_SECONDS = 900.0
"""Longest sleep: while the machine sleeps, the loop's clock is stopped."""

BUSY_SECONDS = 5.0
"""Pause before the next try while a sync runs."""

AGAIN_SECONDS = 3600.0
"""Pause after a deep verification that could not be made: no room, or a store that does not answer."""

MOST_NOTED = 5
LONGEST_NOTED = 200
LONGEST_NAMED = 300
"""How many problems the status names, and the longest text of one, and of all in a warning."""

NOTE = "deep_verified"
EVERY = timedelta(days=7)
DAMAGED = "upload_damaged"
LIMITED = "deep_verify_limited"

_DAMAGED_HINT = "restore another one; akosha-agent verify ID --deep shows the damage"
_LIMITED_HINT = "akosha_agent_deep_verify_mb limits the bytes; akosha-agent verify --deep has no limit"

OpenVerifier = Callable[[], AbstractAsyncContextManager[Verifier]]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSchedule:
    """Which kept upload is verified deep next: one a week, alternating between the newest and the longest waiting.

    ETags and digests show what changed after an upload; only a deep verification reads what is in it. A restore takes
    the newest upload, and later uploads are copied from it; the older ones must not be forgotten over it.

    `at` is the time of the last deep verification, `verified` that of each upload. `newest_had_turn`: the last one was
    of the newest upload of then. `damaged` says what is wrong with which uploads.
    """

    at: datetime | None = None
    verified: Mapping[str, datetime] = field(default_factory=dict)
    newest_had_turn: bool = False
    damaged: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_notes(cls, notes: Mapping[str, str]) -> Self:
        """Return what the ledger's notes say; an empty schedule where they say nothing that can be read."""
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
        """Return the seconds until the next verification; 0 where the clock was put back since the last one."""
        if self.at is None or self.at > now:
            return 0.0
        return max(0.0, (self.at + EVERY - now).total_seconds())

    def next(self, newest_first: Sequence[str]) -> str | None:
        """Return the upload to verify next, None where there is none."""
        if not newest_first:
            return None
        newest, *older = newest_first
        if not older or (newest not in self.verified and not self.newest_had_turn):
            return newest
        return min(older, key=self._waiting_since)

    def record(self, upload: str, newest_first: Sequence[str], at: datetime, why: str) -> Self:
        """Return the schedule after a verification; `why` says what is wrong with the upload, "" for nothing.

        Uploads that are gone are forgotten. Damage of an older one may have been copied into the newest by an earlier
        version: the newest is next, at once.
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


@dataclass(frozen=True, slots=True)
class VerifyReporter:
    """Publishes, notes and logs what a verification found."""

    identity: Identity
    ledger: Ledger
    recorder: ResultRecorder
    clock: Clock

    def event(self, found: VerifyResult) -> UploadVerified:
        return found.event(self.identity, self.clock)

    async def report(self, found: VerifyResult, event: UploadVerified, key: str, note: str) -> None:
        """Announce the event, keep the note under its key, and log. Raises StateError."""
        await self.ledger.announce(event)
        await self.ledger.note(key, note)
        self.recorder.flush_soon()
        log = _log.bind(upload_id=found.upload_id, system_id=self.identity.system_id)
        if not event.whole:
            log.error(
                "upload_damaged",
                problems=dict(event.problems),
                next_step="the next sync sends what is still here of the newest upload",
            )
        elif event.deep == found.deep:  # a deep one that was limited has a warning of its own
            log.info(
                "upload_verified_deep" if found.deep else "upload_verified",
                count=found.objects,
                duration_seconds=found.duration_seconds,
            )


@dataclass(slots=True)
class DeepVerifier:
    """Downloads, hashes and reads through one kept upload at a time, `most_bytes` at most; what is larger is named."""

    open_verifier: OpenVerifier
    reporter: VerifyReporter
    ledger: Ledger
    clock: Clock
    most_bytes: int

    _not_before: float = field(default=0.0, init=False)

    async def seconds_left(self) -> float:
        """Return the seconds until the next verification is due. Raises StateError."""
        schedule = DeepSchedule.from_notes(await self.ledger.notes())
        return max(schedule.seconds_left(self.clock.now()), self._not_before - self.clock.monotonic())

    async def verify_next(self) -> VerifyResult | None:
        """Verify the upload that is next. None where there is none, or it cannot be verified now.

        Raises StateError where the ledger cannot be used.
        """
        self._not_before = self.clock.monotonic() + AGAIN_SECONDS
        schedule = DeepSchedule.from_notes(await self.ledger.notes())
        upload: str | None = None
        try:
            async with self.open_verifier() as verifier:
                uploads = await verifier.uploads()
                upload = schedule.next(uploads)
                if upload is None:
                    return None
                found = await verifier.deep(upload, most_bytes=self.most_bytes)
                if found.gone:  # pruned meanwhile
                    return None
        except LedgerDamaged:
            raise
        except (StoreError, SnapshotError, StateError) as error:
            _log.info("upload_not_verified", upload_id=upload, reason=error.message, hint=error.hint)
            return None
        await self._keep(schedule, uploads, found)
        self._not_before = self.clock.monotonic()
        return found

    async def _keep(self, schedule: DeepSchedule, uploads: Sequence[str], found: VerifyResult) -> None:
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(found.problems.items()))[:LONGEST_NAMED]
        schedule = schedule.record(found.upload_id, uploads, self.clock.now(), why)
        await self.reporter.report(found, self.reporter.event(found), NOTE, schedule.note())
        if schedule.damaged:
            damage = "; ".join(f"{upload} ({why})" for upload, why in sorted(schedule.damaged.items()))
            warning = StatusWarning(code=DAMAGED, message=f"kept uploads are damaged: {damage}", hint=_DAMAGED_HINT)
            await set_warning(self.ledger, warning, self.clock)
        else:
            await clear_warning(self.ledger, DAMAGED)
        if found.left_out:
            message = f"{', '.join(found.left_out)} of {found.upload_id} were not verified deep: too many bytes"
            warning = StatusWarning(code=LIMITED, message=message, hint=_LIMITED_HINT)
            if await set_warning(self.ledger, warning, self.clock):
                _log.warning(
                    "deep_verify_limited", upload_id=found.upload_id, names=list(found.left_out), hint=_LIMITED_HINT
                )
        else:
            await clear_warning(self.ledger, LIMITED)


@dataclass(slots=True)
class VerifyLoop:
    """Verifies the newest upload `every` so long, and has `deep` verify others; None: no deep verification.

    `sync_lock` is held while a sync runs; `sync_again` is called where there is something to send once more.
    Every `rescan_seconds` it tries again what it could not verify.
    """

    open_verifier: OpenVerifier
    reporter: VerifyReporter
    target: Target
    ledger: Ledger
    clock: Clock
    taker: SnapshotTaker
    sync_lock: asyncio.Lock
    every: timedelta
    rescan_seconds: float
    sync_again: Callable[[], Awaitable[None]]
    signal: Signal
    """Set after each sync."""

    deep: DeepVerifier | None = None

    _unreached: str = field(default="", init=False)

    async def run(self) -> None:
        """Verify when it is time, until cancelled. Raises StateError."""
        await self.clock.sleep(FIRST_SECONDS)
        while True:
            wait = await self._seconds_left()
            if wait <= 0 and self.sync_lock.locked():
                wait = BUSY_SECONDS
            elif wait <= 0:
                wait = 0.0 if await self._verify_newest() else self.rescan_seconds
            if self.deep is not None:
                wait = min(wait, await self._verify_deep(self.deep))
            await self.signal.wait(max(1.0, min(wait, MOST_SECONDS)))

    async def _verify_deep(self, deep: DeepVerifier) -> float:
        """Verify one upload deep if it is time; return the seconds until the next."""
        if await deep.seconds_left() <= 0:
            if self.sync_lock.locked():
                return BUSY_SECONDS
            found = await deep.verify_next()
            if found is not None and not found.whole:
                await self._resend_damaged(found)
        return await deep.seconds_left()

    async def _seconds_left(self) -> float:
        """Return the seconds until the next verification. An upload after a damaged one is verified at once."""
        last = VerifyStatus.from_notes(await self.ledger.notes())
        if last is None:
            return 0.0
        now, upload = self.clock.now(), (await self.ledger.record(self.target)).newest_upload_id
        if not last.whole and upload != last.upload_id:
            return 0.0
        if last.at > now:
            return 0.0  # the clock was put back: that must not put the next one off for years
        return (last.at + self.every - now).total_seconds()

    async def _verify_newest(self) -> bool:
        """Verify the newest upload. False: there is none yet, or the bucket cannot be reached."""
        upload = (await self.ledger.record(self.target)).newest_upload_id
        if upload is None:
            return False
        try:
            async with self.open_verifier() as verifier:
                found = await verifier.shallow(upload)
        except StoreError as error:
            log = _log.debug if error.message == self._unreached else _log.info
            log("upload_not_verified", upload_id=upload, reason=error.message, hint=error.hint)
            self._unreached = error.message
            return False
        self._unreached = ""
        if self.sync_lock.locked() or (await self.ledger.record(self.target)).newest_upload_id != upload:
            return False  # another one is the newest, or about to be
        event = self.reporter.event(found)
        await self.reporter.report(found, event, VERIFIED, _noted(found, event.time))
        if not found.whole:
            await self._resend_damaged(found)
        return True

    async def _resend_damaged(self, found: VerifyResult) -> None:
        """Make the ledger owe what is damaged and still on this machine: the next sync makes a whole upload."""
        async with self.sync_lock:
            record = await self.ledger.record(self.target)
            if record.newest_upload_id != found.upload_id or record.intent is not None:
                return  # what is newer, or under way, is another upload: it is verified in its turn
            try:
                here = await self.taker.survey()
            except SnapshotError as error:
                _log.warning("data_directory_unreadable", error=str(error))
                return
            damaged = {*record.databases} if found.manifest is None else found.damaged
            if again := sorted(damaged & here.keys()):
                await self.ledger.forget(self.target, again)
        if again:
            await self.sync_again()


def _noted(found: VerifyResult, at: datetime) -> str:
    first = sorted(found.problems.items())[:MOST_NOTED]
    problems = {name[:LONGEST_NOTED]: why[:LONGEST_NOTED] for name, why in first}
    return VerifyStatus(upload_id=found.upload_id, at=at, problems=problems, whole=found.whole).note()
