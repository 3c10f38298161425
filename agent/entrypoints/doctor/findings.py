"""Findings, and the checks that return them: run all at once, each with a time limit."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.domain.errors import AkoshaError, LedgerDamaged
from agent.entrypoints.doctor.context import DoctorContext

CANCEL_SECONDS = 2.0
"""How long a cancelled check may take to clean up."""

REPORT = "that is a fault of akosha-agent's own: report it, with what akosha-agent doctor --json prints"


class Level(StrEnum):
    """The level of a finding, the worst last; a skipped check says nothing."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found. A warning or an error has a cure: a command or a setting. None of the texts has a secret."""

    name: str
    level: Level
    found: str
    cure: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.level in (Level.WARNING, Level.ERROR) and not self.cure:
            raise ValueError(f"{self.name}: a {self.level} must have a cure")


def ok(name: str, found: str, *, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.OK, found=found, detail=detail)


def skipped(name: str, reason: str) -> Finding:
    return Finding(name=name, level=Level.SKIPPED, found=reason)


def warning(name: str, found: str, *, cure: str, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.WARNING, found=found, cure=cure, detail=detail)


def error(name: str, found: str, *, cure: str, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.ERROR, found=found, cure=cure, detail=detail)


def from_error(name: str, problem: AkoshaError, *, cure: str, level: Level = Level.ERROR) -> Finding:
    """Return the finding for an error. Its hint is the cure, followed by `cure` if it is a question, else `cure` is."""
    hint = f"{problem.hint} {cure}" if problem.hint.endswith("?") else problem.hint or cure
    return Finding(name=name, level=level, found=problem.message, cure=hint)


@dataclass(frozen=True, slots=True)
class Check:
    """A check. `timeout_cure`: the cure if it does not end in time; `needs_settings`: skipped if these are wrong."""

    group: str
    name: str
    run: Callable[[DoctorContext], Awaitable[Sequence[Finding]]]
    timeout_cure: str
    needs_settings: bool = False


async def run_checks(context: DoctorContext, checks: Sequence[Check], *, seconds: float) -> list[tuple[str, Finding]]:
    """Run all checks at once, each for `seconds` at most; return (group, finding) in the order of the checks.

    A check that hangs or fails is a finding itself, and the others still end.
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
            found.append((check.group, error(check.name, f"no answer within {seconds:g} s", cure=check.timeout_cure)))
        else:
            found += [(check.group, finding) for finding in task.result()]
    return found


async def _run(check: Check, context: DoctorContext) -> Sequence[Finding]:
    if check.needs_settings and context.settings_error is not None:
        return [skipped(check.name, "the settings are wrong: where to look is not known")]
    try:
        return await check.run(context)
    except LedgerDamaged:
        return [skipped(check.name, "it needs the ledger, which is damaged")]  # the ledger's own check is the error
    except AkoshaError as problem:
        return [from_error(check.name, problem, cure=check.timeout_cure)]
    except Exception as problem:  # noqa: BLE001 - the other checks still count; the text may quote a secret
        return [error(check.name, f"the check itself failed: {type(problem).__name__}", cure=REPORT)]


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 if all is well, 1 for warnings, 2 for errors."""
    levels = {finding.level for finding in findings}
    return 2 if Level.ERROR in levels else int(Level.WARNING in levels)
