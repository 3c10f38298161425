"""Prunes that kill themselves (SIGKILL), each in its own bucket; a program for tests to run.

    python killed_prune.py BUCKET SEED COUNT

Copies the directory BUCKET to BUCKET-0, BUCKET-1, ...; in each, a child prunes and dies before or after the deletion
of a key that the seed chooses.
"""

import asyncio
import os
import random
import shutil
import signal
import sys
from pathlib import Path

from agent.adapters.directory_store import DirectoryStore
from agent.application.archive.catalog import Catalog
from agent.application.archive.prune import Pruner
from agent.domain.retention import KeepRules
from tests.support import values
from tests.support.clock import ManualClock

RULES = KeepRules(last=2, daily=0, weekly=0, monthly=0)


def prune(bucket: Path, left: int, *, before: bool) -> None:
    delete = DirectoryStore._delete

    def deadly(self: DirectoryStore, key: str) -> None:
        nonlocal left
        left -= 1
        if left < 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        delete(self, key)
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    DirectoryStore._delete = deadly

    async def work() -> None:
        pruning = Pruner(Catalog(DirectoryStore(bucket), values.SYSTEM), RULES, ManualClock(values.NOON))
        await pruning.carry_out(await pruning.plan({}), {})

    asyncio.run(work())


def main() -> None:
    bucket, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chosen = random.Random(seed)
    for number in range(count):
        copy = bucket.with_name(f"{bucket.name}-{number}")
        shutil.copytree(bucket, copy)
        left, before = chosen.randrange(24), chosen.random() < 0.5
        if (pid := os.fork()) == 0:
            prune(copy, left, before=before)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status


if __name__ == "__main__":
    main()
