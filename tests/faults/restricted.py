"""`akosha-agent` under a restriction that the kernel enforces.

python restricted.py (unprivileged | file-limit:BYTES | child-memory:FILE) run --data-dir ...

child-memory: while FILE exists, a DuckDB child that starts has too little memory to load DuckDB.
"""

import asyncio
import ctypes
import os
import resource
import sys
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

from agent.__main__ import main
from agent.adapters.duckdb import child_process
from tests.support.constants import replace_from_environment

CHILD_BYTES = 48 * 2**20
"""Address space of a child without memory: enough for Python, too little for DuckDB."""


def drop_privileges() -> None:
    """Give up root's right to read everything, so that file modes count for root too."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset")


def limit_children(flag: Path) -> None:
    """Give DuckDB children too little memory to load DuckDB while the file `flag` exists. Idle ones are ended."""
    create, take = asyncio.create_subprocess_exec, child_process.WarmChild.take

    async def create_limited(*command: str, **options: Any) -> Process:
        if child_process.CHILD in command and flag.exists():
            options["preexec_fn"] = limit
        return await create(*command, **options)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))

    async def take_limited(self: child_process.WarmChild, copy: Path) -> Process:
        if flag.exists():
            await self.end()
        return await take(self, copy)

    asyncio.create_subprocess_exec = create_limited
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
