"""Checks every hour whether the newest upload still exists: a deleted bucket is noticed although nothing changes.

It costs two requests, a verification one for each object. A permanent error is a status warning until the target can be
read again.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import structlog

from agent.application.archive.verify import Verifier
from agent.application.status_warnings import clear_warning, has_warning, set_warning
from agent.application.sync.confirmed_upload import forget_confirmation
from agent.domain.delivery_state import Target
from agent.domain.errors import NotOwner, StoreError
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

EVERY_SECONDS = 3600.0
AGAIN_SECONDS = 900.0
"""Pause after an error."""

CHECK_FAILED = "target_check_failed"

_log = structlog.get_logger()


@dataclass(slots=True)
class TargetCheck:
    """Schedules the checks, and keeps the warning. The first check is an hour after the start."""

    open_verifier: Callable[[], AbstractAsyncContextManager[Verifier]]
    target: Target
    ledger: Ledger
    clock: Clock

    _next: float = field(init=False)
    _last_error: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._next = self.clock.monotonic() + EVERY_SECONDS

    def seconds_left(self) -> float:
        """Return the seconds until the next check is due."""
        return self._next - self.clock.monotonic()

    async def after_sync(self) -> None:
        """Check again soon if the last check failed: a sync may have made an upload. Raises StateError."""
        if await has_warning(self.ledger, CHECK_FAILED):
            self._next = self.clock.monotonic()

    async def newest_exists(self) -> bool:
        """Return whether the newest upload exists; True if there is none, or if that is unknown. Raises StateError."""
        upload = (await self.ledger.record(self.target)).newest_upload_id
        self._next = self.clock.monotonic() + EVERY_SECONDS
        if upload is None:
            return True
        try:
            async with self.open_verifier() as verifier:
                exists = await verifier.exists(upload)
        except StoreError as error:
            await self.failed(upload, error)
            return True
        await self.succeeded()
        return exists

    async def failed(self, upload: str, error: StoreError) -> None:
        """Record that the target could not be read. Raises StateError."""
        self._next = self.clock.monotonic() + AGAIN_SECONDS
        log = _log.debug if error.message == self._last_error else _log.info
        log("upload_not_verified", upload_id=upload, reason=error.message, hint=error.hint)
        self._last_error = error.message
        if error.transient:
            return
        await forget_confirmation(self.target, self.ledger)  # the next sync has to ask
        if isinstance(error, NotOwner):  # the target can be read; this has a warning of its own
            await clear_warning(self.ledger, CHECK_FAILED)
            return
        message = f"the last check of the target failed: {error.message}"
        await set_warning(self.ledger, StatusWarning(code=CHECK_FAILED, message=message, hint=error.hint), self.clock)

    async def succeeded(self) -> None:
        """Record that the target could be read. Raises StateError."""
        self._next = self.clock.monotonic() + EVERY_SECONDS
        self._last_error = ""
        await clear_warning(self.ledger, CHECK_FAILED)
