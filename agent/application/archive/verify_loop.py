"""The agent's own look at its newest upload, shallow, every so many hours, and deep at one upload a week.

A bucket that cannot be asked says nothing about the upload: it is asked again with the next pass. What is damaged, and
is still on this machine, is owed again: the next upload has it anew, and is whole.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from agent.application.archive.deep_verify import DeepVerifier
from agent.application.archive.verify import Found, Verifier
from agent.application.monitoring.status import VERIFIED, VerifyStatus
from agent.application.signal import Signal
from agent.application.sync.results import ResultRecorder
from agent.domain.delivery_state import Target
from agent.domain.errors import SnapshotError, StoreError
from agent.domain.identity import Identity
from agent.ports import Clock, Ledger, SnapshotTaker

FIRST_SECONDS = 60.0
"""How long after the start the first look is: what has waited is synced before."""

MOST_SECONDS = 900.0
"""What it sleeps at a time: while the machine slept, the clock's own time stood still."""

BUSY_SECONDS = 5.0
"""How long it waits where a sync runs."""

MOST_NOTED = 5
LONGEST_NOTED = 200
"""How many problems the status names, and how much of each."""

_log = structlog.get_logger()


@dataclass(slots=True)
class VerifyLoop:
    """Its loop. `opening` opens what looks; `flight` is held while a sync runs; `owed` is called where there is
    something to sync once more. `pass_seconds` apart it tries again what it could not look at.
    """

    opening: Callable[[], AbstractAsyncContextManager[Verifier]]
    target: Target
    identity: Identity
    ledger: Ledger
    recorder: ResultRecorder
    clock: Clock
    taker: SnapshotTaker
    sync_lock: asyncio.Lock
    every: timedelta
    pass_seconds: float
    owed: Callable[[], Awaitable[object]]
    signal: Signal
    """Rung after each sync."""

    deep: DeepVerifier | None = None
    """What looks deep, once a week; None: nobody does."""

    _unreached: str = field(default="", init=False)

    async def run(self) -> None:
        """Look when it is time, for ever."""
        await self.clock.sleep(FIRST_SECONDS)
        while True:
            wait = await self._seconds_left()
            if wait <= 0 and self.sync_lock.locked():
                wait = BUSY_SECONDS
            elif wait <= 0:
                wait = 0.0 if await self._look() else self.pass_seconds
            if self.deep is not None:
                wait = min(wait, await self._look_deep(self.deep))
            await self.signal.wait(max(1.0, min(wait, MOST_SECONDS)))

    async def _look_deep(self, deep: DeepVerifier) -> float:
        """Have one upload verified deep where it is time; return how long it is until the next."""
        if await deep.seconds_left() <= 0:
            if self.sync_lock.locked():
                return BUSY_SECONDS
            found = await deep.look()
            if found is not None and not found.whole:
                await self._mend(found)
        return await deep.seconds_left()

    async def _seconds_left(self) -> float:
        """Return how long it is until the next look. An upload that came after a damaged one is looked at soon."""
        last = VerifyStatus.noted(await self.ledger.notes())
        if last is None:
            return 0.0
        now, upload = self.clock.now(), (await self.ledger.record(self.target)).newest_upload_id
        if not last.whole and upload != last.upload_id:
            return 0.0
        if last.at > now:
            return 0.0  # the clock was put back: that must not keep it from looking for years
        return (last.at + self.every - now).total_seconds()

    async def _look(self) -> bool:
        """Look at the newest upload. False: that has to wait, for an upload or the bucket."""
        upload = (await self.ledger.record(self.target)).newest_upload_id
        if upload is None:
            return False
        try:
            async with self.opening() as verification:
                found = await verification.shallow(upload)
        except StoreError as error:
            (_log.debug if error.message == self._unreached else _log.info)(
                "upload_not_looked_at", upload_id=upload, why=error.message, hint=error.hint
            )
            self._unreached = error.message
            return False
        self._unreached = ""
        if self.sync_lock.locked() or (await self.ledger.record(self.target)).newest_upload_id != upload:
            return False  # another one is the newest, or about to be
        await self._tell(found)
        if not found.whole:
            await self._mend(found)
        return True

    async def _tell(self, found: Found) -> None:
        event = found.event(self.identity, self.clock)
        await self.ledger.announce(event)
        await self.ledger.note(VERIFIED, _noted(found, event.time))
        self.recorder.flush_soon()
        if found.whole:
            _log.info(
                "upload_verified",
                upload_id=found.upload_id,
                system_id=self.identity.system_id,
                count=found.objects,
                duration_seconds=found.duration_seconds,
            )
        else:
            _log.error(
                "upload_damaged",
                upload_id=found.upload_id,
                system_id=self.identity.system_id,
                problems=dict(event.problems),
                then="what is still here of it is uploaded again",
            )

    async def _mend(self, found: Found) -> None:
        """Have sent again what is damaged and still on this machine, by the next sync, which makes a whole upload."""
        async with self.sync_lock:
            record = await self.ledger.record(self.target)
            if record.newest_upload_id != found.upload_id or record.intent is not None:
                return  # what is newer, or under way, is another upload: it is looked at in its turn
            try:
                here = await self.taker.survey()
            except SnapshotError as error:
                _log.warning("databases_unseen", error=str(error))
                return
            damaged = {*record.databases} if found.manifest is None else found.damaged
            if again := sorted(damaged & here.keys()):
                await self.ledger.forget(self.target, again)
        if again:
            await self.owed()


def _noted(found: Found, at: datetime) -> str:
    first = sorted(found.problems.items())[:MOST_NOTED]
    problems = {name[:LONGEST_NOTED]: why[:LONGEST_NOTED] for name, why in first}
    return VerifyStatus(upload_id=found.upload_id, at=at, problems=problems, whole=found.whole).note()
