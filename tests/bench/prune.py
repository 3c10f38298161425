"""Pruning many uploads in S3 and in a directory: requests and duration."""

import time
from collections import Counter
from pathlib import Path

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.s3 import S3Store
from agent.adapters.system_clock import SystemClock
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner
from agent.domain.retention import KeepRules
from agent.ports import ObjectStore
from tests.bench.report import Line
from tests.support import uploads, values
from tests.support.servers.s3 import running_rclone

KEPT = 10
RULES = KeepRules(last=KEPT, daily=0, weekly=0, monthly=0)
SINGLE = frozenset({"delete_object"})


def fill(bucket: Path, count: int) -> int:
    """Write `count` + KEPT uploads into a directory; return the number of objects that a prune deletes."""
    deleted = 0
    for position, upload in enumerate(uploads.days(count + KEPT)):
        objects = uploads.objects_of(upload)
        deleted += len(objects) if position >= KEPT else 0
        for key, data in objects.items():
            path = bucket / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return deleted


async def lines(folder: Path, count: int) -> list[Line]:
    """Measure a prune of `count` uploads. Raises RuntimeError if it deletes too little or too much."""
    served = folder / "served"
    objects = fill(served / "bucket", count)
    with running_rclone(served) as server:
        store = S3Store(bucket="bucket", endpoint=server.endpoint, region="auto")
        requests: Counter[str] = Counter()
        call = store._connection.call

        async def counted(operation: str, key: str = "", **parameters: object) -> dict[str, object]:
            requests[operation] += 1
            return await call(operation, key, **parameters)

        store._connection.call = counted  # type: ignore[method-assign]
        try:
            over_s3 = await _prune(store, count, objects)
            calls = ", ".join(f"{number} {operation}" for operation, number in sorted(requests.items()))
            await _check(store)
        finally:
            await store.aclose()
    batched = not SINGLE & requests.keys() and requests["delete_objects"] <= -(-count // 1000) + -(-objects // 1000) + 1
    fill(folder / "directory", count)
    directory = DirectoryStore(folder / "directory")
    local = await _prune(directory, count, objects)
    await _check(directory)
    return [
        Line(
            f"prune of {count} uploads ({objects} objects) over S3 (rclone)",
            f"{over_s3:.2f} s: {calls}",
            bar="1,000 deletions per request",
            ok=batched,
        ),
        Line(f"prune of {count} uploads ({objects} objects) in a directory", f"{local:.2f} s"),
    ]


async def _prune(store: ObjectStore, count: int, objects: int) -> float:
    pruner = Pruner(Catalog(store, values.SYSTEM), RULES, SystemClock())
    started = time.perf_counter()
    pruned = await pruner.carry_out(await pruner.plan({}), {})
    took = time.perf_counter() - started
    if (pruned.error, len(pruned.upload_ids), pruned.objects, pruned.kept) != (None, count, objects, KEPT):
        raise RuntimeError(f"{store.location}: {pruned}")
    return took


async def _check(store: ObjectStore) -> None:
    if len((await uploads.uploads_in(store))[0]) != KEPT:
        raise RuntimeError(f"{store.location}: the remaining uploads are not the expected ones")
