"""A multipart upload. It either becomes the object or is aborted.

The abort is shielded from cancellation and has a time limit. If the credentials do not allow it, the parts stay until
a lifecycle rule removes them; this is logged and is not an error. The stored bytes are verified with the ETags if
these are MD5s, else by reading the object back.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import structlog

from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of
from agent.adapters.s3.part import Part, PartBody, content_md5
from agent.adapters.s3.reading import list_uploads, read
from agent.adapters.s3.responses import Response, etag_of, text
from agent.domain.errors import NotPermitted, StoreError
from agent.ports import Progress, RateLimiter
from agent.ports.concurrency import finish_cleanup

ABORT_SECONDS = 10.0
LIFECYCLE_HINT = "allow s3:AbortMultipartUpload, or add a lifecycle rule that aborts incomplete uploads after a day"

_MD5 = re.compile(r"[0-9a-f]{32}")
_MULTIPART = re.compile(r"[0-9a-f]{32}-[0-9]+")

log = structlog.get_logger()


def multipart_etag(md5s: Sequence[bytes]) -> str:
    """Return the ETag of a multipart object at AWS, R2, MinIO and rclone: the MD5 of the MD5s, and the part count."""
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"


def has_md5_etag(response: Response) -> bool:
    """Return whether the response's ETag is the MD5 of the stored bytes. With a KMS or customer key it is not."""
    encrypted = str(response.get("ServerSideEncryption") or "").startswith("aws:kms")
    return not encrypted and not response.get("SSECustomerAlgorithm") and bool(_MD5.fullmatch(etag_of(response)))


def check_part(response: Response, md5: bytes, address: BucketAddress, key: str) -> bool:
    """Return whether the ETag proves that the bytes arrived. Raises StoreError if it proves that they did not."""
    if not has_md5_etag(response):
        return False
    if etag_of(response) != md5.hex():
        raise damaged(address, key, f"MD5 {etag_of(response)} instead of {md5.hex()}")
    return True


def has_other_etag(response: Response, md5s: Sequence[bytes]) -> bool:
    """Return whether a complete object's ETag has the form of `multipart_etag`, but another value."""
    return bool(_MULTIPART.fullmatch(etag_of(response))) and etag_of(response) != multipart_etag(md5s)


async def read_back(connection: Connection, key: str, md5s: Sequence[bytes], part_bytes: int) -> None:
    """Read the object and compare it with the sent parts. Raises StoreError if it differs."""
    stored_md5s = []
    digest, room = hashlib.md5(usedforsecurity=False), part_bytes
    async for piece in read(connection, key):
        rest = memoryview(piece)
        while len(rest) > room:
            digest.update(rest[:room])
            stored_md5s.append(digest.digest())
            rest = rest[room:]
            digest, room = hashlib.md5(usedforsecurity=False), part_bytes
        digest.update(rest)
        room -= len(rest)
    stored_md5s.append(digest.digest())
    if stored_md5s != list(md5s):
        raise damaged(connection.address, key, "the object that was read back differs from what was sent")


def check_size(stored: int, sent: int, address: BucketAddress, key: str) -> None:
    """Raise StoreError if the size in the store differs from the number of bytes sent."""
    if stored != sent:
        raise damaged(address, key, f"{stored} of {sent} bytes")


def damaged(address: BucketAddress, key: str, problem: str) -> StoreError:
    """Return the error for an object or part that differs from what was sent."""
    return StoreError(
        f"{key!r} arrived damaged in {address}: {problem}",
        hint="check the proxies and the network between this machine and the store",
        transient=True,
    )


class Multipart:
    """One upload. `async with` aborts it unless it was completed. `active` has the IDs of the uploads in progress."""

    def __init__(
        self,
        connection: Connection,
        key: str,
        metadata: Mapping[str, str],
        active: set[str],
        rate_limiter: RateLimiter | None = None,
    ) -> None:
        self._connection = connection
        self._key = key
        self._metadata = dict(metadata)
        self._active = active
        self._rate_limiter = rate_limiter
        self._creation: asyncio.Task[str] | None = None
        self._done: dict[int, str] = {}
        self._completed = False
        self.md5s: dict[int, bytes] = {}
        self.etags_are_md5 = True

    @property
    def key(self) -> str:
        return self._key

    async def __aenter__(self) -> Self:
        self._creation = asyncio.create_task(self._create(), name="s3-multipart-create")
        try:
            await asyncio.shield(self._creation)
        except asyncio.CancelledError:
            # The store may have created the upload: wait for its response, then abort.
            await finish_cleanup(asyncio.create_task(self._abort(), name="s3-multipart-abort"), ABORT_SECONDS)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._completed:
            await finish_cleanup(asyncio.create_task(self._abort(), name="s3-multipart-abort"), ABORT_SECONDS)
        self._active.discard(self._id)

    async def send(self, number: int, part: Part, progress: Progress) -> None:
        """Send a part; the first has number 1. Raises StoreError if it does not arrive intact."""
        md5 = await asyncio.to_thread(part.md5)
        response = await self._call(
            "upload_part",
            required="ETag",
            PartNumber=number,
            Body=PartBody(part.chunks, part.size, progress, self._rate_limiter),
            ContentLength=part.size,
            ContentMD5=content_md5(md5),
        )
        self.etags_are_md5 &= check_part(response, md5, self._connection.address, self._key)
        self.add(number, response, md5)

    async def copy(self, number: int, source: Mapping[str, str], first: int, last: int, etag: str) -> bool:
        """Let the store copy a range of bytes as a part. Returns False if it answers without copying."""
        response = await self._call(
            "upload_part_copy",
            PartNumber=number,
            CopySource=dict(source),
            CopySourceRange=f"bytes={first}-{last}",
            **({"CopySourceIfMatch": etag} if etag else {}),
        )
        result = response.get("CopyPartResult") or {}
        self.add(number, result, b"")
        return bool(etag_of(result))

    def add(self, number: int, response: Response, md5: bytes) -> None:
        self._done[number] = str(response.get("ETag") or "")
        self.md5s[number] = md5

    async def complete(self) -> Response:
        """Turn the upload into the object. Raises StoreError; `NoSuchUpload` may mean that an earlier try succeeded."""
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._done.items())]
        response = await self._call("complete_multipart_upload", MultipartUpload={"Parts": listed})
        self._completed = True
        return response

    def mark_completed(self) -> None:
        """Record that the object exists although the response to `complete` was lost: there is nothing to abort."""
        self._completed = True

    @property
    def _id(self) -> str:
        creation = self._creation
        if creation is None or not creation.done() or creation.cancelled() or creation.exception() is not None:
            return ""
        return creation.result()

    async def _create(self) -> str:
        upload = await self._connection.call_and_read(
            lambda response: text(response, "UploadId"), "create_multipart_upload", self._key, Metadata=self._metadata
        )
        self._active.add(upload)
        return upload

    async def _call(self, operation: str, *, required: str = "", **parameters: Any) -> Response:
        """Call an operation on this upload. `required` names a text field that the response must have."""

        def read(response: Response) -> Response:
            if required:
                text(response, required)
            return response

        return await self._connection.call_and_read(read, operation, self._key, UploadId=self._id, **parameters)

    async def _abort(self) -> None:
        if self._creation is not None:
            await asyncio.wait({self._creation})
        upload = self._id
        if not upload:
            return
        try:
            await abort(self._connection, self._key, upload)
        except NotPermitted as error:
            log.info("parts_not_removed", key=self._key, reason=error.message, hint=LIFECYCLE_HINT)
        except StoreError as error:
            log.warning("parts_not_removed", key=self._key, reason=str(error), hint=LIFECYCLE_HINT)
        finally:
            self._active.discard(upload)


async def abort(connection: Connection, key: str, upload: str) -> None:
    """Abort an upload; a missing one is not an error. Raises NotPermitted, StoreError."""
    try:
        await connection.call("abort_multipart_upload", key, UploadId=upload)
    except StoreError as error:
        if code_of(error) != "NoSuchUpload":
            raise


async def sweep(connection: Connection, prefix: str, active: set[str], started_before: datetime | None = None) -> int:
    """Abort all uploads under `prefix` that are not `active`; return their number.

    With `started_before`, abort only those that started earlier. Returns 0 if the store does not list uploads.
    """
    swept = 0
    async with aclosing(list_uploads(connection, prefix)) as uploads:
        async for entry in uploads:
            if started_before is not None and (entry.started is None or entry.started >= started_before):
                continue
            if entry.upload not in active:
                await abort(connection, entry.key, entry.upload)
                swept += 1
    return swept
