"""The uploads of one system in a bucket: list them, find one by ID or by time, read its manifest.

Every call reads the bucket; nothing is cached. An upload exists if its manifest exists. An upload whose manifest cannot
be read is listed with the problem.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from agent.application.sync.bucket_uploads import BucketUploads, NotAManifest
from agent.application.sync.stall import limit_stalls
from agent.domain import naming
from agent.domain.errors import NoSuchObject, SettingsError, StoreError
from agent.domain.manifest import Manifest
from agent.domain.naming import is_in_future, made_at, needs_manifest
from agent.ports import ObjectStore
from agent.ports.concurrency import gather_all

T = TypeVar("T")

LATEST = "latest"

MANIFESTS = 50
"""Number of manifests that a listing reads by default. Each costs a request, and users look at the newest uploads."""

READ_AT_ONCE = 16
"""Maximum number of manifests read in parallel."""

MOST_BYTES = 5 * 2**40
"""The largest object that stores accept. Nothing in an upload is larger, compressed or not."""

MOST_UNPACKED = 1040
"""Maximum number of bytes that one byte of gzip decompresses to, with a small margin."""

_MINUTE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_AGO = re.compile(r"(?P<number>an?|\d{1,4}) (?P<unit>minute|hour|day|week)s? ago")
_DAY = re.compile(r"(?P<day>yesterday|today)(?: (?:at )?(?P<clock>\d{1,2}:\d{2}))?")
_SPARE = 2**16
_LIST = "akosha-agent uploads lists the uploads"
MISSING = "is missing"
"""The problem of an object or an upload that does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """An upload in the listing. `sizes` maps the name of each object in the upload to its size in bytes.

    `manifest` is None if it was not read, or cannot be read; then `problems` has the reason. `problems` also names
    missing objects and objects of the wrong size. `modified` is the time of the manifest object by the store's clock.
    """

    upload_id: str
    sizes: Mapping[str, int]
    manifest: Manifest | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    modified: datetime | None = None

    @property
    def at(self) -> datetime:
        """When the upload was made, by `naming.made_at`."""
        return made_at(self.upload_id, self.modified, self.manifest.uploaded_at if self.manifest else None)

    @property
    def stored_bytes(self) -> int:
        """Size of all objects in the bucket, in bytes, including the manifest."""
        return sum(self.sizes.values())

    @property
    def raw_bytes(self) -> int | None:
        """Size of the database files, in bytes; None if unknown."""
        return sum(part.raw_size for part in self.manifest.parts) if self.manifest else None

    @property
    def rows(self) -> int | None:
        """Number of rows in all databases whose rows were counted; None if unknown."""
        return sum(sum(tables.values()) for tables in self.manifest.rows.values()) if self.manifest else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogListing:
    """Uploads, newest first. `unfinished` are the IDs of uploads that have objects but no manifest."""

    uploads: tuple[CatalogEntry, ...]
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _ObjectListing:
    """The objects of complete uploads: their sizes by name, and the time of each manifest object."""

    sizes: Mapping[str, Mapping[str, int]]
    times: Mapping[str, datetime | None]
    unfinished: Sequence[str]

    def entry(self, upload: str) -> CatalogEntry:
        return CatalogEntry(upload_id=upload, sizes=self.sizes[upload], modified=self.times[upload])

    def needs_manifest(self, upload: str) -> bool:
        return needs_manifest(upload, self.times[upload])

    def is_in_future(self, upload: str) -> bool:
        modified = self.times[upload]
        return modified is not None and is_in_future(upload, modified)


class Catalog:
    """The uploads of one system in one store. A call fails after `standstill_seconds` without progress.

    Every method raises StoreError if the store cannot be reached or refuses the request.
    """

    def __init__(self, store: ObjectStore, system_id: str, *, standstill_seconds: float = 300.0) -> None:
        self.store, self.system_id = store, naming.check_system_id(system_id)
        self.uploads = BucketUploads(store, system_id)
        self._standstill_seconds = standstill_seconds

    async def listing(self, *, manifests: int | None = MANIFESTS, exact: bool = False) -> CatalogListing:
        """Return the uploads, newest first. Read the manifests of the newest `manifests` uploads; None: of all.

        Manifests of uploads whose ID is ahead of their object are read, too. With `exact`, so are all manifests without
        which it is not known when the upload was made; in a copied bucket these are all manifests.
        """
        async with self.stall_limit() as record_progress:
            objects = await self._list_objects(record_progress)
            newest_first = _newest_first(objects.sizes)
            first = {*newest_first[:manifests]}
            also_read = objects.needs_manifest if exact else objects.is_in_future
            to_read = [upload for upload in newest_first if upload in first or also_read(upload)]
            slots = asyncio.Semaphore(READ_AT_ONCE)

            async def read(upload: str) -> CatalogEntry:
                async with slots:
                    entry = await self._read_entry(upload, objects)
                    record_progress()
                    return entry

            found = await gather_all([read(upload) for upload in to_read], "read-manifest")
        with_manifest = {entry.upload_id: entry for entry in found}
        uploads = tuple(with_manifest.get(upload) or objects.entry(upload) for upload in newest_first)
        return CatalogListing(uploads=uploads, unfinished=tuple(objects.unfinished))

    async def ids(self) -> Sequence[str]:
        """Return the IDs of the uploads, newest first."""
        async with self.stall_limit() as record_progress:
            objects = await self._list_objects(record_progress)
        return _newest_first(objects.sizes)

    async def resolve(self, which: str = LATEST) -> str:
        """Return the ID of the upload with this ID or unique prefix; `latest`: of the newest.

        Raises NoSuchObject if no upload matches, SettingsError if several match.
        """
        if which == LATEST:
            return await self._latest()
        known = await self.ids()
        found = [which] if which in known else [upload for upload in known if which and upload.startswith(which)]
        if not found:
            raise NoSuchObject(f"there is no upload {which!r:.120} of {self.system_id}", hint=_LIST)
        if len(found) > 1:
            raise SettingsError(
                f"{len(found)} uploads begin with {which}: {found[-1]} is the oldest, {found[0]} the newest",
                hint="give a longer prefix",
            )
        return found[0]

    async def _latest(self) -> str:
        """Return the newest upload. Skip IDs ahead of their object's time whose manifest is not one of ours."""
        async with self.stall_limit() as record_progress:
            objects = await self._list_objects(record_progress)
            for upload in _newest_first(objects.sizes):
                if not objects.is_in_future(upload) or await self._is_ours(upload):
                    return upload
        raise NoSuchObject(
            f"there is no upload of {self.system_id} in {self.store.location}",
            hint="akosha-agent sync --new-target makes one of this machine; --system ID names another machine's",
        )

    async def _is_ours(self, upload: str) -> bool:
        try:
            return await self.uploads.manifest(upload) is not None
        except NotAManifest:
            return False

    async def resolve_at(self, time: datetime, written: str = "") -> str:
        """Return the ID of the newest upload made at or before an aware time (see `naming.made_at`).

        Raises NoSuchObject if there is none; its message has the time as `written`, if given.
        """
        known = (await self.listing(manifests=0, exact=True)).uploads
        for entry in known:
            if entry.at <= time:
                return entry.upload_id
        oldest = f"the oldest is {known[-1].upload_id}" if known else "it has no uploads"
        limit = written or time.isoformat(" ", "seconds")
        raise NoSuchObject(
            f"{self.system_id} had no upload yet at this time, {limit}: {oldest}",
            hint=_LIST,
        )

    async def show(self, upload: str) -> CatalogEntry:
        """Return one upload with its manifest. Raises NoSuchObject if the upload does not exist."""
        async with self.stall_limit() as record_progress:
            objects = await self._list_objects(record_progress, upload)
            if upload not in objects.sizes:
                raise NoSuchObject(f"there is no upload {upload} of {self.system_id}", hint=_LIST)
            return await self._read_entry(upload, objects)

    async def manifest(self, upload: str) -> Manifest:
        """Return the manifest of an upload, validated.

        Raises NoSuchObject if the upload does not exist, StoreError (not transient) if the object is not a manifest,
        not one of ours, or has impossible values.
        """
        async with self.stall_limit():
            manifest = await self.uploads.manifest(upload)
        if manifest is None:
            raise NoSuchObject(f"there is no upload {upload} of {self.system_id}", hint=_LIST)
        for name, problem in impossible_values(manifest).items():
            raise StoreError(f"{manifest.key}: {name} {problem}", hint="is another program writing to this bucket?")
        return manifest

    @asynccontextmanager
    async def stall_limit(self) -> AsyncIterator[Callable[[], None]]:
        """Yield a callable to report progress. Raise StoreError if it is not called for `standstill_seconds`."""
        try:
            async with limit_stalls(self._standstill_seconds) as record_progress:
                yield record_progress
        except TimeoutError as error:
            raise StoreError(
                f"{self.store.location}: no progress for {self._standstill_seconds:g} s",
                hint="akosha_upload_timeout_seconds sets the limit",
                transient=True,
            ) from error

    async def _list_objects(self, record_progress: Callable[[], None], upload: str = "") -> _ObjectListing:
        """List the objects of all uploads, or of one."""
        uploads = naming.uploads_prefix(self.system_id)
        found: dict[str, dict[str, int]] = {}
        times: dict[str, datetime | None] = {}
        previous, sizes = "", None
        async for item in self.store.list(f"{uploads}{upload}/" if upload else uploads):
            folder, _, name = item.key.removeprefix(uploads).partition("/")
            if folder != previous:  # one check for all keys of an upload
                record_progress()
                ours = naming.is_upload_id(folder, self.system_id)  # other folders were not made by the agent
                previous, sizes = folder, found.setdefault(folder, {}) if ours else None
            if sizes is not None and name:  # without a name: the marker that Akosha looks for
                sizes[name] = item.size
                if name == naming.MANIFEST_NAME:
                    times[folder] = item.modified
        complete = {each: objects for each, objects in found.items() if naming.MANIFEST_NAME in objects}
        unfinished = [each for each, objects in found.items() if objects and each not in complete]
        return _ObjectListing(complete, times, unfinished)

    async def _read_entry(self, upload: str, objects: _ObjectListing) -> CatalogEntry:
        entry = objects.entry(upload)
        try:
            manifest = await self.uploads.manifest(upload)
        except NotAManifest as error:
            return replace(entry, problems={naming.MANIFEST_NAME: str(error)})
        if manifest is None:
            return replace(entry, problems={naming.MANIFEST_NAME: MISSING})
        if problems := impossible_values(manifest):
            return replace(entry, problems=problems)
        return replace(entry, manifest=manifest, problems=wrong_sizes(manifest, entry.sizes))


def impossible_values(manifest: Manifest) -> dict[str, str]:
    """Return object name -> problem for sizes that no object can have or that gzip cannot decompress to."""
    found = {}
    for part in manifest.objects:
        most = part.stored_size if part.compression == "none" else part.stored_size * MOST_UNPACKED + _SPARE
        if max(part.raw_size, part.stored_size) > MOST_BYTES:
            found[object_name(part.key)] = "has an impossible size in the manifest"
        elif part.raw_size > most:
            found[object_name(part.key)] = (
                f"cannot decompress from {part.stored_size} to {part.raw_size} bytes, as the manifest says"
            )
    for layer in (layer for part in manifest.parts for layer in part.layers):
        if layer.file_size > MOST_BYTES:
            found[object_name(layer.key)] = "has an impossible size in the manifest"
    if any(count < 0 or count > MOST_BYTES for tables in manifest.rows.values() for count in tables.values()):
        found[naming.MANIFEST_NAME] = "has an impossible number of rows"
    return found


def wrong_sizes(manifest: Manifest, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return object name -> problem for the manifest's objects that are missing or have another size than recorded."""
    found = {}
    for key, size in expected_sizes(manifest).items():
        name = object_name(key)
        if name not in sizes:
            found[name] = MISSING
        elif sizes[name] != size:
            found[name] = size_problem(sizes[name], size)
    return found


def expected_sizes(manifest: Manifest) -> dict[str, int]:
    """Return key -> size of all objects that a manifest lists."""
    return {part.key: part.stored_size for part in manifest.objects}


def size_problem(found: int, expected: int) -> str:
    return f"has {found} bytes, but the manifest records {expected}"


def object_name(key: str) -> str:
    """Return an object's name within its upload."""
    return key.rpartition("/")[2]


def time_of(text: str, now: datetime) -> datetime:
    """Parse a time: RFC 3339, `2026-11-20 18:00` in local time, or a time before `now`.

    A time without seconds means the end of that minute: uploads are listed by the minute, and the user means the
    upload listed with it. A day (`2026-11-20`, `yesterday`) is its end, `yesterday 18:00` a time of it;
    `2 hours ago` counts from `now`. Raises SettingsError for anything else.
    """
    words = " ".join(text.lower().split())
    if ago := _AGO.fullmatch(words):
        number = 1 if ago["number"] in ("a", "an") else int(ago["number"])
        return now - timedelta(**{f"{ago['unit']}s": number})
    if words == "now":
        return now
    if (day := _DAY.fullmatch(words)) and (clock := day["clock"] or "23:59"):
        date = now.astimezone().date() - timedelta(days=day["day"] == "yesterday")
        text = f"{date} {clock:0>5}"
    try:
        if _DATE.fullmatch(text.strip()):
            text = f"{text.strip()} 23:59"
        time = datetime.fromisoformat(text.strip())
        if ":" in text:
            if _MINUTE.fullmatch(text.strip()):
                time = time.replace(second=59, microsecond=999_999)
            return time if time.tzinfo else time.astimezone()
    except (ValueError, OverflowError):
        pass
    raise SettingsError(
        f"{text!r:.60} is not a time",
        hint="write 2026-11-20, 2026-11-20 18:00, 2026-11-20T18:00:00+01:00, yesterday 18:00, or 2 hours ago",
    )


def _newest_first(uploads: Collection[str]) -> list[str]:
    return sorted(uploads, key=lambda upload: (naming.upload_time(upload), upload), reverse=True)
