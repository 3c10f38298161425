"""The first upload to S3: its bytes compared with gzip, its duration compared with rclone, alone and behind pigz."""

import shutil
import statistics
from pathlib import Path

from tests.bench import peers
from tests.bench.agents import syncing
from tests.bench.databases import Databases
from tests.bench.report import Line, megabytes, seconds

BYTES_RATIO, MORE_BYTES = 1.02, 10**6
RCLONE_RATIO, PIGZ_RATIO = 0.8, 0.5


def lines(folder: Path, databases: Databases, size: int, rounds: int) -> list[Line]:
    """Upload a database of `size` MiB, and its file with each peer, in turns."""
    times: dict[str, list[float]] = {"agent": [], "rclone": [], "pigz": []}
    stored = raw = packed = 0
    for number in range(rounds):
        with syncing(folder / str(number), databases, size, direct=True) as agent:
            endpoint = agent.server.endpoint
            times["rclone"].append(peers.rclone_copyto(endpoint, agent.file, f"{agent.bucket}/raw").seconds)
            if peers.installed("pigz"):
                times["pigz"].append(peers.pigz_rclone(endpoint, agent.file, f"{agent.bucket}/packed").seconds)
            peer_bytes = agent.stored
            times["agent"].append(agent.sync().seconds)
            stored, raw = agent.stored - peer_bytes, agent.file.stat().st_size
            if not packed:
                packed = peers.gzip_bytes(*agent.files())
        shutil.rmtree(folder / str(number))
    what = f"first upload, {raw / 10**6:,.0f} MB"
    own = statistics.median(times["agent"])
    limit = BYTES_RATIO * packed + MORE_BYTES
    table = [
        Line(
            f"{what}: bytes (gzip -6: {megabytes(packed)})",
            megabytes(stored),
            stored / packed,
            f"{BYTES_RATIO} x gzip -6 + 1 MB",
            stored <= limit,
        )
    ]
    for name, program, bar in (
        ("rclone", "rclone copyto of the raw file", RCLONE_RATIO),
        ("pigz", "pigz -6 | rclone rcat", PIGZ_RATIO),
    ):
        if not times[name]:
            table.append(peers.missing(name, f"{what}: compared with {program}"))
            continue
        ratio = own / statistics.median(times[name])
        measured = f"{seconds(times['agent'])}; {program} {seconds(times[name])}"
        table.append(Line(f"{what}: wall", measured, ratio, f"{bar} x {program}", ratio <= bar))
    return table
