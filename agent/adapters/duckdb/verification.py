"""Verify a copy: the parent's side. A child reads all of it; a failure of the child is a verdict, too."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.adapters.child_process import STALL_SECONDS, CommandFailed, Exchange, NoAnswer, checked, end
from agent.adapters.duckdb import child_process
from agent.adapters.duckdb.child_process import counts
from agent.adapters.duckdb.child_protocol import REPLAY, VERIFY
from agent.domain.memories import Json

MOST_NAMED = 3
"""Maximum number of unreadable tables and columns that a verdict names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a verification.

    `damaged`: the copy itself is damaged; another copy may be intact. `inconclusive`: the child failed, not the copy,
    so a later verification may succeed; `interrupted`: at once, because another process killed the child.
    `unreadable`: DuckDB cannot read the copy, or not all of it, and its format is not the reason. `rows` is the number
    of rows per table; if the copy is not `verified`, of the tables that could be read.
    """

    verified: bool
    reason: str = ""
    damaged: bool = False
    inconclusive: bool = False
    interrupted: bool = False
    unreadable: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)


async def verify(
    copy: Path,
    *,
    whole: bool = True,
    timeout_seconds: float,
    stall_seconds: float = STALL_SECONDS,
    warm: child_process.WarmChild | None = None,
) -> Verdict:
    """Read all of the copy in a child process. Does not raise if the child fails. If cancelled, kills the child.

    Without `whole`, DuckDB opens the copy, replays its WAL and counts the rows: the main file has been read before.

    The child is that of `warm`, if given, and is kept there if rows could be read.
    """
    try:
        child = await (warm.take(copy) if warm else child_process.start(copy))
    except OSError as error:
        reason = f"the verification could not be started: {error.strerror}"
        return Verdict(verified=False, reason=reason, inconclusive=True)
    kept = False
    try:
        verdict = await Exchange(child, timeout_seconds, stall_seconds).ask(
            VERIFY if whole else REPLAY, "verdict", _read
        )
        if (verdict.verified or verdict.rows) and warm is not None:
            await warm.keep(child, copy)
            kept = True
    except NoAnswer as error:
        if error.crashed:
            return Verdict(
                verified=False, reason=f"DuckDB crashed on it ({error.reason})", damaged=True, unreadable=True
            )
        reason = f"the verification {error.reason}"
        # A database that is too large for the time limit would be too large each time.
        return Verdict(verified=False, reason=reason, inconclusive=not error.too_slow, interrupted=error.killed)
    except CommandFailed as error:
        return Verdict(verified=False, reason=f"the verification failed: {error}", inconclusive=True)
    finally:
        if not kept:
            await end(child)
    return verdict


def _read(answer: Json) -> Verdict:
    found = checked(answer, dict)
    if "error" in found:
        reason = f"DuckDB cannot read it: {checked(found['error'], str)}"
        damaged = checked(found["damaged"], bool)
        return Verdict(verified=False, reason=reason, damaged=damaged, unreadable=damaged)
    rows = counts(found["rows"])
    if unread := {name: checked(reason, str) for name, reason in checked(found["unread"], dict).items()}:
        return Verdict(
            verified=False, reason=f"DuckDB cannot read all of it: {listed(unread)}", unreadable=True, rows=rows
        )
    return Verdict(verified=True, rows=rows)


def listed(unread: Mapping[str, str]) -> str:
    """Return the unreadable tables and columns, with the reasons, in one line."""
    shown = [f"{name} ({reason})" for name, reason in sorted(unread.items())[:MOST_NAMED]]
    more = len(unread) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")
