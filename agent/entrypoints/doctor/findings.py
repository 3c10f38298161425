"""What a look at something found, and how many such looks are taken at once: the pure part of `doctor`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.domain.errors import AkoshaError

GRACE_SECONDS = 2.0
"""How long a check that was cancelled may take to clean up."""

REPORT = "that is a fault of akosha-agent's own: report it, with what akosha-agent doctor --json prints"


class Level(StrEnum):
    """How it is; the worse the later, and what was skipped says nothing."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one thing. What is wrong has a cure: a command or a setting. Never a secret, in any of them."""

    name: str
    level: Level
    found: str
    cure: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.level in (Level.WARNING, Level.ERROR) and not self.cure:
            raise ValueError(f"{self.name}: what is wrong must say what mends it")


def ok(name: str, found: str, *, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.OK, found=found, detail=detail)


def skipped(name: str, why: str) -> Finding:
    return Finding(name=name, level=Level.SKIPPED, found=why)


def warning(name: str, found: str, *, cure: str, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.WARNING, found=found, cure=cure, detail=detail)


def error(name: str, found: str, *, cure: str, detail: str = "") -> Finding:
    return Finding(name=name, level=Level.ERROR, found=found, cure=cure, detail=detail)


def wrong(name: str, why: AkoshaError, *, cure: str, level: Level = Level.ERROR) -> Finding:
    """Return the finding for an error: its hint mends it. Where that is missing, or only a question, so does `cure`."""
    hint = f"{why.hint} {cure}" if why.hint.endswith("?") else why.hint or cure
    return Finding(name=name, level=level, found=why.message, cure=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One look. `silent_cure`: what mends it where no answer comes in time."""

    group: str
    name: str
    look: Callable[[], Awaitable[Sequence[Finding]]]
    silent_cure: str


async def examine(checks: Sequence[Check], *, seconds: float) -> list[tuple[str, Finding]]:
    """Take all looks at once, each for so many seconds at most; return (group, finding) in the order of the checks.

    A check that hangs or fails is a finding, too, and keeps no other from coming to its end.
    """
    tasks = [asyncio.create_task(_taken(check), name=f"check-{check.name}") for check in checks]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
    finally:
        late = {task for task in tasks if not task.done()}
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=GRACE_SECONDS)
    found: list[tuple[str, Finding]] = []
    for check, task in zip(checks, tasks, strict=True):
        if task in late:
            found.append((check.group, error(check.name, f"no answer within {seconds:g} s", cure=check.silent_cure)))
        else:
            found += [(check.group, finding) for finding in task.result()]
    return found


async def _taken(check: Check) -> Sequence[Finding]:
    try:
        return await check.look()
    except AkoshaError as why:
        return [wrong(check.name, why, cure=check.silent_cure)]
    except Exception as why:  # noqa: BLE001 - one look that fails must not cost the others; its text may quote anything
        return [error(check.name, f"the check itself failed: {type(why).__name__}", cure=REPORT)]


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 where all is well, 1 for warnings, 2 for errors."""
    levels = {finding.level for finding in findings}
    return 2 if Level.ERROR in levels else int(Level.WARNING in levels)
