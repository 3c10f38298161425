"""The plan of an upload: the files to send, to copy within the store or to carry over, and the size of parts."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agent.domain.delivery_state import TargetRecord
from agent.domain.manifest import Compression, Part

MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of a staged snapshot: its name in the data directory, its size, and its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Send:
    """Compress and send a file."""

    database: str
    file: RawFile


@dataclass(frozen=True, slots=True)
class Reuse:
    """Let the store copy an object of the last upload. `carried`: the database's current state is not uploaded."""

    part: Part
    carried: bool


def plan(
    staged: Mapping[str, Collection[RawFile]],
    record: TargetRecord,
    *,
    carried: Collection[str],
    compression: Compression,
    deduplicate: bool,
) -> tuple[Send | Reuse, ...]:
    """Return a step for each file, so that the upload is complete.

    `staged` are the databases with a snapshot. A file of a staged database is reused if the last upload has it with the
    same digest, size and compression. All files of a database that is not staged are reused; those of a database in
    `carried` are marked, because they are not its current state.
    """
    steps: list[Send | Reuse] = []
    for database in sorted({*staged, *record.databases}):
        before = record.databases[database].parts if database in record.databases else ()
        if database not in staged:
            steps += [Reuse(part, carried=database in carried) for part in before]
            continue
        known = {(p.name, p.sha256, p.raw_size, p.compression): p for p in before} if deduplicate else {}
        for file in staged[database]:
            same = known.get((file.name, file.sha256, file.size, compression))
            steps.append(Reuse(same, carried=False) if same else Send(database, file))
    return tuple(steps)


def part_bytes(raw_size: int, chunk_bytes: int) -> int:
    """Return the size of all parts except the last: the setting, or more if the upload would exceed 10,000 parts.

    `raw_size` bounds the compressed size: gzip adds at most a few bytes in ten thousand.
    """
    largest = raw_size + raw_size // 1000 + 65_536
    needed = math.ceil(largest / MAX_PARTS)
    mebibyte = 2**20
    return chunk_bytes if needed <= chunk_bytes else math.ceil(needed / mebibyte) * mebibyte
