"""Is an upload whole? Shallow: by what the store says of its objects. Deep: by their bytes, and what is in them.

The shallow look costs a request an object; in a directory, which keeps no checksums, it reads the objects through:
neither size nor mtime changes when a disk goes bad. It finds what is missing, what has another size, what carries
another SHA-256 in its metadata than the manifest has, and what has another ETag (or digest) than the store answered
when it was written. The deep look compares the bytes themselves, so it takes no ETag for damage: uploads that were
mirrored into another bucket may have others.
"""

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.application.archive.catalog import (
    NOT_THERE,
    Catalog,
    expected_sizes,
    implausible,
    object_name,
    other_size,
)
from agent.application.sync.bucket_uploads import NotAManifest
from agent.domain import naming
from agent.domain.databases import main_name
from agent.domain.errors import NoSuchObject, SnapshotError, WireError
from agent.domain.events import UploadVerified, archive_event_id
from agent.domain.identity import Identity
from agent.domain.manifest import Compression, Manifest, MemoriesPart, Part
from agent.domain.plain_text import shorten
from agent.ports import Clock, MemoriesFile, ObjectStore, Progress, ignore_progress, is_changed
from agent.ports.concurrency import all_of
from agent.ports.landing import Landing
from agent.ports.objects import FILE_TAG


class Verdict(Protocol):
    """What a look into a database found. `damaged`: it looks wrong, rather than that it cannot be looked into here."""

    @property
    def verified(self) -> bool: ...

    @property
    def reason(self) -> str: ...

    @property
    def damaged(self) -> bool: ...

    @property
    def rows(self) -> Mapping[str, int]: ...


Examine = Callable[[Path], Awaitable[Verdict]]
"""Opens a database's main file, sidecars beside it, in a process of its own, and reads every table through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepCheckTools:
    """What a deep look needs: where objects become files, who reads databases, and who reads memories."""

    landing: Landing
    examine: Examine
    memories_file: MemoriesFile


class DeepCheck:
    """Looks into the objects of one archive. What it finds goes into `problems`, by an object's name in the upload.

    Raises StoreError where the store does not answer; StagingFull, StateError for our own disk.
    """

    def __init__(self, archive: Catalog, tools: DeepCheckTools) -> None:
        self._archive, self._tools = archive, tools

    async def database(
        self,
        manifest: Manifest,
        database: str,
        problems: dict[str, str],
        notes: dict[str, str],
        progress: Progress,
    ) -> None:
        """Download a database, and read it where all of it is as it should be."""
        parts = manifest.of(database)
        sound = [part for part in parts if object_name(part.key) not in problems]
        async with self._tools.landing.folder(sum(part.raw_size for part in sound)) as folder:
            for part in sound:
                if why := await self._fetch(part, folder / part.name, progress):
                    problems[object_name(part.key)] = why
            if len(sound) < len(parts) or any(object_name(part.key) in problems for part in parts):
                return
            main = next((part for part in parts if part.name == main_name(database)), None)
            if main is None:
                problems[object_name(parts[0].key)] = f"is part of {main_name(database)}, which is not in the upload"
                return
            verdict = await self._tools.examine(folder / main.name)
            rows = manifest.rows.get(database)
            if verdict.verified and rows is not None and dict(verdict.rows) != dict(rows):
                problems[object_name(main.key)] = f"has other rows than its manifest tells: {_differing(rows, verdict)}"
            elif not verdict.verified and verdict.damaged and main.verified:
                problems[object_name(main.key)] = verdict.reason
            elif not verdict.verified:
                notes[database] = verdict.reason

    async def memories(
        self, manifest: Manifest, recorded: MemoriesPart, problems: dict[str, str], progress: Progress
    ) -> None:
        """Download memories.json, and read it to its end."""
        async with self._tools.landing.folder(recorded.size) as folder:
            path = folder / naming.MEMORIES_NAME
            why = await self._fetch(recorded, path, progress)
            if not why:
                source, count = self._tools.memories_file.open(path, manifest.system_id), 0
                try:
                    async with aclosing(source.pages()) as pages:
                        async for page in pages:
                            count += len(page)
                except (WireError, SnapshotError) as error:
                    why = error.message
                else:
                    why = (
                        "" if count == recorded.count else f"has {count} memories, its manifest tells {recorded.count}"
                    )
            if why:
                problems[naming.MEMORIES_NAME] = why

    async def _fetch(self, recorded: Part | MemoriesPart, path: Path, progress: Progress) -> str:
        """Download an object to a file; return what is wrong with it, "" for nothing."""
        compression: Compression
        compression, stored_size, raw_size = (
            (recorded.compression, recorded.stored_size, recorded.raw_size)
            if isinstance(recorded, Part)
            else ("none", recorded.size, recorded.size)
        )

        async def watched() -> AsyncIterator[bytes]:
            async for piece in pieces:
                moved()
                progress(len(piece))
                yield piece

        try:
            async with self._archive.moving() as moved, aclosing(self._archive.store.get(recorded.key)) as pieces:
                await self._tools.landing.land(
                    watched(),
                    path,
                    compression=compression,
                    stored_size=stored_size,
                    raw_size=raw_size,
                    sha256=recorded.sha256,
                )
        except NoSuchObject:
            return NOT_THERE
        except WireError as error:
            return error.message.removeprefix(f"{path.name} ")
        return ""


def _differing(rows: Mapping[str, int], verdict: Verdict) -> str:
    names = sorted({*rows, *verdict.rows})
    return ", ".join(
        f"{name} {verdict.rows.get(name, 0)}, not {rows.get(name, 0)}"
        for name in names
        if verdict.rows.get(name) != rows.get(name)
    )


CHECKED_AT_ONCE = 8
"""Objects that are asked for at a time."""

MOST_PROBLEMS = 20
LONGEST_PROBLEM = 300
"""How many problems an event names, and how much of each: whatever is in the bucket, it fits into an event."""

OTHER_BYTES = "has other bytes than were put there: its ETag or digest is another (verify --deep reads them)"
_CHANGED = "has other bytes than were put there: its SHA-256 is another"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What a verification came to. `problems` are of objects, by their name in the upload.

    `notes` say what could not be looked into, by database: no fault of the upload's. `left_out` are databases, and
    memories.json, that were not downloaded, because that was limited: the event of such a look says that it was not
    deep. `manifest` is None where it is not there (then the upload is not, either) or cannot be read.
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
    def gone(self) -> bool:
        """Whether it is not there at all: an upload is when its manifest is."""
        return self.manifest is None and self.problems.get(naming.MANIFEST_NAME) == NOT_THERE

    @property
    def damaged(self) -> frozenset[str]:
        """The databases that have to be sent once more for an upload to be whole that is made from this one."""
        if self.manifest is None:
            return frozenset()
        parts = {object_name(part.key): part.database for part in self.manifest.parts}
        found = {parts[name] for name in self.problems if name in parts}
        if naming.MEMORIES_NAME in self.problems and self.manifest.memories:
            found |= self.manifest.memories.bases.keys()
        if naming.MANIFEST_NAME in self.problems:
            found |= {*parts.values()}
        return frozenset(found)

    def event(self, identity: Identity, clock: Clock) -> UploadVerified:
        """Return the event about it."""
        now = clock.now()
        first = sorted(self.problems.items())[:MOST_PROBLEMS]
        recorded = {shorten(name, LONGEST_PROBLEM): shorten(why, LONGEST_PROBLEM) for name, why in first}
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


class Verifier:
    """Looks at uploads of one archive. Raises StoreError where that cannot be done: that is no damage."""

    def __init__(self, archive: Catalog, clock: Clock, deep: DeepCheckTools | None = None) -> None:
        self._archive, self._clock = archive, clock
        self._deep = None if deep is None else DeepCheck(archive, deep)

    async def shallow(self, upload: str) -> VerifyResult:
        """Look at the manifest, and at what the store says of every object."""
        return await self._check(upload, tags=True)

    async def _check(self, upload: str, *, tags: bool) -> VerifyResult:
        started = self._clock.monotonic()
        manifest, problems = await self._manifest(upload)
        if manifest is not None:
            problems |= await self._objects(manifest, tags=tags)
            if problems and await self._is_gone(upload):
                manifest, problems = None, {naming.MANIFEST_NAME: NOT_THERE}  # deleted while it was looked at
        return VerifyResult(
            upload_id=upload,
            deep=False,
            objects=1 + len(expected_sizes(manifest) if manifest else ()),
            manifest=manifest,
            problems=problems,
            duration_seconds=self._since(started),
        )

    async def uploads(self) -> Sequence[str]:
        """Return the ids of the uploads, the newest first."""
        return await self._archive.ids()

    async def deep(
        self,
        upload: str,
        progress: Progress = ignore_progress,
        begun: Progress = ignore_progress,
        *,
        most_bytes: int | None = None,
    ) -> VerifyResult:
        """Look at everything `shallow` does but ETags, then download what there is, hash it, and read it through.

        `begun` gets the number of bytes to download, `progress` as they come. With `most_bytes`, a database,
        or memories.json, that would exceed what is left of it is not downloaded. Raises StagingFull, StateError for our
        own disk.
        """
        assert self._deep is not None
        started = self._clock.monotonic()
        found = await self._check(upload, tags=False)
        problems, notes, left_out = dict(found.problems), dict[str, str](), list[str]()
        if (manifest := found.manifest) is not None:
            sizes = {key: size for key, size in expected_sizes(manifest).items() if object_name(key) not in problems}
            begun(sum(sizes.values()))
            slots = math.inf if most_bytes is None else most_bytes
            for database in dict.fromkeys(part.database for part in manifest.parts):
                size = sum(part.stored_size for part in manifest.of(database))
                if size > slots:
                    left_out.append(database)
                    continue
                slots -= size
                await self._deep.database(manifest, database, problems, notes, progress)
            if (memories := manifest.memories) and memories.key in sizes:
                if memories.size > slots:
                    left_out.append(naming.MEMORIES_NAME)
                else:
                    await self._deep.memories(manifest, memories, problems, progress)
            if problems.keys() - found.problems.keys() and await self._is_gone(upload):
                manifest, problems = None, {naming.MANIFEST_NAME: NOT_THERE}
        return VerifyResult(
            upload_id=upload,
            deep=True,
            objects=found.objects,
            manifest=manifest,
            problems=problems,
            notes=notes,
            left_out=tuple(left_out),
            duration_seconds=self._since(started),
        )

    async def _manifest(self, upload: str) -> tuple[Manifest | None, dict[str, str]]:
        """Return a manifest that may be believed, and what is wrong with it, or with the one there is."""
        try:
            async with self._archive.moving() as moved:
                read = await self._archive.uploads.manifest_as_it_lies(upload)
                moved()
                if read is None:
                    return None, {naming.MANIFEST_NAME: NOT_THERE}
                manifest, data = read
                recorded = (await self._archive.store.head(manifest.key)).metadata
        except NotAManifest as error:
            return None, {naming.MANIFEST_NAME: error.message}
        except NoSuchObject:
            return None, {naming.MANIFEST_NAME: NOT_THERE}
        if problems := implausible(manifest):
            return None, problems
        return manifest, _changed(manifest, data, recorded.get("sha256"))

    async def _is_gone(self, upload: str) -> bool:
        async with self._archive.moving():
            return not await self._archive.uploads.exists(upload)

    async def _objects(self, manifest: Manifest, *, tags: bool) -> dict[str, str]:
        held: tuple[Part | MemoriesPart, ...] = (*manifest.parts, *((manifest.memories,) if manifest.memories else ()))
        slots = asyncio.Semaphore(CHECKED_AT_ONCE)
        async with self._archive.moving() as moved:

            async def check(part: Part | MemoriesPart) -> str:
                async with slots:
                    why = await _wrong_with(self._archive.store, part, lambda _: moved(), tags=tags)
                    moved()
                    return why

            found = await all_of([check(part) for part in held], "check-object")
        return {object_name(part.key): why for part, why in zip(held, found, strict=True) if why}

    def _since(self, started: float) -> float:
        return round(self._clock.monotonic() - started, 3)


async def _wrong_with(store: ObjectStore, part: Part | MemoriesPart, progress: Progress, *, tags: bool) -> str:
    """Return what the store says of an object that differs from its manifest, "" for nothing."""
    size = part.stored_size if isinstance(part, Part) else part.size
    try:
        found = await (store.inspect(part.key, progress=progress) if tags else store.head(part.key))
    except NoSuchObject:
        return NOT_THERE
    if found.size != size:
        return other_size(found.size, size)
    recorded = {name: found.metadata[name] for name in part.metadata if name in found.metadata}
    if recorded.get("sha256", part.sha256) != part.sha256:
        return "is another object: the SHA-256 that was put with it is not the one that its manifest tells"
    if wrong := sorted(name for name, value in recorded.items() if value != part.metadata[name]):
        return f"is another object: its {wrong[0]} is not the one that its manifest tells"
    if tags and is_changed(expected_etag(part, found.etag), found.etag):
        return OTHER_BYTES
    return ""


def changed_tags(manifest: Manifest, tags: Mapping[str, str]) -> dict[str, str]:
    """Return what of a manifest's objects has another ETag than the store answered for it, by name.

    `tags` are those of a listing, by name; where a listing has none, nothing is known.
    """
    held: tuple[Part | MemoriesPart, ...] = (*manifest.parts, *((manifest.memories,) if manifest.memories else ()))
    named = {object_name(part.key): part for part in held}
    return {name: OTHER_BYTES for name, part in named.items() if is_changed(part.etag, tags.get(name, ""))}


def expected_etag(part: Part | MemoriesPart, found: str = "") -> str:
    """Return the ETag that an object should have, "" where that is not known.

    Where the tag `found` is a digest, that of an object stored as it is (not compressed) is known from its SHA-256.
    """
    if found.startswith(FILE_TAG) and (isinstance(part, MemoriesPart) or part.compression == "none"):
        return FILE_TAG + part.sha256
    return part.etag


def _changed(manifest: Manifest, data: bytes, recorded: str | None) -> dict[str, str]:
    """Return what is wrong with the manifest's own bytes, by the SHA-256 put with them and the checksum in them."""
    if recorded is not None and hashlib.sha256(data).hexdigest() != recorded:
        return {naming.MANIFEST_NAME: _CHANGED}
    try:
        document = json.loads(data)
    except ValueError:
        return {naming.MANIFEST_NAME: _CHANGED}
    if document.get("checksum") != json.loads(manifest.encode())["checksum"]:
        return {naming.MANIFEST_NAME: "has been changed: its checksum is not that of the parts it tells of"}
    return {}
