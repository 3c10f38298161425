"""Verify the agent's own uploads: the newest at an interval, shallow; one kept upload per week, deep.

In between, `TargetCheck` checks that the newest upload exists. Damage is published as an event and shown in the status.
If databases of the newest upload are damaged and still on this machine, the next sync uploads them again. If the bucket
cannot be reached, the verification is retried later.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from agent.application.archive.catalog import MISSING, object_name
from agent.application.archive.deep_schedule import (
    NOTE,
    DeepSchedule,
    forget_deleted,
    one_line,
    record_damage,
    update_damage_warning,
)
from agent.application.archive.target_check import TargetCheck
from agent.application.archive.verify import Verifier, VerifyResult
from agent.application.monitoring.status import VERIFIED, VerifyStatus
from agent.application.signal import Signal
from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.confirmed_upload import forget_confirmation
from agent.application.sync.results import ResultRecorder
from agent.domain import naming
from agent.domain.databases import database_of
from agent.domain.delivery_state import Target, TargetRecord
from agent.domain.errors import LedgerDamaged, NoSuchObject, SnapshotError, StateError, StoreError
from agent.domain.events import UploadVerified
from agent.domain.identity import Identity
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
"""Number of problems in the status, and maximum length of each."""

LIMITED = "deep_verify_limited"

REQUESTED = "verification_requested"
"""Key of the note that a verification was requested, with the time. Its result removes it."""

VERIFICATION_WAITS = "verification_waits"
"""Code of the warning that a requested verification could not read the target. It ends with the next verification."""

_LIMITED_HINT = "akosha_agent_deep_verify_mb is the limit; akosha-agent verify --deep has no limit"

OpenVerifier = Callable[[], AbstractAsyncContextManager[Verifier]]

_log = structlog.get_logger()


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
        problem = one_line(found.problems)
        schedule = schedule.record(found.upload_id, uploads, self.clock.now(), problem)
        await self.reporter.report(found, self.reporter.event(found), NOTE, schedule.note())
        await update_damage_warning(schedule, self.ledger, self.clock)
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

    target_check: TargetCheck
    deep: DeepVerifier | None = None

    _started: Signal = field(init=False)

    def __post_init__(self) -> None:
        self._started = Signal(self.clock, "verify-first")

    async def request(self) -> None:
        """Verify the newest upload now, or as soon as no sync or deep verification runs and the bucket can be reached.

        The request outlives the agent. A status warning says why it waits for the bucket. Raises NoSuchObject if there
        is no upload, StateError.
        """
        if (await self.ledger.record(self.target)).newest_upload_id is None:
            raise NoSuchObject("there is no upload yet", hint="akosha-agent sync")
        await self.ledger.note(REQUESTED, self.clock.now().isoformat())
        self._started.set()
        self.signal.set()

    async def run(self) -> None:
        """Verify uploads when they are due or requested, until cancelled. Raises StateError."""
        await self._started.wait(FIRST_SECONDS)
        while True:
            wait = await self._verify_if_due()
            if self.deep is not None:
                wait = min(wait, await self._verify_deep(self.deep))
            if await self.signal.wait(max(1.0, min(wait, MOST_SECONDS))):
                await self.target_check.after_sync()

    async def _verify_if_due(self) -> float:
        """Verify the newest upload, or check only that it exists, if that is due; return the seconds until the next."""
        wait = await self._seconds_left()
        if wait > 0 and self.target_check.seconds_left() <= 0 and not self.sync_lock.locked():
            wait = wait if await self.target_check.newest_exists() else 0.0  # a missing upload is reported as damage
        if wait <= 0 and self.sync_lock.locked():
            return BUSY_SECONDS
        if wait <= 0:
            return 0.0 if await self._verify_newest() else self.rescan_seconds
        return min(wait, max(self.target_check.seconds_left(), BUSY_SECONDS))

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
        """Return the seconds until the next verification: 0 if requested, or for a new upload after a damaged one."""
        notes = await self.ledger.notes()
        if notes.get(REQUESTED):
            return 0.0
        last = VerifyStatus.from_notes(notes, self.target)
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
        record = await self.ledger.record(self.target)
        upload = record.newest_upload_id
        if upload is None:
            return False
        try:
            async with self.open_verifier() as verifier:
                found = await verifier.shallow(upload)
                if damaged := DeepSchedule.from_notes(await self.ledger.notes()).damaged:
                    await forget_deleted({*damaged} - {*await verifier.uploads()}, self.ledger, self.clock)
        except StoreError as error:
            await self.target_check.failed(upload, error)
            if (await self.ledger.notes()).get(REQUESTED):
                waits = f"the requested verification of {upload} waits"
                warning = (
                    StatusWarning(code=VERIFICATION_WAITS, message=f"{waits}: {error.message}", hint=error.hint)
                    if error.transient  # otherwise the target has a warning with the reason
                    else StatusWarning(code=VERIFICATION_WAITS, message=f"{waits} until the target can be read")
                )
                await set_warning(self.ledger, warning, self.clock)
            return False
        await self.target_check.succeeded()
        if self.sync_lock.locked() or (await self.ledger.record(self.target)).newest_upload_id != upload:
            return False  # there is a newer upload, or a sync is making one
        event = self.reporter.event(found)
        databases = {part.database for part in found.manifest.parts} if found.manifest else set[str]()
        status = _status(found, event.time, databases, found.damaged if found.manifest else {*record.databases})
        await self.reporter.report(found, event, VERIFIED, status.note(self.target))
        await clear_warning(self.ledger, VERIFICATION_WAITS)
        await self.ledger.note(REQUESTED, "")
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

    Only the newest upload of the target is shown. If it is missing, all databases are owed. A deep verification also
    updates the list of damaged uploads.
    """
    is_missing = event.problems.get(naming.MANIFEST_NAME) == MISSING
    if event.deep or is_missing:
        problem = "" if event.whole or is_missing else one_line(event.problems)
        await record_damage({event.upload_id: problem}, ledger, clock)
    notes = await ledger.notes()
    if not event.whole:
        await forget_confirmation(target, ledger)
    last = VerifyStatus.from_notes(notes, target)
    is_old = last is not None and event.time < last.at <= clock.now()
    record = await ledger.record(target)
    if not is_old and event.upload_id == record.newest_upload_id:
        if is_missing and record.intent is None:
            await ledger.forget(target, list(record.databases))
        databases = [name for name, known in record.databases.items() if known.was_delivered]
        status = _status(event, event.time, databases, _damaged(event.problems, record))
        await ledger.note(VERIFIED, replace(status, manual=True).note(target))


def _damaged(problems: Collection[str], record: TargetRecord) -> set[str]:
    """Return the databases that objects of the newest upload belong to: all of them for the manifest or memories.json,
    and if there are more problems than an event names.
    """
    owners = {
        object_name(stored.key): name
        for name, known in record.databases.items()
        for part in known.parts
        for stored in part.objects
    }
    found = {owners.get(name) or database_of(name) for name in problems}
    return {*record.databases} if None in found else {name for name in found if name}


def _status(
    found: VerifyResult | UploadVerified, at: datetime, databases: Collection[str], damaged: Collection[str]
) -> VerifyStatus:
    first = sorted(found.problems.items())[:MOST_NOTED]
    problems = {name[:LONGEST_NOTED]: problem[:LONGEST_NOTED] for name, problem in first}
    return VerifyStatus(
        upload_id=found.upload_id,
        at=at,
        problems=problems,
        whole=found.whole,
        databases=tuple(sorted(databases)),
        damaged=tuple(sorted(damaged)),
    )
