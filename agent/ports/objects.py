"""Object stores, which hold the uploads."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol

FILE_TAG = "sha256:"
"""Prefix of the ETags of a store without its own: `sha256:` and the SHA-256 of the stored bytes."""

Progress = Callable[[int], None]
"""Called on the event loop with the number of bytes transferred since the last call. Cheap, never raises."""


def ignore_progress(_count: int) -> None:
    """A Progress that does nothing."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a store: its key, its size in bytes, and its metadata (empty in a listing).

    `modified` is when the object was created, by the store's clock; set in listings only. `etag` changes with the
    bytes: the store's ETag without quotes, or `sha256:` and the digest of the stored bytes; empty if the call does not
    return it.
    """

    key: str
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    modified: datetime | None = field(default=None, compare=False)
    etag: str = field(default="", compare=False)


def is_changed(remembered: str, found: str) -> bool:
    """Return whether two ETags prove that the bytes differ. Empty ETags, or two of different kinds, prove nothing.

    An upload that was mirrored from a bucket into a directory, or back, has ETags of the other kind.
    """
    same_kind = remembered.startswith(FILE_TAG) == found.startswith(FILE_TAG)
    return bool(remembered and found) and same_kind and remembered != found


class Creation(Enum):
    """The outcome of `ObjectStore.create`."""

    CREATED = "created"
    """The object was created, and no other `create` of this key succeeded."""
    EXISTS = "exists"
    """Nothing was written, because the object exists. An earlier request whose response was lost may have created it:
    read the object to see whose it is.
    """
    UNPROVEN = "unproven"
    """The object was written, but the store has no conditional create, so another writer may replace it: wait, then
    read it back.
    """


class ObjectStore(Protocol):
    """Stores objects under keys. Every failure is a StoreError, marked transient or not, with a hint.

    Keys are plain names separated by `/`; listings are in key order. The store's client may retry a single request; the
    caller retries complete operations.
    """

    @property
    def location(self) -> str:
        """The address for people: `s3://bucket at host` or `file:///dir`. Contains no secrets."""
        ...

    async def is_available(self) -> bool:
        """Return within 1 s whether the store may be reachable: False only if it certainly is not. Never raises.

        False: a refused connection, no route, a host name or directory that does not exist. True: also after a timeout
        or a temporary failure of name resolution.
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
        """Store `body` under `key`, all or nothing. An existing object is replaced.

        When it returns, the object is durable and checked. It holds a bounded number of parts of `part_bytes` in
        memory. After a cancellation or failure it removes all that it wrote, as far as it may. `progress` is called as
        bytes are sent.
        """
        ...

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        """Create a small object, all or nothing, if the key does not exist. With `replace`, overwrite it (UNPROVEN).

        Of several concurrent calls for one key, at most one returns CREATED, and then no other returns UNPROVEN. The
        object has no metadata. It can be read immediately, whatever the storage class of other objects.
        """
        ...

    async def copy(
        self, source: str, key: str, *, expected: StoredObject, progress: Progress = ignore_progress
    ) -> StoredObject:
        """Copy within the store, without a download, and check the copy's size and metadata against `expected`.

        The copy gets `expected.metadata`. `expected.etag`, if known, is that of the source: a source with another one
        was damaged or replaced. Raises NoSuchObject if the source does not exist; CopyUnsupported if the store cannot
        copy, reports a copy that it did not make, or the source is not the expected one. `progress` is called during
        long copies.
        """
        ...

    async def head(self, key: str) -> StoredObject:
        """Return the object's description, without its bytes. Raises NoSuchObject."""
        ...

    async def inspect(self, key: str, *, progress: Progress = ignore_progress) -> StoredObject:
        """Return the same as `head`, with the `etag` of the current bytes. Raises NoSuchObject.

        A store without ETags reads the entire object, and calls `progress` meanwhile.
        """
        ...

    def get(self, key: str) -> AsyncGenerator[bytes, None]:
        """Stream the object's bytes. Raises NoSuchObject."""
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        """List the objects under `prefix` in key order, only keys after `start_after`."""
        ...

    async def delete(self, keys: Collection[str]) -> None:
        """Delete objects, many per request. Missing objects are not an error. Raises NotPermitted.

        If it raises, some of the objects may be deleted.
        """
        ...

    async def sweep(self, prefix: str, *, started_before: datetime | None = None) -> int:
        """Remove unfinished puts under `prefix` that a killed process left; return their number. Raises NotPermitted.

        A store that does not know whether the process of a put is still running removes only puts started before
        `started_before`.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Idempotent."""
        ...
