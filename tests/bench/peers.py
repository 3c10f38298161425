"""Other programs that do a part of the agent's work: what they send or add, and how long they take.

A peer that is not installed is left out; `missing` names it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.report import Line
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY

RCLONE = str(Path(sys.executable).with_name("rclone"))
RCLONE_KEYS = ("--s3-access-key-id", ACCESS_KEY, "--s3-secret-access-key", SECRET_KEY)
RCLONE_ENVIRONMENT = {**os.environ, "RCLONE_CONFIG": os.devnull}


@dataclass(frozen=True)
class Ran:
    """A command that has ended: seconds of wall and of CPU, with those of the descendants that it waited for."""

    seconds: float
    cpu: float
    output: str


def run(
    words: Sequence[object],
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    expected: Sequence[int] = (0,),
) -> Ran:
    """Run a command to its end. Raises RuntimeError if it exits with another status than `expected`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        started = time.perf_counter()
        command = [str(word) for word in words]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=error, env=environ, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        error.seek(0)
        if process.returncode not in expected:
            raise RuntimeError(f"{command}: {process.returncode}: {error.read().decode()[-2000:]}")
        return Ran(took, usage.ru_utime + usage.ru_stime, out.read().decode())


def installed(name: str) -> bool:
    return shutil.which(name) is not None


def missing(name: str, what: str) -> Line:
    """Return the line of a measurement whose peer is not installed."""
    return Line(what, f"left out: {name} is not installed")


def rclone_path(endpoint: str, path: str) -> str:
    """Return rclone's name of `bucket/key` on an S3 server."""
    return f":s3,provider=Other,force_path_style=true,endpoint='{endpoint}':{path}"


def rclone_copyto(endpoint: str, file: Path, path: str) -> Ran:
    """Upload a file with rclone's default settings."""
    words = (RCLONE, "copyto", file, rclone_path(endpoint, path), *RCLONE_KEYS)
    return run(words, environ=RCLONE_ENVIRONMENT)


def pigz_rclone(endpoint: str, file: Path, path: str) -> Ran:
    """Compress a file on all processors and upload the stream."""
    script = 'file=$1; shift; pigz -6 -c "$file" | "$@"'
    words = ("sh", "-c", script, "sh", file, RCLONE, "rcat", rclone_path(endpoint, path), *RCLONE_KEYS)
    return run(words, environ=RCLONE_ENVIRONMENT)


def gzip_bytes(*files: Path) -> int:
    """Return the size of the files compressed by `gzip -6`, or by `pigz -6`, which is faster and as good."""
    program = "pigz" if installed("pigz") else "gzip"
    script = f'for file; do {program} -6 -c "$file"; done | wc -c'
    return int(run(("sh", "-c", script, "sh", *files)).output)


def patch_bytes(old: Path, new: Path, folder: Path) -> int:
    """Return the size of a patch that `zstd` makes of two versions of a file."""
    patch = folder / "patch.zst"
    run(("zstd", "-q", "-f", "-3", "--long=31", f"--patch-from={old}", new, "-o", patch))
    try:
        return patch.stat().st_size
    finally:
        patch.unlink()


class Restic:
    """A restic repository in a directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environ = {**os.environ, "RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(folder)}
        run(("restic", "init", "--quiet"), environ=self._environ)

    def added(self, file: Path) -> int:
        """Back a file up; return how many bytes the repository has grown by."""
        before = stored_bytes(self._folder)
        run(("restic", "backup", "--quiet", "--no-cache", file), environ=self._environ)
        return stored_bytes(self._folder) - before


def stored_bytes(folder: Path) -> int:
    """Return the sizes of all files below a directory; a file with several links counts as often."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
