"""Reads from a bucket: objects, listings of objects and of unfinished uploads with their parts, the store's time."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of
from agent.adapters.s3.responses import (
    ListedPart,
    ListedUpload,
    PageParameters,
    Paging,
    Response,
    folders_in,
    next_objects,
    next_parts,
    next_uploads,
    objects_in,
    parts_in,
    uploads_in,
)
from agent.domain.errors import StoreError
from agent.ports import StoredObject

READ_BYTES = 256 * 1024
MAX_UNFINISHED = 1000

_NO_UPLOADS = frozenset({"NotImplemented", "MethodNotAllowed", "501", "405", "NoSuchUpload"})
"""Error codes of stores that do not list uploads, or (rclone) have none to list."""

T = TypeVar("T")


async def read(connection: Connection, key: str) -> AsyncGenerator[bytes, None]:
    """Yield the object's bytes. Raises NoSuchObject, and StoreError, also if the body is incomplete."""
    async with aclosing(connection.stream("get_object", key, READ_BYTES)) as pieces:
        async for piece in pieces:
            yield piece


async def list_objects(connection: Connection, prefix: str, start_after: str) -> AsyncIterator[StoredObject]:
    """Yield the objects under `prefix` in key order, without metadata. Raises StoreError, also for endless listings."""
    first: PageParameters = {"StartAfter": start_after} if start_after else {}
    pages = _pages(connection, "list_objects_v2", objects_in, next_objects, first, Prefix=prefix)
    async with aclosing(pages):
        async for page in pages:
            for item in page:
                # Some S3-compatible stores ignore StartAfter.
                if item.key > start_after and item.key.startswith(prefix):
                    yield item


async def list_folders(connection: Connection, prefix: str, start: str) -> AsyncGenerator[str, None]:
    """Yield the names of the folders directly below `prefix`, from the name `start` on. Raises as `list_objects`."""
    first: PageParameters = {"StartAfter": f"{prefix}{start}"} if start else {}
    pages = _pages(connection, "list_objects_v2", folders_in, next_objects, first, Prefix=prefix, Delimiter="/")
    async with aclosing(pages):
        async for page in pages:
            for folder in page:
                name = folder.removeprefix(prefix).removesuffix("/")
                if folder.startswith(prefix) and name and f"{name}/" > start:
                    yield name


async def list_uploads(connection: Connection, prefix: str) -> AsyncGenerator[ListedUpload, None]:
    """Yield the multipart uploads under `prefix`; none if the store does not list them.

    Raises NotPermitted, and StoreError as `list_objects` does.
    """
    try:
        pages = _pages(connection, "list_multipart_uploads", uploads_in, next_uploads, {}, Prefix=prefix)
        async with aclosing(pages):
            async for page in pages:
                for entry in page:
                    if entry.key.startswith(prefix):
                        yield entry
    except StoreError as error:
        if code_of(error) not in _NO_UPLOADS:
            raise


async def list_parts(connection: Connection, key: str, upload: str) -> dict[int, ListedPart]:
    """Return the parts of a multipart upload that the store has, by number. Raises StoreError like `list_objects`."""
    pages = _pages(connection, "list_parts", parts_in, next_parts, {}, key=key, UploadId=upload)
    async with aclosing(pages):
        return {part.number: part async for page in pages for part in page}


async def _pages(
    connection: Connection,
    operation: str,
    items_in: Callable[[Response], list[T]],
    next_page: Callable[[Response], PageParameters],
    parameters: PageParameters,
    *,
    key: str = "",
    **fixed: str,
) -> AsyncGenerator[list[T], None]:
    """Yield the pages of a listing: `parameters` select the first page, `fixed` are the same for all.

    `next_page` reads the parameters of the next page out of a response.
    """
    paging = Paging(next_page)

    def read_page(response: Response) -> tuple[list[T], bool]:
        items = items_in(response)
        return items, paging.has_next(response, len(items))

    has_next = True
    while has_next:
        items, has_next = await connection.call_and_read(read_page, operation, key, **fixed, **parameters)
        parameters = paging.parameters
        yield items


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    started: datetime


async def server_date(connection: Connection, prefix: str) -> str:
    """Return the Date header of a response, also of a refusal; "" if it has none. Raises StoreError."""
    try:
        response: Mapping[str, Any] = await connection.call("list_objects_v2", Prefix=prefix, MaxKeys=1)
    except StoreError as error:
        refusal = getattr(error.__cause__, "response", None)
        if not isinstance(refusal, dict):
            raise
        response = refusal
    return str(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))


async def unfinished(connection: Connection, prefix: str) -> list[Unfinished]:
    """Return the unfinished multipart uploads under `prefix`, the first thousand at most.

    The list is empty if the store does not list them. Raises NotPermitted, StoreError.
    """
    unfinished_uploads: list[Unfinished] = []
    async with aclosing(list_uploads(connection, prefix)) as uploads:
        async for entry in uploads:
            if entry.started is not None:
                unfinished_uploads.append(Unfinished(entry.key, entry.started))
            if len(unfinished_uploads) == MAX_UNFINISHED:
                break
    return unfinished_uploads
