"""The port of patches: a patch is made in a child process, whose memory is limited, and applied in a thread."""

import asyncio
import os
import threading
from asyncio.subprocess import Process
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from agent.adapters import child_process
from agent.adapters.child_process import STALL_SECONDS, CommandFailed, Exchange, NoAnswer, checked
from agent.adapters.patches.applying import apply_chain
from agent.domain.memories import Json
from agent.ports import WrittenPatch
from agent.ports.concurrency import mark_retrieved

CHILD = "agent.adapters.patches.child"

_log = structlog.get_logger()


class ZstdPatcher:
    """A `Patcher`. `timeout_seconds` limits making one patch; `stall_seconds` limits the time without progress."""

    def __init__(self, *, timeout_seconds: float = 1800.0, stall_seconds: float = STALL_SECONDS) -> None:
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds

    async def make(self, reference: Path, file: Path, patch: Path, *, most_bytes: int) -> WrittenPatch | None:
        try:
            if await asyncio.to_thread(os.path.lexists, patch):
                raise FileExistsError(f"{patch} exists")
            return await self._make(reference, file, patch, most_bytes)
        except (OSError, NoAnswer, CommandFailed) as error:
            _log.warning("patch_failed", error=str(error), next_step="the whole file is sent")
            return None

    async def _make(self, reference: Path, file: Path, patch: Path, most_bytes: int) -> WrittenPatch | None:
        written: WrittenPatch | None = None
        child = await child_process.start(CHILD, *map(str, (reference, file, patch)), cwd=patch.parent)
        try:
            exchange = Exchange(child, self._timeout_seconds, self._stall_seconds)
            written = await exchange.ask(b"make %d" % most_bytes, "made", _written)
        finally:
            await asyncio.shield(asyncio.create_task(_end(child, patch if written is None else None), name="patch-end"))
        return written

    async def apply(self, reference: Path, patches: Sequence[Path], file: Path, *, raw_size: int, sha256: str) -> None:
        stop = threading.Event()
        work = partial(apply_chain, reference, patches, file, raw_size=raw_size, sha256=sha256, stop=stop)
        applying = asyncio.create_task(asyncio.to_thread(work), name="apply-patches")
        applying.add_done_callback(mark_retrieved)
        try:
            await asyncio.shield(applying)
        except asyncio.CancelledError:
            stop.set()  # the thread removes the file
            await asyncio.wait([applying])
            raise


async def _end(child: Process, unfinished: Path | None) -> None:
    """End the child, and remove a patch that is not finished."""
    await child_process.end(child)
    if unfinished is not None:
        await asyncio.to_thread(unfinished.unlink, missing_ok=True)


def _written(answer: Json) -> WrittenPatch | None:
    if answer is None:
        return None
    size, sha256 = checked(answer, list)
    return WrittenPatch(checked(size, int), checked(sha256, str))
