"""Writes to a bucket: put, create, copy, delete.

A put is one request where the body fits into one part, else parts, a bounded number at a time; then it is checked. A
copy on the store's side counts once a HEAD has shown it. Few keys are deleted one by one, which every store knows; many
by the thousand.

A create uses `If-None-Match: *`, which some relatives of S3 refuse, or ignore: rclone ignores it, others answer 501 or
400. What a store does is found out, not looked up: after a create that it accepted, the same request must be refused.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import cast

import structlog

from agent.adapters.s3.answers import Answer, described, etag_of
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of, refused_keys, status_of
from agent.adapters.s3.multipart import (
    Multipart,
    check_part,
    check_size,
    damaged,
    in_another_form,
    multipart_etag,
    read_back,
)
from agent.adapters.s3.part import Part, PartBody, content_md5, parts
from agent.domain.errors import CopyUnsupported, NoSuchObject, NotPermitted, StoreError
from agent.ports import Creation, Progress, RateLimiter, StoredObject, ignore_progress, is_changed
from agent.ports.concurrency import ConcurrentTasks, gather_all

log = structlog.get_logger()


class ObjectWriter:
    """Puts of one store. Remembers, for its lifetime, when the store's ETags turn out to be of a form of its own."""

    def __init__(self, connection: Connection, concurrency: int, rate_limiter: RateLimiter | None = None) -> None:
        self._connection = connection
        self._concurrency = concurrency
        self._rate_limiter = rate_limiter
        self._etags_tell = True
        self.active: set[str] = set()

    async def put(
        self, key: str, body: AsyncIterable[bytes], metadata: Mapping[str, str], part_bytes: int, progress: Progress
    ) -> tuple[int, str]:
        """Send the body; return its size and the ETag that the store answered."""
        async with aclosing(cast("AsyncGenerator[Part]", parts(body, part_bytes))) as stream:
            # Room for a part is taken before it is filled: `concurrency` parts are in memory, and no more.
            first = await anext(stream)
            second = await anext(stream, None)
            if second is None:
                return await self._whole(key, first, metadata, progress)
            async with Multipart(self._connection, key, metadata, self.active, self._rate_limiter) as upload:
                waiting = [first, second]
                del first, second
                size = await self._parts(upload, waiting, stream, progress)
                return size, await self._complete(upload, size, part_bytes)

    async def _whole(self, key: str, part: Part, metadata: Mapping[str, str], progress: Progress) -> tuple[int, str]:
        md5 = await asyncio.to_thread(part.md5)
        answer = await self._connection.call(
            "put_object",
            key,
            Body=PartBody(part.chunks, part.size, progress, self._rate_limiter) if part.size else b"",
            ContentLength=part.size,
            ContentMD5=content_md5(md5),
            Metadata=dict(metadata),
        )
        async with self._removed_if_damaged(key):
            if not check_part(answer, md5, self._connection.address, key):
                await self._check_size(key, part.size)
        return part.size, etag_of(answer)

    async def _parts(
        self, upload: Multipart, waiting: list[Part], stream: AsyncGenerator[Part], progress: Progress
    ) -> int:
        room = asyncio.Semaphore(self._concurrency)
        size = number = 0

        async def send(number: int, part: Part) -> None:
            try:
                await upload.send(number, part, progress)
            finally:
                room.release()

        async with ConcurrentTasks("s3-part") as parts_under_way:
            while True:
                await room.acquire()
                parts_under_way.check()
                part = waiting.pop(0) if waiting else await anext(stream, None)
                if part is None:
                    break
                number += 1
                size += part.size
                parts_under_way.start(send(number, part))
                del part
        return size

    async def _complete(self, upload: Multipart, size: int, part_bytes: int) -> str:
        md5s = [upload.md5s[number] for number in sorted(upload.md5s)]
        try:
            answer = await upload.complete()
        except StoreError as error:
            if code_of(error) != "NoSuchUpload" or not await self._is_there(upload, size, md5s):
                raise
            return multipart_etag(md5s)
        async with self._removed_if_damaged(upload.key):
            stored = await self._check_size(upload.key, size)
            if self._etags_tell and upload.etags_are_md5 and in_another_form(answer, md5s):
                # Damaged, or a store that counts otherwise: the bytes themselves tell, once.
                await read_back(self._connection, upload.key, md5s, part_bytes)
                log.info("etags_not_md5", store=str(self._connection.address))
                self._etags_tell = False
        return stored.etag

    async def _is_there(self, upload: Multipart, size: int, md5s: list[bytes]) -> bool:
        """Say whether a try to complete whose answer was lost has made this very object."""
        try:
            found, answer = await self._head(upload.key)
        except StoreError:
            return False
        if etag_of(answer) != multipart_etag(md5s) or found.size != size:
            return False
        upload.mark_completed()
        return True

    async def _check_size(self, key: str, size: int) -> StoredObject:
        address = self._connection.address
        try:
            found, _ = await self._head(key)
        except NoSuchObject as error:
            raise damaged(address, key, "nothing is there") from error
        check_size(found.size, size, address, key)
        return found

    async def _head(self, key: str) -> tuple[StoredObject, Answer]:
        return await self._connection.ask(lambda answer: (described(key, answer), answer), "head_object", key)

    @asynccontextmanager
    async def _removed_if_damaged(self, key: str) -> AsyncIterator[None]:
        try:
            yield
        except StoreError:
            # May be refused; without a manifest it is no upload, and the next attempt replaces it.
            with suppress(StoreError):
                await self._connection.call("delete_object", key)
            raise


_EXISTS, _CONFLICT = 412, 409
_UNSUPPORTED = frozenset({400, 501})


class ObjectCreator:
    """Creates objects in one bucket, as `ObjectStore.create` says."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, key: str, data: bytes, *, replace: bool) -> Creation:
        """Put the object. Raises StoreError."""
        if replace:
            await self._put(key, data)
            return Creation.UNPROVEN
        if await self._is_there(key):
            return Creation.EXISTS
        try:
            if not await self._put_new(key, data):
                return Creation.EXISTS
        except StoreError as error:
            if status_of(error) not in _UNSUPPORTED:
                raise
            await self._put(key, data)
            return Creation.UNPROVEN
        try:
            proven = not await self._put_new(key, data)
        except StoreError:
            proven = False
        return Creation.CREATED if proven else Creation.UNPROVEN

    async def _is_there(self, key: str) -> bool:
        try:
            await self._connection.call("head_object", key)
        except NoSuchObject:
            return False
        return True

    async def _put_new(self, key: str, data: bytes) -> bool:
        """Put it if nothing is there; False where something is. Raises StoreError."""
        try:
            await self._put(key, data, IfNoneMatch="*")
        except StoreError as error:
            if status_of(error) == _EXISTS:
                return False
            if status_of(error) == _CONFLICT:  # another create of this key is under way
                raise StoreError(error.message, hint=error.hint, transient=True) from error.__cause__
            raise
        return True

    async def _put(self, key: str, data: bytes, **condition: str) -> None:
        part = Part()
        part.append(data)
        md5 = await asyncio.to_thread(part.md5)
        await self._connection.call(
            "put_object",
            key,
            Body=PartBody(part.chunks, part.size, ignore_progress),
            ContentLength=part.size,
            ContentMD5=content_md5(md5),
            StorageClass=None,
            **condition,
        )


SINGLE_COPY_BYTES = 5 * 2**30
"""What one CopyObject takes at most (AWS, R2)."""

PART_COPY_BYTES = 2**30

_NOT_ABOUT_COPYING = frozenset(
    {"NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
    | {"RequestTimeTooSkewed", "PermanentRedirect", "AuthorizationHeaderMalformed", "QuotaExceeded"}
)
"""Refusals that sending the bytes instead would meet too."""


class ObjectCopier:
    """Copies within one bucket; in ranges where the source is larger than `single_copy_bytes`."""

    def __init__(self, connection: Connection, single_copy_bytes: int, active: set[str]) -> None:
        self._connection = connection
        self._single_copy_bytes = single_copy_bytes
        self._part_bytes = min(single_copy_bytes, PART_COPY_BYTES)
        self._active = active

    async def copy(self, source: str, key: str, expected: StoredObject, progress: Progress) -> StoredObject:
        origin_object, answer = await self._head(source)
        if not _same(origin_object, expected) or is_changed(expected.etag, etag_of(answer)):
            raise CopyUnsupported(f"{source!r} in {self._connection.address} is not what the last upload put there")
        etag = str(answer.get("ETag") or "")
        origin = {"Bucket": self._connection.address.bucket, "Key": source}
        try:
            if expected.size <= self._single_copy_bytes:
                await self._whole(key, origin, etag, expected.metadata)
            else:
                await self._in_parts(key, origin, etag, expected, progress)
        except (NoSuchObject, CopyUnsupported):
            raise
        except StoreError as error:
            code = code_of(error)
            if error.transient or not code or code in _NOT_ABOUT_COPYING:
                raise
            raise CopyUnsupported(f"{self._connection.address} did not copy {source!r}: {code}") from error
        return await self._check(key, expected)

    async def _whole(self, key: str, origin: Mapping[str, str], etag: str, metadata: Mapping[str, str]) -> None:
        await self._connection.call(
            "copy_object",
            key,
            CopySource=dict(origin),
            MetadataDirective="REPLACE",
            Metadata=dict(metadata),
            **({"CopySourceIfMatch": etag} if etag else {}),
        )

    async def _in_parts(
        self, key: str, origin: Mapping[str, str], etag: str, expected: StoredObject, progress: Progress
    ) -> None:
        async with Multipart(self._connection, key, expected.metadata, self._active) as upload:
            for number, first in enumerate(range(0, expected.size, self._part_bytes), start=1):
                last = min(first + self._part_bytes, expected.size) - 1
                if not await upload.copy(number, origin, first, last, etag):
                    raise CopyUnsupported(f"{self._connection.address} answered as if it had copied, and did not")
                progress(last - first + 1)
            await upload.complete()

    async def _head(self, key: str) -> tuple[StoredObject, Answer]:
        return await self._connection.ask(lambda answer: (described(key, answer), answer), "head_object", key)

    async def _check(self, key: str, expected: StoredObject) -> StoredObject:
        copy, answer = await self._head(key)
        if _same(copy, expected) and (etag_of(answer) or not copy.size):
            return copy
        with contextlib.suppress(StoreError):  # what stays is no upload: its manifest is missing
            await self._connection.call("delete_object", key)
        raise CopyUnsupported(
            f"the copy at {key!r} in {self._connection.address} is not right: {copy.size} bytes of {expected.size}, "
            f"metadata {sorted(copy.metadata)}"
        )


def _same(found: StoredObject, expected: StoredObject) -> bool:
    wanted = {name.lower(): value for name, value in expected.metadata.items()}
    # A store may add names of its own (rclone: mtime).
    return found.size == expected.size and all(found.metadata.get(name) == value for name, value in wanted.items())


AT_ONCE = 8
"""Single deletions on their way at a time; so many keys, or fewer, are not worth a batch."""

BATCH = 1000
"""What S3 takes in one request."""


class ObjectDeleter:
    """Deletes keys of one bucket. A store that has once refused a batch is given single keys from then on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._singly = False

    async def delete(self, keys: Collection[str]) -> None:
        """Delete them in their order, batch by batch; raises what stopped it: NotPermitted, StoreError."""
        rest = iter(keys)
        while batch := [*itertools.islice(rest, BATCH)]:
            if self._singly or len(batch) <= AT_ONCE:
                await self._one_by_one(batch)
                continue
            try:
                await self._together(batch)
            except _Unheard as error:
                await self._one_by_one(batch)
                self._singly = True
                log.info(
                    "batch_delete_unsupported",
                    location=str(self._connection.address),
                    reason=str(error.__cause__),
                )

    async def _together(self, keys: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        try:
            answer = await self._connection.call("delete_objects", Delete=wanted)
        except NotPermitted:
            raise
        except StoreError as error:
            if error.transient:
                raise
            raise _Unheard from error
        if refusals := [error for error in answer.get("Errors") or () if error.get("Code") != "NoSuchKey"]:
            raise refused_keys(refusals, self._connection.address, "delete_objects")

    async def _one_by_one(self, keys: Sequence[str]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def delete_one(key: str) -> None:
            async with room:
                await self._connection.call("delete_object", key)

        await gather_all([delete_one(key) for key in keys], "s3-delete")


class _Unheard(Exception):  # noqa: N818 - a turn of events between two methods here
    """The store does not take batches."""
