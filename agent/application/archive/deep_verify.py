"""The agent's own deep verification: one kept upload a week is downloaded, hashed and read through.

Damage is published as an event and kept as a status warning; of the newest upload, what is still on this machine is
sent again by the next sync. The bytes of a look are limited; databases beyond that are named.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import structlog

from agent.application.archive.deep_schedule import NOTE, DeepSchedule
from agent.application.archive.verify import Found, Verifier
from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import LedgerDamaged, SnapshotError, StateError, StoreError
from agent.domain.identity import Identity
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

DAMAGED = "upload_damaged"
LIMITED = "deep_verify_limited"
AGAIN_SECONDS = 3600.0
"""How long it waits after a look that could not be made: no room, or a store that does not answer."""

LONGEST_NAMED = 300

_DAMAGED_HINT = "restore another one; akosha-agent verify ID --deep shows the damage"
_LIMITED_HINT = "akosha_agent_deep_verify_mb limits the bytes; akosha-agent verify --deep has no limit"

_log = structlog.get_logger()


@dataclass(slots=True)
class DeepVerifier:
    """`opening` opens what looks, `most_bytes` limits what one look downloads."""

    opening: Callable[[], AbstractAsyncContextManager[Verifier]]
    identity: Identity
    ledger: Ledger
    recorder: ResultRecorder
    clock: Clock
    most_bytes: int

    _not_before: float = field(default=0.0, init=False)

    async def seconds_left(self) -> float:
        """Return how long it is until the next look is due. Raises StateError."""
        turns = DeepSchedule.noted(await self.ledger.notes())
        return max(turns.seconds_left(self.clock.now()), self._not_before - self.clock.monotonic())

    async def look(self) -> Found | None:
        """Look at the upload whose turn it is. None where there is none, or it could not be looked at: not now.

        Raises StateError where the ledger cannot be used.
        """
        self._not_before = self.clock.monotonic() + AGAIN_SECONDS
        turns = DeepSchedule.noted(await self.ledger.notes())
        upload: str | None = None
        try:
            async with self.opening() as verification:
                uploads = await verification.uploads()
                upload = turns.next(uploads)
                if upload is None:
                    return None
                found = await verification.deep(upload, most_bytes=self.most_bytes)
                if found.gone:  # pruned while it was looked at
                    return None
        except LedgerDamaged:
            raise
        except (StoreError, SnapshotError, StateError) as error:
            _log.info("upload_not_looked_at", upload_id=upload, why=error.message, hint=error.hint)
            return None
        await self._keep(turns, uploads, found)
        self._not_before = self.clock.monotonic()
        return found

    async def _keep(self, turns: DeepSchedule, uploads: Sequence[str], found: Found) -> None:
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(found.problems.items()))[:LONGEST_NAMED]
        turns = turns.looked(found.upload_id, uploads, self.clock.now(), why)
        event = found.event(self.identity, self.clock)
        await self.ledger.announce(event)
        await self.ledger.note(NOTE, turns.note())
        self.recorder.flush_soon()
        await self._warn(turns, found)
        if event.whole and event.deep:
            _log.info(
                "upload_verified_deep",
                upload_id=found.upload_id,
                system_id=self.identity.system_id,
                count=found.objects,
                duration_seconds=found.duration_seconds,
            )
        elif not event.whole:
            _log.error(
                "upload_damaged",
                upload_id=found.upload_id,
                system_id=self.identity.system_id,
                problems=dict(event.problems),
                then="what is still here of the newest upload is sent again",
            )

    async def _warn(self, turns: DeepSchedule, found: Found) -> None:
        if turns.damaged:
            told = "; ".join(f"{upload} ({why})" for upload, why in sorted(turns.damaged.items()))
            warning = StatusWarning(code=DAMAGED, message=f"kept uploads are damaged: {told}", hint=_DAMAGED_HINT)
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
