"""Prunes after uploads, one round at a time, once the upload's result is recorded and published.

It never fails a sync. Where deleting is not permitted that is said once, with what does it instead; the ledger's notes
remember, and it is tried again a day later, in silence.
"""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from agent.application.archive.prune import Pruner, spared_by
from agent.application.signal import Signal
from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.results import ResultRecorder
from agent.domain.delivery_state import Target
from agent.domain.errors import AkoshaError, BusError, NotPermitted
from agent.domain.identity import Identity
from agent.domain.retention import s3_rule
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

NOTE = "prune"
HELD = "pruning_held"
HELD_HINT = "akosha-agent verify shows the damage; akosha-agent sync sends again what is still on this machine"
TRY_AGAIN_AFTER = timedelta(days=1)
PUBLISH_SECONDS = 10.0
"""Longest time that a round waits for the upload's result to be published."""

_log = structlog.get_logger()


class PruneLoop:
    """Rings with every upload that `recorder` writes down; `run` is the loop of an agent, `after_sync` for one sync."""

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
        """Do a round after each upload, until cancelled; several uploads during a round are one."""
        while True:
            await self._signal.wait(None)
            with suppress(BusError, TimeoutError):  # the outbox keeps it
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await self._recorder.flush()
            await self._round()

    async def after_sync(self, seconds: float) -> bool:
        """Do the round that an upload has asked for, if one has; what takes longer than `seconds` is left to the next.

        Returns whether there is an event to publish.
        """
        if await self._signal.wait(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await self._round()
        return False

    async def _round(self) -> bool:
        """Prune; return whether there is an event to publish."""
        try:
            return not await self._is_held_back() and await self._prune()
        except NotPermitted as error:
            await self._stay(error)
        except AkoshaError as error:
            self._log_failure(str(error))
        return False

    async def _prune(self) -> bool:
        spared = spared_by(await self._ledger.record(self._target))
        plan = await self._pruning.plan(spared)
        await self._log_suspended(plan.held)
        if plan.is_empty:
            return False
        pruned = await self._pruning.carry_out(plan, spared)
        if not pruned.is_nothing:
            await self._ledger.announce(self._pruning.event(pruned, self._identity.agent_id))
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
        return not pruned.is_nothing

    async def _log_suspended(self, why: str) -> None:
        """Keep a warning while nothing is deleted because the newest upload is damaged."""
        if not why:
            await clear_warning(self._ledger, HELD)
            return
        warning = StatusWarning(code=HELD, message=f"no old upload is deleted: {why}", hint=HELD_HINT)
        if await set_warning(self._ledger, warning, self._clock):
            _log.warning("pruning_held", system_id=self._target.system_id, reason=why, hint=HELD_HINT)

    async def _is_held_back(self) -> bool:
        since = refused_since((await self._ledger.notes()).get(NOTE, ""), self._pruning.location)
        return since is not None and abs(self._clock.now() - since) < TRY_AGAIN_AFTER

    async def _stay(self, error: NotPermitted) -> None:
        known = refused_since((await self._ledger.notes()).get(NOTE, ""), self._pruning.location) is not None
        await self._ledger.note(NOTE, refusal(self._pruning.location, self._clock.now()))
        (_log.debug if known else _log.warning)(
            "pruning_not_permitted",
            system_id=self._target.system_id,
            reason=error.message,
            hint=f"{error.hint}; or have the bucket do it, by the rule (docs/pruning.md); or akosha_agent_prune: false",
            rule=s3_rule(self._target.system_id, self._pruning.rules),
        )

    def _log_failure(self, text: str) -> None:
        """Once is enough, until it is another."""
        (_log.debug if text == self._logged else _log.warning)(
            "pruning_failed",
            system_id=self._target.system_id,
            error=text,
            next_step="tried again after the next upload",
        )
        self._logged = text


def refusal(location: str, at: datetime) -> str:
    """Return the note that deleting was refused there."""
    return f"{at.isoformat()} not permitted in {location}"


def refused_since(note: str, location: str) -> datetime | None:
    """Return when a note says that deleting was refused there; None where it does not."""
    time, _, where = note.partition(" not permitted in ")
    try:
        return datetime.fromisoformat(time) if where == location else None
    except ValueError:
        return None
