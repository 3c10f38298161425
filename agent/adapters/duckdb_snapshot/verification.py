"""The parent's side of the check: starts the child, waits for its verdict, survives whatever becomes of it."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHILD = "agent.adapters.duckdb_snapshot.child"

_PRIVATE = ("AWS_", "AKOSHA_", "SESSION_BUDDY_")
_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the check found. `damaged`: the copy itself looks wrong, so another one may turn out better."""

    verified: bool
    reason: str = ""
    damaged: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)


async def verify(copy: Path, *, timeout_seconds: float) -> Verdict:
    """Have a child read the copy through. Never raises for what the child does; cancelled, it kills the child."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    try:
        # -P: the working directory must not be able to supply another package of our name.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", CHILD, str(copy),
            stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, cwd=copy.parent,
        )  # fmt: skip
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
        await _end(child)
    return _verdict(answer, status)


async def _end(child: Process) -> None:
    if child.returncode is None:
        child.kill()
        await asyncio.shield(child.wait())
    if child.stdin is not None:
        child.stdin.close()


def _verdict(answer: bytes, status: int) -> Verdict:
    if status < 0:
        name = signal.Signals(-status).name
        if -status in _KILLED_FROM_OUTSIDE:
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
