"""Ten uploads to a directory: the space that they take, compared with the largest of them and what changed."""

from pathlib import Path

from tests.bench.databases import Databases
from tests.bench.peers import run
from tests.bench.report import Line, megabytes
from tests.support.machine import Machine

UPLOADS = 10
RATIO = 2.2
CHECKPOINT_EVERY = 3


def lines(folder: Path, databases: Databases, size: int) -> list[Line]:
    """Sync sessions of a database of `size` MiB; every third ends with a checkpoint, the others stay in the WAL."""
    machine = Machine(folder)
    file = databases.copy_to(size, machine.data)
    machine.sync()
    changes = 0
    for number in range(1, UPLOADS):
        databases.session(file, number, checkpoint=number % CHECKPOINT_EVERY == 0)
        changes += machine.sync()["bytes_transferred"]
    if len(machine.manifests) != UPLOADS:
        raise RuntimeError(f"{len(machine.manifests)} uploads instead of {UPLOADS}")
    one = max(manifest["total_size_bytes"] for manifest in machine.manifests)
    used = int(run(("du", "-s", "-B1", machine.bucket)).output.split()[0])
    ratio = (used - changes) / one
    return [
        Line(
            f"{UPLOADS} uploads of {size} MiB to a directory: du",
            f"{megabytes(used)}; one upload {megabytes(one)}, changes {megabytes(changes)}",
            ratio,
            f"{RATIO} x one upload + the changes",
            ratio <= RATIO,
        )
    ]
