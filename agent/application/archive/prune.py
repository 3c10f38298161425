"""Deletes the uploads of one system that the retention rules do not keep, and leftovers.

The manifests go first, then the objects: killed anywhere, it leaves no upload that looks whole and is not, and the next
prune finds the rest. Uploads that are made, and other prunes, may go on meanwhile; a reader whose upload is deleted
under it finds its manifest gone, and takes a newer one.
"""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from agent.application.archive.catalog import READ_AT_ONCE, Catalog, wrong_sizes
from agent.application.archive.verify import Verifier, changed_tags
from agent.application.sync.bucket_uploads import LEFT_OVER_AFTER, NotAManifest
from agent.domain import naming
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import NamingError, NotPermitted, StoreError
from agent.domain.events import UploadsPruned, archive_event_id
from agent.domain.naming import is_ahead, made_at, needs_manifest
from agent.domain.retention import KeepRules, bases_needed, keep
from agent.ports import Clock, StoredObject
from agent.ports.concurrency import all_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """`kept`: uploads and the reasons, the newest first; `going`: those that go, with all their objects, likewise.

    `leftovers` are objects of uploads that never were completed, or were deleted in part. `started_before`: unfinished
    puts from before that time are left over, too. `held` says why nothing may be deleted: the newest upload is damaged.
    """

    kept: Mapping[str, tuple[str, ...]]
    going: Mapping[str, tuple[StoredObject, ...]]
    leftovers: Mapping[str, tuple[StoredObject, ...]]
    started_before: datetime
    held: str = ""

    @property
    def is_empty(self) -> bool:
        """Say whether nothing of what a listing shows would go."""
        return not self.going and not self.leftovers


@dataclass(frozen=True, slots=True)
class BucketContents:
    """What lies under a system's prefix, by upload. `now` is not after the time of the newest object, where the store
    dates objects.

    The store's clock dates its objects, and ours may be wrong: what is a day older than the newest object is at least a
    day old.
    """

    system_id: str
    now: datetime
    objects: Mapping[str, tuple[StoredObject, ...]] = field(default_factory=dict)

    @classmethod
    async def of(cls, system_id: str, listing: AsyncIterator[StoredObject], now: datetime) -> "BucketContents":
        """Sort a listing. What is not in an upload of this system by its id is not looked at."""
        found: dict[str, list[StoredObject]] = {}
        async for item in listing:
            upload = own_upload(system_id, item.key)
            if upload is not None:
                found.setdefault(upload, []).append(item)
        times = [item.modified for objects in found.values() for item in objects if item.modified is not None]
        return cls(system_id, min([now, max(times)] if times else [now]), {u: tuple(o) for u, o in found.items()})

    @property
    def whole(self) -> list[str]:
        """The uploads that are there: their manifest is."""
        return [upload for upload in self.objects if self.manifest_key(upload) in {o.key for o in self.objects[upload]}]

    def manifest_key(self, upload: str) -> str:
        return naming.manifest_key(self.system_id, upload)

    def manifest_time(self, upload: str) -> datetime | None:
        """Return the time of an upload's manifest object, by the store's clock, None where that is not known."""
        key = self.manifest_key(upload)
        return next((item.modified for item in self.objects[upload] if item.key == key), None)

    def sizes(self, upload: str) -> dict[str, int]:
        """Return the sizes of an upload's objects, by their name in it."""
        return {item.key.split("/", 4)[4]: item.size for item in self.objects[upload]}

    def tags(self, upload: str) -> dict[str, str]:
        """Return the ETags of an upload's objects as the listing has them, by their name in it."""
        return {item.key.split("/", 4)[4]: item.etag for item in self.objects[upload]}

    def left_over(self, whole: Mapping[str, object] | set[str], spared: Mapping[str, str]) -> list[str]:
        """Return the uploads that have no manifest, and in which nothing has happened for a day.

        An id that is ahead of the store's clock says nothing: the times of the objects decide.
        """
        long_ago = self.started_before
        return [
            upload
            for upload, objects in self.objects.items()
            if upload not in whole
            and upload not in spared
            and (naming.upload_time(upload) < long_ago or is_ahead(upload, self.now))
            and all((item.modified or naming.upload_time(upload)) < long_ago for item in objects)
        ]

    @property
    def started_before(self) -> datetime:
        return self.now - LEFT_OVER_AFTER


def own_upload(system_id: str, key: str) -> str | None:
    """Return the upload of this system that a key belongs to, None where it belongs to none."""
    try:
        upload = naming.upload_of(key)
        ours = naming.upload_id(naming.upload_time(upload), system_id)
    except NamingError:
        return None
    return upload if upload == ours and key.startswith(f"{naming.uploads_prefix(system_id)}{upload}/") else None


T = TypeVar("T")

UPLOADS_AT_ONCE = 1000
KEYS_AT_ONCE = 1000
"""Uploads, and keys, that are deleted in one go: what S3 takes in a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What became of a plan: the uploads that are gone, the newest first, `objects` and bytes that were theirs.

    `leftovers` counts objects and unfinished puts. `kept`: how many uploads are there still. `error`: what stopped it.
    `unswept`: why unfinished puts could not be looked for, "" where they were.
    """

    upload_ids: tuple[str, ...] = ()
    kept: int = 0
    objects: int = 0
    bytes_freed: int = 0
    leftovers: int = 0
    error: StoreError | None = None
    unswept: str = ""
    duration_seconds: float = 0.0

    @property
    def is_nothing(self) -> bool:
        return not (self.upload_ids or self.objects or self.leftovers)


class Pruner:
    """`archive` is where it is done, by these rules. Every method raises StoreError where the store does not answer.

    `check` raises NotOwner where the uploads are not this agent's: asked before a look, and before a deletion.
    """

    def __init__(
        self,
        archive: Catalog,
        rules: KeepRules,
        clock: Clock,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.rules, self.system_id = rules, archive.system_id
        self.location = archive.store.location
        self._archive, self._store, self._clock = archive, archive.store, clock
        self._prefix = naming.uploads_prefix(archive.system_id)
        self._check = check
        self._uploaded: dict[tuple[str, datetime | None], datetime | None] = {}

    async def plan(self, spared: Mapping[str, str]) -> PrunePlan:
        """Look what would go. `spared`: uploads that must stay, and why.

        One listing shows whether anything may go; only then are manifests read: those of the uploads that stay. One
        that is damaged counts for nothing, so that a good one stays in its place. Where the newest is damaged nothing
        goes at all: what was copied from it may be damaged, too, and the uploads before it may be the last good ones.
        """
        await self._check_owner()
        there = await self._read_bucket()
        whole = there.whole
        times = await self._times(there, whole)
        kept = keep(whole, self.rules, besides=spared, times=times)
        leftovers = {upload: there.objects[upload] for upload in there.left_over(set(whole), spared)}
        may_go = len(kept) < len(whole) or leftovers
        if may_go and (held := await self._wrong_with_newest(kept, there)):
            return PrunePlan(
                kept=dict.fromkeys(sorted(whole, reverse=True), ("nothing goes while the newest is damaged",)),
                going={},
                leftovers={},
                started_before=there.started_before,
                held=held,
            )
        if len(kept) < len(whole):
            kept, vanished = await self._kept(there, whole, spared, times)
            whole = [upload for upload in whole if upload not in vanished]
        going = sorted((upload for upload in whole if upload not in kept), reverse=True)
        return PrunePlan(
            kept=kept,
            going={upload: there.objects[upload] for upload in going},
            leftovers=leftovers,
            started_before=there.started_before,
        )

    async def carry_out(self, plan: PrunePlan, spared: Mapping[str, str]) -> Pruned:
        """Delete what the plan says; what a store refuses, or does not answer, stops it and is named in the result."""
        started = self._clock.monotonic()
        done = Pruned()
        try:
            await self._check_owner()
            await self._delete_uploads(plan.going)
            leftovers = await self._still_left(plan, spared)
            await self._delete([item.key for objects in leftovers.values() for item in objects])
            done = replace(_gone(plan.going, plan.going), leftovers=sum(map(len, leftovers.values())))
            done = await self._sweep(plan, done)
        except StoreError as error:
            done = replace(await self._deleted_so_far(plan), error=error)
        seconds = round(self._clock.monotonic() - started, 3)
        kept = len(plan.kept) + len(plan.going) - len(done.upload_ids)
        return replace(done, kept=kept, duration_seconds=seconds)

    def event(self, pruned: Pruned, agent_id: str) -> UploadsPruned:
        """Return the event about it."""
        at = self._clock.now()
        return UploadsPruned(
            id=archive_event_id(self.system_id, agent_id, "pruned", at),
            time=at,
            system_id=self.system_id,
            upload_ids=pruned.upload_ids,
            kept=pruned.kept,
            objects=pruned.objects,
            bytes_freed=pruned.bytes_freed,
            leftovers=pruned.leftovers,
            error=str(pruned.error) if pruned.error else None,
            duration_seconds=pruned.duration_seconds,
        )

    async def _check_owner(self) -> None:
        if self._check is not None:
            async with self._archive.moving():
                await self._check()

    async def _read_bucket(self) -> BucketContents:
        async with self._archive.moving() as moved:
            return await BucketContents.of(self.system_id, self._listing(moved), self._clock.now())

    async def _listing(self, moved: Callable[[], None]) -> AsyncIterator[StoredObject]:
        async for item in self._store.list(self._prefix):
            moved()
            yield item

    async def _times(self, there: BucketContents, whole: Sequence[str]) -> dict[str, datetime]:
        """Return when the uploads were made.

        A manifest is read where id and object disagree about it, once for each object: in a bucket that was copied, all
        of them disagree, and an agent prunes after each upload.
        """
        seen = [(upload, there.manifest_time(upload)) for upload in whole]
        unclear = [each for each in seen if needs_manifest(*each)]
        known = {each: self._uploaded[each] for each in unclear if each in self._uploaded}
        for few in _batches([each for each in unclear if each not in known], READ_AT_ONCE):
            found = await all_of([self._uploaded_at(upload) for upload, _ in few], "prune-time")
            known |= zip(few, found, strict=True)
        self._uploaded = known
        return {upload: made_at(upload, modified, known.get((upload, modified))) for upload, modified in seen}

    async def _uploaded_at(self, upload: str) -> datetime | None:
        async with self._archive.moving():
            try:
                manifest = await self._archive.uploads.manifest(upload)
            except NotAManifest:
                return None
        return manifest.uploaded_at if manifest else None

    async def _wrong_with_newest(self, kept: Iterable[str], there: BucketContents) -> str:
        """Return what is wrong with the newest of the uploads, by listing, ETags and metadata; "" for nothing.

        An id ahead of its object's time, with a manifest not of ours, is no upload: it is passed over.
        """
        verification = Verifier(self._archive, self._clock)
        for upload in kept:
            found = await verification.shallow(upload)
            if found.whole:
                return ""
            modified = there.manifest_time(upload)
            foreign = found.manifest is None and modified is not None and is_ahead(upload, modified)
            if not (found.gone or foreign):
                return f"{upload} is damaged: {'; '.join(f'{n} {why}' for n, why in sorted(found.problems.items()))}"
        return ""

    async def _kept(
        self, there: BucketContents, whole: Sequence[str], spared: Mapping[str, str], times: Mapping[str, datetime]
    ) -> tuple[dict[str, tuple[str, ...]], set[str]]:
        """Return what stays, and which uploads somebody else has deleted meanwhile."""
        needs: dict[str, frozenset[str]] = {}
        damaged: dict[str, str] = {}
        vanished: set[str] = set()
        while True:
            counted = [upload for upload in whole if upload not in vanished and upload not in damaged]
            kept = keep(counted, self.rules, needs=needs, besides=spared, times=times)
            unread = [upload for upload in kept if upload not in needs]
            if not unread:
                aside = {upload: (f"damaged, counts for nothing: {why}",) for upload, why in damaged.items()}
                return dict(sorted({**kept, **aside}.items(), reverse=True)), vanished
            for few in _batches(unread, READ_AT_ONCE):
                found = await all_of([self._needs(there, upload) for upload in few], "prune-read")
                for upload, read in zip(few, found, strict=True):
                    if read is None:
                        vanished.add(upload)
                    elif isinstance(read, str):
                        damaged[upload] = read
                    else:
                        needs[upload] = read

    async def _needs(self, there: BucketContents, upload: str) -> frozenset[str] | str | None:
        """Return what an upload needs, what is wrong with it, or None where it is gone."""
        async with self._archive.moving():
            try:
                manifest = await self._archive.uploads.manifest(upload)
            except NotAManifest as error:
                return error.message
        if manifest is None:
            return None
        wrong = wrong_sizes(manifest, there.sizes(upload))
        if wrong := wrong or changed_tags(manifest, there.tags(upload)):
            return "; ".join(f"{name} {why}" for name, why in sorted(wrong.items()))
        return bases_needed(manifest)

    async def _delete_uploads(self, going: Mapping[str, Sequence[StoredObject]]) -> None:
        """Delete the oldest first; of a batch all manifests (and the markers by which it is found), then the rest."""
        for batch in _batches(sorted(going), UPLOADS_AT_ONCE):
            heads: list[str] = []
            rest: list[str] = []
            for upload in batch:
                first = {naming.manifest_key(self.system_id, upload), f"{self._prefix}{upload}/"}
                for item in going[upload]:
                    (heads if item.key in first else rest).append(item.key)
            await self._delete(heads)
            await self._delete(rest)

    async def _delete(self, keys: Sequence[str]) -> None:
        async with self._archive.moving() as moved:
            for batch in _batches(self._checked(keys), KEYS_AT_ONCE):
                await self._store.delete(batch)
                moved()

    def _checked(self, keys: Sequence[str]) -> Sequence[str]:
        """Return the keys if each is of an upload of this system; nothing else is ever deleted. Raises NamingError."""
        for key in keys:
            if own_upload(self.system_id, key) is None:
                raise NamingError(f"{key!r} is not of an upload of {self.system_id}: it is not deleted")
        return keys

    async def _still_left(self, plan: PrunePlan, spared: Mapping[str, str]) -> dict[str, tuple[StoredObject, ...]]:
        """Look once more, just before: an upload that has slept for days may have gone on."""
        if not plan.leftovers:
            return {}
        there = await self._read_bucket()
        left = there.left_over(set(there.whole), spared)
        return {u: there.objects[u] for u in left if there.objects[u] == plan.leftovers.get(u)}

    async def _sweep(self, plan: PrunePlan, done: Pruned) -> Pruned:
        try:
            async with self._archive.moving():
                swept = await self._store.sweep(self._prefix, started_before=plan.started_before)
        except NotPermitted as error:
            return replace(done, unswept=str(error))
        return replace(done, leftovers=done.leftovers + swept)

    async def _deleted_so_far(self, plan: PrunePlan) -> Pruned:
        """Return what was deleted before it was stopped; where the store does not answer, that is not known, and left
        out.
        """
        try:
            there = await self._read_bucket()
        except StoreError:
            return Pruned()
        left = {item.key for objects in there.objects.values() for item in objects}
        gone = {u: [i for i in objects if i.key not in left] for u, objects in plan.going.items()}
        uploads = {u for u in gone if there.manifest_key(u) not in left}
        leftovers = sum(item.key not in left for objects in plan.leftovers.values() for item in objects)
        return replace(_gone(gone, uploads), leftovers=leftovers)


def spared_by(record: TargetRecord) -> dict[str, str]:
    """Return the uploads that a ledger's record of the target names, and why they must stay."""
    of_parts = (part.key for known in record.databases.values() for part in known.parts)
    named = {naming.upload_of(key): "this agent's last" for key in of_parts}
    if record.newest_upload_id:
        named[record.newest_upload_id] = "this agent's last"
    if record.intent is not None:
        named[record.intent.upload_id] = "this agent is making it"
    return named


def _gone(objects: Mapping[str, Collection[StoredObject]], uploads: Collection[str]) -> Pruned:
    deleted = [item for each in objects.values() for item in each]
    return Pruned(
        upload_ids=tuple(sorted(uploads, reverse=True)),
        objects=len(deleted),
        bytes_freed=sum(item.size for item in deleted),
    )


def _batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    rest = iter(items)
    while batch := [*itertools.islice(rest, size)]:
        yield batch
