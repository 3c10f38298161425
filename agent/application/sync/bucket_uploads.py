"""The uploads of one system in one store: the newest, its manifest, leftovers, and the id of the next one."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from agent.application.status_warnings import clear_warning, set_warning
from agent.domain import naming
from agent.domain.errors import NamingError, NoSuchObject, NotPermitted, StoreError, WireError
from agent.domain.manifest import Manifest, MemoriesPart, Part
from agent.domain.naming import is_in_future
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Ledger, ObjectStore, is_changed

MAX_MANIFEST_BYTES = 16 * 2**20

LEFT_OVER_AFTER = timedelta(days=1)
"""Age of an unfinished upload of nobody known from which on it is removed: another agent may be at work on it."""

_log = structlog.get_logger()


class NotAManifest(StoreError):  # noqa: N818 - it says what lies there
    """What lies under a manifest's key is no manifest, or not that of this upload."""


class BucketUploads:
    """Reads what lies under `systems/{system_id}/uploads/`."""

    def __init__(self, store: ObjectStore, system_id: str) -> None:
        self._store, self._system_id = store, system_id
        self._prefix = naming.uploads_prefix(system_id)

    async def ids_after(self, newest: str | None) -> tuple[list[str], list[str]]:
        """Return the ids of uploads newer than `newest` in order: all that have any object, and those with a manifest.

        One listing of what came after it; of everything where `newest` is None.
        """
        begun: dict[str, None] = {}
        whole: list[str] = []
        start = f"{self._prefix}{newest}/~" if newest else ""
        async for found in self._store.list(self._prefix, start_after=start):
            try:
                upload = naming.upload_of(found.key)
            except NamingError:
                continue
            begun[upload] = None
            if found.key == naming.manifest_key(self._system_id, upload):
                whole.append(upload)
        return list(begun), whole

    async def manifest(self, upload: str) -> Manifest | None:
        """Return the manifest of an upload, None where there is none.

        Raises NotAManifest for one that is not ours, and StoreError.
        """
        found = await self.manifest_as_it_lies(upload)
        return found[0] if found else None

    async def manifest_as_it_lies(self, upload: str) -> tuple[Manifest, bytes] | None:
        """Return the manifest of an upload and its bytes; else as `manifest`."""
        key = naming.manifest_key(self._system_id, upload)
        try:
            data = await manifest_bytes(self._store, key)
        except WireError as error:
            raise NotAManifest(error.message, hint=error.hint) from error
        if data is None:
            return None
        try:
            manifest = Manifest.decode(data)
        except WireError as error:
            raise NotAManifest(f"{key}: {error.message}", hint="is another program writing there?") from error
        if manifest.system_id != self._system_id or manifest.upload_id != upload:
            raise NotAManifest(f"{key} is the manifest of {manifest.upload_id}", hint="was it moved there by hand?")
        return manifest, data

    async def newest_manifest(self) -> Manifest | None:
        """Return the newest manifest that can be read, None where there is no upload."""
        _, whole = await self.ids_after(None)
        for upload in reversed(whole):
            try:
                return await self.manifest(upload)
            except StoreError as error:
                if error.transient:
                    raise
                _log.warning("manifest_unreadable", upload_id=upload, error=str(error))
        return None

    async def exists(self, upload: str) -> bool:
        """Say whether an upload is there: it is when its manifest is."""
        try:
            await self._store.head(naming.manifest_key(self._system_id, upload))
        except NoSuchObject:
            return False
        return True

    async def damaged(self, upload: str, moved: Callable[[], None]) -> set[str] | None:
        """Return the databases that an upload does not hold as its manifest names them; None: no manifest names any.

        `moved` as in `holds`.
        """
        try:
            manifest = await self.manifest(upload)
        except NotAManifest:
            return None
        if manifest is None:
            return None
        found = await self.missing(manifest.parts, moved)
        if manifest.memories and not await self.holds(manifest.memories, moved):
            found |= manifest.memories.bases.keys()
        return found

    async def missing(self, parts: Iterable[Part], moved: Callable[[], None]) -> set[str]:
        """Return the databases of which one of these parts is not in the bucket, or is not what was put there."""
        return {part.database for part in parts if not await self.holds(part, moved)}

    async def holds(self, part: Part | MemoriesPart, moved: Callable[[], None]) -> bool:
        """Say whether the part's object is there with its size, its bytes, and the metadata put with it.

        What the store or the manifest does not have of these is not compared. `moved` is called while a store reads the
        object through, and once it has answered.
        """
        try:
            found = await self._store.inspect(part.key, progress=lambda _: moved())
            moved()
        except NoSuchObject:
            return False
        size = part.stored_size if isinstance(part, Part) else part.size
        sha256 = found.metadata.get("sha256", part.sha256)
        return (found.size, sha256) == (size, part.sha256) and not is_changed(part.etag, found.etag)

    async def remove(self, upload: str) -> None:
        """Remove the objects of an upload that will not be finished. Where that is not permitted, a notice."""
        found = [item.key async for item in self._store.list(f"{self._prefix}{upload}/")]
        if naming.manifest_key(self._system_id, upload) in found:
            return
        try:
            await self._store.delete(found)
        except NotPermitted as error:
            _log.info(
                "leftovers_not_removed", upload_id=upload, count=len(found), reason=error.message, hint=error.hint
            )

    async def sweep(self, *ours: str, started_before: datetime) -> None:
        """Remove what killed uploads left unfinished: of `ours` all of it, of others what began before that time.

        Another machine of this system may be at work there. Where it is not permitted, a notice with the cure.
        """
        try:
            removed = sum([await self._store.sweep(f"{self._prefix}{upload}/") for upload in ours])
            removed += await self._store.sweep(self._prefix, started_before=started_before)
        except NotPermitted as error:
            _log.info("leftovers_not_removed", system_id=self._system_id, reason=error.message, hint=error.hint)
        else:
            if removed:
                _log.info("leftovers_removed", system_id=self._system_id, count=removed)


async def manifest_bytes(store: ObjectStore, key: str, moved: Callable[[], None] = lambda: None) -> bytes | None:
    """Return what lies under a manifest's key, None where nothing does; `moved` hears of each piece.

    Raises StoreError, and WireError for what is larger than any manifest.
    """
    data = bytearray()
    try:
        async with aclosing(store.get(key)) as pieces:
            async for piece in pieces:
                moved()
                data += piece
                if len(data) > MAX_MANIFEST_BYTES:
                    raise WireError(f"{key} is larger than any manifest", hint="is another program writing there?")
    except NoSuchObject:
        return None
    return bytes(data)


FOREIGN = "foreign_uploads"
AHEAD = "upload_id_ahead"

LAST_YEAR = 9998
"""Nothing can follow an id of the year 9999 for long: such an id is ignored, also one of ours."""

MOST_NAMED = 3

_FOREIGN_HINT = "find out which program writes there, and delete those objects"
_AHEAD_HINT = "set the clock of this machine; until it catches up, keeping and --at go by the times of the objects"


@dataclass(frozen=True, slots=True)
class UploadIds:
    """Chooses the id of a system's next upload, and warns of ids ahead of the clock. `location` names the store.

    Ids order uploads: the next one comes after the newest upload of this system whose manifest can be read and is ours.
    An object that another program puts under an id far ahead neither stops uploads nor pulls later ids after it. Ids
    under which anything is stored are not used again.
    """

    uploads: BucketUploads
    system_id: str
    location: str
    ledger: Ledger
    clock: Clock

    async def next(self, begun: Sequence[str], whole: Sequence[str], newest: str | None, abandoned: str | None) -> str:
        """Return an id later than `newest`, the newest upload that the ledger knows, and than any other in the bucket.

        `begun` and `whole` as `BucketUploads.ids_after` returns them for `newest`. The id of an `abandoned` upload is
        not used again. Raises StoreError, StateError, and NamingError where nothing
        can come after the newest.
        """
        found = await self._newest_of_ours(whole)
        known = [upload for upload in (newest, found, abandoned) if upload]
        last = max(known, key=naming.upload_time, default=None)
        now, taken = self.clock.now(), {*begun}
        chosen = naming.next_upload_id(now, last, self.system_id)
        while chosen in taken:
            chosen = naming.next_upload_id(now, chosen, self.system_id)
        await self._warn_of_foreign([upload for upload in begun if upload > chosen and is_in_future(upload, now)])
        return chosen

    async def compare_with_clock(self, upload: str, stored_at: datetime | None) -> None:
        """Keep a warning while the id of a new upload is ahead of the store's clock, which dated its objects.

        Where a store does not date them, this machine's clock is used.
        """
        if not is_in_future(upload, stored_at or self.clock.now()):
            await clear_warning(self.ledger, AHEAD)
            return
        message = (
            f"the id of the newest upload, {upload}, is ahead of the clock of {self.location}:"
            " this machine's clock is ahead, or was once"
        )
        if await set_warning(self.ledger, StatusWarning(code=AHEAD, message=message, hint=_AHEAD_HINT), self.clock):
            _log.warning("upload_id_ahead", upload_id=upload, location=self.location, hint=_AHEAD_HINT)

    async def _newest_of_ours(self, whole: Collection[str]) -> str | None:
        for upload in sorted(whole, reverse=True):
            if naming.upload_time(upload).year > LAST_YEAR:
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
        message = f"{self.location} has objects under ids ahead of the clock that are no uploads of ours: {named}{more}"
        if await set_warning(self.ledger, StatusWarning(code=FOREIGN, message=message, hint=_FOREIGN_HINT), self.clock):
            _log.warning("foreign_uploads", location=self.location, names=sorted(ids)[:MOST_NAMED], hint=_FOREIGN_HINT)
