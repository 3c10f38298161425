"""What a prune would do: which uploads go, which stay and why, and what was left over. Nothing is deleted here."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agent.domain import naming
from agent.domain.errors import NamingError
from agent.domain.upload_times import is_ahead
from agent.ports import StoredObject

LEFT_OVER_AFTER = timedelta(days=1)
"""An upload without a manifest may still be under way, on another machine, for so long after its last object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """`kept`: uploads and the reasons, the newest first; `going`: those that go, with all their objects, likewise.

    `leftovers` are objects of uploads that never came to be whole, or were deleted in part. `begun_before`: unfinished
    puts from before that time are left over, too. `held` says why nothing may be deleted: the newest upload is damaged.
    """

    kept: Mapping[str, tuple[str, ...]]
    going: Mapping[str, tuple[StoredObject, ...]]
    leftovers: Mapping[str, tuple[StoredObject, ...]]
    begun_before: datetime
    held: str = ""

    @property
    def is_empty(self) -> bool:
        """Say whether nothing of what a listing shows would go."""
        return not self.going and not self.leftovers


@dataclass(frozen=True, slots=True)
class BucketContents:
    """What lies under a system's prefix, by upload. `now` is not after the time of the newest object, where one tells.

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
        long_ago = self.begun_before
        return [
            upload
            for upload, objects in self.objects.items()
            if upload not in whole
            and upload not in spared
            and (naming.upload_time(upload) < long_ago or is_ahead(upload, self.now))
            and all((item.modified or naming.upload_time(upload)) < long_ago for item in objects)
        ]

    @property
    def begun_before(self) -> datetime:
        return self.now - LEFT_OVER_AFTER


def own_upload(system_id: str, key: str) -> str | None:
    """Return the upload of this system that a key belongs to, None where it belongs to none."""
    try:
        upload = naming.upload_of(key)
        ours = naming.upload_id(naming.upload_time(upload), system_id)
    except NamingError:
        return None
    return upload if upload == ours and key.startswith(f"{naming.uploads_prefix(system_id)}{upload}/") else None
