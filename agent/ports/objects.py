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

    `modified` is when the object was created, by the store's clock; in a directory, when its bytes were written, which
    is earlier for a linked copy. It is set in listings only. `etag` changes with the bytes: the store's ETag without
    quotes, or `sha256:` and the digest of the stored bytes; empty if the call does not return it.
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
    CONTENDED = "contended"
    """Nothing was written: another writer may be creating the object at this moment, or was killed while it did. Wait,
    look for the object, and if it does not exist, replace it.
    """
    UNPROVEN = "unproven"
    """The object was written, and another writer may replace it: wait, then read it back."""


@dataclass(frozen=True, slots=True)
class PutPart:
    """A part that the store has accepted: its number (from 1), its size in bytes, its MD5, and the store's ETag."""

    number: int
    size: int
    md5: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class OpenPut:
    """A put that was interrupted, or is in progress. The parts that the store has accepted stay there.

    `put_id` is the store's ID of the put. `parameters` is the store's digest of everything that must be the same in
    a put that continues this one: metadata, part size, options of the object.
    """

    key: str
    put_id: str
    parameters: str
    parts: Mapping[int, PutPart] = field(default_factory=dict)


class PutJournal(Protocol):
    """Remembers the open put of one key, so that a later `ObjectStore.put` continues it, also after a restart.

    A write is on disk when it returns. Raises StateError.
    """

    async def load(self) -> OpenPut | None:
        """Return the open put, None if there is none."""
        ...

    async def begin(self, put_id: str, parameters: str) -> None:
        """Record a new put without parts, in place of another one of this key."""
        ...

    async def add(self, part: PutPart) -> None:
        """Record a part of the open put."""
        ...

    async def clear(self) -> None:
        """Record that there is no open put."""
        ...


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
        kept: Progress = ignore_progress,
        journal: PutJournal | None = None,
    ) -> StoredObject:
        """Store `body` under `key`, all or nothing. An existing object is replaced.

        When it returns, the object is durable and checked. It holds a bounded number of parts of `part_bytes` in
        memory. `progress` is called with the bytes as they are sent, and with 0 for a part that is not sent again;
        `kept` is called with the size of that part. Both add up to the size of the object.

        After a cancellation or failure it removes all that it wrote, as far as it may. With a `journal`, it keeps the
        parts that the store has after a cancellation, a transient failure, or refused credentials; the next put of
        the key with the same body, metadata and `part_bytes` does not send them again. Each part of that body is
        compared with the digest of the part that the store has: a part that differs is sent. If the store cannot list
        its parts, everything is sent again. A store that writes to this machine's files ignores the journal.
        """
        ...

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        """Create a small object, all or nothing, if the key does not exist. With `replace`, write it in any case.

        With `replace` it returns UNPROVEN, otherwise one of the others. Of several concurrent calls for one key without
        `replace`, at most one returns CREATED, and no other writes the object. The object has no metadata. It can be
        read immediately, whatever the storage class of other objects.
        """
        ...

    async def copy(
        self, source: str, key: str, *, expected: StoredObject, progress: Progress = ignore_progress
    ) -> StoredObject:
        """Copy within the store, without a download, and check the copy's size and metadata against `expected`.

        The copy gets `expected.metadata`. `expected.etag`, if known, is that of the source: a source with another one
        was damaged or replaced. Raises NoSuchObject if the source does not exist; CopyUnsupported if the store cannot
        copy, reports a copy that it did not make, or the source is not the expected one. It has no time limit;
        `progress` is called during copies in parts. After a cancellation or failure the store may still make the copy.
        """
        ...

    async def head(self, key: str) -> StoredObject:
        """Return the object's description, without its bytes. Raises NoSuchObject, UnreadableObject."""
        ...

    async def inspect(self, key: str, *, progress: Progress = ignore_progress) -> StoredObject:
        """Return the same as `head`, with the `etag` of the current bytes. Raises NoSuchObject, UnreadableObject.

        A store without ETags reads the entire object, and calls `progress` meanwhile.
        """
        ...

    def get(self, key: str) -> AsyncGenerator[bytes, None]:
        """Stream the object's bytes. Raises NoSuchObject, UnreadableObject."""
        ...

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        """List the objects under `prefix` in key order, only keys after `start_after`."""
        ...

    def folders(self, prefix: str, *, start: str = "") -> AsyncGenerator[str, None]:
        """List the names of the folders directly below `prefix`, which ends with `/`, in the order of their keys.

        A folder's name is the part of a key between `prefix` and the next `/`. With `start`: only that name and later
        ones. A directory also lists folders without objects. A store answers a thousand folders per request.
        """
        ...

    async def delete(self, keys: Collection[str]) -> None:
        """Delete objects, many per request. Missing objects are not an error. Raises NotPermitted.

        If it raises, some of the objects may be deleted.
        """
        ...

    async def discard(self, put: OpenPut) -> None:
        """Remove the parts of an open put that will not be continued. A missing one is not an error.

        Raises NotPermitted.
        """
        ...

    async def sweep(self, prefix: str, *, started_before: datetime | None = None, spared: Collection[str] = ()) -> int:
        """Remove unfinished puts under `prefix` that a killed process left; return their number. Raises NotPermitted.

        `spared` are the IDs of open puts that will be continued. A store that does not know whether the process of a
        put is still running removes only puts started before `started_before`.
        """
        ...

    async def separate_copies(self, prefix: str, *, progress: Progress = ignore_progress) -> None:
        """Let no three uploads or more under `prefix` share the only physical copy of an object.

        A prune may have left them so. Reads and writes whole objects, and calls `progress` meanwhile. One that cannot
        be copied now stays as it is. Does nothing in a store that keeps copies by itself.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Idempotent."""
        ...
