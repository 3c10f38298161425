"""The check of a copy: the parent's side. A child reads all of it; whatever becomes of the child is a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from agent.adapters.duckdb import child_process
from agent.adapters.duckdb.child_process import STALL_SECONDS, Exchange, Unanswered, Unreadable
from agent.adapters.duckdb.frames import VERIFY
from agent.domain.memories import Json

MOST_NAMED = 3
"""Of so many tables and columns it is said by name that they cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the check found. `damaged`: the copy itself looks wrong, so another one may turn out better.

    `rows` per table; where it is not `verified` they are those of the tables that could be read, empty for none.
    """

    verified: bool
    reason: str = ""
    damaged: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)


async def verify(
    copy: Path,
    *,
    timeout_seconds: float,
    stall_seconds: float = STALL_SECONDS,
    warm: child_process.WarmChildren | None = None,
) -> Verdict:
    """Have a child read the copy through. Never raises for what the child does; cancelled, it kills the child.

    A child that has found it well waits in `warm`, if given, from then on.
    """
    try:
        child = await child_process.start(copy)
    except OSError as error:
        return Verdict(verified=False, reason=f"the check could not be started: {error.strerror}")
    kept = False
    try:
        verdict = _read(
            cast(dict[str, Json], await Exchange(child, timeout_seconds, stall_seconds).ask(VERIFY, "verdict"))
        )
        if (verdict.verified or verdict.rows) and warm is not None:
            await warm.keep(copy, child)
            kept = True
    except Unanswered as error:
        if error.crashed:
            return Verdict(verified=False, reason=f"the engine crashed on it ({error.what})", damaged=True)
        return Verdict(verified=False, reason=f"the check {error.what}")
    except Unreadable as error:
        return Verdict(verified=False, reason=f"the check failed: {error}")
    finally:
        if not kept:
            await child_process.end(child)
    return verdict


def _read(found: Mapping[str, Json]) -> Verdict:
    if "error" in found:
        reason = f"the engine cannot read it: {found['error']}"
        return Verdict(verified=False, reason=reason, damaged=bool(found["damaged"]))
    rows = cast(dict[str, int], found["rows"])
    if unread := cast(dict[str, str], found.get("unread", {})):
        return Verdict(verified=False, reason=f"the engine cannot read all of it: {listed(unread)}", rows=rows)
    return Verdict(verified=True, rows=rows)


def listed(unread: Mapping[str, str]) -> str:
    """Return what cannot be read, and why, in a line."""
    shown = [f"{name} ({why})" for name, why in sorted(unread.items())[:MOST_NAMED]]
    more = len(unread) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")
