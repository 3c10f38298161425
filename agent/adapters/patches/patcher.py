"""The port of patches. A child process makes and applies them: its memory is limited, and it can be killed."""

import asyncio
import json
import os
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from agent.adapters import child_process
from agent.adapters.child_process import STALL_SECONDS, CommandFailed, Exchange, NoAnswer, checked
from agent.domain.errors import PatchError, StagingFull, StateError, WireError
from agent.domain.memories import Json
from agent.ports import WrittenPatch

T = TypeVar("T")

CHILD = "agent.adapters.patches.child"

_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""glibc asks for huge pages for large blocks: a third less processor time, most of which is spent on page faults."""

_ERRORS: dict[str, type[WireError | StateError | StagingFull]] = {
    error.__name__: error for error in (WireError, StateError, StagingFull)
}

_log = structlog.get_logger()


class ZstdPatcher:
    """A `Patcher`. `timeout_seconds` limits one operation, `stall_seconds` the time without progress."""

    def __init__(self, *, timeout_seconds: float = 1800.0, stall_seconds: float = STALL_SECONDS) -> None:
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds

    async def make(
        self, reference: Path, file: Path, patch: Path, *, most_bytes: int, checksums: Sequence[int] | None = None
    ) -> WrittenPatch | None:
        expected: Json = None if checksums is None else [*checksums]
        command: list[Json] = ["make", str(reference), str(file), str(patch), most_bytes, expected]
        try:
            await asyncio.to_thread(patch.unlink, missing_ok=True)
            return await self._create(patch, command, "made", _written)
        except (OSError, NoAnswer, CommandFailed) as error:
            _log.warning("patch_failed", error=str(error), next_step="the whole file is sent")
            return None

    async def apply(
        self, reference: Path, patches: Sequence[Path], file: Path, *, sizes: Sequence[int], sha256: str
    ) -> None:
        command: list[Json] = [
            "apply", str(reference), [str(patch) for patch in patches], str(file), [*sizes], sha256
        ]  # fmt: skip
        try:
            failure = await self._create(file, command, "applied", _failure)
        except NoAnswer as error:
            if error.crashed:
                raise WireError(f"the patches of {file.name} crashed the process ({error.reason})") from error
            raise _not_applied(file, error) from error
        except (CommandFailed, OSError) as error:  # the child answers with a WireError if the patches are invalid
            raise _not_applied(file, error) from error
        if failure is not None:
            raise failure

    async def _create(self, new: Path, command: list[Json], name: str, read: Callable[[Json], T]) -> T:
        """Let a child create a file, and return what `read` makes of its answer. A child that fails leaves no file."""
        if await asyncio.to_thread(os.path.lexists, new):
            raise FileExistsError(f"{new} exists")
        answered = False
        child = await child_process.start(CHILD, cwd=new.parent, variables=_HUGE_PAGES)
        try:
            exchange = Exchange(child, self._timeout_seconds, self._stall_seconds)
            answer = await exchange.ask(json.dumps(command).encode(), name, read)  # a path may not be UTF-8
            answered = True
        finally:
            ending = asyncio.create_task(_end(child, None if answered else new), name="patch-end")
            await asyncio.shield(ending)
        return answer


async def _end(child: Process, unfinished: Path | None) -> None:
    """End the child, and remove the file if it is not finished."""
    await child_process.end(child)
    if unfinished is not None:
        await asyncio.to_thread(unfinished.unlink, missing_ok=True)


def _written(answer: Json) -> WrittenPatch | None:
    if answer is None:
        return None
    size, sha256, checksums = checked(answer, list)
    numbers = tuple(checked(number, int) for number in checked(checksums, list))
    return WrittenPatch(checked(size, int), checked(sha256, str), numbers)


def _failure(answer: Json) -> WireError | StateError | StagingFull | None:
    if answer is None:
        return None
    kind, message, *details = checked(answer, list)
    if kind == PatchError.__name__:
        return PatchError(checked(message, str), number=checked(details[0], int))
    hint, transient = details
    error = _ERRORS[checked(kind, str)]
    return error(checked(message, str), hint=checked(hint, str), transient=checked(transient, bool))


def _not_applied(file: Path, error: Exception) -> StateError:
    return StateError(f"the patches of {file.name} could not be applied: {error}", transient=True)
