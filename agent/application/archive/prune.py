"""Delete the uploads of one system that the retention rules do not keep, and leftover objects.

A prune deletes manifests first, then the other objects. If it is killed, no upload looks complete that is not, and the
next prune deletes the rest. Uploads and other prunes can run at the same time. A reader whose upload is deleted finds
the manifest missing, and reads a newer upload.
"""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from agent.application.archive.catalog import READ_AT_ONCE, Catalog, wrong_sizes
from agent.application.archive.verify import Verifier, changed_tags
from agent.application.sync.bucket_uploads import LEFT_OVER_AFTER, NotAManifest
from agent.application.sync.unreadable_copies import last_readable
from agent.domain import naming
from agent.domain.delivery_state import Target, TargetRecord
from agent.domain.errors import NamingError, NotPermitted, StoreError
from agent.domain.events import UploadsPruned, archive_event_id
from agent.domain.naming import is_in_future, made_at, needs_manifest
from agent.domain.retention import KeepRules, bases_needed, keep
from agent.ports import Clock, Ledger, StoredObject
from agent.ports.concurrency import gather_all

T = TypeVar("T")

UPLOADS_AT_ONCE = 1000
KEYS_AT_ONCE = 1000
"""Number of uploads per batch, and of keys per delete request: the maximum that S3 accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What a prune keeps and deletes.

    `kept` maps uploads to the reasons, `to_delete` maps uploads to all their objects; both are newest first.
    `leftovers` are objects of uploads that were never completed, or that were deleted in part. Multipart uploads
    started before `started_before` are leftovers, too. `blocked` is the reason why nothing may be deleted: the newest
    upload is damaged.
    """

    kept: Mapping[str, tuple[str, ...]]
    to_delete: Mapping[str, tuple[StoredObject, ...]]
    leftovers: Mapping[str, tuple[StoredObject, ...]]
    started_before: datetime
    blocked: str = ""

    @property
    def is_empty(self) -> bool:
        """Return whether there is no listed object to delete."""
        return not self.to_delete and not self.leftovers


@dataclass(frozen=True, slots=True)
class BucketContents:
    """The objects under a system's prefix, by upload.

    `now` is our time, or the time of the newest object if that is earlier and the store dates objects. The store's
    clock dates the objects, and ours may be wrong: an object a day older than the newest is at least a day old.
    """

    system_id: str
    now: datetime
    objects: Mapping[str, tuple[StoredObject, ...]] = field(default_factory=dict)

    @classmethod
    async def of(cls, system_id: str, listing: AsyncIterator[StoredObject], now: datetime) -> "BucketContents":
        """Group a listing by upload. Ignore objects that are not in an upload of this system."""
        found: dict[str, list[StoredObject]] = {}
        async for item in listing:
            upload = own_upload(system_id, item.key)
            if upload is not None:
                found.setdefault(upload, []).append(item)
        times = [item.modified for objects in found.values() for item in objects if item.modified is not None]
        return cls(system_id, min([now, max(times)] if times else [now]), {u: tuple(o) for u, o in found.items()})

    @property
    def complete(self) -> list[str]:
        """The uploads that have a manifest."""
        return [upload for upload in self.objects if self.manifest_key(upload) in {o.key for o in self.objects[upload]}]

    def manifest_key(self, upload: str) -> str:
        return naming.manifest_key(self.system_id, upload)

    def manifest_time(self, upload: str) -> datetime | None:
        """Return the time of an upload's manifest object by the store's clock, None if unknown."""
        key = self.manifest_key(upload)
        return next((item.modified for item in self.objects[upload] if item.key == key), None)

    def sizes(self, upload: str) -> dict[str, int]:
        """Return object name -> size for an upload."""
        return {item.key.split("/", 4)[4]: item.size for item in self.objects[upload]}

    def tags(self, upload: str) -> dict[str, str]:
        """Return object name -> ETag in the listing for an upload."""
        return {item.key.split("/", 4)[4]: item.etag for item in self.objects[upload]}

    def left_over(self, complete: Collection[str], spared: Mapping[str, str]) -> list[str]:
        """Return the uploads that have no manifest and have not changed for a day.

        If an ID is ahead of the store's clock, the times of the objects decide.
        """
        long_ago = self.started_before
        return [
            upload
            for upload, objects in self.objects.items()
            if upload not in complete
            and upload not in spared
            and (naming.upload_time(upload) < long_ago or is_in_future(upload, self.now))
            and all((item.modified or naming.upload_time(upload)) < long_ago for item in objects)
        ]

    @property
    def started_before(self) -> datetime:
        return self.now - LEFT_OVER_AFTER


def own_upload(system_id: str, key: str) -> str | None:
    """Return the upload of this system that a key belongs to, or None."""
    try:
        upload = naming.upload_of(key)
        ours = naming.upload_id(naming.upload_time(upload), system_id)
    except NamingError:
        return None
    return upload if upload == ours and key.startswith(f"{naming.uploads_prefix(system_id)}{upload}/") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The result of a prune: the deleted uploads, newest first, and the number and size of their objects.

    `kept` counts the remaining uploads. `leftovers` counts deleted leftover objects and aborted multipart uploads.
    `error` stopped the prune. `unswept` is the reason why multipart uploads could not be listed, "" if they were.
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
    def is_empty(self) -> bool:
        return not (self.upload_ids or self.objects or self.leftovers)


class Pruner:
    """Prunes one catalog by retention rules. Every method raises StoreError if the store does not answer.

    `check` raises NotOwner if the uploads belong to another agent. It is called before planning and before deleting.
    """

    def __init__(
        self,
        catalog: Catalog,
        rules: KeepRules,
        clock: Clock,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.rules, self.system_id = rules, catalog.system_id
        self.location = catalog.store.location
        self._catalog, self._store, self._clock = catalog, catalog.store, clock
        self._prefix = naming.uploads_prefix(catalog.system_id)
        self._check = check
        self._uploaded: dict[tuple[str, datetime | None], datetime | None] = {}

    async def plan(self, spared: Mapping[str, str], *, always_verify: bool = False) -> PrunePlan:
        """Plan a prune. `spared` maps uploads that must be kept to the reasons.

        `always_verify`: check the newest upload even if there is nothing to delete.

        One listing shows whether anything can be deleted. Only then are the manifests of the kept uploads read. A
        damaged upload does not count towards the rules, so that a good one is kept instead. If the newest upload is
        damaged, nothing is deleted: objects copied from it may be damaged, too, and the uploads before it may be the
        last good ones.
        """
        await self._check_owner()
        contents = await self._read_bucket()
        complete = contents.complete
        times = await self._times(contents, complete)
        kept = keep(complete, self.rules, spared=spared, times=times)
        leftovers = {upload: contents.objects[upload] for upload in contents.left_over(set(complete), spared)}
        deletable = always_verify or len(kept) < len(complete) or leftovers
        if deletable and (blocked := await self._damage_of_newest(kept, contents)):
            return PrunePlan(
                kept=dict.fromkeys(sorted(complete, reverse=True), ("kept while the newest upload is damaged",)),
                to_delete={},
                leftovers={},
                started_before=contents.started_before,
                blocked=blocked,
            )
        if len(kept) < len(complete):
            kept, vanished = await self._kept(contents, complete, spared, times)
            complete = [upload for upload in complete if upload not in vanished]
        to_delete = sorted((upload for upload in complete if upload not in kept), reverse=True)
        return PrunePlan(
            kept=kept,
            to_delete={upload: contents.objects[upload] for upload in to_delete},
            leftovers=leftovers,
            started_before=contents.started_before,
        )

    async def carry_out(self, plan: PrunePlan, spared: Mapping[str, str], *, open_puts: Collection[str] = ()) -> Pruned:
        """Delete what the plan lists. A StoreError stops the prune, and is returned as `error` in the result.

        `spared` as for `plan`, but read after it: an upload may have begun just before the plan listed its objects.

        `open_puts` are the IDs of interrupted puts that the next sync continues.
        """
        started = self._clock.monotonic()
        done = Pruned()
        try:
            await self._check_owner()
            await self._delete_uploads(plan.to_delete)
            leftovers = await self._still_left(plan, spared)
            await self._delete([item.key for objects in leftovers.values() for item in objects])
            done = replace(_deleted(plan.to_delete, plan.to_delete), leftovers=sum(map(len, leftovers.values())))
            done = await self._sweep(plan, done, open_puts)
        except StoreError as error:
            done = replace(await self._deleted_so_far(plan), error=error)
        seconds = round(self._clock.monotonic() - started, 3)
        kept = len(plan.kept) + len(plan.to_delete) - len(done.upload_ids)
        return replace(done, kept=kept, duration_seconds=seconds)

    def event(self, pruned: Pruned, agent_id: str) -> UploadsPruned:
        """Return the UploadsPruned event of a prune."""
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
            async with self._catalog.stall_limit():
                await self._check()

    async def _read_bucket(self) -> BucketContents:
        async with self._catalog.stall_limit() as record_progress:
            return await BucketContents.of(self.system_id, self._listing(record_progress), self._clock.now())

    async def _listing(self, record_progress: Callable[[], None]) -> AsyncIterator[StoredObject]:
        async for item in self._store.list(self._prefix):
            record_progress()
            yield item

    async def _times(self, contents: BucketContents, complete: Sequence[str]) -> dict[str, datetime]:
        """Return when each upload was made.

        The manifest is read if the times of ID and object disagree, and its time is cached for the next prune: in a
        copied bucket all of them disagree, and the agent prunes after each upload.
        """
        dated = [(upload, contents.manifest_time(upload)) for upload in complete]
        unclear = [each for each in dated if needs_manifest(*each)]
        known = {each: self._uploaded[each] for each in unclear if each in self._uploaded}
        for few in _batches([each for each in unclear if each not in known], READ_AT_ONCE):
            found = await gather_all([self._uploaded_at(upload) for upload, _ in few], "prune-time")
            known |= zip(few, found, strict=True)
        self._uploaded = known
        return {upload: made_at(upload, modified, known.get((upload, modified))) for upload, modified in dated}

    async def _uploaded_at(self, upload: str) -> datetime | None:
        async with self._catalog.stall_limit():
            try:
                manifest = await self._catalog.uploads.manifest(upload)
            except NotAManifest:
                return None
        return manifest.uploaded_at if manifest else None

    async def _damage_of_newest(self, kept: Iterable[str], contents: BucketContents) -> str:
        """Return the damage of the newest upload, found by listing, ETags and metadata; "" if there is none.

        Skip uploads whose ID is ahead of their object's time and whose manifest is not one of ours.
        """
        verifier = Verifier(self._catalog, self._clock)
        for upload in kept:
            found = await verifier.shallow(upload)
            if found.whole:
                return ""
            modified = contents.manifest_time(upload)
            foreign = found.manifest is None and modified is not None and is_in_future(upload, modified)
            if not (found.is_missing or foreign):
                problems = "; ".join(f"{name} {problem}" for name, problem in sorted(found.problems.items()))
                return f"{upload} is damaged: {problems}"
        return ""

    async def _kept(
        self,
        contents: BucketContents,
        complete: Sequence[str],
        spared: Mapping[str, str],
        times: Mapping[str, datetime],
    ) -> tuple[dict[str, tuple[str, ...]], set[str]]:
        """Return the uploads to keep, with the reasons, and the uploads deleted by another process meanwhile."""
        needs: dict[str, frozenset[str]] = {}
        damaged: dict[str, str] = {}
        vanished: set[str] = set()
        while True:
            counted = [upload for upload in complete if upload not in vanished and upload not in damaged]
            kept = keep(counted, self.rules, needs=needs, spared=spared, times=times)
            unread = [upload for upload in kept if upload not in needs]
            if not unread:
                uncounted = {upload: (f"damaged, not counted: {problem}",) for upload, problem in damaged.items()}
                return dict(sorted({**kept, **uncounted}.items(), reverse=True)), vanished
            for few in _batches(unread, READ_AT_ONCE):
                found = await gather_all([self._needs(contents, upload) for upload in few], "prune-read")
                for upload, read in zip(few, found, strict=True):
                    if read is None:
                        vanished.add(upload)
                    elif isinstance(read, str):
                        damaged[upload] = read
                    else:
                        needs[upload] = read

    async def _needs(self, contents: BucketContents, upload: str) -> frozenset[str] | str | None:
        """Return the bases that an upload needs, its damage, or None if it was deleted."""
        async with self._catalog.stall_limit():
            try:
                manifest = await self._catalog.uploads.manifest(upload)
            except NotAManifest as error:
                return error.message
        if manifest is None:
            return None
        problems = wrong_sizes(manifest, contents.sizes(upload)) or changed_tags(manifest, contents.tags(upload))
        if problems:
            return "; ".join(f"{name} {problem}" for name, problem in sorted(problems.items()))
        return bases_needed(manifest)

    async def _delete_uploads(self, uploads: Mapping[str, Sequence[StoredObject]]) -> None:
        """Delete the oldest uploads first; in each batch all manifests and Akosha's markers, then the other objects."""
        for batch in _batches(sorted(uploads), UPLOADS_AT_ONCE):
            first: list[str] = []
            rest: list[str] = []
            for upload in batch:
                index_keys = {naming.manifest_key(self.system_id, upload), f"{self._prefix}{upload}/"}
                for item in uploads[upload]:
                    (first if item.key in index_keys else rest).append(item.key)
            await self._delete(first)
            await self._delete(rest)

    async def _delete(self, keys: Sequence[str]) -> None:
        async with self._catalog.stall_limit() as record_progress:
            for batch in _batches(self._checked(keys), KEYS_AT_ONCE):
                await self._store.delete(batch)
                record_progress()

    def _checked(self, keys: Sequence[str]) -> Sequence[str]:
        """Return the keys. Raises NamingError if one is not in an upload of this system: nothing else is deleted."""
        for key in keys:
            if own_upload(self.system_id, key) is None:
                raise NamingError(f"{key!r} does not belong to an upload of {self.system_id}: it is not deleted")
        return keys

    async def _still_left(self, plan: PrunePlan, spared: Mapping[str, str]) -> dict[str, tuple[StoredObject, ...]]:
        """Return the leftovers that have not changed since the plan: a suspended upload may have continued."""
        if not plan.leftovers:
            return {}
        contents = await self._read_bucket()
        left = contents.left_over(set(contents.complete), spared)
        return {u: contents.objects[u] for u in left if contents.objects[u] == plan.leftovers.get(u)}

    async def _sweep(self, plan: PrunePlan, done: Pruned, open_puts: Collection[str]) -> Pruned:
        try:
            async with self._catalog.stall_limit() as record_progress:
                swept = await self._store.sweep(self._prefix, started_before=plan.started_before, spared=open_puts)
                await self._store.separate_copies(self._prefix, progress=lambda _: record_progress())
        except NotPermitted as error:
            return replace(done, unswept=str(error))
        return replace(done, leftovers=done.leftovers + swept)

    async def _deleted_so_far(self, plan: PrunePlan) -> Pruned:
        """Return what a failed prune has deleted; an empty result if the store does not answer."""
        try:
            contents = await self._read_bucket()
        except StoreError:
            return Pruned()
        left = {item.key for objects in contents.objects.values() for item in objects}
        deleted = {u: [i for i in objects if i.key not in left] for u, objects in plan.to_delete.items()}
        uploads = {u for u in deleted if contents.manifest_key(u) not in left}
        leftovers = sum(item.key not in left for objects in plan.leftovers.values() for item in objects)
        return replace(_deleted(deleted, uploads), leftovers=leftovers)


async def spared_now(ledger: Ledger, target: Target) -> dict[str, str]:
    """Return the uploads that must not be deleted as the ledger is now, with the reasons. Raises StateError.

    The last readable copy of a database that DuckDB cannot read is one of them: later uploads have none.
    """
    readable = await last_readable(ledger, target)
    spared = {upload: f"last readable copy of {name}" for name, upload in readable.items() if upload}
    return spared | spared_by(await ledger.record(target))


def spared_by(record: TargetRecord) -> dict[str, str]:
    """Return the uploads that the ledger's record of the target refers to, with the reasons to keep them."""
    of_parts = (part.key for known in record.databases.values() for part in known.parts)
    named = {naming.upload_of(key): "this agent's last upload" for key in of_parts}
    if record.newest_upload_id:
        named[record.newest_upload_id] = "this agent's last upload"
    if record.intent is not None:
        named[record.intent.upload_id] = "upload in progress"
    return named


def _deleted(objects: Mapping[str, Collection[StoredObject]], uploads: Collection[str]) -> Pruned:
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
