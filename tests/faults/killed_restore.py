"""Restores in child processes, and kills them; a program for tests to run.

    python killed_restore.py JSON

`["kill", BUCKET, FOLDER, ROUNDS, SEED]`: in each round, a restore is killed at a random moment and done again.
`["full", BUCKET, FOLDER, BYTES]`: no file may grow beyond BYTES. The program prints the outcomes of the rounds.

The children are forked, so they start at once, and a kill hits the restore itself.
"""

import asyncio
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import structlog

from agent.adapters.directory_store import DirectoryStore
from agent.application.archive.catalog import Catalog
from agent.application.archive.restore import RestoreRequest
from agent.bootstrap.restore import finish_restores, open_restore
from agent.domain.errors import AkoshaError

OLD = {"reflection.duckdb": b"old main", "reflection.duckdb.wal": b"old wal"}


class Silent:
    def phase(self, _name, _total_bytes): ...

    def moved(self, _count): ...

    def kept(self, _count): ...


async def restore(bucket: Path, to: Path) -> None:
    archive = Catalog(DirectoryStore(bucket), "laptop")
    if await asyncio.to_thread(finish_restores, to):
        return
    manifest = await archive.manifest(await archive.resolve())
    async with open_restore(to, archive) as restoring:
        await restoring.restore(manifest, RestoreRequest(force=True), Silent())


def start(bucket: Path, to: Path, limit: int | None = None) -> tuple[int, int]:
    """Start a restore; return its pid, and a descriptor that becomes readable when it ends."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    text, code = "", 0
    try:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        asyncio.run(restore(bucket, to))
    except AkoshaError as error:
        text, code = str(error), 1
    except BaseException as error:  # noqa: BLE001 - reported to the test
        text, code = f"{type(error).__name__}: {error}", 3
    os.write(writer, text.encode() or b"-")
    os._exit(code)


def end(pid: int, reader: int) -> dict:
    message = b""
    while piece := os.read(reader, 65536):
        message += piece
    os.close(reader)
    return {"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "message": message.decode()}


def rounds(bucket: Path, folder: Path, count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    started = time.monotonic()
    first = end(*start(bucket, folder / "first"))
    assert first["code"] == 0, first
    seconds = time.monotonic() - started
    found = []
    for number in range(count):
        to = folder / str(number)
        to.mkdir()
        for name, data in OLD.items():
            (to / name).write_bytes(data)
        pid, reader = start(bucket, to)
        select.select([reader], [], [], draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        killed = end(pid, reader)
        files = {path.name: path.stat().st_size for path in to.iterdir() if path.is_file()}
        unfinished = [path.name for path in to.iterdir() if path.is_dir()]
        shutil.copytree(to, folder / f"{number}-killed", ignore=shutil.ignore_patterns(".akosha*"))
        after_kill = {"killed": killed["code"], "files": files, "unfinished": unfinished}
        found.append({**after_kill, **end(*start(bucket, to))})
    return found


def main() -> int:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    what, bucket, folder, *numbers = json.loads(sys.argv[1])
    if what == "kill":
        found = rounds(Path(bucket), Path(folder), *numbers)
    else:
        found = [end(*start(Path(bucket), Path(folder), *numbers))]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
