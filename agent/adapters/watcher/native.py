"""What the two native watches have in common: the signal that they set, and their interface."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.adapters.watcher.scan import Root


@dataclass(slots=True)
class WatchSignal:
    """Set by a native watch and by a timer.

    `names` changed since the last signal. `failed` is set when the native watch has ended: the error, or "" if the
    directory was replaced or the watch was stopped. `until` is the monotonic time at which polling ends and the native
    watch is tried again.
    """

    event: asyncio.Event = field(default_factory=asyncio.Event)
    names: frozenset[str] = frozenset()
    listening: bool = False
    until: float = math.inf
    failed: str | None = None

    def report(self, names: frozenset[str]) -> None:
        """Report that these files have changed. The first report, without names, means that the watch has started."""
        self.listening = True
        self.names |= names
        self.event.set()

    def end(self, reason: str) -> None:
        """Report that the native watch has ended."""
        self.failed = reason
        self.event.set()


class NativeWatch(Protocol):
    """Reports changes to a signal on the running event loop while `root` is the directory at `path`.

    Created as `(path, root, wanted, step_ms, signal)`; `wanted` may be called from another thread.
    """

    def __init__(
        self, path: Path, root: Root, wanted: Callable[[str], bool], step_ms: int | None, signal: WatchSignal
    ) -> None: ...

    @property
    def max_lag(self) -> float:
        """The longest time in seconds between a change and its report."""
        ...

    async def stop(self) -> None:
        """End the watch."""
        ...
