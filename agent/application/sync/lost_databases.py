"""Databases whose objects in the bucket are damaged or gone, and whose files are no longer on this machine.

Nothing can be sent in place of their objects, and damage is not copied: later uploads are made without them. Manifests
and results name them as incomplete, and a status warning stays until a file of that name is uploaded again.
"""

import json
from collections.abc import Collection, Mapping

import structlog

from agent.application.status_warnings import clear_warning, set_warning
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

CODE = "database_lost"
NOTE = "lost_databases"
HINT = "akosha-agent verify --all names uploads that are whole; restore it from one of them"
REASON = "its objects in the bucket are damaged or gone, and its file is no longer on this machine"

_log = structlog.get_logger()


class LostDatabases:
    """Kept in the ledger's notes. Every method raises StateError."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger, self._clock = ledger, clock

    async def reasons(self) -> Mapping[str, str]:
        """Return the lost databases, each with the reason for manifests and results."""
        return dict.fromkeys(sorted(await self._names()), REASON)

    async def add(self, databases: Collection[str]) -> None:
        """Keep these as lost, and log them."""
        known = await self._names()
        if new := {*databases} - known:
            _log.error("databases_lost", names=sorted(new), hint=HINT)
            await self._keep(known | new)

    async def drop(self, databases: Collection[str]) -> None:
        """Forget these: an upload has them again."""
        known = await self._names()
        if known & {*databases}:
            await self._keep(known - {*databases})

    async def _names(self) -> set[str]:
        try:
            return {str(name) for name in json.loads((await self._ledger.notes()).get(NOTE) or "[]")}
        except (ValueError, TypeError):
            return set()

    async def _keep(self, names: set[str]) -> None:
        await self._ledger.note(NOTE, json.dumps(sorted(names)) if names else "")
        if names:
            message = f"later uploads are made without {', '.join(sorted(names))}: {REASON}"
            await set_warning(self._ledger, StatusWarning(code=CODE, message=message, hint=HINT), self._clock)
        else:
            await clear_warning(self._ledger, CODE)
