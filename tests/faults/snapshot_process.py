"""Takes one snapshot under a restriction that the kernel enforces, and prints the outcome as JSON.

python snapshot_process.py DATA_DIR STAGING_DIR (unprivileged | file-limit BYTES)
"""

import asyncio
import ctypes
import json
import os
import resource
import sys
from pathlib import Path

from agent.adapters.duckdb.snapshot_taker import DuckdbSnapshotTaker
from agent.adapters.system_clock import SystemClock
from agent.domain.errors import SnapshotError


def drop_privileges() -> None:
    """Give up root's right to read everything, so that file modes count for root too."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset")


async def take(data_dir: Path, staging: Path) -> dict[str, object]:
    taker = DuckdbSnapshotTaker(data_dir, staging, clock=SystemClock(), verify=False)
    try:
        await taker.take("reflection")
    except SnapshotError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint,
                "transient": error.transient}  # fmt: skip
    return {"error": None}


def main() -> None:
    data_dir, staging, restriction, *figures = sys.argv[1:]
    if restriction == "unprivileged":
        drop_privileges()
    if restriction == "file-limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(figures[0]), resource.RLIM_INFINITY))
    print(json.dumps(asyncio.run(take(Path(data_dir), Path(staging)))))


if __name__ == "__main__":
    main()
