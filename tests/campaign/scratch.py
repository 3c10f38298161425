"""The folders of campaigns, below one folder of the user. A campaign first removes those of killed campaigns."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from agent.adapters import fs
from tests.support.waiting import wait_until

_RUN = "run-"


def scratch() -> Path:
    """Return the folder of this user's campaigns."""
    return Path(tempfile.gettempdir()) / f"akosha-faults-{os.getuid()}"


@contextmanager
def run_folder() -> Iterator[Path]:
    """Yield an empty folder, which is locked; remove it at the end of the block. First remove those of killed runs."""
    parent = scratch()
    parent.mkdir(mode=0o700, exist_ok=True)
    with fs.locked(parent / "lock"):
        for killed in parent.glob(f"{_RUN}*"):
            if (lock := _locked(killed)) is not None:
                remove(killed)
                os.close(lock)
        folder = Path(tempfile.mkdtemp(prefix=_RUN, dir=parent))
        lock = _locked(folder)
    assert lock is not None
    try:
        yield folder
    finally:
        remove(folder)
        os.close(lock)


def remove(folder: Path) -> None:
    """Remove a folder, what is mounted in it, and the processes whose command or environment names it."""
    end_processes(folder)
    for mounted in psutil.disk_partitions(all=True):
        if folder in Path(mounted.mountpoint).parents:
            subprocess.run(["umount", "--lazy", mounted.mountpoint], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def end_processes(folder: Path) -> None:
    """Kill the processes of a run, until there are none."""
    wait_until(lambda: not [process.kill() for process in _processes(folder)])


def _processes(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            named = (*process.cmdline(), *process.environ().values())
            if any(str(folder) in text for text in named) and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _locked(folder: Path) -> int | None:
    """Lock a folder and return its descriptor; None if a run has the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    if fs.try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None
