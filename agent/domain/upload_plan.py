"""The plan of an upload: which file is sent, which the store copies, which is carried over; how big its parts are."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from agent.domain.delivery_state import TargetRecord
from agent.domain.manifest import Compression, Part

MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of a staged snapshot: its name in the data directory, its size, and the SHA-256 of its bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Send:
    """Compress it and send it."""

    database: str
    file: RawFile


@dataclass(frozen=True, slots=True)
class Reuse:
    """Have the store copy what the last upload has. `carried`: it replaces a state that could not be copied."""

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
    """Return what to do for each file, so that the upload is whole.

    `staged` are the databases with a snapshot. Of a staged database, a file whose digest, size and compression the
    last upload has is reused. A database that is not staged is reused whole; those in `carried` are marked so, because
    what is delivered of them is not their present state.
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
    """Return the size of all parts but the last: the chunk as set, more only where 10,000 parts would not do.

    `raw_size` bounds what compression can make of it: gzip adds at most a few bytes in ten thousand.
    """
    most = raw_size + raw_size // 1000 + 65_536
    needed = math.ceil(most / MAX_PARTS)
    mebibyte = 2**20
    return chunk_bytes if needed <= chunk_bytes else math.ceil(needed / mebibyte) * mebibyte
