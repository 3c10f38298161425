"""Verify the agent's own uploads: the newest at an interval, shallow; one kept upload per week, deep.

Damage is published as an event and shown in the status. If databases of the newest upload are damaged and still on this
machine, the next sync uploads them again. If the bucket cannot be reached, the verification is retried later.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self

import structlog

from agent.application.archive.catalog import MISSING
from agent.application.archive.verify import Verifier, VerifyResult
from agent.application.monitoring.status import VERIFIED, VerifyStatus
from agent.application.signal import Signal
from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.confirmed_upload import forget_confirmation
from agent.application.sync.results import ResultRecorder
from agent.domain import naming
from agent.domain.delivery_state import Target
from agent.domain.errors import LedgerDamaged, NamingError, SnapshotError, StateError, StoreError
from agent.domain.events import UploadVerified
from agent.domain.identity import Identity
from agent.domain.parsing import parse_json
from agent.domain.plain_text import problem_list
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger, SnapshotTaker

FIRST_SECONDS = 60.0
"""Delay of the first verification after the start, so that pending syncs run before it."""

MOST_SECONDS = 900.0
"""Maximum time between two checks of the schedule: the loop's clock stops while the machine is suspended."""

BUSY_SECONDS = 5.0
"""Pause before the next attempt while a sync runs."""

AGAIN_SECONDS = 3600.0
"""Pause after a deep verification that failed because the disk is full or the store does not answer."""

MOST_NOTED = 5
LONGEST_NOTED = 200
LONGEST_NAMED = 300
"""Number of problems in the status, maximum length of each, and maximum length of all problems in a warning."""

NOTE = "deep_verified"
EVERY = timedelta(days=7)
DAMAGED = "upload_damaged"
LIMITED = "deep_verify_limited"

_DAMAGED_HINT = "restore another upload; akosha-agent verify ID --deep shows the damage"
_LIMITED_HINT = "akosha_agent_deep_verify_mb is the limit; akosha-agent verify --deep has no limit"

OpenVerifier = Callable[[], AbstractAsyncContextManager[Verifier]]

_log = structlog.get_logger()


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


@dataclass(frozen=True, slots=True)
class VerifyReporter:
    """Publishes, records and logs the result of a verification."""

    identity: Identity
    ledger: Ledger
    recorder: ResultRecorder
    clock: Clock

    def event(self, found: VerifyResult) -> UploadVerified:
        return found.event(self.identity, self.clock)

    async def report(self, found: VerifyResult, event: UploadVerified, key: str, note: str) -> None:
        """Publish the event, store the note under its key, and log. Raises StateError."""
        await self.ledger.announce(event)
        await self.ledger.note(key, note)
        self.recorder.flush_soon()
        log = _log.bind(upload_id=found.upload_id, system_id=self.identity.system_id)
        if not event.whole:
            log.error(
                "upload_damaged",
                problems=dict(event.problems),
                next_step="the next sync uploads again what is damaged in the newest upload and still on this machine",
            )
        elif event.deep == found.deep:  # a limited deep verification has its own warning
            log.info(
                "upload_verified_deep" if found.deep else "upload_verified",
                count=found.objects,
                duration_seconds=found.duration_seconds,
            )


@dataclass(slots=True)
class DeepVerifier:
    """Downloads, hashes and reads one kept upload at a time, `most_bytes` at most. A warning names what is left out."""

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
        """Verify the next upload. Return None if there is none, or it cannot be verified now.

        Raises StateError if the ledger cannot be used.
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
                if found.is_missing:  # pruned meanwhile
                    return None
        except LedgerDamaged:
            raise
        except (StoreError, SnapshotError, StateError) as error:
            _log.info("upload_not_verified", upload_id=upload, reason=error.message, hint=error.hint)
            return None
        await self._record(schedule, uploads, found)
        self._not_before = self.clock.monotonic()
        return found

    async def _record(self, schedule: DeepSchedule, uploads: Sequence[str], found: VerifyResult) -> None:
        problem = _one_line(found.problems)
        schedule = schedule.record(found.upload_id, uploads, self.clock.now(), problem)
        await self.reporter.report(found, self.reporter.event(found), NOTE, schedule.note())
        await _update_damage_warning(schedule, self.ledger, self.clock)
        if found.left_out:
            message = f"{', '.join(found.left_out)} of {found.upload_id} not verified deep: larger than the limit"
            warning = StatusWarning(code=LIMITED, message=message, hint=_LIMITED_HINT)
            if await set_warning(self.ledger, warning, self.clock):
                _log.warning(
                    "deep_verify_limited", upload_id=found.upload_id, names=list(found.left_out), hint=_LIMITED_HINT
                )
        else:
            await clear_warning(self.ledger, LIMITED)


@dataclass(slots=True)
class VerifyLoop:
    """Verifies the newest upload at the interval `every`; `deep` verifies one upload at a time, None disables it.

    `sync_lock` is held while a sync runs. `sync_again` is called if damaged databases have to be uploaded again.
    A verification that failed is retried after `rescan_seconds`.
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
        """Verify uploads when they are due, until cancelled. Raises StateError."""
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
        """Verify one upload deep if it is due; return the seconds until the next one is due."""
        if await deep.seconds_left() <= 0:
            if self.sync_lock.locked():
                return BUSY_SECONDS
            found = await deep.verify_next()
            if found is not None and not found.whole:
                await self._resend_damaged(found)
        return await deep.seconds_left()

    async def _seconds_left(self) -> float:
        """Return the seconds until the next verification: 0 for a new upload after a damaged one."""
        last = VerifyStatus.from_notes(await self.ledger.notes(), self.target)
        if last is None or (last.manual and not last.whole):
            return 0.0  # after `verify` has found damage, this loop has it uploaded again
        now, upload = self.clock.now(), (await self.ledger.record(self.target)).newest_upload_id
        if not last.whole and upload != last.upload_id:
            return 0.0
        if last.at > now:
            return 0.0  # the clock was set back: do not wait until it has caught up
        return (last.at + self.every - now).total_seconds()

    async def _verify_newest(self) -> bool:
        """Verify the newest upload. Return False if there is none, it changed, or the bucket is unreachable."""
        upload = (await self.ledger.record(self.target)).newest_upload_id
        if upload is None:
            return False
        try:
            async with self.open_verifier() as verifier:
                found = await verifier.shallow(upload)
                if damaged := DeepSchedule.from_notes(await self.ledger.notes()).damaged:
                    await forget_deleted({*damaged} - {*await verifier.uploads()}, self.ledger, self.clock)
        except StoreError as error:
            log = _log.debug if error.message == self._unreached else _log.info
            log("upload_not_verified", upload_id=upload, reason=error.message, hint=error.hint)
            self._unreached = error.message
            return False
        self._unreached = ""
        if self.sync_lock.locked() or (await self.ledger.record(self.target)).newest_upload_id != upload:
            return False  # there is a newer upload, or a sync is making one
        event = self.reporter.event(found)
        await self.reporter.report(found, event, VERIFIED, _status(found, event.time).note(self.target))
        if not found.whole:
            await self._resend_damaged(found)
        return True

    async def _resend_damaged(self, found: VerifyResult) -> None:
        """Mark the databases that are damaged and still on this machine as owed, so that the next sync sends them."""
        async with self.sync_lock:
            record = await self.ledger.record(self.target)
            await forget_confirmation(self.target, self.ledger)
            if record.newest_upload_id != found.upload_id or record.intent is not None:
                return  # a newer upload exists or is in progress: that one is verified later
            try:
                local = await self.taker.survey()
            except SnapshotError as error:
                _log.warning("data_directory_unreadable", error=str(error))
                return
            damaged = {*record.databases} if found.manifest is None else found.damaged
            if to_resend := sorted(damaged & local.keys()):
                await self.ledger.forget(self.target, to_resend)
        if to_resend:
            await self.sync_again()


async def record_verified(event: UploadVerified, target: Target, ledger: Ledger, clock: Clock) -> None:
    """Update the status from the event of the command `verify`. Raises StateError.

    Only the newest upload of the target is shown. A deep verification also updates the list of damaged uploads.
    """
    is_missing = event.problems.get(naming.MANIFEST_NAME) == MISSING
    if event.deep or is_missing:
        problem = "" if event.whole or is_missing else _one_line(event.problems)
        await _record_damage({event.upload_id: problem}, ledger, clock)
    notes = await ledger.notes()
    if not event.whole:
        await forget_confirmation(target, ledger)
    last = VerifyStatus.from_notes(notes, target)
    is_old = last is not None and event.time < last.at <= clock.now()
    if not is_old and event.upload_id == (await ledger.record(target)).newest_upload_id:
        await ledger.note(VERIFIED, replace(_status(event, event.time), manual=True).note(target))


async def forget_deleted(uploads: Iterable[str], ledger: Ledger, clock: Clock) -> None:
    """Remove uploads that do not exist any more from the list of damaged uploads. Raises StateError."""
    await _record_damage(dict.fromkeys(uploads, ""), ledger, clock)


async def _record_damage(found: Mapping[str, str], ledger: Ledger, clock: Clock) -> None:
    """Update the list of damaged uploads, and the warning: upload -> its problem, "" if it has none."""
    schedule = DeepSchedule.from_notes(await ledger.notes())
    damaged = {upload: problem for upload, problem in {**schedule.damaged, **found}.items() if problem}
    if damaged != schedule.damaged:
        schedule = replace(schedule, damaged=damaged)
        await ledger.note(NOTE, schedule.note())
        await _update_damage_warning(schedule, ledger, clock)


async def _update_damage_warning(schedule: DeepSchedule, ledger: Ledger, clock: Clock) -> None:
    if not schedule.damaged:
        await clear_warning(ledger, DAMAGED)
        return
    damage = "; ".join(f"{upload} ({problem})" for upload, problem in sorted(schedule.damaged.items()))
    warning = StatusWarning(code=DAMAGED, message=f"kept uploads are damaged: {damage}", hint=_DAMAGED_HINT)
    await set_warning(ledger, warning, clock)


def _one_line(problems: Mapping[str, str]) -> str:
    return problem_list(problems)[:LONGEST_NAMED]


def _status(found: VerifyResult | UploadVerified, at: datetime) -> VerifyStatus:
    first = sorted(found.problems.items())[:MOST_NOTED]
    problems = {name[:LONGEST_NOTED]: problem[:LONGEST_NOTED] for name, problem in first}
    return VerifyStatus(upload_id=found.upload_id, at=at, problems=problems, whole=found.whole)
