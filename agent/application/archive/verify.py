"""Verify that an upload is complete: shallow, by the metadata of its objects; deep, by their contents.

A shallow verification costs one request per object. In a directory, which keeps no checksums, it reads every object: a
failing disk changes neither size nor mtime. It finds missing objects, objects of another size, objects whose metadata
has another SHA-256 than the manifest, and objects with another ETag (or digest) than the store returned when they were
written. A deep verification compares the bytes and ignores ETags: uploads that were mirrored into another bucket may
have other ETags.
"""

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.application.archive.catalog import (
    MISSING,
    Catalog,
    expected_sizes,
    impossible_values,
    object_name,
    size_problem,
)
from agent.application.sync.bucket_uploads import NotAManifest
from agent.application.sync.download import UNREADABLE, Downloader, DownloadError, disk_bytes
from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.errors import NoSuchObject, SnapshotError, UnreadableObject, WireError
from agent.domain.events import UploadVerified, archive_event_id
from agent.domain.identity import Identity
from agent.domain.manifest import Manifest
from agent.domain.parsing import parse_json
from agent.domain.plain_text import shorten
from agent.domain.upload_parts import MemoriesPart, ObjectRecord
from agent.ports import Clock, MemoriesFile, ObjectStore, Patcher, Progress, ignore_progress, is_changed
from agent.ports.concurrency import gather_all
from agent.ports.objects import FILE_TAG
from agent.ports.unpacking import Unpacker

CHECKED_AT_ONCE = 8
"""Maximum number of objects checked in parallel."""

MOST_PROBLEMS = 20
LONGEST_PROBLEM = 300
"""Maximum number of problems in an event, and of characters per problem, so that every result fits into an event."""

OTHER_BYTES = "was modified after the upload: its ETag or digest differs (verify --deep compares the contents)"
_CHANGED = "was modified after the upload: its SHA-256 differs"


class Verdict(Protocol):
    """The result of reading a database. `damaged`: the database is damaged, rather than unreadable by this DuckDB."""

    @property
    def verified(self) -> bool: ...

    @property
    def reason(self) -> str: ...

    @property
    def damaged(self) -> bool: ...

    @property
    def rows(self) -> Mapping[str, int]: ...


Examine = Callable[[Path], Awaitable[Verdict]]
"""Opens a database's main file and its sidecars in a separate process, and reads every table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepCheckTools:
    """What a deep verification uses to download objects, read databases and read memories.json."""

    unpacker: Unpacker
    patcher: Patcher
    examine: Examine
    memories_file: MemoriesFile


class DeepCheck:
    """Verifies the contents of objects. Adds what it finds to `problems`, by the object's name in the upload.

    Raises StoreError if the store does not answer; StagingFull, StateError for errors of the local disk.
    """

    def __init__(self, catalog: Catalog, tools: DeepCheckTools) -> None:
        self._tools = tools
        self._downloader = Downloader(
            store=catalog.store, unpacker=tools.unpacker, patcher=tools.patcher, stall_limit=catalog.stall_limit
        )

    async def database(
        self,
        manifest: Manifest,
        database: str,
        problems: dict[str, str],
        notes: dict[str, str],
        progress: Progress,
    ) -> None:
        """Download a database's files. If all are intact, open the database and read every table."""
        parts = manifest.of(database)
        intact = [part for part in parts if not any(object_name(item.key) in problems for item in part.objects)]
        async with self._tools.unpacker.folder(sum(disk_bytes(part) for part in intact)) as folder:
            complete = len(intact) == len(parts)
            for part in intact:
                try:
                    await self._downloader.download(part, folder / part.name, progress)
                except DownloadError as error:
                    problems[object_name(error.key)] = error.problem
                    complete = False
            if not complete:
                return
            main = next((part for part in parts if part.name == main_name(database)), None)
            if main is None:
                problems[object_name(parts[0].key)] = f"belongs to {main_name(database)}, which is not in the upload"
                return
            verdict = await self._tools.examine(folder / main.name)
            rows = manifest.rows.get(database)
            if verdict.verified and rows is not None and dict(verdict.rows) != dict(rows):
                problems[object_name(main.key)] = f"has other row counts than its manifest: {_differing(rows, verdict)}"
            elif not verdict.verified and verdict.damaged and main.verified:
                problems[object_name(main.key)] = verdict.reason
            elif not verdict.verified:
                notes[database] = verdict.reason

    async def memories(
        self, manifest: Manifest, recorded: MemoriesPart, problems: dict[str, str], progress: Progress
    ) -> None:
        """Download memories.json and read all of it."""
        async with self._tools.unpacker.folder(recorded.raw_size) as folder:
            path, name = folder / naming.MEMORIES_NAME, object_name(recorded.key)
            count = 0
            try:
                await self._downloader.download(recorded, path, progress)
                source = self._tools.memories_file.open(path, manifest.system_id)
                async with aclosing(source.pages()) as pages:
                    async for page in pages:
                        count += len(page)
            except DownloadError as error:
                problems[name] = error.problem
            except (WireError, SnapshotError) as error:
                problems[name] = error.message
            else:
                if count != recorded.count:
                    problems[name] = f"has {count} memories, but the manifest records {recorded.count}"


def _differing(rows: Mapping[str, int], verdict: Verdict) -> str:
    names = sorted({*rows, *verdict.rows})
    return ", ".join(
        f"{name} {verdict.rows.get(name, 0)}, not {rows.get(name, 0)}"
        for name in names
        if verdict.rows.get(name) != rows.get(name)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """The result of a verification. `problems` maps object names in the upload to what is wrong with them.

    `notes` maps databases that could not be opened here to the reason; this does not count as damage. `left_out` names
    the databases, or memories.json, that were not downloaded because of `most_bytes`; the event then says that the
    verification was not deep. `manifest` is None if it is missing (then the upload does not exist) or unreadable.
    """

    upload_id: str
    deep: bool
    objects: int
    manifest: Manifest | None
    problems: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    duration_seconds: float = 0.0

    @property
    def whole(self) -> bool:
        return not self.problems

    @property
    def unverified(self) -> Mapping[str, str]:
        """Databases whose copies DuckDB had not read completely at the upload, with the reason in the manifest.

        After a deep verification, only those that it did not read either.
        """
        parts = self.manifest.parts if self.manifest else ()
        found = {part.database: part.unverified_reason or "unknown" for part in parts if not part.verified}
        read_now = found.keys() - self.notes.keys() - {*self.left_out} if self.deep and self.whole else set[str]()
        return {name: reason for name, reason in sorted(found.items()) if name not in read_now}

    @property
    def is_missing(self) -> bool:
        """Whether the upload does not exist: it has no manifest."""
        return self.manifest is None and self.problems.get(naming.MANIFEST_NAME) == MISSING

    @property
    def damaged(self) -> frozenset[str]:
        """The databases that the next upload has to send again instead of copying them from this one."""
        if self.manifest is None:
            return frozenset()
        parts = {object_name(item.key): part.database for part in self.manifest.parts for item in part.objects}
        found = {parts[name] for name in self.problems if name in parts}
        if (memories := self.manifest.memories) and object_name(memories.key) in self.problems:
            found |= memories.bases.keys()
        if naming.MANIFEST_NAME in self.problems:
            found |= {*parts.values()}
        return frozenset(found)

    def event(self, identity: Identity, clock: Clock) -> UploadVerified:
        """Return the UploadVerified event of this result."""
        now = clock.now()
        first = sorted(self.problems.items())[:MOST_PROBLEMS]
        recorded = {shorten(name, LONGEST_PROBLEM): shorten(problem, LONGEST_PROBLEM) for name, problem in first}
        if more := len(self.problems) - len(first):
            recorded["..."] = f"{more} more"
        return UploadVerified(
            id=archive_event_id(self.upload_id, identity.agent_id, "verified", now),
            time=now,
            system_id=identity.system_id,
            upload_id=self.upload_id,
            whole=self.whole,
            deep=self.deep and not self.left_out,
            objects=self.objects,
            problems=recorded,
            duration_seconds=self.duration_seconds,
        )


def missing_upload(upload: str) -> VerifyResult:
    """Return the result for an upload that does not exist."""
    return VerifyResult(
        upload_id=upload, deep=False, objects=1, manifest=None, problems={naming.MANIFEST_NAME: MISSING}
    )


class Verifier:
    """Verifies uploads of one catalog. Raises StoreError if the store cannot be read, which is not damage."""

    def __init__(self, catalog: Catalog, clock: Clock, deep: DeepCheckTools | None = None) -> None:
        self._catalog, self._clock = catalog, clock
        self._deep = None if deep is None else DeepCheck(catalog, deep)

    async def shallow(self, upload: str) -> VerifyResult:
        """Verify the manifest, and the store's metadata of every object."""
        return await self._check(upload, tags=True)

    async def _check(self, upload: str, *, tags: bool) -> VerifyResult:
        started = self._clock.monotonic()
        manifest, problems = await self._manifest(upload)
        if manifest is not None:
            problems |= await self._objects(manifest, tags=tags)
            if problems and not await self.exists(upload):  # deleted during the verification
                manifest, problems = None, {naming.MANIFEST_NAME: MISSING}
        return VerifyResult(
            upload_id=upload,
            deep=False,
            objects=1 + len(expected_sizes(manifest) if manifest else ()),
            manifest=manifest,
            problems=problems,
            duration_seconds=self._since(started),
        )

    async def uploads(self) -> Sequence[str]:
        """Return the IDs of the uploads, newest first."""
        return await self._catalog.ids()

    async def exists(self, upload: str) -> bool:
        """Return whether an upload exists: whether its manifest does."""
        async with self._catalog.stall_limit():
            return await self._catalog.uploads.exists(upload)

    async def deep(
        self,
        upload: str,
        progress: Progress = ignore_progress,
        started: Progress = ignore_progress,
        *,
        most_bytes: int | None = None,
    ) -> VerifyResult:
        """Verify as `shallow` does, without ETags; then download, hash and read all objects.

        `started` gets the number of bytes to download, `progress` the number of bytes of each piece. `most_bytes`
        limits the download: a database, or memories.json, that exceeds the rest of the limit is left out. Raises
        StagingFull, StateError for errors of the local disk.
        """
        assert self._deep is not None
        start = self._clock.monotonic()
        found = await self._check(upload, tags=False)
        problems, notes, left_out = dict(found.problems), dict[str, str](), list[str]()
        if (manifest := found.manifest) is not None:
            sizes = {key: size for key, size in expected_sizes(manifest).items() if object_name(key) not in problems}
            started(sum(sizes.values()))
            bytes_left = math.inf if most_bytes is None else most_bytes
            for database in dict.fromkeys(part.database for part in manifest.parts):
                size = sum(part.stored_size for part in manifest.of(database))
                if size > bytes_left:
                    left_out.append(database)
                    continue
                bytes_left -= size
                await self._deep.database(manifest, database, problems, notes, progress)
            if (memories := manifest.memories) and memories.key in sizes:
                if memories.stored_size > bytes_left:
                    left_out.append(object_name(memories.key))
                else:
                    await self._deep.memories(manifest, memories, problems, progress)
            if problems.keys() - found.problems.keys() and not await self.exists(upload):
                manifest, problems = None, {naming.MANIFEST_NAME: MISSING}
        return VerifyResult(
            upload_id=upload,
            deep=True,
            objects=found.objects,
            manifest=manifest,
            problems=problems,
            notes=notes,
            left_out=tuple(left_out),
            duration_seconds=self._since(start),
        )

    async def _manifest(self, upload: str) -> tuple[Manifest | None, dict[str, str]]:
        """Return the manifest and its problems. The manifest is None if it is missing, unreadable or impossible."""
        try:
            async with self._catalog.stall_limit() as record_progress:
                read = await self._catalog.uploads.manifest_with_bytes(upload)
                record_progress()
                if read is None:
                    return None, {naming.MANIFEST_NAME: MISSING}
                manifest, data = read
                recorded = (await self._catalog.store.head(manifest.key)).metadata
        except NotAManifest as error:
            return None, {naming.MANIFEST_NAME: str(error)}
        except NoSuchObject:
            return None, {naming.MANIFEST_NAME: MISSING}
        if problems := impossible_values(manifest):
            return None, problems
        return manifest, _changed(manifest, data, recorded.get("sha256"))

    async def _objects(self, manifest: Manifest, *, tags: bool) -> dict[str, str]:
        parts = manifest.objects
        slots = asyncio.Semaphore(CHECKED_AT_ONCE)
        async with self._catalog.stall_limit() as record_progress:

            async def check(part: ObjectRecord) -> str:
                async with slots:
                    problem = await _object_problem(self._catalog.store, part, lambda _: record_progress(), tags=tags)
                    record_progress()
                    return problem

            found = await gather_all([check(part) for part in parts], "check-object")
        return {object_name(part.key): problem for part, problem in zip(parts, found, strict=True) if problem}

    def _since(self, started: float) -> float:
        return round(self._clock.monotonic() - started, 3)


async def _object_problem(store: ObjectStore, part: ObjectRecord, progress: Progress, *, tags: bool) -> str:
    """Return how the store's metadata of an object differs from the manifest, "" if it does not."""
    try:
        found = await (store.inspect(part.key, progress=progress) if tags else store.head(part.key))
    except NoSuchObject:
        return MISSING
    except UnreadableObject:
        return UNREADABLE
    if found.size != part.stored_size:
        return size_problem(found.size, part.stored_size)
    recorded = {name: found.metadata[name] for name in part.metadata if name in found.metadata}
    if recorded.get("sha256", part.sha256) != part.sha256:
        return "is another object: the SHA-256 in its metadata is not the one in the manifest"
    if wrong := sorted(name for name, value in recorded.items() if value != part.metadata[name]):
        return f"is another object: the {wrong[0]} in its metadata is not the one in the manifest"
    if tags and is_changed(expected_etag(part, found.etag), found.etag):
        return OTHER_BYTES
    return ""


def changed_tags(manifest: Manifest, tags: Mapping[str, str]) -> dict[str, str]:
    """Return object name -> problem for objects with another ETag than the manifest records.

    `tags` maps object names to the ETags of a listing; an object without an ETag in one of them is not compared.
    """
    named = {object_name(part.key): part for part in manifest.objects}
    return {name: OTHER_BYTES for name, part in named.items() if is_changed(part.etag, tags.get(name, ""))}


def expected_etag(part: ObjectRecord, found: str = "") -> str:
    """Return the ETag that an object should have, "" if unknown.

    If the ETag `found` is a digest, the one expected of an uncompressed object follows from its SHA-256.
    """
    if found.startswith(FILE_TAG) and part.compression == "none":
        return FILE_TAG + part.sha256
    return part.etag


def _changed(manifest: Manifest, data: bytes, recorded: str | None) -> dict[str, str]:
    """Return the problem of the manifest's bytes, by the SHA-256 in the metadata and the checksum in the manifest."""
    if recorded is not None and hashlib.sha256(data).hexdigest() != recorded:
        return {naming.MANIFEST_NAME: _CHANGED}
    try:
        document = parse_json(data)
    except ValueError:
        return {naming.MANIFEST_NAME: _CHANGED}
    if document.get("checksum") != json.loads(manifest.encode())["checksum"]:
        return {naming.MANIFEST_NAME: "was modified: its checksum does not match its parts"}
    return {}
