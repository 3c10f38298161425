"""Opens the ledger for the process that holds the state directory, and replaces a damaged ledger.

A new ledger is restored from the newest manifest in the bucket, so damage does not stop the agent. The damaged file is
kept next to the new one, and only the process that holds the state directory's lock moves it.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from agent.adapters.sqlite_ledger import SqliteLedger, damaged_ledgers, is_created, set_aside
from agent.application.status_warnings import clear_warning, set_warning
from agent.domain.errors import LedgerDamaged
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Codec, Ledger

REPLACED = "ledger_replaced"

_log = structlog.get_logger()


async def open_for_holder(path: Path, codec: Codec, clock: Clock, *, is_held: Callable[[], bool]) -> Ledger:
    """Open the ledger for writing. If it is damaged, move it aside and open a new one.

    `is_held` returns whether this process holds the state directory. If not, LedgerDamaged is raised. Raises
    StateError.
    """
    fresh = not await asyncio.to_thread(is_created, path)
    try:
        ledger = await SqliteLedger.open(path, codec, clock=clock)
    except LedgerDamaged as error:
        if not await asyncio.to_thread(is_held):
            raise
        await asyncio.to_thread(set_ledger_aside, path, clock, error)
        fresh, ledger = True, await SqliteLedger.open(path, codec, clock=clock)
    try:
        await _warn(ledger, await asyncio.to_thread(damaged_ledgers, path), clock, fresh=fresh)
    except BaseException:
        await ledger.aclose()
        raise
    return ledger


@contextmanager
def aside_if_damaged(path: Path, clock: Clock) -> Iterator[None]:
    """Move the ledger aside if the block raises LedgerDamaged, so that the next holder opens a new one.

    The caller holds the state directory, and the block closes the ledger.
    """
    try:
        yield
    except BaseException as error:
        if (damage := _damage(error)) is not None and path.exists():
            set_ledger_aside(path, clock, damage)
        raise


def _damage(error: BaseException) -> LedgerDamaged | None:
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := _damage(each))), None)
    return error if isinstance(error, LedgerDamaged) else None


def set_ledger_aside(path: Path, clock: Clock, error: LedgerDamaged) -> None:
    """Move a damaged ledger that no process has open aside, and log it. Raises StateError."""
    kept = set_aside(path, clock.now())
    _log.error(
        "ledger_set_aside",
        reason=error.message,
        kept_in=str(kept) if kept else None,
        next_step="a new ledger is restored from the newest manifest in the bucket",
    )


async def _warn(ledger: Ledger, kept: list[Path], clock: Clock, *, fresh: bool) -> None:
    """Set a warning when the ledger is replaced, and clear it when the damaged file was deleted."""
    if not kept:
        await clear_warning(ledger, REPLACED)
    elif fresh:
        message = "the ledger was damaged; a new one was restored from the bucket, without the earlier history"
        hint = f"the damaged ledger is {kept[-1]}: attach it to a bug report, or delete it"
        await set_warning(ledger, StatusWarning(code=REPLACED, message=message, hint=hint), clock)
