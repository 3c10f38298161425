"""Keys and bytes: the store of uploads."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol

FILE_TAG = "sha256:"
"""Begins the tag of an object in a store that keeps none of its own: the SHA-256 of the stored bytes."""

Progress = Callable[[int], None]
"""Called on the event loop with the number of bytes that have moved since. Cheap, never raises."""


def ignore_progress(_count: int) -> None:
    """A Progress that does nothing."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a store: its key, its size in bytes, and the metadata put with it (empty in a listing).

    `modified`: when it came to be there, by the store's clock, where a listing tells. `etag` changes with the bytes:
    the store's own ETag, bare, or `sha256:` and the digest of the stored bytes; empty where the call does not know it.
    """

    key: str
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    modified: datetime | None = field(default=None, compare=False)
    etag: str = field(default="", compare=False)


def is_changed(remembered: str, found: str) -> bool:
    """Return whether two tags show that the bytes are others. Unknown tags, and those of different kinds, show nothing.

    An upload that was mirrored from a bucket into a directory, or back, has tags of the other kind.
    """
    alike = remembered.startswith(FILE_TAG) == found.startswith(FILE_TAG)
    return bool(remembered and found) and alike and remembered != found


class Creation(Enum):
    """What became of `ObjectStore.create`."""

    CREATED = "created"
    """The object was made, and no other `create` of this key made it, too."""
    EXISTS = "exists"
    """Nothing was written: the object is there. A lost answer may have made it: read it to see whose it is."""
    UNPROVEN = "unproven"
    """Written, by a store without a conditional create: another one may replace it. Wait, then read it back."""


class ObjectStore(Protocol):
    """Keys and bytes. Every failure is a StoreError that says transient or not, with the cure.

    Keys are `/`-separated plain names; listing is in key order. A single request may be retried by the store's client;
    attempts as a whole are the caller's.
    """

    @property
    def location(self) -> str:
        """Where this is, for people: `s3://bucket at host` or `file:///dir`. Never a secret."""
        ...

    async def is_available(self) -> bool:
        """Say within 1 s whether the store may be reached: False only for a definite no. Never raises.

        A refused connection, no route, a name or place that does not exist are a no; a time-out or a look-up that
        failed for the moment is not.
        """
        ...

    async def put(
        self,
        key: str,
        body: AsyncIterable[bytes],
        *,
        metadata: Mapping[str, str],
        part_bytes: int,
        progress: Progress,
    ) -> StoredObject:
        """Stream `body` under `key`; all or nothing, replacing what was there; durable and checked when it returns.

        Holds a bounded number of parts of `part_bytes` in memory. Cancelled or failed, it leaves nothing behind that
        it may remove. `progress` is called as bytes leave.
        """
        ...

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        """Put a small object, all or nothing, where nothing is; with `replace`, in place of what is there (UNPROVEN).

        Of several that create a key at the same time, at most one gets CREATED, and then no other gets UNPROVEN. The
        object has no metadata, and can be read at once whatever the storage class of others.
        """
        ...

    async def copy(
        self, source: str, key: str, *, expected: StoredObject, progress: Progress = ignore_progress
    ) -> StoredObject:
        """Copy on the store's side, no bytes through here, and check the copy's size and metadata against `expected`.

        `expected.metadata` becomes the copy's; `expected.etag`, where it is known, is the source's: a source with
        another one is damaged or replaced. Raises NoSuchObject for a missing source, CopyUnsupported where the store
        cannot, or did not really, or the source is not what is expected. `progress` is called where it takes long.
        """
        ...

    async def head(self, key: str) -> StoredObject:
        """Return the object without its bytes. Raises NoSuchObject."""
        ...

    async def inspect(self, key: str, *, progress: Progress = ignore_progress) -> StoredObject:
        """Return what `head` does, with the `etag` of the bytes as they are now. Raises NoSuchObject.

        A store that keeps no tags reads the object through; `progress` is called as it does.
        """
        ...

    def get(self, key: str) -> AsyncGenerator[bytes, None]:
        """Stream the object's bytes. Raises NoSuchObject."""
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        """List objects under `prefix` in key order, those after `start_after` only."""
        ...

    async def delete(self, keys: Collection[str]) -> None:
        """Delete; what is not there is no error. Many take few requests. Raises NotPermitted.

        Where it raises, some of them may be gone.
        """
        ...

    async def sweep(self, prefix: str, *, started_before: datetime | None = None) -> int:
        """Remove unfinished puts that a killed process left under `prefix`; return how many. Raises NotPermitted.

        Where the store does not know whether who began one still lives: those alone that began before that time.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Idempotent."""
        ...
