"""`akosha-agent` under a restriction that the kernel enforces.

python restricted.py (unprivileged | file-limit:BYTES | child-memory:FILE) run --data-dir ...

child-memory: while FILE exists, a DuckDB child gets no more memory than it has at its start.
"""

import ctypes
import os
import resource
import sys
from asyncio.subprocess import Process
from pathlib import Path

from agent.__main__ import main
from agent.adapters.duckdb import child_process
from tests.support.constants import replace_from_environment


def drop_privileges() -> None:
    """Give up root's right to read everything, so that file modes count for root too."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset")


def limit_children(flag: Path) -> None:
    """Give DuckDB children no memory beyond that at their start while the file `flag` exists. Idle ones are ended."""
    start, take = child_process.start, child_process.WarmChild.take

    async def limited(copy: Path) -> Process:
        child = await start(copy)
        if flag.exists():
            size = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(child.pid, resource.RLIMIT_AS, (size, size))
        return child

    async def take_limited(self: child_process.WarmChild, copy: Path) -> Process:
        if flag.exists():
            await self.end()
        return await take(self, copy)

    child_process.start = limited
    child_process.WarmChild.take = take_limited


if __name__ == "__main__":
    restriction, _, figure = sys.argv.pop(1).partition(":")
    if restriction == "unprivileged":
        drop_privileges()
    elif restriction == "child-memory":
        limit_children(Path(figure))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(figure), resource.RLIM_INFINITY))
    replace_from_environment()
    main()
