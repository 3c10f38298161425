"""A user's command for each result: run until it succeeds, and ended with us."""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from agent.domain.events import SyncResult
from agent.ports import Clock

FIRST_WAIT_SECONDS = 1.0
LAST_WAIT_SECONDS = 60.0
"""A command that fails is run again after the first, doubling to the last."""

END_SECONDS = 5.0
"""How long a command that is told to end may take."""

LOOK_SECONDS = 0.05

_log = structlog.get_logger()


class Execution:
    """Runs `command` through the shell, in a session of its own; the event, as `encode` writes it, is on its stdin."""

    def __init__(self, command: str, clock: Clock, encode: Callable[[SyncResult], bytes]) -> None:
        self._command, self._clock, self._encode = command, clock, encode

    async def see_to(self, result: SyncResult) -> None:
        """Return when the command has exited with 0, however often that takes. Cancelled, it ends the command."""
        wait = FIRST_WAIT_SECONDS
        while failed := await self._run(result):
            _log.warning("command_failed", **failed, id=result.id, system_id=result.system_id, delay_seconds=wait)
            await self._clock.sleep(wait)
            wait = min(wait * 2, LAST_WAIT_SECONDS)

    async def _run(self, result: SyncResult) -> Mapping[str, object]:
        """Run it once; return what there is to say of a failure."""
        starting = asyncio.create_task(self._start(result), name="command-start")
        try:
            process = await asyncio.shield(starting)
        except OSError as error:
            return {"error": str(error)}
        except asyncio.CancelledError:
            with suppress(OSError):
                await self._end(await starting)
            raise
        try:
            await process.communicate(self._encode(result) + b"\n")
        except BaseException:
            await self._end(process)
            raise
        return {"exit_code": process.returncode} if process.returncode else {}

    async def _start(self, result: SyncResult) -> Process:
        """Start it; whoever cancels this in the middle would leave behind what the shell has started already."""
        return await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", self._command, stdin=PIPE, env=_environment(result), start_new_session=True
        )

    async def _end(self, process: Process) -> None:
        """Tell the command, and all that it has started, to end; what is left after 5 s is killed."""
        group, deadline = process.pid, self._clock.monotonic() + END_SECONDS
        _tell(group, signal.SIGTERM)
        while _lives(group) and self._clock.monotonic() < deadline:
            await self._clock.sleep(LOOK_SECONDS)
        _tell(group, signal.SIGKILL)
        await process.wait()


def _environment(result: SyncResult) -> dict[str, str]:
    """Return ours, and what a short command wants to know. What others sent may hold a NUL, the environment none."""
    told = {
        "AKOSHA_EVENT_SYSTEM_ID": result.system_id,
        "AKOSHA_EVENT_OUTCOME": result.type.split(".")[2],
        "AKOSHA_EVENT_UPLOAD_ID": result.upload_id or "",
        "AKOSHA_EVENT_ID": result.id,
    }
    return os.environ | {name: text.replace("\0", "") for name, text in told.items()}


def _tell(group: int, number: signal.Signals | int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM where only dead ones are left
        return False
    return True


def _lives(group: int) -> bool:
    return _tell(group, 0)
