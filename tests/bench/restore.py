"""Restore from S3 on loopback, compared with `rclone copyto` and `gzip -d`; and its peak memory."""

import asyncio
import os
import shutil
import statistics
import subprocess
from pathlib import Path

from agent.adapters.s3 import S3Store
from agent.application.archive.catalog import Catalog
from agent.application.archive.restore import RestoreRequest
from agent.bootstrap.restore import open_restore
from agent.domain.manifest import Manifest
from agent.ports.methods import NoReporter
from tests.bench import peers, pipeline
from tests.bench.databases import Databases
from tests.bench.memory import SAME_WITHIN, PssWatch
from tests.bench.pipeline import SYSTEM
from tests.bench.report import Line, mebibytes, seconds
from tests.bench.stages import timed
from tests.support.machine import Machine
from tests.support.servers.s3 import S3Server, aws_environment, running_rclone

RATIO_BAR = 1.3


async def against_rclone(folder: Path, databases: Databases, size: int, rounds: int) -> list[Line]:
    """Restore an upload of about `size` MiB both ways, in turns."""
    data = folder / "data"
    databases.copy_to(size, data)
    times: dict[str, list[float]] = {"rclone + gzip -d": [], "restore": []}
    with _served(folder) as server:
        store = S3Store(bucket=server.new_bucket(), endpoint=server.endpoint, region="auto")
        try:
            manifest = await pipeline.upload(data, folder / "state", store)
            archive, bucket = Catalog(store, SYSTEM), store.location.split("/")[2].split(" ")[0]
            for number in range(rounds):
                theirs, ours = folder / f"theirs-{number}", folder / f"ours-{number}"
                theirs.mkdir()
                times["rclone + gzip -d"].append(await timed(lambda: _rclone(server, bucket, manifest, theirs)))  # noqa: B023
                times["restore"].append(await timed(lambda: _restore(archive, manifest, ours)))  # noqa: B023
                await asyncio.to_thread(_check, data, theirs, ours)
                shutil.rmtree(theirs)
                shutil.rmtree(ours)
        finally:
            await store.aclose()
    rclone, own = (statistics.median(measured) for measured in times.values())
    return [
        Line(f"{size} MiB from S3: rclone copyto, then gzip -d", seconds(times["rclone + gzip -d"])),
        Line(
            f"{size} MiB from S3: restore (download, gunzip, hash, fsync)",
            seconds(times["restore"]),
            own / rclone,
            f"within {RATIO_BAR} x that",
            own / rclone <= RATIO_BAR,
        ),
    ]


def memory(folder: Path, databases: Databases, sizes: tuple[int, int]) -> list[Line]:
    """Measure the peak memory of the command for two sizes."""
    peaks, table = {}, []
    with _served(folder) as server:
        for size in sizes:
            target = {"cloud_endpoint": server.endpoint, "cloud_bucket": server.new_bucket(), "system_id": SYSTEM}
            machine = Machine(folder / f"machine-{size}", **target)
            machine.environ |= aws_environment()
            databases.copy_to(size, machine.data)
            machine.sync()
            running = machine.start("restore", "--to", str(folder / f"to-{size}"))
            with PssWatch(running.pid) as watch:
                result = running.end()
            if result.code:
                raise RuntimeError(result.err)
            peaks[size] = max(watch.agent)
            table.append(Line(f"memory: restore of {size} MiB from S3, peak", mebibytes(peaks[size])))
            shutil.rmtree(folder / f"to-{size}")
    small, large = sizes
    grown = peaks[large] - peaks[small]
    bar = f"the same, within {mebibytes(SAME_WITHIN)}"
    what = f"memory: restore of {large} MiB compared with {small} MiB"
    return [*table, Line(what, mebibytes(grown), peaks[large] / peaks[small], bar, grown <= SAME_WITHIN)]


def _served(folder: Path):
    os.environ |= aws_environment()
    (folder / "served").mkdir()
    return running_rclone(folder / "served")


async def _rclone(server: S3Server, bucket: str, manifest: Manifest, folder: Path) -> None:
    remote = peers.rclone_path(server.endpoint, f"{bucket}/")
    for part in manifest.parts:
        packed = folder / f"{part.name}.gz"
        for command in (
            (peers.RCLONE, "copyto", f"{remote}{part.key}", packed, *peers.RCLONE_KEYS),
            ("gzip", "-d", packed),
        ):
            await asyncio.to_thread(peers.run, command, environ=peers.RCLONE_ENVIRONMENT)


async def _restore(archive: Catalog, manifest: Manifest, to: Path) -> None:
    async with open_restore(to, archive) as restoring:
        await restoring.restore(manifest, RestoreRequest(), NoReporter())


def _check(data: Path, *folders: Path) -> None:
    for path in data.iterdir():
        for folder in folders:
            if subprocess.run(["cmp", "-s", path, folder / path.name]).returncode:
                raise RuntimeError(f"{folder / path.name} differs from the uploaded file")
