"""The child process that syncs: its request, start and end."""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from agent.api.config import AkoshaSyncConfig
from agent.domain.errors import AkoshaError
from agent.domain.parsing import parse_json
from agent.domain.plain_text import signal_name

if TYPE_CHECKING:
    from agent.settings import Loaded

CHILD = "agent.api.child"
END_SECONDS = 12.0
"""How long the child may take to exit after SIGTERM; it limits its own clean-up to ten seconds."""

LOG_SECONDS = 1.0
"""How long to wait for EOF on the child's log after its exit: a process that it started may keep the pipe open."""

MAX_LINE_BYTES = 64 * 1024
MAX_QUOTED = 500

_log = logging.getLogger("agent.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for one sync by one method (`cloud`, `http`), sent as JSON to the child's stdin. Contains no secret.

    Directories that are None default to those of the agent's settings.
    """

    config: AkoshaSyncConfig
    method: str
    upload_reflections: bool = True
    upload_knowledge_graph: bool = True
    data_dir: str | None = None
    state_dir: str | None = None

    def encode(self) -> bytes:
        """Return the request as JSON."""
        document = {name: getattr(self, name) for name in self.__slots__ if name != "config"}
        return json.dumps(document | {"config": self.config.values()}, default=str).encode()

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Return the request that `encode` has written."""
        document = parse_json(text)
        return cls(**document | {"config": AkoshaSyncConfig(**document["config"])})

    def load(self) -> "Loaded":
        """Load the agent's settings; the 13 of `config` override all other sources.

        An empty system ID overrides nothing. Raises SettingsError.
        """
        from agent.settings import load  # noqa: PLC0415 - importing it takes 0.3 s

        directories = {"agent_data_dir": self.data_dir, "agent_state_dir": self.state_dir}
        return load(
            command_line={**self.config.values(), "system_id": self.config.system_id or None, **directories},
            environ=os.environ,
            cwd=Path.cwd(),
            home=Path.home(),
        )


async def run_sync(request: Request) -> Mapping[str, Any]:
    """Run a sync in a child process and return its result document, also of a failed sync.

    Raises AkoshaError if there is no result. When cancelled, returns once the child has cleaned up and exited; when
    cancelled again, kills the child.
    """
    starting = asyncio.create_task(_start(), name="akosha-start")
    try:
        process = await asyncio.shield(starting)
    except OSError as error:
        raise AkoshaError(f"the sync process cannot be started: {error.strerror}", transient=True) from error
    except asyncio.CancelledError:
        # Cancelling the start could leave a process running.
        with suppress(OSError):
            await _end(await starting)
        raise
    relaying = asyncio.create_task(_relay_log(process), name="akosha-log")
    try:
        output = await _exchange(process, request)
        status = await process.wait()
    except BaseException:
        await _end(process)
        raise
    finally:
        try:
            await asyncio.wait({relaying}, timeout=LOG_SECONDS)
        finally:
            relaying.cancel()
    return _result(output, status, relaying.result() if relaying.done() else "")


async def _start() -> Process:
    # -P: the working directory must not shadow the package. A new session: only the caller gets the terminal's Ctrl-C,
    # and decides what to do.
    return await asyncio.create_subprocess_exec(
        sys.executable or "python3", "-P", "-m", CHILD, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
    )


async def _exchange(process: Process, request: Request) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # it has exited; `_result` reports the exit status
        process.stdin.write(request.encode())
        await process.stdin.drain()
    process.stdin.close()
    return await process.stdout.read()


async def _relay_log(process: Process) -> str:
    """Forward the child's log lines to `logging` until EOF; return the last other line, for example of a crash."""
    assert process.stderr is not None
    rest, last = b"", ""
    while piece := await process.stderr.read(MAX_LINE_BYTES):
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-MAX_LINE_BYTES:]
        for line in lines:
            last = _log_line(line) or last
    return _log_line(rest) or last


def _log_line(line: bytes) -> str:
    """Log one line; return it if it is not a log line, else ""."""
    text = line.decode(errors="replace").strip()
    try:
        entry = parse_json(text)
        level = logging.getLevelNamesMapping()[entry.pop("level").upper()]
        entry.pop("timestamp", None)
        event = entry.pop("event")
    except (ValueError, KeyError, TypeError, AttributeError):
        if text:
            _log.warning("%s", text)
        return text
    _log.log(level, "%s", " ".join([str(event), *(f"{key}={value}" for key, value in entry.items())]))
    return ""


def _result(output: bytes, status: int, last_line: str) -> Mapping[str, Any]:
    try:
        document = parse_json(output)
    except ValueError:
        end = f"was killed by {signal_name(-status)}" if status < 0 else f"exited with status {status}"
        raise AkoshaError(
            f"the sync process {end} without a result{last_line and f': {last_line[:MAX_QUOTED]}'}",
            transient=True,
        ) from None
    if refused := document.get("refused"):
        raise AkoshaError(refused["message"], hint=refused["hint"], transient=refused["transient"])
    result: Mapping[str, Any] = document["result"]
    return result


async def _end(process: Process) -> None:
    """Send SIGTERM and wait for the exit. After 12 s, or when cancelled, kill the process group."""
    ended = asyncio.create_task(process.wait(), name="akosha-end")
    try:
        with suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait({ended}, timeout=END_SECONDS)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM if only zombies are left
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait({ended})
