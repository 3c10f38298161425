"""What uploads of a system there are: listed, found by name or by time, and what each says of itself.

The bucket is asked every time; nothing is remembered. An upload is there when its manifest is, and one whose manifest
cannot be read is listed, too, with what is wrong with it.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from agent.application.sync.bucket_uploads import BucketUploads, NotAManifest
from agent.application.sync.stall import limit_stalls
from agent.domain import naming
from agent.domain.errors import NamingError, NoSuchObject, SettingsError, StoreError
from agent.domain.manifest import Manifest
from agent.domain.naming import is_ahead, made_at, needs_manifest
from agent.ports import ObjectStore
from agent.ports.concurrency import all_of

T = TypeVar("T")

LATEST = "latest"

MANIFESTS = 50
"""How many manifests a listing reads: each is a request, and of 1,000 uploads the newest are of interest."""

READ_AT_ONCE = 16
"""Manifests that are on their way at a time."""

MOST_BYTES = 5 * 2**40
"""The largest object that stores take: nothing of an upload is larger, packed or not."""

MOST_UNPACKED = 1040
"""What a byte of gzip unpacks to at most, and a little."""

_MINUTE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
_SPARE = 2**16
_LIST = "akosha-agent uploads lists those that are there"
NOT_THERE = "is not there"
"""What is wrong with an object, or an upload, that somebody else names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """An upload as the listing has it. `sizes` are those of its objects, in bytes, by their name in the upload.

    `manifest` is None where it was not read, or `problems` says why it cannot be; these name objects that are not
    there, or are of another size, as well. `modified` is the time of the manifest's object, by the store's clock.
    """

    upload_id: str
    sizes: Mapping[str, int]
    manifest: Manifest | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    modified: datetime | None = None

    @property
    def at(self) -> datetime:
        """When it was made, as `naming.made_at` says."""
        return made_at(self.upload_id, self.modified, self.manifest.uploaded_at if self.manifest else None)

    @property
    def stored_bytes(self) -> int:
        """Bytes that its objects take in the bucket, the manifest included."""
        return sum(self.sizes.values())

    @property
    def raw_bytes(self) -> int | None:
        """Bytes of its databases' files, None where that is not known."""
        return sum(part.raw_size for part in self.manifest.parts) if self.manifest else None

    @property
    def rows(self) -> int | None:
        """Rows in all its databases that were counted, None where that is not known."""
        return sum(sum(tables.values()) for tables in self.manifest.rows.values()) if self.manifest else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogListing:
    """Uploads, the newest first. `unfinished` have objects, and no manifest."""

    uploads: tuple[CatalogEntry, ...]
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a listing shows of whole uploads: the sizes of their objects by name, the time of each manifest's object."""

    sizes: Mapping[str, Mapping[str, int]]
    times: Mapping[str, datetime | None]
    unfinished: Sequence[str]

    def listed(self, upload: str) -> CatalogEntry:
        return CatalogEntry(upload_id=upload, sizes=self.sizes[upload], modified=self.times[upload])

    def unclear(self, upload: str) -> bool:
        return needs_manifest(upload, self.times[upload])

    def ahead(self, upload: str) -> bool:
        modified = self.times[upload]
        return modified is not None and is_ahead(upload, modified)


class Catalog:
    """The uploads of one system in one store. A call may make no progress for `standstill_seconds` at most.

    Every method raises StoreError where the store cannot be reached, or refuses.
    """

    def __init__(self, store: ObjectStore, system_id: str, *, standstill_seconds: float = 300.0) -> None:
        self.store, self.system_id = store, naming.check_system_id(system_id)
        self.uploads = BucketUploads(store, system_id)
        self._standstill_seconds = standstill_seconds

    async def listing(self, *, manifests: int | None = MANIFESTS, exact: bool = False) -> CatalogListing:
        """Return the uploads, the newest first; the `manifests` of so many are read, of all where it is None.

        So are those of uploads whose id is ahead of their object; with `exact` all without which it is not known when
        an upload was made: in a bucket that was copied, these are all of them.
        """
        async with self.moving() as moved:
            seen = await self._seen(moved)
            newest_first = _newest_first(seen.sizes)
            first = {*newest_first[:manifests]}
            unclear = seen.unclear if exact else seen.ahead
            wanted = [upload for upload in newest_first if upload in first or unclear(upload)]
            slots = asyncio.Semaphore(READ_AT_ONCE)

            async def read(upload: str) -> CatalogEntry:
                async with slots:
                    listed = await self._listed(upload, seen)
                    moved()
                    return listed

            found = await all_of([read(upload) for upload in wanted], "read-manifest")
        read_ones = {listed.upload_id: listed for listed in found}
        uploads = tuple(read_ones.get(upload) or seen.listed(upload) for upload in newest_first)
        return CatalogListing(uploads=uploads, unfinished=tuple(seen.unfinished))

    async def ids(self) -> Sequence[str]:
        """Return the ids of the uploads, the newest first."""
        async with self.moving() as moved:
            seen = await self._seen(moved)
        return _newest_first(seen.sizes)

    async def resolve(self, which: str = LATEST) -> str:
        """Return the id of an upload: the `latest`, or the one that begins so.

        Raises NoSuchObject where there is none, SettingsError where several begin so.
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
                hint="give more of its id",
            )
        return found[0]

    async def _latest(self) -> str:
        """Return the newest upload. An id ahead of its object's time, with a manifest not of ours, is no upload."""
        async with self.moving() as moved:
            seen = await self._seen(moved)
            for upload in _newest_first(seen.sizes):
                modified = seen.times[upload]
                if modified is None or not is_ahead(upload, modified) or await self._is_ours(upload):
                    return upload
        raise NoSuchObject(
            f"there is no upload of {self.system_id} in {self.store.location}",
            hint="akosha-agent sync makes one; --system names another machine's",
        )

    async def _is_ours(self, upload: str) -> bool:
        try:
            return await self.uploads.manifest(upload) is not None
        except NotAManifest:
            return False

    async def resolve_at(self, time: datetime) -> str:
        """Return the id of the newest upload that was not made after an aware time, as `naming.made_at` says.

        Raises NoSuchObject where there is none.
        """
        known = (await self.listing(manifests=0, exact=True)).uploads
        for listed in known:
            if listed.at <= time:
                return listed.upload_id
        oldest = f"the oldest is {known[-1].upload_id}" if known else "there is none at all"
        raise NoSuchObject(
            f"there is no upload of {self.system_id} from {time.isoformat(' ', 'seconds')} or before: {oldest}",
            hint=_LIST,
        )

    async def show(self, upload: str) -> CatalogEntry:
        """Return one upload. Raises NoSuchObject where it is not there."""
        async with self.moving() as moved:
            seen = await self._seen(moved, upload)
            if upload not in seen.sizes:
                raise NoSuchObject(f"there is no upload {upload} of {self.system_id}", hint=_LIST)
            return await self._listed(upload, seen)

    async def manifest(self, upload: str) -> Manifest:
        """Return the manifest of an upload, of which everything that it says of itself has been checked.

        Raises NoSuchObject where it is not there, StoreError (not transient) for one that is none, or is not ours, or
        has values that cannot be.
        """
        async with self.moving():
            manifest = await self.uploads.manifest(upload)
        if manifest is None:
            raise NoSuchObject(f"there is no upload {upload} of {self.system_id}", hint=_LIST)
        for name, why in implausible(manifest).items():
            raise StoreError(f"{manifest.key}: {name} {why}", hint="is another program writing there?")
        return manifest

    @asynccontextmanager
    async def moving(self) -> AsyncIterator[Callable[[], None]]:
        """Raise StoreError out of the block when the callable it yields was not called for too long."""
        try:
            async with limit_stalls(self._standstill_seconds) as moved:
                yield moved
        except TimeoutError as error:
            raise StoreError(
                f"{self.store.location}: no progress for {self._standstill_seconds:g} s",
                hint="akosha_upload_timeout_seconds sets the limit",
                transient=True,
            ) from error

    async def _seen(self, moved: Callable[[], None], upload: str = "") -> "_Seen":
        """List the objects of all uploads, or of one."""
        uploads = naming.uploads_prefix(self.system_id)
        found: dict[str, dict[str, int]] = {}
        times: dict[str, datetime | None] = {}
        folder, into = "", None
        async for item in self.store.list(f"{uploads}{upload}/" if upload else uploads):
            begins, _, name = item.key.removeprefix(uploads).partition("/")
            if begins != folder:  # thousands of keys come, and few uploads
                moved()
                folder, into = begins, found.setdefault(begins, {}) if self._is_upload(begins) else None
            if into is not None and name:  # else a marker that Akosha looks for, or no upload of ours
                into[name] = item.size
                if name == naming.MANIFEST_NAME:
                    times[begins] = item.modified
        whole = {of: sizes for of, sizes in found.items() if naming.MANIFEST_NAME in sizes}
        return _Seen(whole, times, [of for of, sizes in found.items() if sizes and of not in whole])

    def _is_upload(self, name: str) -> bool:
        """Return whether a folder's name is an upload id of this system: others put there by hand are no uploads."""
        try:
            return name == naming.upload_id(naming.upload_time(name), self.system_id)
        except NamingError:
            return False

    async def _listed(self, upload: str, seen: "_Seen") -> CatalogEntry:
        listed = seen.listed(upload)
        try:
            manifest = await self.uploads.manifest(upload)
        except NotAManifest as error:
            return replace(listed, problems={naming.MANIFEST_NAME: error.message})
        if manifest is None:
            return replace(listed, problems={naming.MANIFEST_NAME: NOT_THERE})
        if problems := implausible(manifest):
            return replace(listed, problems=problems)
        return replace(listed, manifest=manifest, problems=wrong_sizes(manifest, listed.sizes))


def implausible(manifest: Manifest) -> dict[str, str]:
    """Return what in a manifest cannot be, by object: sizes that no object has, or that no gzip unpacks to."""
    found = {}
    for part in manifest.parts:
        most = part.stored_size if part.compression == "none" else part.stored_size * MOST_UNPACKED + _SPARE
        if max(part.raw_size, part.stored_size) > MOST_BYTES:
            found[object_name(part.key)] = "is said to have a size that no object can have"
        elif part.raw_size > most:
            found[object_name(part.key)] = f"is said to unpack from {part.stored_size} to {part.raw_size} bytes"
    if manifest.memories and manifest.memories.size > MOST_BYTES:
        found[naming.MEMORIES_NAME] = "is said to have a size that no object can have"
    if any(count < 0 or count > MOST_BYTES for tables in manifest.rows.values() for count in tables.values()):
        found[naming.MANIFEST_NAME] = "tells a number of rows that cannot be"
    return found


def wrong_sizes(manifest: Manifest, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return what of a manifest's objects is missing, or has another size than recorded, by name."""
    found = {}
    for key, size in expected_sizes(manifest).items():
        name = object_name(key)
        if name not in sizes:
            found[name] = NOT_THERE
        elif sizes[name] != size:
            found[name] = other_size(sizes[name], size)
    return found


def expected_sizes(manifest: Manifest) -> dict[str, int]:
    """Return key -> size of all objects in a manifest."""
    sizes = {part.key: part.stored_size for part in manifest.parts}
    return sizes | ({manifest.memories.key: manifest.memories.size} if manifest.memories else {})


def other_size(found: int, expected: int) -> str:
    return f"has {found} bytes, not the {expected} that its manifest tells"


def object_name(key: str) -> str:
    """Return an object's name in its upload."""
    return key.rpartition("/")[2]


def time_of(text: str) -> datetime:
    """Return the time that a text names: RFC 3339, or `2026-11-20 18:00` as the clock here shows it.

    A minute is the end of it: uploads are listed by the minute, and the one that is listed so is meant. Raises
    SettingsError for anything else: a day alone could mean its beginning or its end.
    """
    try:
        time = datetime.fromisoformat(text.strip())
        if ":" in text:
            if _MINUTE.fullmatch(text.strip()):
                time = time.replace(second=59, microsecond=999_999)
            return time if time.tzinfo else time.astimezone()
    except (ValueError, OverflowError):
        pass
    raise SettingsError(f"{text!r:.60} is not a time", hint="write 2026-11-20 18:00, or 2026-11-20T18:00:00+01:00")


def _newest_first(uploads: Collection[str]) -> list[str]:
    return sorted(uploads, key=lambda upload: (naming.upload_time(upload), upload), reverse=True)
