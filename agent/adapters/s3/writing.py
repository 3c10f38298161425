"""Writes to a bucket: put, copy, delete.

A put is one request if the body fits into one part, else a multipart upload with a limited number of parts in transit.
Then it is verified. A copy within the store is verified with a HEAD. A few keys are deleted one by one, which every
store supports; more keys are deleted in batches of a thousand.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import cast

import structlog

from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of, refused_keys
from agent.adapters.s3.multipart import (
    Multipart,
    check_part,
    check_size,
    damaged,
    has_md5_etag,
    has_other_etag,
    multipart_etag,
    read_back,
)
from agent.adapters.s3.part import Part, PartBody, content_md5, parts
from agent.adapters.s3.responses import Response, etag_of, object_of
from agent.domain.errors import CopyUnsupported, NoSuchObject, NotPermitted, StoreError
from agent.ports import Progress, PutJournal, RateLimiter, StoredObject, is_changed
from agent.ports.concurrency import ConcurrentTasks, gather_all

log = structlog.get_logger()

SINGLE_COPY_BYTES = 5 * 2**30
"""Maximum size for one CopyObject (AWS, R2)."""

PART_COPY_BYTES = 2**30

_NOT_ABOUT_COPYING = frozenset(
    {"NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
    | {"RequestTimeTooSkewed", "PermanentRedirect", "AuthorizationHeaderMalformed", "QuotaExceeded"}
)
"""Error codes that would also occur when sending the bytes instead of copying."""

CONCURRENT_DELETES = 8
"""Maximum number of concurrent single deletions. Up to this number of keys, no batch is used."""

BATCH = 1000
"""Maximum number of keys that S3 deletes in one request."""


class ObjectWriter:
    """Puts objects into one bucket. Remembers for its lifetime if the store's multipart ETags are not usable."""

    def __init__(self, connection: Connection, concurrency: int, rate_limiter: RateLimiter | None = None) -> None:
        self._connection = connection
        self._concurrency = concurrency
        self._rate_limiter = rate_limiter
        self._check_etags = True
        self.active: set[str] = set()
        self._unlisted = Counter[str]()

    async def put(
        self,
        key: str,
        body: AsyncIterable[bytes],
        metadata: Mapping[str, str],
        part_bytes: int,
        progress: Progress,
        kept: Progress,
        journal: PutJournal | None,
    ) -> tuple[int, str]:
        """Send the body; return its size and the ETag of the stored object."""
        async with aclosing(cast("AsyncGenerator[Part]", parts(body, part_bytes))) as stream:
            first = await anext(stream)
            second = await anext(stream, None)
            if second is None:
                return await self._put_single(key, first, metadata, progress)
            async with Multipart(
                self._connection,
                key,
                metadata,
                self.active,
                part_bytes=part_bytes,
                rate_limiter=self._rate_limiter,
                journal=journal,
                unlisted=self._unlisted,
            ) as upload:
                waiting = [first, second]
                del first, second
                size = await self._send_parts(upload, waiting, stream, progress, kept)
                return size, await self._complete(upload, size, part_bytes)

    async def _put_single(
        self, key: str, part: Part, metadata: Mapping[str, str], progress: Progress
    ) -> tuple[int, str]:
        md5 = await asyncio.to_thread(part.md5)
        response = await self._connection.call(
            "put_object",
            key,
            Body=PartBody(part.chunks, part.size, progress, self._rate_limiter) if part.size else b"",
            ContentLength=part.size,
            ContentMD5=content_md5(md5),
            Metadata=dict(metadata),
        )
        async with self._remove_if_damaged(key):
            if not check_part(response, md5, self._connection.address, key):
                await self._check_size(key, part.size)
        return part.size, etag_of(response)

    async def _send_parts(
        self,
        upload: Multipart,
        waiting: list[Part],
        stream: AsyncGenerator[Part],
        progress: Progress,
        kept: Progress,
    ) -> int:
        room = asyncio.Semaphore(self._concurrency)
        size = number = 0

        async def send(number: int, part: Part) -> None:
            try:
                await upload.send(number, part, progress, kept)
            finally:
                room.release()

        async with ConcurrentTasks("s3-part") as tasks:
            while True:
                # Before the part is read: at most `concurrency` parts are in memory.
                await room.acquire()
                tasks.check()
                part = waiting.pop(0) if waiting else await anext(stream, None)
                if part is None:
                    break
                number += 1
                size += part.size
                tasks.start(send(number, part))
                del part
        return size

    async def _complete(self, upload: Multipart, size: int, part_bytes: int) -> str:
        md5s = [upload.md5s[number] for number in sorted(upload.md5s)]
        try:
            response = await upload.complete()
        except StoreError as error:
            if code_of(error) != "NoSuchUpload" or not await self._was_completed(upload, size, md5s):
                raise
            return multipart_etag(md5s)
        async with self._remove_if_damaged(upload.key):
            stored = await self._check_size(upload.key, size)
            if self._check_etags and upload.etags_are_md5 and has_other_etag(response, md5s):
                # Either the object is damaged, or this store computes ETags in another way: read the bytes, once.
                await read_back(self._connection, upload.key, md5s, part_bytes)
                log.info("etags_not_md5", store=str(self._connection.address))
                self._check_etags = False
        return stored.etag

    async def _was_completed(self, upload: Multipart, size: int, md5s: list[bytes]) -> bool:
        """Return whether an earlier request, whose response was lost, completed this upload."""
        try:
            stored, response = await self._head(upload.key)
        except StoreError:
            return False
        if etag_of(response) != multipart_etag(md5s) or stored.size != size:
            return False
        upload.mark_completed()
        return True

    async def _check_size(self, key: str, size: int) -> StoredObject:
        address = self._connection.address
        try:
            stored, _ = await self._head(key)
        except NoSuchObject as error:
            raise damaged(address, key, "the object does not exist") from error
        check_size(stored.size, size, address, key)
        return stored

    async def _head(self, key: str) -> tuple[StoredObject, Response]:
        return await self._connection.call_and_read(
            lambda response: (object_of(key, response), response), "head_object", key
        )

    @asynccontextmanager
    async def _remove_if_damaged(self, key: str) -> AsyncIterator[None]:
        try:
            yield
        except StoreError:
            # Deletion may be refused. The object does no harm: it has no manifest, and the next attempt replaces it.
            with suppress(StoreError):
                await self._connection.call("delete_object", key)
            raise


class ObjectCopier:
    """Copies objects within one bucket; in ranges if the source is larger than `single_copy_bytes`."""

    def __init__(self, connection: Connection, single_copy_bytes: int, active: set[str]) -> None:
        self._connection = connection
        self._single_copy_bytes = single_copy_bytes
        self._part_bytes = min(single_copy_bytes, PART_COPY_BYTES)
        self._active = active

    async def copy(self, source: str, key: str, expected: StoredObject, progress: Progress) -> StoredObject:
        origin_object, response = await self._head(source)
        if not _matches(origin_object, expected) or is_changed(expected.etag, etag_of(response)):
            raise CopyUnsupported(
                f"{source!r} in {self._connection.address} differs from the object of the last upload"
            )
        etag = str(response.get("ETag") or "")
        origin = {"Bucket": self._connection.address.bucket, "Key": source}
        try:
            if expected.size <= self._single_copy_bytes:
                await self._copy_single(key, origin, etag, expected.metadata)
            else:
                await self._copy_in_parts(key, origin, etag, expected, progress)
        except (NoSuchObject, CopyUnsupported):
            raise
        except StoreError as error:
            code = code_of(error)
            if error.transient or not code or code in _NOT_ABOUT_COPYING:
                raise
            raise CopyUnsupported(f"{self._connection.address} did not copy {source!r}: {code}") from error
        return await self._check(key, expected, response)

    async def _copy_single(self, key: str, origin: Mapping[str, str], etag: str, metadata: Mapping[str, str]) -> None:
        await self._connection.call(
            "copy_object",
            key,
            CopySource=dict(origin),
            MetadataDirective="REPLACE",
            Metadata=dict(metadata),
            **({"CopySourceIfMatch": etag} if etag else {}),
        )

    async def _copy_in_parts(
        self, key: str, origin: Mapping[str, str], etag: str, expected: StoredObject, progress: Progress
    ) -> None:
        async with Multipart(self._connection, key, expected.metadata, self._active) as upload:
            for number, first in enumerate(range(0, expected.size, self._part_bytes), start=1):
                last = min(first + self._part_bytes, expected.size) - 1
                if not await upload.copy(number, origin, first, last, etag):
                    raise CopyUnsupported(f"{self._connection.address} reported a copy that it did not make")
                progress(last - first + 1)
            await upload.complete()

    async def _head(self, key: str) -> tuple[StoredObject, Response]:
        return await self._connection.call_and_read(
            lambda response: (object_of(key, response), response), "head_object", key
        )

    async def _check(self, key: str, expected: StoredObject, source: Response) -> StoredObject:
        """Compare size, metadata and, where the ETags of source and copy are MD5s, the bytes. Raises CopyUnsupported.

        The metadata is what the request set: it says nothing about the bytes. The ETag of an object in parts depends on
        its parts, which a copy need not have.
        """
        copy, response = await self._head(key)
        is_other = has_md5_etag(source) and has_md5_etag(response) and etag_of(source) != etag_of(response)
        if _matches(copy, expected) and not is_other and (etag_of(response) or not copy.size):
            return copy
        with contextlib.suppress(StoreError):  # if it stays, it does no harm: it has no manifest
            await self._connection.call("delete_object", key)
        raise CopyUnsupported(
            f"the copy at {key!r} in {self._connection.address} is incorrect: {copy.size} of {expected.size} bytes, "
            f"metadata {sorted(copy.metadata)}{', other bytes' if is_other else ''}"
        )


def _matches(stored: StoredObject, expected: StoredObject) -> bool:
    metadata = {name.lower(): value for name, value in expected.metadata.items()}
    # A store may add its own names (rclone: mtime).
    return stored.size == expected.size and all(stored.metadata.get(name) == value for name, value in metadata.items())


class ObjectDeleter:
    """Deletes keys of one bucket. After a store has refused a batch, keys are deleted one by one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._batch_unsupported = False

    async def delete(self, keys: Collection[str]) -> None:
        """Delete the keys in order, batch by batch. Raises NotPermitted, StoreError."""
        rest = iter(keys)
        while batch := [*itertools.islice(rest, BATCH)]:
            if self._batch_unsupported or len(batch) <= CONCURRENT_DELETES:
                await self._delete_singly(batch)
                continue
            try:
                await self._delete_batch(batch)
            except _BatchUnsupported as error:
                await self._delete_singly(batch)
                self._batch_unsupported = True
                log.info(
                    "batch_delete_unsupported",
                    location=str(self._connection.address),
                    reason=str(error.__cause__),
                )

    async def _delete_batch(self, keys: Sequence[str]) -> None:
        request = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        try:
            response = await self._connection.call("delete_objects", Delete=request)
        except NotPermitted:
            raise
        except StoreError as error:
            if error.transient:
                raise
            raise _BatchUnsupported from error
        if refusals := [error for error in response.get("Errors") or () if error.get("Code") != "NoSuchKey"]:
            raise refused_keys(refusals, self._connection.address, "delete_objects")

    async def _delete_singly(self, keys: Sequence[str]) -> None:
        room = asyncio.Semaphore(CONCURRENT_DELETES)

        async def delete_one(key: str) -> None:
            async with room:
                await self._connection.call("delete_object", key)

        await gather_all([delete_one(key) for key in keys], "s3-delete")


class _BatchUnsupported(Exception):  # noqa: N818 - a condition, not a failure
    """The store does not support batches."""
