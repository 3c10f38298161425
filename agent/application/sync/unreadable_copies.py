"""Databases that DuckDB cannot read: their copies are uploaded unverified, and a status warning says so."""

import json
from collections.abc import Collection, Mapping

import structlog

from agent.application.status_warnings import clear_warning, set_warning
from agent.domain.delivery_state import Target, TargetRecord
from agent.domain.naming import upload_of
from agent.domain.parsing import parse_json
from agent.domain.plain_text import shorten
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger, Snapshot

COPY_UNREADABLE = "copy_unreadable"
NOTE = "unreadable_copies"
LONGEST_REASON = 200
"""Maximum length of each reason in the warning."""

_HINT = "akosha-agent restore ID --only NAME --to DIR gets a readable copy; uploads lists which copies were checked"

_log = structlog.get_logger()


class UnreadableCopies:
    """The databases of one target whose last copy DuckDB could not read, each with its last upload that was readable.

    A warning names them until a verified copy of each follows. Kept in the ledger's notes.
    """

    def __init__(self, target: Target, ledger: Ledger, clock: Clock) -> None:
        self._target, self._ledger, self._clock = target, ledger, clock

    async def update(self, copies: Collection[Snapshot], record: TargetRecord) -> None:
        """Record which of these copies are unreadable. `record` is that before their upload. Raises StateError."""
        known = await last_readable(self._ledger, self._target)
        found = dict(known)
        for copy in copies:
            if copy.unreadable:
                readable = known[copy.database] if copy.database in known else _readable_upload(record, copy.database)
                found[copy.database] = readable
            elif copy.verified:
                found.pop(copy.database, None)
        if found != known:
            note = {"target": self._target.id, "databases": found}
            await self._ledger.note(NOTE, json.dumps(note) if found else "")
        reasons = {copy.database: copy.unverified_reason for copy in copies if copy.unreadable}
        if not found:
            await clear_warning(self._ledger, COPY_UNREADABLE)
        elif reasons or found != known:
            message = "; ".join(_sentence(name, readable, reasons) for name, readable in sorted(found.items()))
            warning = StatusWarning(code=COPY_UNREADABLE, message=message, hint=_HINT)
            if await set_warning(self._ledger, warning, self._clock):
                _log.error("copy_unreadable", names=sorted(found), reason=message, hint=_HINT)


async def last_readable(ledger: Ledger, target: Target) -> Mapping[str, str]:
    """Return unreadable database -> its last upload with a readable copy, "" if that is unknown. Raises StateError."""
    try:
        note = parse_json((await ledger.notes())[NOTE])
        if note["target"] != target.id:
            return {}
        return {str(name): str(upload) for name, upload in note["databases"].items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _readable_upload(record: TargetRecord, database: str) -> str:
    known = record.databases.get(database)
    if known is None or not known.parts or not all(part.verified for part in known.parts):
        return ""
    return upload_of(known.parts[0].key)


def _sentence(database: str, readable: str, reasons: Mapping[str, str]) -> str:
    reason = f" ({shorten(reasons[database], LONGEST_REASON)})" if database in reasons else ""
    last = f"; its last readable copy is in {readable}" if readable else ""
    return f"{database} is unreadable{last}{reason}"
