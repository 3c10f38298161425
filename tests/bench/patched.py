"""Restore of an upload that consists of a base and patches, compared with the restore of a whole one."""

import json
import shutil
import statistics
from pathlib import Path

from tests.bench.agents import SyncingAgent, syncing
from tests.bench.databases import Databases
from tests.bench.report import Line, seconds

SESSIONS = 10
RATIO = 2.0


def lines(folder: Path, databases: Databases, size: int, rounds: int) -> list[Line]:
    """Upload a database of `size` MiB, then ten sessions with a checkpoint each; restore the first and the last."""
    with syncing(folder, databases, size) as agent:
        agent.machine.set(agent_prune=False)  # the first of eleven uploads stays
        first = last = agent.sync().upload
        for number in range(SESSIONS):
            agent.session(number, checkpoint=True)
            last = agent.sync().upload
        times: dict[str, list[float]] = {first: [], last: []}
        for _ in range(rounds):
            for upload, measured in times.items():
                measured.append(_restored(agent, upload, folder / "to", compared=upload == last))
        patches = _patches(agent, last)
    ratio = statistics.median(times[last]) / statistics.median(times[first])
    return [
        Line(f"restore of a whole upload, {size} MiB", seconds(times[first])),
        Line(
            f"restore of a base and {patches} patches, {size} MiB",
            seconds(times[last]),
            ratio,
            f"{RATIO:g} x that",
            ratio <= RATIO,
        ),
    ]


def _restored(agent: SyncingAgent, upload: str, to: Path, *, compared: bool) -> float:
    """Restore an upload and remove the files. `compared`: they must be the current ones; else raises RuntimeError."""
    took = agent.command("restore", upload, "--to", str(to)).seconds
    if compared and any((to / file.name).read_bytes() != file.read_bytes() for file in agent.files()):
        raise RuntimeError(f"{upload} was not restored as it was uploaded")
    shutil.rmtree(to)
    return took


def _patches(agent: SyncingAgent, upload: str) -> int:
    """Return the number of patches of the main file's part in the manifest."""
    (path,) = agent.served.rglob(f"{upload}/manifest.json")
    return sum(max(len(part.get("layers") or ()) - 1, 0) for part in json.loads(path.read_bytes())["parts"])
