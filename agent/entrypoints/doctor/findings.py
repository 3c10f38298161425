"""Findings, and the checks that return them. Checks run concurrently, each with a time limit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.domain.errors import AkoshaError, LedgerDamaged
from agent.entrypoints.doctor.context import DoctorContext

CANCEL_SECONDS = 2.0
"""How long a cancelled check may take to clean up."""

REPORT = "this is a bug in akosha-agent: report it with the output of akosha-agent doctor --json"


class Level(StrEnum):
    """The level of a finding, the worst last. A skipped check and a note, on a choice that has a risk, do not count."""

    OK = "ok"
    SKIPPED = "skipped"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of a check. All but ok and skipped ones have a hint, a command or a setting. No text has a secret.

    `credentials_refused` as in `AkoshaError`.
    """

    name: str
    level: Level
    found: str
    hint: str = ""
    detail: str = ""
    credentials_refused: bool = False

    def __post_init__(self) -> None:
        if self.level in (Level.NOTE, Level.WARNING, Level.ERROR) and not self.hint:
            raise ValueError(f"{self.name}: a {self.level} must have a hint")


def ok(name: str, found: str, *, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.OK, found=found, detail=detail)


def skipped(name: str, reason: str) -> Finding:
    return Finding(name=name, level=Level.SKIPPED, found=reason)


def note(name: str, found: str, *, hint: str) -> Finding:
    return Finding(name=name, level=Level.NOTE, found=found, hint=hint)


def warning(name: str, found: str, *, hint: str, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.WARNING, found=found, hint=hint, detail=detail)


def error(name: str, found: str, *, hint: str, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.ERROR, found=found, hint=hint, detail=detail)


def from_error(name: str, problem: AkoshaError, *, hint: str, level: Level = Level.ERROR) -> Finding:
    """Return the finding for an error, with the error's own hint or, by default, `hint`.

    If the error's hint is a question, `hint` follows it.
    """
    text = f"{problem.hint} {hint}" if problem.hint.endswith("?") else problem.hint or hint
    return Finding(
        name=name,
        level=level,
        found=problem.message,
        hint=text,
        credentials_refused=problem.credentials_refused,
    )


@dataclass(frozen=True, slots=True)
class Check:
    """A check. `timeout_hint`: the hint after a timeout; `needs_settings`: skipped if the settings are invalid."""

    group: str
    name: str
    run: Callable[[DoctorContext], Awaitable[Sequence[Finding]]]
    timeout_hint: str
    needs_settings: bool = False


async def run_checks(context: DoctorContext, checks: Sequence[Check], *, seconds: float) -> list[tuple[str, Finding]]:
    """Run all checks concurrently, each for at most `seconds`; return (group, finding) in the order of the checks.

    A check that hangs or fails yields an error as its finding; the other checks are not affected.
    """
    tasks = [asyncio.create_task(_run(check, context), name=f"check-{check.name}") for check in checks]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
    finally:
        late = {task for task in tasks if not task.done()}
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCEL_SECONDS)
    found: list[tuple[str, Finding]] = []
    for check, task in zip(checks, tasks, strict=True):
        if task in late:
            found.append((check.group, error(check.name, f"no answer within {seconds:g} s", hint=check.timeout_hint)))
        else:
            found += [(check.group, finding) for finding in task.result()]
    return found


async def _run(check: Check, context: DoctorContext) -> Sequence[Finding]:
    if check.needs_settings and context.settings_error is not None:
        return [skipped(check.name, "the settings are invalid, so the target is unknown")]
    try:
        return await check.run(context)
    except LedgerDamaged:
        return [
            skipped(check.name, "it needs the ledger, which is damaged")
        ]  # the check of the ledger reports the error
    except AkoshaError as problem:
        return [from_error(check.name, problem, hint=check.timeout_hint)]
    except Exception as problem:  # noqa: BLE001 - the other checks continue; the text may contain a secret
        return [error(check.name, f"the check itself failed: {type(problem).__name__}", hint=REPORT)]


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 without problems, 1 for warnings, 2 for errors. Notes are no problems."""
    levels = {finding.level for finding in findings}
    return 2 if Level.ERROR in levels else int(Level.WARNING in levels)
