"""What a bucket holds: one object's head, one object's bytes, a listing."""

from collections.abc import AsyncIterator
from typing import Any

from agent.adapters.s3_store.connection import Answer, Connection
from agent.adapters.s3_store.errors import translate
from agent.ports import StoredObject

READ_BYTES = 256 * 1024


def etag_of(answer: Answer) -> str:
    """Return the ETag in an answer, or in an item of a listing, bare; empty where there is none."""
    return str(answer.get("ETag") or "").strip('"').lower()


def described(key: str, answer: Answer) -> StoredObject:
    """Return the object that a HEAD describes. Stores differ in the case of metadata's names: here they are lower."""
    metadata = answer.get("Metadata") or {}
    named = {str(name).lower(): str(value) for name, value in metadata.items()}
    return StoredObject(key, int(answer["ContentLength"]), named, etag=etag_of(answer))


async def read(connection: Connection, key: str) -> AsyncIterator[bytes]:
    """Yield the object's bytes, all that its length announced. Raises NoSuchObject, StoreError."""
    answer = await connection.call("get_object", key)
    body = answer["Body"]
    async with body:
        while True:
            try:
                piece: bytes = await body.read(READ_BYTES)
            except Exception as error:
                if (translated := translate(error, connection.place, "get_object", key)) is None:
                    raise
                raise translated from error
            if not piece:
                return
            yield piece


async def listing(connection: Connection, prefix: str, start_after: str) -> AsyncIterator[StoredObject]:
    """Yield what lies under `prefix`, in key order, without metadata."""
    more: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
    while True:
        answer = await connection.call("list_objects_v2", Prefix=prefix, **more)
        for item in answer.get("Contents", ()):
            # Not every relative of S3 knows StartAfter.
            if item["Key"] > start_after:
                yield StoredObject(
                    item["Key"], int(item["Size"]), modified=item.get("LastModified"), etag=etag_of(item)
                )
        if not answer.get("IsTruncated"):
            return
        more = {"ContinuationToken": answer["NextContinuationToken"]}
