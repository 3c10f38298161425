"""The uploads of one system in one store: the newest, its manifest, leftovers, and the ID of the next one."""

import asyncio
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from agent.application.status_warnings import clear_warning, set_warning
from agent.domain import naming
from agent.domain.errors import NamingError, NoSuchObject, NotPermitted, StoreError, UnreadableObject, WireError
from agent.domain.events import upload_event_id
from agent.domain.manifest import Manifest, manifest_metadata
from agent.domain.naming import is_in_future
from agent.domain.status_warning import StatusWarning
from agent.domain.upload_parts import ObjectRecord, Part
from agent.ports import Clock, Ledger, ObjectStore, OpenPut, is_changed

MAX_MANIFEST_BYTES = 16 * 2**20
LARGE_MANIFEST_BYTES = 2**18
"""A larger manifest is decoded in a thread: a hostile one may take more than a second."""

LEFT_OVER_AFTER = timedelta(days=1)
"""Age at which an unfinished upload is removed. Another agent may still be working on a younger one."""

FOREIGN = "foreign_uploads"
AHEAD = "upload_id_ahead"

MOST_NAMED = 3
"""Maximum number of foreign IDs in a warning."""

_FOREIGN_HINT = "find out which program writes there, and delete those objects"
_DAMAGED_HINT = "check the store and any proxy or cache in front of it"
_AHEAD_HINT = "correct this machine's clock; until it catches up, retention and --at use the objects' times"

_log = structlog.get_logger()


class NotAManifest(StoreError):  # noqa: N818 - named for the condition
    """The object under a manifest's key is not a manifest, or is the manifest of another upload."""


class BucketUploads:
    """Reads and cleans up `systems/{system_id}/uploads/`.

    `copies` is false after the store refused a copy, until it makes one: nothing is then sent that needs a copy first.
    """

    copies = True

    def __init__(self, store: ObjectStore, system_id: str) -> None:
        self._store, self._system_id = store, system_id
        self._prefix = naming.uploads_prefix(system_id)

    async def ids_after(self, newest: str | None) -> tuple[list[str], list[str]]:
        """Return the IDs of uploads newer than `newest`, in order: those with any object, and those with a manifest.

        Lists only what follows `newest`, or everything if that is None.
        """
        started: dict[str, None] = {}
        complete: list[str] = []
        start = f"{self._prefix}{newest}/~" if newest else ""
        async for found in self._store.list(self._prefix, start_after=start):
            try:
                upload = naming.upload_of(found.key)
            except NamingError:
                continue
            started[upload] = None
            if found.key == naming.manifest_key(self._system_id, upload):
                complete.append(upload)
        return list(started), complete

    async def manifest(self, upload: str) -> Manifest | None:
        """Return the manifest of an upload, None if it does not exist. Raises NotAManifest and other StoreErrors."""
        found = await self.manifest_with_bytes(upload)
        return found[0] if found else None

    async def manifest_with_bytes(self, upload: str) -> tuple[Manifest, bytes] | None:
        """Return the manifest of an upload and its bytes. Otherwise like `manifest`."""
        key = naming.manifest_key(self._system_id, upload)
        try:
            data = await manifest_bytes(self._store, key)
        except (WireError, UnreadableObject) as error:
            raise NotAManifest(error.message, hint=error.hint) from error
        if data is None:
            return None
        try:
            is_large = len(data) > LARGE_MANIFEST_BYTES
            manifest = await asyncio.to_thread(Manifest.decode, data) if is_large else Manifest.decode(data)
        except WireError as error:
            hint = error.hint or "is another program writing to this bucket?"
            raise NotAManifest(f"{key}: {error.message}", hint=hint) from error
        if manifest.system_id != self._system_id or manifest.upload_id != upload:
            raise NotAManifest(f"{key} is the manifest of {manifest.upload_id}", hint="was it moved by hand?")
        return manifest, data

    async def intact_manifest(self, upload: str) -> Manifest | None:
        """Return the manifest like `manifest`. Raises NotAManifest also if its bytes are not those that were put."""
        found = await self.manifest_with_bytes(upload)
        if found is None:
            return None
        manifest, data = found
        expected = manifest_metadata(data)["sha256"]
        try:
            stored = await self._store.head(manifest.key)
        except NoSuchObject:
            return None
        if stored.metadata.get("sha256", expected) != expected:
            raise NotAManifest(f"{manifest.key} is damaged", hint=_DAMAGED_HINT)
        return manifest

    async def newest_manifest(self) -> Manifest | None:
        """Return the newest manifest that is intact, None if there is no upload."""
        _, complete = await self.ids_after(None)
        for upload in reversed(complete):
            try:
                return await self.intact_manifest(upload)
            except StoreError as error:
                if error.transient:
                    raise
                _log.warning("manifest_unreadable", upload_id=upload, error=str(error))
        return None

    async def without_plain_memories(self, bases: Mapping[str, str]) -> frozenset[str]:
        """Return the databases whose upload (database -> upload) has no uncompressed memories of them.

        Raises StoreError.
        """
        plain: set[tuple[str, str]] = set()
        for upload in sorted({*bases.values()}):
            try:
                manifest = await self.manifest(upload)
            except NotAManifest:
                continue
            if manifest and manifest.memories and manifest.memories.compression == "none":
                plain |= {(database, upload) for database in manifest.memories.bases}
        return frozenset(database for database, upload in bases.items() if (database, upload) not in plain)

    async def exists(self, upload: str) -> bool:
        """Return whether an upload exists: whether its manifest does."""
        try:
            await self._store.head(naming.manifest_key(self._system_id, upload))
        except NoSuchObject:
            return False
        return True

    async def damaged(self, upload: str, progress: Callable[[], None], *, reads: bool = True) -> set[str] | None:
        """Return the databases whose objects do not match the upload's manifest; None if it has no valid manifest.

        `progress` and `reads` as in `holds`.
        """
        try:
            manifest = await self.manifest(upload)
        except NotAManifest:
            return None
        if manifest is None:
            return None
        found = await self.missing(manifest.parts, progress, reads=reads)
        if manifest.memories and not await self.holds(manifest.memories, progress, reads=reads):
            found |= manifest.memories.bases.keys()
        return found

    async def missing(self, parts: Iterable[Part], progress: Callable[[], None], *, reads: bool = True) -> set[str]:
        """Return the databases with a part among these that is missing from the bucket or has changed."""
        found = set()
        for part in parts:
            for item in part.objects:
                if part.database not in found and not await self.holds(item, progress, reads=reads):
                    found.add(part.database)
        return found

    async def holds(self, part: ObjectRecord, progress: Callable[[], None], *, reads: bool = True) -> bool:
        """Return whether an object exists, can be read, and has the recorded size, checksum and ETag.

        Values that the store or the manifest lacks are not compared. `progress` is called while the store reads the
        object, and once it has answered. Without `reads`, a store that has no ETags does not read it.
        """
        try:
            if reads:
                found = await self._store.inspect(part.key, progress=lambda _: progress())
            else:
                found = await self._store.head(part.key)
            progress()
        except (NoSuchObject, UnreadableObject):
            return False
        sha256 = found.metadata.get("sha256", part.sha256)
        return (found.size, sha256) == (part.stored_size, part.sha256) and not is_changed(part.etag, found.etag)

    async def remove(self, upload: str, open_puts: Iterable[OpenPut] = (), *, manifest_damaged: bool = False) -> None:
        """Remove the objects, and the parts of unfinished ones, of an upload that will not be finished.

        `open_puts` are those that the ledger knows: they are found without the permission to list uploads. An upload
        with a manifest is complete, and is kept unless the manifest is damaged. Log it if the removal is not permitted.
        """
        await self.discard(open_puts)
        found = await self._objects(upload)
        if naming.manifest_key(self._system_id, upload) in found and not manifest_damaged:
            return
        try:
            await self._store.sweep(f"{self._prefix}{upload}/")
        except NotPermitted as error:
            self._log_not_removed(upload, [], error)
        await self.delete(upload, found)

    async def others(self, upload: str, kept: Container[str]) -> list[str]:
        """Return the keys of an unfinished upload that are not in `kept`, except that of its manifest."""
        manifest = naming.manifest_key(self._system_id, upload)
        return [key for key in await self._objects(upload) if key not in kept and key != manifest]

    async def _objects(self, upload: str) -> list[str]:
        return [item.key async for item in self._store.list(f"{self._prefix}{upload}/")]

    async def delete(self, upload: str, keys: Sequence[str]) -> bool:
        """Delete objects of an upload. Return False, and log it, if that is not permitted."""
        try:
            if keys:
                await self._store.delete(keys)
        except NotPermitted as error:
            self._log_not_removed(upload, keys, error)
            return False
        return True

    def _log_not_removed(self, upload: str, keys: Sequence[str], error: StoreError) -> None:
        _log.info("leftovers_not_removed", upload_id=upload, count=len(keys), reason=error.message, hint=error.hint)

    async def discard(self, open_puts: Iterable[OpenPut]) -> None:
        """Remove the parts of open puts that will not be continued. Log it if the store refuses.

        Raises StoreError (transient).
        """
        for put in open_puts:
            try:
                await self._store.discard(put)
            except StoreError as error:
                if error.transient:
                    raise
                self._log_not_removed(naming.upload_of(put.key), [put.key], error)

    async def sweep(self, *upload_ids: str, started_before: datetime, spared: Collection[str]) -> None:
        """Remove the parts of unfinished objects: all of these uploads, and others started before that time.

        `spared` are the IDs of the open puts that will be continued. Younger parts of other uploads may belong to
        another machine of this system. Log it, with a hint, if it is not permitted.
        """
        try:
            removed = 0
            for upload in upload_ids:
                removed += await self._store.sweep(f"{self._prefix}{upload}/", spared=spared)
            removed += await self._store.sweep(self._prefix, started_before=started_before, spared=spared)
        except NotPermitted as error:
            _log.info("leftovers_not_removed", system_id=self._system_id, reason=error.message, hint=error.hint)
        else:
            if removed:
                _log.info("leftovers_removed", system_id=self._system_id, count=removed)


async def manifest_bytes(store: ObjectStore, key: str, progress: Callable[[], None] = lambda: None) -> bytes | None:
    """Return the object under a manifest's key, None if it does not exist. `progress` is called for each piece.

    Raises StoreError, and WireError if the object is larger than MAX_MANIFEST_BYTES.
    """
    data = bytearray()
    try:
        async with aclosing(store.get(key)) as pieces:
            async for piece in pieces:
                progress()
                data += piece
                if len(data) > MAX_MANIFEST_BYTES:
                    raise WireError(
                        f"{key} is larger than any manifest", hint="is another program writing to this bucket?"
                    )
    except NoSuchObject:
        return None
    return bytes(data)


@dataclass(frozen=True, slots=True)
class UploadIds:
    """Chooses the ID of a system's next upload, and warns of IDs ahead of the clock. `location` names the store.

    IDs order uploads: the next one comes after the newest upload of this system that has a valid manifest. An object
    that another program puts under an ID far in the future neither stops uploads nor affects later IDs. An ID under
    which any object is stored is not used again, nor one of which the ledger has a result, also in another target.
    """

    uploads: BucketUploads
    system_id: str
    agent_id: str
    location: str
    ledger: Ledger
    clock: Clock

    async def next(
        self, started: Sequence[str], complete: Sequence[str], newest: str | None, abandoned: str | None
    ) -> str:
        """Return an ID later than `newest`, the newest upload in the ledger, and than the newest in the bucket.

        `started` and `complete` as `BucketUploads.ids_after` returns them for `newest`. The ID of an `abandoned` upload
        is not used again. Raises StoreError, StateError, and NamingError if no later ID exists.
        """
        found = await self._newest_of_ours(complete)
        known = [upload for upload in (newest, found, abandoned) if upload]
        last = max(known, key=naming.upload_time, default=None)
        now, taken = self.clock.now(), {*started}
        chosen = naming.next_upload_id(now, last, self.system_id)
        while chosen in taken or await self.ledger.find_event(upload_event_id(chosen, self.agent_id)) is not None:
            chosen = naming.next_upload_id(now, chosen, self.system_id)
        await self._warn_of_foreign([upload for upload in started if upload > chosen and is_in_future(upload, now)])
        return chosen

    async def compare_with_clock(self, upload: str, stored_at: datetime | None) -> None:
        """Set a status warning if a new upload's ID is ahead of the store's clock, else clear it.

        `stored_at` is the store's time of its objects; if the store reports none, this machine's clock is used.
        """
        if not is_in_future(upload, stored_at or self.clock.now()):
            await clear_warning(self.ledger, AHEAD)
            return
        message = (
            f"the ID of the newest upload, {upload}, is ahead of the clock of {self.location}:"
            " this machine's clock is or was ahead"
        )
        if await set_warning(self.ledger, StatusWarning(code=AHEAD, message=message, hint=_AHEAD_HINT), self.clock):
            _log.warning("upload_id_ahead", upload_id=upload, location=self.location, hint=_AHEAD_HINT)

    async def _newest_of_ours(self, complete: Collection[str]) -> str | None:
        for upload in sorted(complete, reverse=True):
            if naming.upload_time(upload).year > naming.LAST_YEAR:
                continue
            try:
                manifest = await self.uploads.manifest(upload)
            except NotAManifest as error:
                _log.warning("manifest_unreadable", upload_id=upload, error=str(error))
                continue
            if manifest is not None:
                return upload
        return None

    async def _warn_of_foreign(self, ids: Collection[str]) -> None:
        if not ids:
            await clear_warning(self.ledger, FOREIGN)
            return
        named = ", ".join(sorted(ids)[:MOST_NAMED])
        more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
        message = f"{self.location} has objects of another program under upload IDs ahead of the clock: {named}{more}"
        if await set_warning(self.ledger, StatusWarning(code=FOREIGN, message=message, hint=_FOREIGN_HINT), self.clock):
            _log.warning("foreign_uploads", location=self.location, names=sorted(ids)[:MOST_NAMED], hint=_FOREIGN_HINT)
