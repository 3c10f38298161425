"""Keeps lasting conditions in the ledger's notes, one a code, for `status`, `doctor`, the control API and MCP."""

from collections.abc import Mapping
from dataclasses import replace

from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

PREFIX = "warning."


async def set_warning(ledger: Ledger, warning: StatusWarning, clock: Clock) -> bool:
    """Keep a warning until `clear_warning`; return whether its code is new, which is when to log it.

    `since` of a code that is known stays as it is. Nothing is written where nothing changes. Raises StateError.
    """
    known = _decoded(await ledger.notes(), warning.code)
    kept = replace(warning, since=known.since if known else clock.now())
    if kept != known:
        await ledger.note(PREFIX + warning.code, kept.encode())
    return known is None


async def clear_warning(ledger: Ledger, code: str) -> bool:
    """Drop the warning; return whether there was one. Raises StateError."""
    if _decoded(await ledger.notes(), code) is None:
        return False
    await ledger.note(PREFIX + code, "")
    return True


def warnings_in(notes: Mapping[str, str]) -> tuple[StatusWarning, ...]:
    """Return the warnings that a ledger's notes hold, by code."""
    codes = sorted(key.removeprefix(PREFIX) for key in notes if key.startswith(PREFIX))
    found = (_decoded(notes, code) for code in codes)
    return tuple(warning for warning in found if warning is not None)


def without_warnings(notes: Mapping[str, str]) -> dict[str, str]:
    """Return the other notes."""
    return {key: text for key, text in notes.items() if not key.startswith(PREFIX)}


def _decoded(notes: Mapping[str, str], code: str) -> StatusWarning | None:
    text = notes.get(PREFIX + code)
    return StatusWarning.decode(code, text) if text else None


def notes_waiting(count: int) -> tuple[StatusWarning, ...]:
    """Return the warning that notes wait in the spool for an agent, where `count` of them do and none runs."""
    if not count:
        return ()
    what = "note of an ended session waits" if count == 1 else "notes of ended sessions wait"
    return (
        StatusWarning(
            code="notes_waiting",
            message=f"{count} {what} in the spool, and no agent runs",
            hint="akosha-agent sync takes up notes; akosha-agent service install, or akosha-agent run, starts an agent",
        ),
    )
