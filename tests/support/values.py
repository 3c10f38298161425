"""Creates values of the domain in one line, for tests of their users."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from agent.domain import naming
from agent.domain.databases import FileStat, Fingerprint, main_name
from agent.domain.delivery_state import Intent, Problem, Target
from agent.domain.events import (
    MethodError,
    SyncFailed,
    SyncRequested,
    SyncSkipped,
    SyncSucceeded,
    outcome_event_id,
    request_event_id,
    upload_event_id,
)
from agent.domain.manifest import Manifest
from agent.domain.upload_parts import PATCHES, Layer, MemoriesPart, Origin, Part, part_keys

SYSTEM = "laptop-7"
TARGET = Target(method="cloud", endpoint="https://s3.example.com", bucket="memories", system_id=SYSTEM)
OTHER_TARGET = replace(TARGET, bucket="elsewhere")
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def upload_id(second: int = 0) -> str:
    return naming.upload_id(NOON + timedelta(seconds=second), SYSTEM)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(database: str, generation: int = 0) -> Fingerprint:
    """Return the fingerprint of a database at its nth generation."""
    stats = tuple(
        FileStat(name=main_name(database) + suffix, inode=2**63 + size, size=size, mtime_ns=10**18 + generation)
        for suffix, size in (("", 12_288), (".wal", 64 + generation))
    )
    return Fingerprint(files=stats, header=sha256(f"{database} {generation}"))


def parts(database: str, generation: int = 0, *, second: int = 0, origin: Origin = "sent") -> tuple[Part, ...]:
    """Return a database's main file and sidecar at its nth generation, as parts of the upload of that second."""
    names = (main_name(database), main_name(database) + ".wal")
    return tuple(
        Part(
            database=database,
            name=name,
            key=naming.object_key(SYSTEM, upload_id(second), naming.object_name(name)),
            raw_size=1_000 + generation,
            stored_size=800 + generation,
            sha256=sha256(f"{name} {generation}"),
            compression="gzip",
            origin=origin,
            verified=True,
            header_iteration=generation if name == main_name(database) else None,
            carried_from=upload_id(second - 10) if origin == "carried" else None,
        )
        for name in names
    )


def patched_part(
    generations: Sequence[int], *, second: int = 0, base_bytes: int = 40 * 2**20, patch_bytes: int = 4 * 2**20
) -> Part:
    """Return reflection.duckdb as the upload of that second has it: the base of the first generation, and patches."""
    name = main_name("reflection")
    keys = part_keys(SYSTEM, upload_id(second), name, layers=len(generations))
    layers = tuple(
        Layer(
            key=key,
            raw_size=patch_bytes if number else 50 * 2**20,
            stored_size=patch_bytes if number else base_bytes,
            sha256=sha256(f"patch {generation}") if number else sha256(f"{name} {generation}"),
            compression="none" if number else "gzip",
            etag=f"etag-{generation}",
            file_size=50 * 2**20,
            file_sha256=sha256(f"{name} {generation}"),
            upload_id=upload_id(second),
        )
        for number, (key, generation) in enumerate(zip(keys, generations, strict=True))
    )
    return Part(
        database="reflection",
        name=name,
        key=keys[0],
        raw_size=50 * 2**20,
        stored_size=sum(layer.stored_size for layer in layers),
        sha256=layers[-1].file_sha256,
        compression=PATCHES,
        origin="sent",
        verified=True,
        layers=layers,
    )


def memories_part(second: int = 0, *, count: int = 3, gzipped: bool = True, **bases: int | None) -> MemoriesPart:
    """Return the memories part of the upload of that second; `bases`: database=second of its base, or None."""
    return MemoriesPart(
        key=naming.memories_key(SYSTEM, upload_id(second), gzipped=gzipped),
        raw_size=1_000 * count,
        stored_size=(400 if gzipped else 1_000) * count,
        sha256=sha256(f"memories {second} {count}"),
        compression="gzip" if gzipped else "none",
        count=count,
        bases={name: None if base is None else upload_id(base) for name, base in bases.items()},
    )


def manifest(second: int = 0, request_id: str = "r1", **databases: int | tuple[int, Origin]) -> Manifest:
    """Return the manifest of the upload of that second: database=generation, or database=(generation, origin)."""
    all_parts: list[Part] = []
    for database, version in databases.items():
        generation, origin = version if isinstance(version, tuple) else (version, "sent")
        all_parts += parts(database, generation, second=second, origin=origin)
    return Manifest(
        system_id=SYSTEM,
        upload_id=upload_id(second),
        uploaded_at=NOON + timedelta(seconds=second),
        request_id=request_id,
        agent_id="agent-1",
        triggered_by="manual",
        parts=tuple(all_parts),
        rows={database: {"conversations_v2": 40 + second} for database in databases},
        bytes_sent=1_600,
        duration_seconds=1.5,
        agent_version="1.2.3",
    )


def intent(second: int = 0, request_id: str = "r1", **databases: int) -> Intent:
    """Return the intent that precedes `manifest(second, request_id, **databases)`."""
    digests = manifest(second, request_id, **databases).digests(databases)
    return Intent(request_id=request_id, upload_id=upload_id(second), digests=digests, databases=tuple(databases))


def problem(database: str, generation: int = 0, *, retry_at: datetime | None = None) -> Problem:
    return Problem(
        reason="it is a folder", fingerprint=fingerprint(database, generation), failures=2, retry_at=retry_at
    )


def request(
    request_id: str = "r1", *, route: tuple[str, ...] = ("cloud", "http"), reason: str = "manual"
) -> SyncRequested:
    return SyncRequested(
        id=request_event_id(request_id, route[0]),
        time=NOON,
        system_id=SYSTEM,
        request_id=request_id,
        agent_id="agent-1",
        reason=reason,
        route=route,
    )


def succeeded(of: Manifest, *, time: datetime | None = None) -> SyncSucceeded:
    return SyncSucceeded(
        id=upload_event_id(of.upload_id, of.agent_id),
        time=time or of.uploaded_at,
        system_id=SYSTEM,
        request_id=of.request_id,
        method="cloud",
        success=True,
        files_uploaded=tuple(part.key for part in of.parts),
        bytes_transferred=of.bytes_sent,
        duration_seconds=of.duration_seconds,
        upload_id=of.upload_id,
        triggered_by=of.triggered_by,
        location="s3://memories",
        manifest_key=of.key,
        incomplete=dict(of.incomplete),
    )


def skipped(request_id: str = "r1", *, time: datetime = NOON) -> SyncSkipped:
    return SyncSkipped(
        id=outcome_event_id(request_id, "skipped"),
        time=time,
        system_id=SYSTEM,
        request_id=request_id,
        method="cloud",
        success=True,
        triggered_by="file_change",
        why="nothing has changed",
    )


def failed(request_id: str = "r1", *, time: datetime = NOON) -> SyncFailed:
    return SyncFailed(
        id=outcome_event_id(request_id, "failed"),
        time=time,
        system_id=SYSTEM,
        request_id=request_id,
        method="http",
        success=False,
        error="cloud: 403",
        triggered_by="file_change",
        errors=(MethodError(method="cloud", error="403"),),
        retry_at=NOON + timedelta(minutes=1),
    )
