"""`make bench`: measure the figures of docs/benchmarks.md on this machine and print a table.

Exits with 0, also if a bar is missed, unless a measurement fails.
"""

import argparse
import asyncio
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.directory_store import DirectoryStore
from agent.domain.manifest import Manifest
from tests.bench import (
    archive,
    bus_latency,
    changes,
    first,
    hook,
    http_memory,
    http_push,
    idle,
    latency,
    line,
    memory,
    nats_consumer,
    nats_idle,
    nats_latency,
    page,
    patched,
    pipeline,
    prune,
    restore,
    s3,
    startup,
    ten_uploads,
    unchanged,
    week,
)
from tests.bench.databases import Databases
from tests.bench.report import Line, seconds, show
from tests.bench.stages import Stages, timed
from tests.support import machine, zygote
from tests.support.machine import Machine
from tests.support.servers.s3 import aws_environment, running_rclone

RATIO_BAR = 1.5
WAIT_SECONDS = 900.0


@dataclass(frozen=True)
class Scale:
    """Sizes in MiB, numbers of rounds and objects, and seconds."""

    sessions_of: tuple[int, int] = (65, 512)
    week: int = 56
    large: int = 600
    grown: tuple[int, int] = (100, 1024)
    rounds: int = 3
    changes: int = 15
    idle_seconds: float = 300
    turns: int = 40
    bus_turns: int = 100
    results: int = 5000
    readings: int = 5
    uploads: int = 1000
    pushes: int = 9
    pushed: tuple[int, int] = (100_000, 1_000_000)
    pruned: int = 1000


QUICK = Scale(
    sessions_of=(20, 65),
    week=6,
    large=200,
    grown=(100, 300),
    rounds=2,
    changes=5,
    idle_seconds=30,
    turns=10,
    bus_turns=30,
    results=1000,
    pushes=5,
    pushed=(100_000, 200_000),
)


@dataclass(frozen=True)
class Bench:
    """All measurements, each in its own folder."""

    folder: Path
    databases: Databases
    scale: Scale

    def stages(self) -> list[Line]:
        """Upload into a directory, compared with its slowest stage."""
        return asyncio.run(self._stages(self._folder("stages")))

    def to_s3(self) -> list[Line]:
        """Upload to S3, compared with rclone and the compressed file."""
        return asyncio.run(self._to_s3(self._folder("s3")))

    def memory(self) -> list[Line]:
        """Memory growth of the agent by uploads of two sizes, to S3 and into a directory."""
        folder, sizes = self._folder("memory"), self.scale.grown
        to_directory = {size: memory.growth(Machine(folder / f"dir-{size}"), self.databases, size) for size in sizes}
        to_s3 = {}
        with running_rclone(self._created(folder / "served")) as server:
            for size in sizes:
                target = {"cloud_endpoint": server.endpoint, "cloud_bucket": server.new_bucket()}
                agent = Machine(folder / f"s3-{size}", **target)
                agent.environ |= aws_environment()
                to_s3[size] = memory.growth(agent, self.databases, size)
        return [*memory.lines("S3", to_s3), *memory.lines("a directory", to_directory)]

    def unchanged(self) -> list[Line]:
        """A sync without a change."""
        return unchanged.lines(self._folder("unchanged"), self.databases, self.scale.large, self.scale.readings)

    def first(self) -> list[Line]:
        """The first upload, compared with gzip and rclone."""
        return self._for_each_size("first", first.lines)

    def wal(self) -> list[Line]:
        """A sync after a session that is in the WAL."""
        return changes.wal(self._folder("wal"), self.databases, self.scale.sessions_of, self.scale.rounds)

    def checkpoint(self) -> list[Line]:
        """A sync after a session and its checkpoint, compared with zstd, restic and sha256sum."""
        return self._for_each_size("checkpoint", changes.checkpoint)

    def week(self) -> list[Line]:
        """The bytes of a week of sessions, compared with an earlier version and other programs; draws the chart."""
        scale = self.scale
        draw = scale.week == Scale.week
        return week.lines(self._folder("week"), self.databases, min(scale.sessions_of), scale.week, draw=draw)

    def line(self) -> list[Line]:
        """A sync over a slow line."""
        return line.lines(self._folder("line"), self.databases, min(self.scale.sessions_of))

    def ten_uploads(self) -> list[Line]:
        """The space of ten uploads in a directory."""
        folder = self._folder("ten_uploads") / "machine"
        return ten_uploads.lines(folder, self.databases, min(self.scale.sessions_of))

    def restore_patched(self) -> list[Line]:
        """Restore of a base and patches, compared with that of a whole upload."""
        return self._for_each_size("restore_patched", patched.lines)

    def latency(self) -> list[Line]:
        """From the end of the quiet time to the request."""
        return latency.lines(self._folder("latency") / "machine", self.scale.changes)

    def idle(self) -> list[Line]:
        """CPU, memory and traffic of an idle agent."""
        folder = self._folder("idle")
        with running_rclone(self._created(folder / "served")) as server:
            return idle.lines(
                folder / "machine", self.databases, server, self.scale.idle_seconds, max(self.scale.grown)
            )

    def hook(self) -> list[Line]:
        """The duration of the session-end hook."""
        return hook.lines(self._folder("hook") / "scratch", 30)

    def startup(self) -> list[Line]:
        """The start of `--version`, `--help` and `status`."""
        return startup.lines(self._folder("startup"), 20)

    def page(self) -> list[Line]:
        """CPU of views of the page, and a sync with 50 open pages."""
        scale = self.scale
        return page.lines(self._folder("page"), self.databases, scale.large, scale.rounds, scale.idle_seconds)

    def archive(self) -> list[Line]:
        """A listing of many uploads."""
        folder = self._folder("archive")
        served = self._created(folder / "served")
        with running_rclone(served) as server:
            return asyncio.run(archive.lines(folder, server, served, self.scale.uploads, self.scale.readings))

    def nats_latency(self) -> list[Line]:
        """From a change to its result: NATS compared with the in-process bus."""
        folder, scale = self._folder("nats_latency"), self.scale
        alone = asyncio.run(bus_latency.measure(folder / "bus", scale.bus_turns))
        return [*nats_latency.lines(folder, scale.turns), *alone]

    def nats_consumer(self) -> list[Line]:
        """Consuming results, compared with nats-py."""
        folder, scale = self._folder("nats_consumer"), self.scale
        return asyncio.run(nats_consumer.measure(folder, scale.results, scale.readings))

    def nats_idle(self) -> list[Line]:
        """The CPU, memory and traffic that NATS adds to an idle agent."""
        return nats_idle.lines(self._folder("nats_idle"), self.scale.idle_seconds)

    def http_push(self) -> list[Line]:
        """A push of memories, compared with the MCP SDK's client; and syncs with few changes."""
        folder, scale = self._folder("http_push"), self.scale
        compared = asyncio.run(http_push.against_the_sdk(folder / "sdk", scale.pushes))
        return [*compared, *http_push.few_changes(folder / "little", scale.readings)]

    def http_memory(self) -> list[Line]:
        """Peak memory of a push of many memories."""
        return http_memory.lines(self._folder("http_memory"), self.scale.pushed)

    def prune(self) -> list[Line]:
        """Deleting many old uploads."""
        return asyncio.run(prune.lines(self._folder("prune"), self.scale.pruned))

    def restore(self) -> list[Line]:
        """Restore from S3, compared with rclone and gzip; and its peak memory."""
        folder, scale = self._folder("restore"), self.scale
        compared = asyncio.run(
            restore.against_rclone(self._created(folder / "against"), self.databases, scale.large, scale.rounds)
        )
        return [*compared, *restore.memory(self._created(folder / "memory"), self.databases, scale.grown)]

    async def _stages(self, folder: Path) -> list[Line]:
        data_dir, size = folder / "data", self.scale.large
        self.databases.copy_to(size, data_dir)
        stages = Stages(data_dir, folder / "stages")
        await stages.prepare()
        times: dict[str, list[float]] = {}
        busy: list[float] = []
        uploads: list[Manifest] = []
        for number in range(self.scale.rounds):
            round_folder = folder / str(number)

            bucket = self._created(round_folder) / "bucket"

            async def upload(round_folder: Path = round_folder, bucket: Path = bucket) -> None:
                uploads.append(await pipeline.upload(data_dir, round_folder / "state", DirectoryStore(bucket)))

            for name, stage in {**stages.all(), "upload": upload}.items():
                before = time.process_time()
                times.setdefault(name, []).append(await timed(stage))
                stages.clean()
            busy.append((time.process_time() - before) / (os.cpu_count() or 1))
            if number == 0:
                await asyncio.to_thread(pipeline.check, bucket, uploads[0], data_dir)
            shutil.rmtree(round_folder)
        totals = times.pop("upload")
        medians = {name: statistics.median(measured) for name, measured in times.items()}
        slowest = max(medians, key=lambda name: medians[name])
        ratio = statistics.median(totals) / medians[slowest]
        return [
            *(Line(f"{size} MiB: {name} alone", seconds(measured)) for name, measured in times.items()),
            Line(
                f"{size} MiB into a directory: snapshot + hash + compress + upload",
                seconds(totals),
                ratio,
                f"within {RATIO_BAR} x {slowest} alone",
                ratio <= RATIO_BAR,
            ),
            Line(
                f"{size} MiB: the same, if all processors were fully used",
                seconds(busy),
                statistics.median(busy) / medians[slowest],
            ),
        ]

    async def _to_s3(self, folder: Path) -> list[Line]:
        data_dir, small, size = folder / "data", folder / "small", self.scale.large
        self.databases.copy_to(size, data_dir)
        self.databases.copy_to(memory.SMALL, small)
        packed = await Stages(data_dir, folder / "stages").prepare()
        times: dict[str, list[float]] = {}
        async with s3.uploaders(data_dir, packed, small, folder) as uploaders:
            for _ in range(self.scale.rounds):
                for name, took in (await uploaders.times()).items():
                    times.setdefault(name, []).append(took)
        ratio = statistics.median(times["agent"]) / statistics.median(times["rclone"])
        return [
            Line(f"{size} MiB, compressed before, to S3: rclone copyto", seconds(times["rclone"])),
            Line(
                f"{size} MiB to S3: snapshot + hash + compress + upload",
                seconds(times["agent"]),
                ratio,
                f"within {RATIO_BAR} x rclone copyto",
                ratio <= RATIO_BAR,
            ),
        ]

    def _for_each_size(self, name: str, measure: Callable[[Path, Databases, int, int], list[Line]]) -> list[Line]:
        folder = self._folder(name)
        table = []
        for size in self.scale.sessions_of:
            table += measure(folder / str(size), self.databases, size, self.scale.rounds)
            shutil.rmtree(folder / str(size), ignore_errors=True)
        return table

    def _folder(self, name: str) -> Path:
        return self._created(self.folder / name)

    @staticmethod
    def _created(folder: Path) -> Path:
        folder.mkdir(parents=True)
        return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds, shorter waits")
    names = (
        *("first", "wal", "checkpoint", "week", "line", "ten_uploads", "restore_patched"),
        *("stages", "to_s3", "memory", "unchanged", "latency", "idle", "hook", "startup", "page", "archive"),
        *("nats_latency", "nats_consumer", "nats_idle", "http_push", "http_memory", "restore", "prune"),
    )
    parser.add_argument("--only", choices=names, action="append", help="measure only this; may be given several times")
    parser.add_argument(
        "--databases", type=Path, help="keep the databases in this directory, and use those that it has"
    )
    arguments = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        print("the bench needs Linux, because it reads /proc", file=sys.stderr)
        return 2
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    machine.TIMEOUT = WAIT_SECONDS  # an upload of 1 GiB may be slow
    os.environ |= aws_environment()
    os.environ[zygote.EXECUTE] = "1"  # a forked process shares pages with its parent, so its PSS is too low
    give_back_large_blocks()  # as the agent does
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="akosha-bench-") as scratch:
        folder = Path(scratch)
        databases = Databases(arguments.databases or folder / "databases")
        bench = Bench(folder, databases, QUICK if arguments.quick else Scale())
        for name in arguments.only or names:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            measure: Callable[[], list[Line]] = getattr(bench, name)
            lines += measure()
            shutil.rmtree(folder / name.removeprefix("to_"))
    show(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
