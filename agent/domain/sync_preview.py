"""What a sync to the cloud target would send, as far as the ledger and the stats of the files show it.

No file is read: whether a changed file has new bytes, and how large a patch is, is known only when it is copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agent.domain.databases import FileStat, Survey, main_name
from agent.domain.delivery_state import DatabaseRecord, TargetRecord, pending, problems
from agent.domain.upload_parts import PATCHES, Part
from agent.domain.upload_plan import RawFile, largest_patch, layers_to_patch


class FileStep(StrEnum):
    """What a sync would do with a file."""

    UNCHANGED = "unchanged"
    """The store copies it from the last upload."""
    PATCH = "patch"
    """A patch is sent if it pays, else the whole file."""
    WHOLE = "whole"


class DatabaseStep(StrEnum):
    """What a sync would do with a database."""

    UNCHANGED = "unchanged"
    SEND = "send"
    REMOVED = "removed"
    """Its file is no longer on this machine; the last upload is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePreview:
    """A file: its size, and estimates of the bytes to send: the whole file as it is stored, and the largest patch."""

    name: str
    step: FileStep
    size: int
    whole_bytes: int
    patch_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabasePreview:
    """A database, its changed files and those that are sent with it. `problem`: why it could not be copied before."""

    name: str
    step: DatabaseStep
    files: tuple[FilePreview, ...] = ()
    problem: str = ""

    @property
    def most_bytes(self) -> int:
        """An estimate of the bytes that would be sent if no patch pays."""
        return sum(file.whole_bytes for file in self.files)


def preview(
    record: TargetRecord, survey: Survey, *, upload_id: str, mirror: bool, compression: bool, deduplicate: bool
) -> tuple[DatabasePreview, ...]:
    """Return what a sync would do with each database, by name.

    `upload_id` is one that an upload could have now. `mirror`: previous main files are kept, so that patches can be
    made.
    """
    lacking, waiting = pending(record, survey), problems(record, survey)
    found = []
    for name in sorted({*survey, *record.databases}):
        if name not in survey:
            if record.databases[name].was_delivered:
                found.append(DatabasePreview(name=name, step=DatabaseStep.REMOVED))
            continue
        if name not in lacking:
            found.append(DatabasePreview(name=name, step=DatabaseStep.UNCHANGED))
            continue
        known = record.databases.get(name)
        files = [
            _file(name, stat, known, upload_id, mirror=mirror, compression=compression, deduplicate=deduplicate)
            for stat in survey[name].files
        ]
        problem = waiting[name].reason if name in waiting else ""
        found.append(DatabasePreview(name=name, step=DatabaseStep.SEND, files=tuple(files), problem=problem))
    return tuple(found)


def _file(
    database: str,
    stat: FileStat,
    known: DatabaseRecord | None,
    upload_id: str,
    *,
    mirror: bool,
    compression: bool,
    deduplicate: bool,
) -> FilePreview:
    before = _parts(known).get(stat.name) if deduplicate else None
    delivered = known.fingerprint.files if known and known.fingerprint else ()
    whole = _stored_bytes(stat.size, before) if compression else stat.size
    if before is not None and stat in delivered:
        return FilePreview(name=stat.name, step=FileStep.UNCHANGED, size=stat.size, whole_bytes=0)
    is_main = stat.name == main_name(database)
    if mirror and is_main and before is not None and (layers := layers_to_patch(before, upload_id)):
        largest = largest_patch(layers[0][0], RawFile(stat.name, stat.size, "", ()))
        return FilePreview(
            name=stat.name, step=FileStep.PATCH, size=stat.size, whole_bytes=whole, patch_bytes=min(largest, whole)
        )
    return FilePreview(name=stat.name, step=FileStep.WHOLE, size=stat.size, whole_bytes=whole)


def _parts(known: DatabaseRecord | None) -> Mapping[str, Part]:
    return {part.name: part for part in known.parts} if known else {}


def _stored_bytes(size: int, before: Part | None) -> int:
    """Return an estimate of the compressed size: as the delivered state of the file was compressed."""
    if before is None or not before.raw_size or before.compression in ("none", PATCHES):
        return size
    return min(size, size * before.stored_size // before.raw_size)
