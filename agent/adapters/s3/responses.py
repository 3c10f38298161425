"""Validates S3 responses and reads their fields. Captive portals, reverse proxies and faulty stores send invalid ones.

`check_response` checks each response before botocore parses it; the other functions read fields of parsed responses.
All raise InvalidResponse. Its text quotes only the status, the content type and a host name of the response.
"""

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from agent.ports import StoredObject

Response = dict[str, Any]
"""A response as botocore parses it. It does not leave this package."""

PageParameters = dict[str, str | int]
"""The parameters that request one page of a listing."""

PORTAL = (
    "a captive portal or a proxy may answer in the store's place: log in to the network, or check HTTPS_PROXY and "
    "akosha_cloud_endpoint"
)
NOT_S3 = "check that akosha_cloud_endpoint is an S3 endpoint, and the proxies between this machine and it"

EMPTY_PAGES = 100
"""Maximum number of consecutive empty pages in a listing."""

_ROOTS = {
    "ListObjectsV2": "ListBucketResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "DeleteObjects": "DeleteResult",
}
"""The required root element, per operation: for these, a 200 alone does not show that S3 answered."""

_OBJECTS = frozenset({"GetObject", "HeadObject"})
_ONLY_200 = frozenset({*_OBJECTS, *_ROOTS})
_FIRST_ELEMENT = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<(?:\w+:)?(\w+)[\s/>]", re.DOTALL
)
_HEAD_BYTES = 4096
_SUCCESS, _OK, _PARTIAL, _REDIRECT, _REFUSED = 200, 200, 206, 300, 400
_REGION_HEADER = "x-amz-bucket-region"
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,100}")
_TYPE = re.compile(r"[a-z]{1,20}/[a-z0-9.+-]{1,60}")


class InvalidResponse(Exception):  # noqa: N818 - it names the response, not a failure
    """A response that S3 does not send. `problem` describes it; `hint` says what to check."""

    def __init__(self, problem: str, hint: str = NOT_S3) -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint


@dataclass(slots=True)
class ResponseInfo:
    """Status and content type of the current request's response; the status is 0 before a response arrives."""

    status: int = 0
    content_type: str = ""

    def __str__(self) -> str:
        return f"status {self.status}" + (f", {self.content_type}" if self.content_type else "")


response_info: ContextVar[ResponseInfo | None] = ContextVar("response_info", default=None)
"""`check_response` stores the status and content type here, for error messages."""


def check_response(operation_model: Any, response_dict: Mapping[str, Any], **_: object) -> None:
    """Raise InvalidResponse if S3 does not send such a response. A handler of botocore's `before-parse` event."""
    operation, status = str(operation_model.name), int(response_dict["status_code"])
    headers: Mapping[str, str] = response_dict["headers"]
    body = response_dict["body"]
    content_type = str(headers.get("content-type", "")).split(";")[0].strip().lower()
    if (info := response_info.get()) is not None:
        info.status, info.content_type = status, content_type if _TYPE.fullmatch(content_type) else ""
    if _REDIRECT <= status < _REFUSED:
        _check_redirect(operation, status, headers, body)
        return
    if not _SUCCESS <= status < _REDIRECT:
        return
    try:
        _check_success(operation, status, content_type, body)
    except InvalidResponse:
        if not isinstance(body, bytes):
            body.close()
        raise


def _check_success(operation: str, status: int, content_type: str, body: Any) -> None:
    # Some stores send their XML as text/html. The agent's objects never have that type.
    page = isinstance(body, bytes) and body[:_HEAD_BYTES].lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if page or (operation in _OBJECTS and content_type in ("text/html", "application/xhtml+xml")):
        raise InvalidResponse("an HTML page", PORTAL)
    if operation in _ONLY_200 and status != _OK and (operation, status) != ("GetObject", _PARTIAL):
        raise InvalidResponse(f"status {status}")
    if (root := _ROOTS.get(operation)) is None:
        return
    if not body:
        raise InvalidResponse("an empty response")
    element = _FIRST_ELEMENT.match(bytes(body[:_HEAD_BYTES]))
    if element is None:
        raise InvalidResponse("a response that is not XML")
    if element[1].decode() != root:
        raise InvalidResponse(f"XML that is not a {root}")


def _check_redirect(operation: str, status: int, headers: Mapping[str, str], body: Any) -> None:
    """Raise InvalidResponse for a redirect unless it names a region or an S3 error code, which botocore handles."""
    text = bytes(body or b"")
    if _REGION_HEADER in headers:
        return
    if operation == "HeadBucket":
        # botocore finds the region with this call. It repeats it after a redirect without a region, without end.
        from botocore.exceptions import ClientError  # noqa: PLC0415 - the client has loaded it

        metadata = {"HTTPStatusCode": status, "HTTPHeaders": dict(headers)}
        raise ClientError({"Error": {"Code": str(status)}, "ResponseMetadata": metadata}, operation)
    if b"<Code>" in text and b"<Error" in text:
        return
    location = str(headers.get("location", ""))
    try:
        host = urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    where = f" to {host}" if _HOST.fullmatch(host) else ""
    raise InvalidResponse(f"a redirect{where} (status {status})", PORTAL)


def text(response: Mapping[str, Any], name: str) -> str:
    """Return a required text field. Raises InvalidResponse."""
    value = response.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidResponse(f"a response without {name}")
    return value


def count(response: Mapping[str, Any], name: str) -> int:
    """Return a required number of bytes. Raises InvalidResponse."""
    value = response.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidResponse(f"a response without a usable {name}")
    return value


def etag_of(response: Mapping[str, Any]) -> str:
    """Return the ETag of a response or of an item of a listing, without quotes; empty if there is none."""
    return str(response.get("ETag") or "").strip('"').lower()


def check_complete(response: Response) -> None:
    """Raise InvalidResponse if the body is only a part of the object."""
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status != _OK:
        response["Body"].close()
        raise InvalidResponse(f"status {status}")


def object_of(key: str, response: Response) -> StoredObject:
    """Return the object of a HEAD. Metadata names are lower-cased, because stores differ in their case."""
    metadata = response.get("Metadata") or {}
    named = {str(name).lower(): str(value) for name, value in metadata.items()}
    return StoredObject(key, count(response, "ContentLength"), named, etag=etag_of(response))


@dataclass(frozen=True, slots=True)
class ListedUpload:
    """An item of a listing of multipart uploads. `started` is None if the store does not report it."""

    key: str
    upload: str
    started: datetime | None


def objects_in(response: Response) -> list[StoredObject]:
    """Return the objects in one page of a listing."""
    return [
        StoredObject(text(item, "Key"), count(item, "Size"), modified=_time(item, "LastModified"), etag=etag_of(item))
        for item in response.get("Contents") or ()
    ]


def folders_in(response: Response) -> list[str]:
    """Return the prefixes in one page of a listing with a delimiter, each with its final delimiter."""
    return [text(item, "Prefix") for item in response.get("CommonPrefixes") or ()]


def uploads_in(response: Response) -> list[ListedUpload]:
    """Return the multipart uploads in one page of a listing."""
    return [
        ListedUpload(text(item, "Key"), text(item, "UploadId"), _time(item, "Initiated"))
        for item in response.get("Uploads") or ()
    ]


@dataclass(frozen=True, slots=True)
class ListedPart:
    """An item of a listing of the parts of a multipart upload. `etag` is as the store wrote it, with quotes."""

    number: int
    size: int
    etag: str


def parts_in(response: Response) -> list[ListedPart]:
    """Return the parts in one page of a listing."""
    return [
        ListedPart(count(item, "PartNumber"), count(item, "Size"), text(item, "ETag"))
        for item in response.get("Parts") or ()
    ]


class Paging:
    """The pages of a listing. `next_parameters` reads the parameters of the next page out of a response."""

    def __init__(self, next_parameters: Callable[[Response], PageParameters]) -> None:
        self._next_parameters = next_parameters
        self._requested: set[tuple[str | int, ...]] = set()
        self._empty = 0
        self.parameters: PageParameters = {}

    def has_next(self, response: Response, count: int) -> bool:
        """Return whether a page follows this one, which has `count` items; set `parameters` for that page.

        Raises InvalidResponse if that page was requested before, or if too many pages are empty: the listing would not
        end.
        """
        if not response.get("IsTruncated"):
            return False
        self.parameters = self._next_parameters(response)
        page = tuple(self.parameters.values())
        self._empty = 0 if count else self._empty + 1
        if page in self._requested or self._empty > EMPTY_PAGES:
            raise InvalidResponse("a listing that does not end")
        self._requested.add(page)
        return True


def next_objects(response: Response) -> PageParameters:
    """Return the parameters for the next page of objects."""
    return {"ContinuationToken": text(response, "NextContinuationToken")}


def next_uploads(response: Response) -> PageParameters:
    """Return the parameters for the next page of multipart uploads."""
    parameters: PageParameters = {"KeyMarker": text(response, "NextKeyMarker")}
    if upload := response.get("NextUploadIdMarker"):
        parameters["UploadIdMarker"] = str(upload)
    return parameters


def next_parts(response: Response) -> PageParameters:
    """Return the parameters for the next page of parts."""
    return {"PartNumberMarker": count(response, "NextPartNumberMarker")}


def _time(item: Mapping[str, Any], name: str) -> datetime | None:
    value = item.get(name)
    return value if isinstance(value, datetime) and value.tzinfo is not None else None
