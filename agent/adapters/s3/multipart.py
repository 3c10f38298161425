"""A multipart upload: it becomes the object, or it is aborted, whatever ends it.

The abort is shielded from cancellation and bounded in time. Where the credentials do not allow it, parts stay until a
lifecycle rule removes them: a notice, not an error. What the store has is checked by its ETags, where they are MD5s,
and else by reading back.
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

from agent.adapters.s3.answers import Answer, etag_of, text
from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of
from agent.adapters.s3.part import Part, PartBody, content_md5
from agent.adapters.s3.reading import list_uploads, read
from agent.domain.errors import NotPermitted, StoreError
from agent.ports import Progress, RateLimiter
from agent.ports.concurrency import finish_cleanup

ABORT_SECONDS = 10.0
LIFECYCLE_HINT = "allow s3:AbortMultipartUpload, or add a lifecycle rule that aborts incomplete uploads after a day"

_MD5 = re.compile(r"[0-9a-f]{32}")
_MULTIPART = re.compile(r"[0-9a-f]{32}-[0-9]+")

log = structlog.get_logger()


def multipart_etag(md5s: Sequence[bytes]) -> str:
    """Return the ETag that AWS, R2, MinIO and rclone give an object put in parts: MD5 of the MD5s, and how many."""
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"


def says_md5(answer: Answer) -> bool:
    """Say whether the answer's ETag is the MD5 of what was stored: with a KMS or customer's key it is not."""
    encrypted = str(answer.get("ServerSideEncryption") or "").startswith("aws:kms")
    return not encrypted and not answer.get("SSECustomerAlgorithm") and bool(_MD5.fullmatch(etag_of(answer)))


def check_part(answer: Answer, md5: bytes, address: BucketAddress, key: str) -> bool:
    """Return whether the answer proves that the bytes arrived. Raises StoreError where it proves that they did not."""
    if not says_md5(answer):
        return False
    if etag_of(answer) != md5.hex():
        raise damaged(address, key, f"MD5 {etag_of(answer)} instead of {md5.hex()}")
    return True


def in_another_form(answer: Answer, md5s: Sequence[bytes]) -> bool:
    """Say whether the ETag of a whole looks like a digest of its parts, and is not the one that it should be."""
    return bool(_MULTIPART.fullmatch(etag_of(answer))) and etag_of(answer) != multipart_etag(md5s)


async def read_back(connection: Connection, key: str, md5s: Sequence[bytes], part_bytes: int) -> None:
    """Read the object and compare it with what was sent, part by part. Raises StoreError where it differs."""
    found = []
    digest, room = hashlib.md5(usedforsecurity=False), part_bytes
    async for piece in read(connection, key):
        rest = memoryview(piece)
        while len(rest) > room:
            digest.update(rest[:room])
            found.append(digest.digest())
            rest = rest[room:]
            digest, room = hashlib.md5(usedforsecurity=False), part_bytes
        digest.update(rest)
        room -= len(rest)
    found.append(digest.digest())
    if found != list(md5s):
        raise damaged(connection.address, key, "read back, it is not what was sent")


def check_size(found: int, sent: int, address: BucketAddress, key: str) -> None:
    """Raise StoreError where the store has another number of bytes than were sent."""
    if found != sent:
        raise damaged(address, key, f"{found} bytes of {sent}")


def damaged(address: BucketAddress, key: str, how: str) -> StoreError:
    """Return the error for an object or part that the store does not have as it was sent."""
    return StoreError(
        f"{key!r} arrived damaged in {address}: {how}", hint="check what lies between here and there", transient=True
    )


class Multipart:
    """One upload; `async with` aborts it unless `complete` was reached. `live` holds the ids of those at work."""

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
        self._beginning: asyncio.Task[str] | None = None
        self._done: dict[int, str] = {}
        self._completed = False
        self.md5s: dict[int, bytes] = {}
        self.etags_are_md5 = True

    @property
    def key(self) -> str:
        return self._key

    async def __aenter__(self) -> Self:
        self._beginning = asyncio.create_task(self._begin(), name="s3-multipart-begin")
        try:
            await asyncio.shield(self._beginning)
        except asyncio.CancelledError:
            # The store may have begun it all the same: see what it answers, and abort that.
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
        """Send a part, the first being number 1. Raises StoreError where it does not arrive whole."""
        md5 = await asyncio.to_thread(part.md5)
        answer = await self._call(
            "upload_part",
            needed="ETag",
            PartNumber=number,
            Body=PartBody(part.chunks, part.size, progress, self._rate_limiter),
            ContentLength=part.size,
            ContentMD5=content_md5(md5),
        )
        self.etags_are_md5 &= check_part(answer, md5, self._connection.address, self._key)
        self.add(number, answer, md5)

    async def copy(self, number: int, source: Mapping[str, str], first: int, last: int, etag: str) -> bool:
        """Have the store copy a range of bytes as a part. Returns False where it answers, but did not."""
        answer = await self._call(
            "upload_part_copy",
            PartNumber=number,
            CopySource=dict(source),
            CopySourceRange=f"bytes={first}-{last}",
            **({"CopySourceIfMatch": etag} if etag else {}),
        )
        result = answer.get("CopyPartResult") or {}
        self.add(number, result, b"")
        return bool(etag_of(result))

    def add(self, number: int, answer: Answer, md5: bytes) -> None:
        self._done[number] = str(answer.get("ETag") or "")
        self.md5s[number] = md5

    async def complete(self) -> Answer:
        """Make it the object. Raises StoreError; `NoSuchUpload` may mean that an earlier try of the same succeeded."""
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._done.items())]
        answer = await self._call("complete_multipart_upload", MultipartUpload={"Parts": listed})
        self._completed = True
        return answer

    def mark_completed(self) -> None:
        """Nothing is left to abort: the object is there, though no answer said so."""
        self._completed = True

    @property
    def _id(self) -> str:
        beginning = self._beginning
        if beginning is None or not beginning.done() or beginning.cancelled() or beginning.exception() is not None:
            return ""
        return beginning.result()

    async def _begin(self) -> str:
        upload = await self._connection.ask(
            lambda answer: text(answer, "UploadId"), "create_multipart_upload", self._key, Metadata=self._metadata
        )
        self._active.add(upload)
        return upload

    async def _call(self, operation: str, *, needed: str = "", **parameters: Any) -> Answer:
        """Call an operation on this upload. `needed`: a text that its answer must hold."""

        def read(answer: Answer) -> Answer:
            if needed:
                text(answer, needed)
            return answer

        return await self._connection.ask(read, operation, self._key, UploadId=self._id, **parameters)

    async def _abort(self) -> None:
        if self._beginning is not None:
            await asyncio.wait({self._beginning})
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
    """Abort an upload; one that is gone is no error. Raises NotPermitted, StoreError."""
    try:
        await connection.call("abort_multipart_upload", key, UploadId=upload)
    except StoreError as error:
        if code_of(error) != "NoSuchUpload":
            raise


async def sweep(connection: Connection, prefix: str, active: set[str], started_before: datetime | None = None) -> int:
    """Abort all uploads under `prefix` that are not `live`; return how many. 0 where the store does not tell.

    With a time: those alone that began before it.
    """
    swept = 0
    async with aclosing(list_uploads(connection, prefix)) as uploads:
        async for entry in uploads:
            if started_before is not None and (entry.begun is None or entry.begun >= started_before):
                continue
            if entry.upload not in active:
                await abort(connection, entry.key, entry.upload)
                swept += 1
    return swept
