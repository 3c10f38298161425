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
    """Upload a database of `size` MiB, then ten sessions with a checkpoint each; and the last state to another bucket.

    Restore the last state from both buckets.
    """
    with syncing(folder, databases, size) as agent:
        patched = agent.sync().upload
        for number in range(SESSIONS):
            agent.session(number, checkpoint=True)
            patched = agent.sync().upload
        patches = _patches(agent, patched)
        buckets = {"patched": agent.bucket, "whole": agent.server.new_bucket()}
        agent.machine.set(cloud_bucket=buckets["whole"])
        uploads = {"patched": patched, "whole": agent.sync().upload}
        times: dict[str, list[float]] = {"patched": [], "whole": []}
        for _ in range(rounds):
            for name, measured in times.items():
                agent.machine.set(cloud_bucket=buckets[name])
                measured.append(_restored(agent, uploads[name], folder / "to"))
    ratio = statistics.median(times["patched"]) / statistics.median(times["whole"])
    return [
        Line(f"restore of a whole upload of the same state, {size} MiB", seconds(times["whole"])),
        Line(
            f"restore of a base and {patches} patches, {size} MiB",
            seconds(times["patched"]),
            ratio,
            f"{RATIO:g} x that",
            ratio <= RATIO,
        ),
    ]


def _restored(agent: SyncingAgent, upload: str, to: Path) -> float:
    """Restore an upload and remove the files. Raises RuntimeError if they are not the current ones."""
    took = agent.command("restore", upload, "--to", str(to)).seconds
    if any((to / file.name).read_bytes() != file.read_bytes() for file in agent.files()):
        raise RuntimeError(f"{upload} was not restored as it was uploaded")
    shutil.rmtree(to)
    return took


def _patches(agent: SyncingAgent, upload: str) -> int:
    """Return the number of patches of the main file's part in the manifest."""
    (path,) = agent.served.rglob(f"{upload}/manifest.json")
    return sum(max(len(part.get("layers") or ()) - 1, 0) for part in json.loads(path.read_bytes())["parts"])
