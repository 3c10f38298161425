"""`uploads list` of many uploads: duration and number of requests."""

import statistics
import time
from pathlib import Path

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.s3 import S3Store
from agent.application.archive.catalog import Catalog
from agent.ports import ObjectStore
from tests.bench.report import Line, seconds
from tests.support import values
from tests.support.faulty_store import FaultyStore
from tests.support.servers.s3 import S3Server

BAR_SECONDS = 2.0


def fill(bucket: Path, count: int) -> None:
    """Write the objects of `count` uploads into a directory, as in a bucket; they consist of zeros."""
    for number in range(count):
        at = number * 3600
        manifest = values.manifest(at, f"r{number}", reflection=number, knowledge_graph=number)
        for part in manifest.parts:
            path = bucket / part.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(part.stored_size))
        (bucket / manifest.key).write_bytes(manifest.encode())


async def lines(folder: Path, server: S3Server, served: Path, count: int, rounds: int) -> list[Line]:
    """Measure a directory, and S3: `server` serves the directory `served`."""
    fill(folder / "bucket", count)
    name = server.new_bucket()
    fill(served / name, count)
    measured = []
    for what, store in {
        "a directory": DirectoryStore(folder / "bucket"),
        "S3": S3Store(bucket=name, endpoint=server.endpoint, region="auto"),
    }.items():
        try:
            measured.append(await _line(what, store, count, rounds))
        finally:
            await store.aclose()
    return measured


async def _line(what: str, store: ObjectStore, count: int, rounds: int) -> Line:
    counted = FaultyStore(store)
    times = []
    for _ in range(rounds):
        counted.calls.clear()
        started = time.perf_counter()
        listing = await Catalog(counted, values.SYSTEM).listing()
        times.append(time.perf_counter() - started)
        if len(listing.uploads) != count or any(upload.problems for upload in listing.uploads):
            raise RuntimeError(f"{what}: {len(listing.uploads)} uploads")
    median = statistics.median(times)
    measured = f"{seconds(times)}; {len(counted.keys('get'))} manifests read"
    return Line(
        f"uploads list, {count} uploads in {what}", measured, None, f"under {BAR_SECONDS:g} s", median < BAR_SECONDS
    )
