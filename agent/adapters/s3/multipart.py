"""A multipart upload. It either becomes the object, or is aborted, or stays open for a later put of the same bytes.

The abort is shielded from cancellation and has a time limit. If the credentials do not allow it, the parts stay until
a lifecycle rule removes them; this is logged and is not an error. The stored bytes are verified with the ETags if
these are MD5s, else by reading the object back.

An upload with a journal stays open when it is cancelled, when the store cannot be reached, or when the credentials have
expired. The next put lists the parts, and sends those that the store does not have with the same bytes.
"""

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import structlog

from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of, status_of
from agent.adapters.s3.part import Part, PartBody, content_md5
from agent.adapters.s3.reading import list_parts, list_uploads, read
from agent.adapters.s3.responses import ListedPart, Response, etag_of, text
from agent.domain.errors import NotPermitted, StoreError
from agent.ports import OpenPut, Progress, PutJournal, PutPart, RateLimiter
from agent.ports.concurrency import finish_cleanup

ABORT_SECONDS = 10.0

MOST_UNLISTED = 3
"""After so many puts that got no list of an upload's parts, the store may never list them: all parts are sent again."""

LIFECYCLE_HINT = "allow s3:AbortMultipartUpload, or add a lifecycle rule that aborts incomplete uploads after a day"

_MD5 = re.compile(r"[0-9a-f]{32}")
_MULTIPART = re.compile(r"[0-9a-f]{32}-[0-9]+")

_GONE = frozenset({"NoSuchUpload", "InvalidPart"})
"""Error codes after which an upload cannot be completed."""

_TOO_MANY, _UNAVAILABLE = 429, 503

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


class DamagedObject(StoreError):  # noqa: N818 - named for the condition
    """An object or part differs from what was sent."""


def damaged(address: BucketAddress, key: str, problem: str) -> DamagedObject:
    """Return the error for an object or part that differs from what was sent."""
    return DamagedObject(
        f"{key!r} arrived damaged in {address}: {problem}",
        hint="check the proxies and the network between this machine and the store",
        transient=True,
    )


class Multipart:
    """One upload. `async with` aborts it unless it was completed. `active` has the IDs of the uploads in progress.

    With a `journal`, an upload that it has recorded is continued, and one that may be continued is not aborted.
    `unlisted` counts, by ID, the puts for which the store did not list the upload's parts.
    """

    def __init__(
        self,
        connection: Connection,
        key: str,
        metadata: Mapping[str, str],
        active: set[str],
        *,
        part_bytes: int = 0,
        rate_limiter: RateLimiter | None = None,
        journal: PutJournal | None = None,
        unlisted: Counter[str] | None = None,
    ) -> None:
        self._unlisted = Counter[str]() if unlisted is None else unlisted
        self._connection = connection
        self._key = key
        self._metadata = dict(metadata)
        self._active = active
        self._part_bytes = part_bytes
        self._rate_limiter = rate_limiter
        self._journal = journal
        self._stored: StoredParts | None = None
        self._creation: asyncio.Task[None] | None = None
        self._id = ""
        self._done: dict[int, str] = {}
        self._completed = False
        self._refused = False
        self.md5s: dict[int, bytes] = {}
        self.etags_are_md5 = True

    @property
    def key(self) -> str:
        return self._key

    async def __aenter__(self) -> Self:
        useless = await self._resume() if self._journal is not None else None
        if self._id:
            return self
        self._creation = asyncio.create_task(self._create(useless), name="s3-multipart-create")
        try:
            await asyncio.shield(self._creation)
        except BaseException:
            # The store may have created the upload: wait for its response, then abort.
            await self._cleanup()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._completed and self._journal is not None:
                await self._journal.clear()
            elif not self._completed and not self._may_continue(error):
                await self._cleanup()
        finally:
            self._active.discard(self._id)

    async def send(self, number: int, part: Part, progress: Progress, kept: Progress) -> None:
        """Send a part, or report it as kept if the store has it; the first has number 1.

        Raises StoreError if it does not arrive intact.
        """
        md5 = await asyncio.to_thread(part.md5)
        if self._stored is not None and (stored := self._stored.find(number, part.size, md5)) is not None:
            self.etags_are_md5 &= etag_of({"ETag": stored}) == md5.hex()
            self.add(number, {"ETag": stored}, md5)
            progress(0)
            kept(part.size)
            return
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
        if self._journal is not None:
            await self._journal.add(PutPart(number, part.size, md5, str(response["ETag"])))

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

    async def _resume(self) -> "UselessPut | None":
        """Continue the recorded upload; return it if that is not possible, None if it is, or there is none.

        Raises StoreError if the store does not answer, in fewer than MOST_UNLISTED puts. After that, `_create` fails if
        it still does not answer, and the record stays.
        """
        assert self._journal is not None
        put = await self._journal.load()
        if put is None:
            return None
        if put.parameters != self._parameters:
            return UselessPut(put, "its metadata, part size, encryption or storage class differ", "")
        try:
            listed = await list_parts(self._connection, self._key, put.put_id)
        except StoreError as error:
            self._unlisted[put.put_id] += 1
            if is_unanswered(error) and self._unlisted[put.put_id] < MOST_UNLISTED:
                raise
            return UselessPut(put, error.message, error.hint)
        del self._unlisted[put.put_id]
        stored = StoredParts(listed, put.parts)
        if put.parts and not any(stored.find(part.number, part.size, part.md5) for part in put.parts.values()):
            return UselessPut(put, "the store does not list the parts that it accepted", "")
        self._id, self._stored = put.put_id, stored
        self._active.add(put.put_id)
        log.info("put_resumed", key=self._key, count=len(listed), bytes=sum(part.size for part in listed.values()))
        return None

    @property
    def _parameters(self) -> str:
        """The digest of what cannot be changed once the upload is created."""
        parameters = [self._part_bytes, self._metadata, self._connection.object_parameters]
        return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()

    async def _create(self, useless: "UselessPut | None") -> None:
        """Create an upload and record it. Abort the one that was recorded before; if it fails, that one stays."""
        upload = await self._connection.call_and_read(
            lambda response: text(response, "UploadId"), "create_multipart_upload", self._key, Metadata=self._metadata
        )
        self._active.add(upload)
        self._id = upload
        if useless is not None:
            log.info("parts_sent_again", key=self._key, reason=useless.reason, hint=useless.hint)
            await self._abort(useless.put.put_id)
        if self._journal is not None:
            await self._journal.begin(upload, self._parameters)

    async def _call(self, operation: str, *, required: str = "", **parameters: Any) -> Response:
        """Call an operation on this upload. `required` names a text field that the response must have."""

        def read(response: Response) -> Response:
            if required:
                text(response, required)
            return response

        try:
            return await self._connection.call_and_read(read, operation, self._key, UploadId=self._id, **parameters)
        except StoreError as error:
            if self._stored is None or error.transient or error.credentials_refused or isinstance(error, NotPermitted):
                raise
            # Some stores do not replace a part (rclone), or count parts that are not listed in the completion.
            self._refused = True
            raise StoreError(error.message, hint=error.hint, transient=True) from error.__cause__

    def _may_continue(self, error: BaseException | None) -> bool:
        """Return whether the parts stay in the store for a later put, after this error."""
        if self._journal is None or self._refused or isinstance(error, DamagedObject):
            return False
        if isinstance(error, StoreError):
            return (error.transient and code_of(error) not in _GONE) or error.credentials_refused
        return isinstance(error, asyncio.CancelledError)

    async def _cleanup(self) -> None:
        await finish_cleanup(asyncio.create_task(self._remove(), name="s3-multipart-abort"), ABORT_SECONDS)

    async def _remove(self) -> None:
        """Abort this upload, and record that."""
        if self._creation is not None:
            await asyncio.wait({self._creation})
        if not self._id:
            return
        try:
            await self._abort(self._id)
        finally:
            self._active.discard(self._id)
        if self._journal is not None:
            await self._journal.clear()

    async def _abort(self, upload: str) -> None:
        try:
            await abort(self._connection, self._key, upload)
        except NotPermitted as error:
            log.info("parts_not_removed", key=self._key, reason=error.message, hint=LIFECYCLE_HINT)
        except StoreError as error:
            log.warning("parts_not_removed", key=self._key, reason=str(error), hint=LIFECYCLE_HINT)


@dataclass(frozen=True, slots=True)
class UselessPut:
    """A recorded upload that cannot be continued, and why."""

    put: OpenPut
    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class StoredParts:
    """The parts of an interrupted upload: those that the store lists, and those that were recorded."""

    listed: Mapping[int, ListedPart]
    recorded: Mapping[int, PutPart]

    def find(self, number: int, size: int, md5: bytes) -> str | None:
        """Return the ETag of the stored part if it has these bytes; None if that is not certain.

        The ETag in the listing is the MD5 of the part, or (KMS) the one with which the store accepted these bytes.
        """
        listed, recorded = self.listed.get(number), self.recorded.get(number)
        if listed is None or listed.size != size:
            return None
        if etag_of({"ETag": listed.etag}) == md5.hex():
            return listed.etag
        if recorded is None or (recorded.size, recorded.md5) != (size, md5):
            return None
        return recorded.etag if etag_of({"ETag": recorded.etag}) == etag_of({"ETag": listed.etag}) else None


def is_unanswered(error: StoreError) -> bool:
    """Return whether a request got no answer from the store, or was asked to wait."""
    if error.unexpected or not error.transient:
        return False
    return status_of(error) in (0, _TOO_MANY, _UNAVAILABLE)


async def abort(connection: Connection, key: str, upload: str) -> None:
    """Abort an upload; a missing one is not an error. Raises NotPermitted, StoreError."""
    try:
        await connection.call("abort_multipart_upload", key, UploadId=upload)
    except StoreError as error:
        if code_of(error) != "NoSuchUpload":
            raise


async def sweep(
    connection: Connection, prefix: str, spared: Collection[str], started_before: datetime | None = None
) -> int:
    """Abort all uploads under `prefix` whose IDs are not `spared`; return their number.

    With `started_before`, abort only those that started earlier. Returns 0 if the store does not list uploads.
    """
    swept = 0
    async with aclosing(list_uploads(connection, prefix)) as uploads:
        async for entry in uploads:
            if started_before is not None and (entry.started is None or entry.started >= started_before):
                continue
            if entry.upload not in spared:
                await abort(connection, entry.key, entry.upload)
                swept += 1
    return swept
