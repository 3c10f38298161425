"""Databases that neither the bucket nor this machine has any more."""

import json
from collections.abc import Collection, Mapping

import structlog

from agent.application.status_warnings import clear_warning, set_warning
from agent.domain.parsing import parse_json
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

DATABASE_LOST = "database_lost"
LOST_NOTE = "lost_databases"
LOST_HINT = "restore it from an upload that is complete: akosha-agent verify --all lists them"
LOST_REASON = "its objects in the bucket are damaged or missing, and its file is no longer on this machine"

_log = structlog.get_logger()


class LostDatabases:
    """Databases whose objects in the bucket are damaged or missing, and whose files are no longer on this machine.

    Later uploads omit them, because damaged objects are not copied. Manifests and results list them as incomplete, and
    a status warning stays until a file of that name is uploaded again. Kept in the ledger's notes; every method raises
    StateError.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger, self._clock = ledger, clock

    async def reasons(self) -> Mapping[str, str]:
        """Return the lost databases, each with the reason that manifests and results give."""
        return dict.fromkeys(sorted(await self._names()), LOST_REASON)

    async def add(self, databases: Collection[str]) -> None:
        """Record these as lost, and log them."""
        known = await self._names()
        if new := {*databases} - known:
            _log.error("databases_lost", names=sorted(new), hint=LOST_HINT)
            await self._keep(known | new)

    async def drop(self, databases: Collection[str]) -> None:
        """Remove these: an upload has them again."""
        known = await self._names()
        if known & {*databases}:
            await self._keep(known - {*databases})

    async def _names(self) -> set[str]:
        try:
            return {str(name) for name in parse_json((await self._ledger.notes()).get(LOST_NOTE) or "[]")}
        except (ValueError, TypeError):
            return set()

    async def _keep(self, names: set[str]) -> None:
        await self._ledger.note(LOST_NOTE, json.dumps(sorted(names)) if names else "")
        if names:
            message = f"later uploads do not include {', '.join(sorted(names))}: {LOST_REASON}"
            await set_warning(
                self._ledger, StatusWarning(code=DATABASE_LOST, message=message, hint=LOST_HINT), self._clock
            )
        else:
            await clear_warning(self._ledger, DATABASE_LOST)
