"""Prune after each upload, once the upload's result is recorded and published. One prune runs at a time.

A failed prune never fails a sync. If the store does not permit deleting, the agent logs one warning with the
alternatives and notes it in the ledger. It retries a day later and does not warn again.
"""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from agent.application.archive.deep_schedule import forget_deleted
from agent.application.archive.prune import Pruner, spared_now
from agent.application.signal import Signal
from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.confirmed_upload import forget_confirmation
from agent.application.sync.results import ResultRecorder
from agent.domain.delivery_state import Target
from agent.domain.errors import AkoshaError, BusError, NotPermitted
from agent.domain.identity import Identity
from agent.domain.retention import s3_rule
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

NOTE = "prune"
HELD = "pruning_held"
HELD_HINT = "akosha-agent verify shows the damage; akosha-agent sync uploads again what is still on this machine"
TRY_AGAIN_AFTER = timedelta(days=1)
PUBLISH_SECONDS = 10.0
"""Maximum time that a prune waits for the upload's result to be published."""

_log = structlog.get_logger()


class PruneLoop:
    """Prunes after every upload that `recorder` records: `run` in the agent, `after_sync` after a single sync."""

    def __init__(
        self,
        pruning: Pruner,
        *,
        target: Target,
        identity: Identity,
        ledger: Ledger,
        recorder: ResultRecorder,
        clock: Clock,
    ) -> None:
        self._pruning, self._target, self._identity = pruning, target, identity
        self._ledger, self._recorder, self._clock = ledger, recorder, clock
        self._signal = Signal(clock, "prune")
        self._logged = ""
        recorder.on_upload(self._signal.set)

    async def run(self) -> None:
        """Prune after each upload until cancelled. Uploads during a prune cause one more prune."""
        while True:
            await self._signal.wait(None)
            with suppress(BusError, TimeoutError):  # the result stays in the outbox
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._recorder.flush()
            await self._try_prune()

    async def after_sync(self, seconds: float) -> bool:
        """Prune if there was an upload, for `seconds` at most. Return whether there is an event to publish."""
        if await self._signal.wait(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await self._try_prune()
        return False

    async def _try_prune(self) -> bool:
        """Prune unless the store refused to delete within the last day. Return whether there is an event to publish."""
        try:
            return not await self._was_refused_recently() and await self._prune()
        except NotPermitted as error:
            await self._note_refusal(error)
        except AkoshaError as error:
            self._log_failure(str(error))
        return False

    async def _prune(self) -> bool:
        spared = await spared_now(self._ledger, self._target)
        plan = await self._pruning.plan(spared)
        await update_held_warning(plan.blocked, self._target, self._ledger, self._clock)
        if plan.is_empty:
            return False
        # An upload that began after the ledger was read may have objects in the listing: linked ones look old.
        spared = await spared_now(self._ledger, self._target)
        open_puts = {put.put_id for put in await self._ledger.open_puts(self._target)}
        pruned = await self._pruning.carry_out(plan, spared, open_puts=open_puts)
        if not pruned.is_empty:
            await self._ledger.announce(self._pruning.event(pruned, self._identity.agent_id))
            await forget_deleted(pruned.upload_ids, self._ledger, self._clock)
            self._recorder.flush_soon()
            _log.info(
                "uploads_pruned",
                system_id=self._target.system_id,
                count=len(pruned.upload_ids),
                leftovers=pruned.leftovers,
                bytes=pruned.bytes_freed,
                duration_seconds=pruned.duration_seconds,
            )
        if pruned.error is not None:
            raise pruned.error
        self._logged = ""
        await self._ledger.note(NOTE, "")
        return not pruned.is_empty

    async def _was_refused_recently(self) -> bool:
        since = refused_since((await self._ledger.notes()).get(NOTE, ""), self._pruning.location)
        return since is not None and abs(self._clock.now() - since) < TRY_AGAIN_AFTER

    async def _note_refusal(self, error: NotPermitted) -> None:
        known = refused_since((await self._ledger.notes()).get(NOTE, ""), self._pruning.location) is not None
        await self._ledger.note(NOTE, refusal(self._pruning.location, self._clock.now()))
        (_log.debug if known else _log.warning)(
            "pruning_not_permitted",
            system_id=self._target.system_id,
            reason=error.message,
            hint=f"{error.hint}; or use a lifecycle rule (docs/guides/pruning.md); or set akosha_agent_prune: false",
            rule=s3_rule(self._target.system_id, self._pruning.rules),
        )

    def _log_failure(self, text: str) -> None:
        """Log a warning, or at debug level if it repeats the last one."""
        (_log.debug if text == self._logged else _log.warning)(
            "pruning_failed",
            system_id=self._target.system_id,
            error=text,
            next_step="pruning is retried after the next upload",
        )
        self._logged = text


async def update_held_warning(blocked: str, target: Target, ledger: Ledger, clock: Clock) -> None:
    """Set the warning that a damaged newest upload blocks deleting; clear it if `blocked` is empty."""
    if not blocked:
        await clear_warning(ledger, HELD)
        return
    await forget_confirmation(target, ledger)
    warning = StatusWarning(code=HELD, message=f"no old upload is deleted: {blocked}", hint=HELD_HINT)
    if await set_warning(ledger, warning, clock):
        _log.warning("pruning_held", system_id=target.system_id, reason=blocked, hint=HELD_HINT)


def refusal(location: str, at: datetime) -> str:
    """Return the ledger note that a store refused to delete."""
    return f"{at.isoformat()} not permitted in {location}"


def refused_since(note: str, location: str) -> datetime | None:
    """Return the time of a refusal at this location from a ledger note, or None."""
    time, _, where = note.partition(" not permitted in ")
    try:
        return datetime.fromisoformat(time) if where == location else None
    except ValueError:
        return None
