"""A session and its checkpoint over a line of 20 Mbit/s: how soon the manifest is in the bucket."""

import threading
import time
from pathlib import Path
from typing import Self

from tests.bench.agents import SyncingAgent, syncing
from tests.bench.databases import Databases
from tests.bench.report import Line, megabytes

BITS_PER_SECOND = 20 * 10**6
RATIO, MORE_SECONDS = 1.3, 1.0
_STEP_SECONDS = 0.01


def lines(folder: Path, databases: Databases, size: int) -> list[Line]:
    """Upload a database of `size` MiB without a limit; then limit what is sent, and sync a session."""
    with syncing(folder, databases, size) as agent:
        agent.sync()
        agent.session(0, checkpoint=True)
        agent.wait_until_quiet()
        agent.proxy.bytes_per_second = BITS_PER_SECOND / 8
        with _ManifestWatch(agent) as watch:
            sync = agent.sync()
    took = watch.seconds
    if took is None:
        raise RuntimeError(f"there is no new manifest: {sync}")
    line = sync.sent * 8 / BITS_PER_SECOND
    bar = RATIO * line + MORE_SECONDS
    return [
        Line(
            f"line of 20 Mbit/s, session, then checkpoint, {size} MiB: until the manifest is there",
            f"{took:.1f} s for {megabytes(sync.sent)}, which the line sends in {line:.1f} s",
            took / line,
            f"{RATIO} x the line's time + {MORE_SECONDS:g} s: {bar:.1f} s",
            took <= bar,
        )
    ]


class _ManifestWatch:
    """Watches the bucket's directory on a thread. `seconds`: how long the next manifest took."""

    def __init__(self, agent: SyncingAgent) -> None:
        self._agent = agent
        self.seconds: float | None = None
        self._known = self._manifests()
        self._stopping = threading.Event()
        self._started = time.perf_counter()
        self._thread = threading.Thread(target=self._watch, name="manifest-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while self.seconds is None and not self._stopping.wait(_STEP_SECONDS):
            self._look()

    def _look(self) -> None:
        if self.seconds is None and self._manifests() != self._known:
            self.seconds = time.perf_counter() - self._started

    def _manifests(self) -> set[Path]:
        return {path for path in self._agent.served.rglob("manifest.json") if path.stat().st_size}
