"""The demo's processes. Each has its own session, so that Ctrl-C reaches only the demo, which then stops them."""

import asyncio
import json
import os
import site
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from agent.domain.errors import AkoshaError

END_SECONDS = 15.0
"""Time between SIGTERM and SIGKILL; the agent ends within 10 s."""

_PRIVATE = ("SESSION_BUDDY_", "AKOSHA_", "AWS_", "XDG_")

Listener = Callable[[str, dict[str, Any] | None], None]
"""Called with the name of a process and a JSON document that it printed, or None once it has ended."""


class Processes:
    """Starts processes and reads what they print. None of them outlives the `async with` block."""

    def __init__(self, folder: Path, environment: Mapping[str, str], listener: Listener) -> None:
        self._folder, self._environment, self._listener = folder, environment, listener
        self._processes: dict[str, Process] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the remaining processes: SIGTERM, then SIGKILL after END_SECONDS or if this is cancelled."""
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
            for reader in self._readers:
                reader.cancel()
            await asyncio.gather(*self._readers, return_exceptions=True)

    async def start(self, name: str, module: str, *arguments: str) -> Process:
        """Start `python -m module arguments`. Its lines of JSON go to the listener, its standard error to NAME.log."""
        with (self._folder / f"{name}.log").open("wb") as log:
            process = await self._spawn(module, *arguments, stdin=PIPE, stdout=PIPE, stderr=log)
        self._processes[name] = process
        self._readers.append(asyncio.create_task(self._read(name, process), name=f"read-{name}"))
        return process

    async def run(self, module: str, *arguments: str) -> Any:
        """Run `python -m module arguments` and return the JSON that it prints, with any exit status.

        Raises AkoshaError with the last line of its standard error if it prints no JSON.
        """
        process = await self._spawn(module, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
        try:
            answer, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            return json.loads(answer)
        except ValueError as error:
            reason = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise AkoshaError(f"{module} {arguments[0]} exited with {process.returncode}: {reason}") from error

    async def send(self, name: str, line: str) -> None:
        """Write a line to the standard input of a process."""
        stdin = self._processes[name].stdin
        assert stdin is not None
        stdin.write(f"{line}\n".encode())
        with suppress(ConnectionError):  # it has ended: the listener is called
            await stdin.drain()

    def exit_status(self, name: str) -> int | None:
        """Return the exit status of a process; None while it runs."""
        return self._processes[name].returncode

    async def _spawn(self, module: str, *arguments: str, **streams: Any) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", module, *arguments,
            env=self._environment, cwd=self._folder, start_new_session=True, **streams,
        )  # fmt: skip

    async def _read(self, name: str, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._listener(name, json.loads(line))
        await process.wait()
        self._listener(name, None)


def environment(home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without the user's settings, credentials and home, and with `settings`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    # Python finds packages of the user's site directory by HOME, unless PYTHONUSERBASE is set.
    return kept | {"HOME": str(home), "PYTHONUSERBASE": site.getuserbase(), "PYTHONUNBUFFERED": "1", **settings}
