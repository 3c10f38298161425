"""What an S3 answer must look like. Captive portals, reverse proxies and odd stores answer otherwise.

`check_answer` looks at each answer before botocore parses it; the rest reads fields out of parsed ones. All raise
OddAnswer, which says what was answered in our own words and quotes nothing of it but status, type and a host name.
"""

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from agent.ports import StoredObject

Answer = dict[str, Any]
"""What botocore makes of a response. It does not leave this package."""

PORTAL = "a captive portal or a proxy may answer in the store's place: log in to the network, or check HTTPS_PROXY and "
PORTAL += "akosha_cloud_endpoint"
NOT_S3 = "check that akosha_cloud_endpoint is an S3 endpoint, and what lies between here and there"

EMPTY_PAGES = 100
"""So many pages of a listing in a row may be empty."""

_ROOTS = {
    "ListObjectsV2": "ListBucketResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "DeleteObjects": "DeleteResult",
}
"""The root element of an answer that nothing else proves: without it nothing was listed, or deleted."""

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


class OddAnswer(Exception):  # noqa: N818 - it says what was answered
    """An answer that is none of S3's. `what`: what is odd about it; `cure` is the hint."""

    def __init__(self, what: str, cure: str = NOT_S3) -> None:
        super().__init__(what)
        self.what, self.cure = what, cure


@dataclass(slots=True)
class ResponseInfo:
    """What came back for the request under way: the status is 0 before anything did."""

    status: int = 0
    content_type: str = ""

    def __str__(self) -> str:
        return f"status {self.status}" + (f", {self.content_type}" if self.content_type else "")


response_info: ContextVar[ResponseInfo | None] = ContextVar("response_info", default=None)
"""Where `check_answer` notes what came back, for the error's text."""


def check_answer(operation_model: Any, response_dict: Mapping[str, Any], **_: object) -> None:
    """Raise OddAnswer for what S3 does not answer. A handler of botocore's `before-parse` event."""
    operation, status = str(operation_model.name), int(response_dict["status_code"])
    headers: Mapping[str, str] = response_dict["headers"]
    body = response_dict["body"]
    content_type = str(headers.get("content-type", "")).split(";")[0].strip().lower()
    if (note := response_info.get()) is not None:
        note.status, note.content_type = status, content_type if _TYPE.fullmatch(content_type) else ""
    if _REDIRECT <= status < _REFUSED:
        _check_redirect(operation, status, headers, body)
        return
    if not _SUCCESS <= status < _REDIRECT:
        return
    try:
        _check_success(operation, status, content_type, body)
    except OddAnswer:
        if not isinstance(body, bytes):
            body.close()
        raise


def _check_success(operation: str, status: int, content_type: str, body: Any) -> None:
    # Some stores call their XML text/html. Objects of ours never are.
    page = isinstance(body, bytes) and body[:_HEAD_BYTES].lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if page or (operation in _OBJECTS and content_type in ("text/html", "application/xhtml+xml")):
        raise OddAnswer("an HTML page", PORTAL)
    if operation in _ONLY_200 and status != _OK and (operation, status) != ("GetObject", _PARTIAL):
        raise OddAnswer(f"status {status}")
    if (root := _ROOTS.get(operation)) is None:
        return
    if not body:
        raise OddAnswer("an empty answer")
    found = _FIRST_ELEMENT.match(bytes(body[:_HEAD_BYTES]))
    if found is None:
        raise OddAnswer("an answer that is no XML")
    if found[1].decode() != root:
        raise OddAnswer(f"XML that is no {root}")


def _check_redirect(operation: str, status: int, headers: Mapping[str, str], body: Any) -> None:
    """Leave a redirect to botocore where S3 says more than "elsewhere": it knows the right region, or asks for it."""
    text = bytes(body or b"")
    if _REGION_HEADER in headers:
        return
    if operation == "HeadBucket":
        # botocore asks by this call which region is right. A redirect here would have it ask again, without end.
        from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client long before

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
    raise OddAnswer(f"a redirect{where} (status {status})", PORTAL)


def text(answer: Mapping[str, Any], name: str) -> str:
    """Return a text that must be there."""
    value = answer.get(name)
    if not isinstance(value, str) or not value:
        raise OddAnswer(f"an answer without {name}")
    return value


def count(answer: Mapping[str, Any], name: str) -> int:
    """Return a number of bytes that must be there."""
    value = answer.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OddAnswer(f"an answer without a usable {name}")
    return value


def etag_of(answer: Mapping[str, Any]) -> str:
    """Return the ETag in an answer, or in an item of a listing, bare; empty where there is none."""
    return str(answer.get("ETag") or "").strip('"').lower()


def check_whole(answer: Answer) -> None:
    """Raise OddAnswer where a whole object was asked for, and only a part of it came."""
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status != _OK:
        answer["Body"].close()
        raise OddAnswer(f"status {status}")


def described(key: str, answer: Answer) -> StoredObject:
    """Return the object that a HEAD describes. Stores differ in the case of metadata's names: here they are lower."""
    metadata = answer.get("Metadata") or {}
    named = {str(name).lower(): str(value) for name, value in metadata.items()}
    return StoredObject(key, count(answer, "ContentLength"), named, etag=etag_of(answer))


@dataclass(frozen=True, slots=True)
class Entry:
    """An upload in parts that a listing names. `begun` is None where the store does not say."""

    key: str
    upload: str
    begun: datetime | None


def objects_in(answer: Answer) -> list[StoredObject]:
    """Return the objects of one page of a listing."""
    return [
        StoredObject(text(item, "Key"), count(item, "Size"), modified=_time(item, "LastModified"), etag=etag_of(item))
        for item in answer.get("Contents") or ()
    ]


def uploads_in(answer: Answer) -> list[Entry]:
    """Return the uploads in parts of one page of a listing."""
    return [
        Entry(text(item, "Key"), text(item, "UploadId"), _time(item, "Initiated"))
        for item in answer.get("Uploads") or ()
    ]


class Paging:
    """Takes a listing on from page to page. `following` reads the parameters of the next page out of an answer."""

    def __init__(self, following: Callable[[Answer], dict[str, str]]) -> None:
        self._following = following
        self._asked: set[tuple[str, ...]] = set()
        self._empty = 0
        self.more: dict[str, str] = {}

    def has_next(self, answer: Answer, found: int) -> bool:
        """Say whether there is a page after this one, of `found` entries; then `more` asks for it.

        Raises OddAnswer where that page was asked for before, or nothing but empty pages come: it would never end.
        """
        if not answer.get("IsTruncated"):
            return False
        self.more = self._following(answer)
        mark = tuple(self.more.values())
        self._empty = 0 if found else self._empty + 1
        if mark in self._asked or self._empty > EMPTY_PAGES:
            raise OddAnswer("a listing that does not come to an end")
        self._asked.add(mark)
        return True


def next_objects(answer: Answer) -> dict[str, str]:
    """Return what asks for the next page of objects."""
    return {"ContinuationToken": text(answer, "NextContinuationToken")}


def next_uploads(answer: Answer) -> dict[str, str]:
    """Return what asks for the next page of uploads in parts."""
    more = {"KeyMarker": text(answer, "NextKeyMarker")}
    if upload := answer.get("NextUploadIdMarker"):
        more["UploadIdMarker"] = str(upload)
    return more


def _time(item: Mapping[str, Any], name: str) -> datetime | None:
    value = item.get(name)
    return value if isinstance(value, datetime) and value.tzinfo is not None else None
