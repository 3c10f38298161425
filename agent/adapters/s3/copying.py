"""A copy on the store's side, believed only once a HEAD has shown it."""

import contextlib
from collections.abc import Mapping

from agent.adapters.s3.answers import Answer, described, etag_of
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of
from agent.adapters.s3.multipart import Multipart
from agent.domain.errors import CopyUnsupported, NoSuchObject, StoreError
from agent.ports import Progress, StoredObject, is_changed

SINGLE_COPY_BYTES = 5 * 2**30
"""What one CopyObject takes at most (AWS, R2)."""

PART_COPY_BYTES = 2**30

_NOT_ABOUT_COPYING = frozenset(
    {"NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
    | {"RequestTimeTooSkewed", "PermanentRedirect", "AuthorizationHeaderMalformed", "QuotaExceeded"}
)
"""Refusals that sending the bytes instead would meet too."""


class Copying:
    """Copies within one bucket; in ranges where the source is larger than `single_copy_bytes`."""

    def __init__(self, connection: Connection, single_copy_bytes: int, live: set[str]) -> None:
        self._connection = connection
        self._single_copy_bytes = single_copy_bytes
        self._part_bytes = min(single_copy_bytes, PART_COPY_BYTES)
        self._live = live

    async def copy(self, source: str, key: str, expected: StoredObject, progress: Progress) -> StoredObject:
        origin_object, answer = await self._head(source)
        if not _same(origin_object, expected) or is_changed(expected.etag, etag_of(answer)):
            raise CopyUnsupported(f"{source!r} in {self._connection.place} is not what the last upload put there")
        etag = str(answer.get("ETag") or "")
        origin = {"Bucket": self._connection.place.bucket, "Key": source}
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
            raise CopyUnsupported(f"{self._connection.place} did not copy {source!r}: {code}") from error
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
        async with Multipart(self._connection, key, expected.metadata, self._live) as upload:
            for number, first in enumerate(range(0, expected.size, self._part_bytes), start=1):
                last = min(first + self._part_bytes, expected.size) - 1
                if not await upload.copy(number, origin, first, last, etag):
                    raise CopyUnsupported(f"{self._connection.place} answered as if it had copied, and did not")
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
            f"the copy at {key!r} in {self._connection.place} is not right: {copy.size} bytes of {expected.size}, "
            f"metadata {sorted(copy.metadata)}"
        )


def _same(found: StoredObject, expected: StoredObject) -> bool:
    wanted = {name.lower(): value for name, value in expected.metadata.items()}
    # A store may add names of its own (rclone: mtime).
    return found.size == expected.size and all(found.metadata.get(name) == value for name, value in wanted.items())
