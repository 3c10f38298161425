"""The plan of an upload: the files to send, to patch, to copy within the store or to carry over; the size of parts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from agent.domain import naming
from agent.domain.delivery_state import TargetRecord
from agent.domain.upload_parts import PATCHES, Compression, Layer, Part, part_keys

MAX_PARTS = 10_000

LEAST_PATCHED_BYTES = 8 * 2**20
"""Stored size below which a file is sent whole."""

MOST_PATCHES = 10
"""Maximum number of patches on a base. Each is a request in every upload, and a step of every restore."""

OLDEST_BASE = timedelta(days=30)
"""A base that has been patched for longer is replaced by the whole file."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of a staged snapshot: its name in the data directory, its size, its SHA-256 and its checksums.

    `checksums`: the CRC-32 of each mebibyte, which must still be the same when the file is sent.
    """

    name: str
    size: int
    sha256: str
    checksums: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Send:
    """Compress and send a file."""

    database: str
    file: RawFile

    @property
    def sent_bytes(self) -> int:
        """The number of bytes to send, before compression."""
        return self.file.size


@dataclass(frozen=True, slots=True)
class Patch:
    """Let the store copy the layers of the last upload, and send a patch that makes a file from the last of them.

    `patch` is a file in the snapshot's folder.
    """

    database: str
    file: RawFile
    layers: tuple[Layer, ...]
    patch: RawFile

    @property
    def sent_bytes(self) -> int:
        """The number of bytes to send."""
        return self.patch.size


@dataclass(frozen=True, slots=True)
class Reuse:
    """Let the store copy a file of the last upload. `carried`: the database's current state is not uploaded."""

    part: Part
    carried: bool

    @property
    def sent_bytes(self) -> int:
        """Zero: the store copies the file."""
        return 0


def plan(
    staged: Mapping[str, Collection[RawFile]],
    record: TargetRecord,
    *,
    carried: Collection[str],
    compression: Compression,
    deduplicate: bool,
    patches: Collection[Patch] = (),
) -> tuple[Send | Patch | Reuse, ...]:
    """Return a step for each file, so that the upload is complete.

    `staged` are the databases with a snapshot. A file of a staged database is reused if the last upload has it with the
    same digest and size, stored with this compression or as patches. Otherwise it is sent, as one of the `patches` if
    there is one for it. All files of a database that is not staged are reused; those of a database in `carried` are
    marked, because they are not its current state.
    """
    patched = {patch.file: patch for patch in patches}
    steps: list[Send | Patch | Reuse] = []
    for database in sorted({*staged, *record.databases}):
        before = record.databases[database].parts if database in record.databases else ()
        if database not in staged:
            steps += [Reuse(part, carried=database in carried) for part in before]
            continue
        usable = [part for part in before if part.compression in (compression, PATCHES)] if deduplicate else []
        known = {(part.name, part.sha256, part.raw_size): part for part in usable}
        for file in staged[database]:
            same = known.get((file.name, file.sha256, file.size))
            if same:
                steps.append(Reuse(same, carried=False))
            else:
                steps.append(patched.get(file) or Send(database, file))
    return tuple(steps)


def is_worth_continuing(
    unfinished: Mapping[str, str], staged: Mapping[str, Collection[RawFile]], chunk_bytes: int
) -> bool:
    """Return whether an unfinished upload of other bytes goes on with these files under its ID.

    It does if one of its large files, which are sent in parts, is the same. `unfinished`: file name -> SHA-256. It does
    not if one of its files is gone: where the agent may not delete, an old WAL would stay beside a newer main file.
    """
    files = [file for each in staged.values() for file in each]
    is_kept = any(unfinished.get(file.name) == file.sha256 and file.size > chunk_bytes for file in files)
    return is_kept and unfinished.keys() <= {file.name for file in files}


def layers_to_patch(part: Part, upload_id: str) -> tuple[Sequence[Layer], ...]:
    """Return the layers that a new upload can put a patch on: all of a delivered file, or its base; the best first.

    Empty if a patch would not pay: the file is small, or its base is old. A patch on the base is larger than one on the
    last state, but makes the patches in between unnecessary.
    """
    base = part.layers[0] if part.layers else _as_base(part, upload_id)
    patches = part.layers[1:]
    age = naming.upload_time(upload_id) - naming.upload_time(base.upload_id)
    if not _is_large(base.stored_size) or age > OLDEST_BASE:
        return ()
    if len(patches) < MOST_PATCHES and sum(patch.stored_size for patch in patches) <= base.stored_size:
        return (part.layers or (base,), (base,)) if patches else ((base,),)
    return ((base,),)


def references(part: Part) -> frozenset[str]:
    """Return the SHA-256 of the files that patches on a delivered file may refer to: the file itself, and its base."""
    base = part.layers[0].stored_size if part.layers else part.stored_size
    return frozenset({part.sha256, *(layer.file_sha256 for layer in part.layers[:1])} if _is_large(base) else ())


def largest_patch(base: Layer, file: RawFile) -> int:
    """Return the size in bytes up to which a patch pays: half of what the whole file would need."""
    return base.stored_size * file.size // max(base.file_size, 1) // 2


def patched_layers(step: Patch, *, system_id: str, upload_id: str) -> tuple[Layer, ...]:
    """Return the layers of a file in a new upload, without ETags: those that the store copies, then the patch."""
    keys = part_keys(system_id, upload_id, step.file.name, layers=len(step.layers) + 1)
    copied = [replace(layer, key=key, etag="") for layer, key in zip(step.layers, keys, strict=False)]
    patch = Layer(
        key=keys[-1],
        raw_size=step.patch.size,
        stored_size=step.patch.size,
        sha256=step.patch.sha256,
        compression="none",
        file_size=step.file.size,
        file_sha256=step.file.sha256,
        upload_id=upload_id,
    )
    return (*copied, patch)


def _is_large(stored_bytes: int) -> bool:
    return stored_bytes >= LEAST_PATCHED_BYTES


def _as_base(part: Part, upload_id: str) -> Layer:
    """Return a file that was sent whole as the base of a new upload's patch."""
    (stored,) = part.objects
    return Layer(
        key=stored.key,
        raw_size=stored.raw_size,
        stored_size=stored.stored_size,
        sha256=stored.sha256,
        compression=stored.compression,
        etag=stored.etag,
        file_size=part.raw_size,
        file_sha256=part.sha256,
        upload_id=upload_id,
    )


def part_bytes(raw_size: int, chunk_bytes: int) -> int:
    """Return the size of all parts except the last: the setting, or more if the upload would exceed 10,000 parts.

    `raw_size` bounds the compressed size: gzip adds at most a few bytes in ten thousand.
    """
    largest = raw_size + raw_size // 1000 + 65_536
    needed = math.ceil(largest / MAX_PARTS)
    mebibyte = 2**20
    return chunk_bytes if needed <= chunk_bytes else math.ceil(needed / mebibyte) * mebibyte
