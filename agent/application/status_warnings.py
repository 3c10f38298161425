"""Status warnings, kept in the ledger's notes, one per code. `status`, `doctor`, the control API and MCP show them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.errors import WebhookError
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger

if TYPE_CHECKING:  # few have a webhook
    from agent.domain.webhooks import Webhook

PREFIX = "warning."

WEBHOOK_FAILING = "webhook_failing"
"""Code of the warning that events do not arrive at a webhook."""

PORT_UNAVAILABLE = "control_port_unavailable"
"""Code of the warning that the port of the settings is not open."""


async def set_warning(ledger: Ledger, warning: StatusWarning, clock: Clock) -> bool:
    """Store a warning until `clear_warning`. Return whether its code is new; log the warning only then.

    The `since` of a stored code stays unchanged. Writes nothing if nothing changes. Raises StateError.
    """
    known = _decoded(await ledger.notes(), warning.code)
    kept = replace(warning, since=known.since if known else clock.now())
    if kept != known:
        await ledger.note(PREFIX + warning.code, kept.encode())
    return known is None


async def clear_warning(ledger: Ledger, code: str) -> bool:
    """Remove the warning. Return whether it was set. Raises StateError."""
    if not await has_warning(ledger, code):
        return False
    await ledger.note(PREFIX + code, "")
    return True


async def has_warning(ledger: Ledger, code: str) -> bool:
    """Return whether a warning is set. Raises StateError."""
    return _decoded(await ledger.notes(), code) is not None


def warnings_in(notes: Mapping[str, str]) -> tuple[StatusWarning, ...]:
    """Return the warnings in a ledger's notes, sorted by code."""
    codes = sorted(key.removeprefix(PREFIX) for key in notes if key.startswith(PREFIX))
    found = (_decoded(notes, code) for code in codes)
    return tuple(warning for warning in found if warning is not None)


def without_warnings(notes: Mapping[str, str]) -> dict[str, str]:
    """Return the notes that are not warnings."""
    return {key: text for key, text in notes.items() if not key.startswith(PREFIX)}


def _decoded(notes: Mapping[str, str], code: str) -> StatusWarning | None:
    text = notes.get(PREFIX + code)
    return StatusWarning.decode(code, text) if text else None


def webhook_warning(failing: "Mapping[Webhook, WebhookError]") -> StatusWarning:
    """Return the warning about webhooks that do not accept events. A hint that not all share names its webhooks."""
    hints: dict[str, list[str]] = {}
    for webhook, error in failing.items():
        hints.setdefault(error.hint, []).append(f"webhook {webhook.number}")
    return StatusWarning(
        code=WEBHOOK_FAILING,
        message=f"events do not arrive: {'; '.join(f'{one}: {error.message}' for one, error in failing.items())}",
        hint="; ".join(hints if len(hints) == 1 else (f"{', '.join(who)}: {hint}" for hint, who in hints.items())),
    )


def port_warning(port: int, error: str, hint: str) -> StatusWarning:
    """Return the warning that the port of the settings is not open."""
    return StatusWarning(code=PORT_UNAVAILABLE, message=f"port {port} for HTTP is not open: {error}", hint=hint)


def notes_waiting(count: int) -> tuple[StatusWarning, ...]:
    """Return a warning if `count` notes wait in the spool and no agent runs."""
    if not count:
        return ()
    what = "note of an ended session waits" if count == 1 else "notes of ended sessions wait"
    return (
        StatusWarning(
            code="notes_waiting",
            message=f"{count} {what} in the spool, and no agent is running",
            hint="run akosha-agent sync once, or start an agent: akosha-agent service install, or akosha-agent run",
        ),
    )
