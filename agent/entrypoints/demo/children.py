"""The demo's processes: each in a group of its own, so that Ctrl-C is ours; whatever they say comes in one line."""

import asyncio
import os
import site
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from agent.domain.errors import AkoshaError

END_SECONDS = 15.0
"""The agent has ten to come to an end."""

_PRIVATE = ("SESSION_BUDDY_", "AKOSHA_", "AWS_", "XDG_")


@dataclass(frozen=True, slots=True)
class Line:
    """A child has said something."""

    child: str
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A child has come to its end, and all its lines have been read."""

    child: str
    status: int


Heard = Line | Ended


class Children:
    """Starts processes and listens to them; none outlives the block."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._processes: dict[str, Process] = {}
        self._listening: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End whoever is left: asked first, made to after fifteen seconds, or at once if the waiting is cut short."""
        alive = [process for process in self._processes.values() if process.returncode is None]
        try:
            for process in alive:
                process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await asyncio.gather(*(process.wait() for process in alive))
        finally:
            for process in alive:
                if process.returncode is None:
                    process.kill()
            for task in self._listening:
                task.cancel()
            await asyncio.gather(*self._listening, return_exceptions=True)

    async def start(self, name: str, module: str, *arguments: str, listen_to: str = "stdout") -> int:
        """Start `python -m module arguments` and listen to its `stdout` or `stderr`; return the process id.

        What comes on standard error, or on both where that is listened to, is kept in the file `NAME.log`.
        """
        with self._log(name) as log:
            out, err = (PIPE, log) if listen_to == "stdout" else (log, PIPE)
            process = await asyncio.create_subprocess_exec(
                *_command(module, arguments), stdin=PIPE, stdout=out, stderr=err,
                env=self._environment, cwd=self._folder, start_new_session=True,
            )  # fmt: skip
        self._processes[name] = process
        self._listening.append(asyncio.create_task(self._listen(name, process), name=f"listen-{name}"))
        return process.pid

    async def ask(self, module: str, *arguments: str) -> str:
        """Run `python -m module arguments` to its end; return what it printed. Raises AkoshaError where it fails."""
        process = await asyncio.create_subprocess_exec(
            *_command(module, arguments), stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
            env=self._environment, cwd=self._folder, start_new_session=True,
        )  # fmt: skip
        try:
            answer, complaint = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = complaint.decode(errors="replace").strip()
            raise AkoshaError(f"{module} {arguments[0]} ended with {process.returncode}: {said}")
        return answer.decode()

    async def tell(self, name: str, command: str) -> None:
        """Write a line to a child's standard input."""
        stdin = self._processes[name].stdin
        assert stdin is not None
        stdin.write(f"{command}\n".encode())
        # One that is gone has been heard of already.
        with suppress(ConnectionError):
            await stdin.drain()

    def terminate(self, name: str) -> None:
        """Send SIGTERM."""
        self._processes[name].terminate()

    async def next(self) -> Heard:
        """Return what comes next from any child."""
        return await self._heard.get()

    async def _listen(self, name: str, process: Process) -> None:
        stream = process.stdout or process.stderr
        assert stream is not None
        with self._log(name) as log:
            while line := await stream.readline():
                if stream is process.stderr:
                    log.write(line)
                self._heard.put_nowait(Line(name, line.decode(errors="replace").rstrip("\n")))
        self._heard.put_nowait(Ended(name, await process.wait()))

    def _log(self, name: str) -> BinaryIO:
        return (self._folder / f"{name}.log").open("ab", buffering=0)


def own_environment(home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return our environment with the user's settings, credentials and home taken out and `settings` put in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    # Packages in the user's site directory are found by the home directory unless this says where.
    return kept | {"HOME": str(home), "PYTHONUSERBASE": site.getuserbase(), "PYTHONUNBUFFERED": "1", **settings}


def _command(module: str, arguments: Sequence[str]) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", module, *arguments)
