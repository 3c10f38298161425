"""The parent's side of the check: starts the child, waits for its verdict, survives whatever becomes of it."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.adapters.duckdb_files import children

CHILD = "agent.adapters.duckdb_files.child"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the check found. `damaged`: the copy itself looks wrong, so another one may turn out better."""

    verified: bool
    reason: str = ""
    damaged: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)


async def verify(copy: Path, *, timeout_seconds: float) -> Verdict:
    """Have a child read the copy through. Never raises for what the child does; cancelled, it kills the child."""
    try:
        child = await children.start(CHILD, copy)
    except OSError as error:
        return Verdict(verified=False, reason=f"the check could not be started: {error.strerror}")
    try:
        async with asyncio.timeout(timeout_seconds):
            assert child.stdout is not None
            answer = await child.stdout.read()
            status = await child.wait()
    except TimeoutError:
        return Verdict(verified=False, reason=f"the check was not done after {timeout_seconds:g} s")
    finally:
        await children.end(child)
    return _verdict(answer, status)


def _verdict(answer: bytes, status: int) -> Verdict:
    if ended := children.signal_of(status):
        name, from_outside = ended
        if from_outside:
            return Verdict(verified=False, reason=f"the check was killed ({name})")
        return Verdict(verified=False, reason=f"the engine crashed on it ({name})", damaged=True)
    try:
        found = json.loads(answer)
        if "rows" in found:
            return Verdict(verified=True, rows={str(table): int(count) for table, count in found["rows"].items()})
        return Verdict(
            verified=False, reason=f"the engine cannot read it: {found['error']}", damaged=bool(found["damaged"])
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return Verdict(verified=False, reason=f"the check ended without a verdict (exit status {status})")
