"""Starts the process of its own, hears what it says, and ends it with whoever waits for it."""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from agent.api.request import Request
from agent.domain.errors import AkoshaError

CHILD = "agent.api.child"
END_SECONDS = 12.0
"""How long a process that is told to end may take: it gives itself ten seconds."""

LOG_SECONDS = 1.0
"""Its end of the log is closed when it has ended, unless it left a process behind."""

LONGEST_LINE = 64 * 1024
LONGEST_SAID = 500

_log = logging.getLogger("agent.api")


async def answer_to(request: Request) -> Mapping[str, Any]:
    """Have a sync done and return its result, failed or not, as CONTRACT has it.

    Raises AkoshaError for what kept it from having one. Cancelled, it returns when the process has cleaned up and
    ended; cancelled again, it kills it.
    """
    starting = asyncio.create_task(_start(), name="akosha-start")
    try:
        process = await asyncio.shield(starting)
    except OSError as error:
        raise AkoshaError(f"the process that syncs cannot be started: {error.strerror}", transient=True) from error
    except asyncio.CancelledError:
        # Whoever cancels a start in the middle would leave behind what has been started already.
        with suppress(OSError):
            await _end(await starting)
        raise
    listening = asyncio.create_task(_relay(process), name="akosha-log")
    try:
        answer = await _talk(process, request)
        status = await process.wait()
    except BaseException:
        await _end(process)
        raise
    finally:
        try:
            await asyncio.wait({listening}, timeout=LOG_SECONDS)
        finally:
            listening.cancel()
    return _result(answer, status, listening.result() if listening.done() else "")


async def _start() -> Process:
    # -P: the working directory must not be able to supply another package of our name. In a session of its own:
    # a terminal's Ctrl-C reaches the caller, who decides.
    return await asyncio.create_subprocess_exec(
        sys.executable or "python3", "-P", "-m", CHILD, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
    )


async def _talk(process: Process, request: Request) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # it has ended: its exit status tells
        process.stdin.write(request.encode())
        await process.stdin.drain()
    process.stdin.close()
    return await process.stdout.read()


async def _relay(process: Process) -> str:
    """Hand its log lines to `logging` until it ends; return the last line that was none: a crash's last word."""
    assert process.stderr is not None
    rest, last = b"", ""
    while piece := await process.stderr.read(LONGEST_LINE):
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-LONGEST_LINE:]
        for line in lines:
            last = _told(line) or last
    return _told(rest) or last


def _told(line: bytes) -> str:
    """Log one line; return it where it was no log line."""
    text = line.decode(errors="replace").strip()
    try:
        entry = json.loads(text)
        level = logging.getLevelNamesMapping()[entry.pop("level").upper()]
        entry.pop("timestamp", None)
        event = entry.pop("event")
    except (ValueError, KeyError, TypeError, AttributeError):
        if text:
            _log.warning("%s", text)
        return text
    _log.log(level, "%s", " ".join([str(event), *(f"{key}={value}" for key, value in entry.items())]))
    return ""


def _result(answer: bytes, status: int, said: str) -> Mapping[str, Any]:
    try:
        document = json.loads(answer)
    except ValueError:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        raise AkoshaError(
            f"the process that syncs {how}, without a result{said and f': {said[:LONGEST_SAID]}'}", transient=True
        ) from None
    if refused := document.get("refused"):
        raise AkoshaError(refused["message"], hint=refused["hint"], transient=refused["transient"])
    result: Mapping[str, Any] = document["result"]
    return result


async def _end(process: Process) -> None:
    """Tell it to end, and wait until it has. After 12 s, or cancelled, kill it and all that it has started."""
    ended = asyncio.create_task(process.wait(), name="akosha-end")
    try:
        with suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait({ended}, timeout=END_SECONDS)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM where only dead ones are left
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait({ended})
