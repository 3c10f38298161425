"""Responses that S3 never sends: captive portals, reverse proxies, incomplete stores. Each is a StoreError."""

import asyncio
import contextlib
import random

import pytest
from structlog.testing import capture_logs

from agent.adapters.s3 import S3Store
from agent.adapters.s3.multipart import Multipart
from agent.domain.errors import StoreError
from agent.ports import PutPart, StoredObject
from tests.support.put_journal import MemoryJournal
from tests.support.servers.odd import OddServer, answer

pytest_plugins = ["tests.support.servers.fixtures"]

KEY = "systems/mac/uploads/20260101_000000_mac/reflection.duckdb"
SECRET = "canary-in-an-answer"
MIB = 2**20
PART = MIB // 16
XML = {"Content_Type": "application/xml"}
HTML = {"Content_Type": "text/html; charset=utf-8"}
PAGE = f"<html><head><title>Welcome, {SECRET}</title></head><body><p>Log in</p></body></html>"
WHEN = "2026-01-01T00:00:00.000Z"
MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"


def listed(contents: str = "", more: str = "<IsTruncated>false</IsTruncated>") -> str:
    return f"<?xml version='1.0'?><ListBucketResult><Name>b</Name>{more}{contents}</ListBucketResult>"


def item(key=f"<Key>{KEY}</Key>", size="<Size>1</Size>", when=f"<LastModified>{WHEN}</LastModified>") -> str:
    return f"<Contents>{key}{when}<ETag>x</ETag>{size}</Contents>"


def uploads(content: str) -> str:
    return f"<ListMultipartUploadsResult><Bucket>b</Bucket>{content}</ListMultipartUploadsResult>"


TRUNCATED = "<IsTruncated>true</IsTruncated>"

ANSWERS = {
    # redirects
    "301 to a portal": answer("301 Moved", Location="http://portal.example/login"),
    "302 to a portal": answer("302 Found", PAGE, Location=f"http://user:{SECRET}@portal.example/login", **HTML),
    "303": answer("303 See Other", Location="/elsewhere"),
    "304": answer("304 Not Modified"),
    "307 to https": answer("307 Temporary Redirect", Location="https://127.0.0.1:1/b/k"),
    "308": answer("308 Permanent Redirect", Location="http://[broken"),
    "301 without an address": answer("301 Moved"),
    "301 in S3's words without a region": answer("301 x", "<Error><Code>PermanentRedirect</Code></Error>", **XML),
    "307 in S3's words": answer("307 x", "<Error><Code>TemporaryRedirect</Code></Error>", **XML),
    # success without a valid body
    "201": answer("201 Created"),
    "202": answer("202 Accepted"),
    "204": answer("204 No Content", length="none"),
    "205": answer("205 Reset Content"),
    "206": answer("206 Partial Content", "x"),
    "200 and nothing": answer(),
    "200 and a page": answer(body=PAGE, **HTML),
    "200 and a page that is not XML": answer(body="<!doctype html><html><br><p>Log in", **HTML),
    "200 and a page of no type": answer(body=PAGE),
    "200 and text": answer(body="it works!", Content_Type="text/plain"),
    "200 and JSON": answer(body='{"Contents": []}', Content_Type="application/json"),
    "200 and noise": answer(body=random.Random(1).randbytes(999)),
    "200 and other XML": answer(body="<rss><channel/></rss>", **XML),
    "200 and XML cut short": answer(body=listed(item())[:-30], **XML),
    "200 and a body cut short": answer(body=listed(item()), length="99999", **XML),
    "200 and an error": answer(body="<Error><Code>AccessDenied</Code></Error>", **XML),
    "200 and an entity bomb": answer(
        body='<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ListBucketResult>&b;</ListBucketResult>', **XML
    ),
    # header and body fields
    "no length": answer(length="none", Last_Modified=MODIFIED),
    "a length that is not a number": answer(length="many"),
    "a negative length": answer(length="-1"),
    "two lengths": answer(length="1\r\nContent-Length: 2"),
    "an invalid date": answer(body=listed(item(when="<LastModified>soon</LastModified>")), Last_Modified="soon", **XML),
    "an item without a key": answer(body=listed(item(key="")), **XML),
    "an item without a size": answer(body=listed(item(size="")), **XML),
    "a size that is not a number": answer(body=listed(item(size="<Size>big</Size>")), **XML),
    "a negative size": answer(body=listed(item(size="<Size>-5</Size>")), **XML),
    "a size of thousands of digits": answer(body=listed(item(size=f"<Size>{'9' * 5000}</Size>")), **XML),
    "truncated without a token": answer(body=listed(item(), TRUNCATED), **XML),
    "the same token again": answer(
        body=listed(item(), f"{TRUNCATED}<NextContinuationToken>t</NextContinuationToken>"), **XML
    ),
    "truncated uploads without a marker": answer(body=uploads(TRUNCATED), **XML),
    "the same uploads again": answer(
        body=uploads(f"{TRUNCATED}<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"), **XML
    ),
    "an upload without an id": answer(body=uploads(f"<Upload><Key>{KEY}</Key></Upload>"), **XML),
    "an upload with an invalid date": answer(
        body=uploads(f"<Upload><Key>{KEY}</Key><UploadId>u</UploadId><Initiated>soon</Initiated></Upload>"), **XML
    ),
    "a created upload without an id": answer(
        body="<InitiateMultipartUploadResult><Key>k</Key></InitiateMultipartUploadResult>", **XML
    ),
    # errors that S3 does not send
    "400 and a page": answer("400 Bad Request", PAGE, **HTML),
    "403 and a page": answer("403 Forbidden", PAGE, **HTML),
    "404 and a page": answer("404 Not Found", PAGE, **HTML),
    "407": answer("407 Proxy Authentication Required", PAGE, **HTML),
    "418": answer("418 I'm a teapot"),
    "451 and broken XML": answer("451 x", "<Error><Code>Gone", **XML),
    "500 and nothing": answer("500 Oh"),
    "502 and a page": answer("502 Bad Gateway", PAGE, **HTML),
    "999": answer("999 What"),
    # invalid HTTP
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "half a header": b"HTTP/1.1 200 OK\r\nContent-Le",
    "a header of megabytes": answer(X_Long="x" * MIB),
}


async def body(size: int = 1):
    yield bytes(size)


async def put(store, size: int = 1):
    await store.put(KEY, body(size), metadata={}, part_bytes=PART, progress=lambda _: None)


async def continue_put(store):
    """Put two parts; the first is recorded as stored."""
    journal = MemoryJournal(KEY)
    upload = Multipart(store._connection, KEY, {}, set(), part_bytes=PART)
    await journal.begin("an-upload", upload._parameters)
    await journal.add(PutPart(1, PART, bytes(16), '"etag"'))
    await store.put(KEY, body(PART + 1), metadata={}, part_bytes=PART, progress=lambda _: None, journal=journal)


async def list_all(store):
    return [one async for one in store.list("systems/")]


async def get(store):
    return [piece async for piece in store.get(KEY)]


OPERATIONS = {
    "put": put,
    "put in parts": lambda store: put(store, PART + 1),
    "continue a put": continue_put,
    "head": lambda store: store.head(KEY),
    "get": get,
    "list": list_all,
    "copy": lambda store: store.copy(KEY, "systems/other", expected=StoredObject(KEY, 1)),
    "delete": lambda store: store.delete([KEY]),
    "delete many": lambda store: store.delete([f"{KEY}{number}" for number in range(20)]),
    "sweep": lambda store: store.sweep("systems/"),
    "unfinished": lambda store: store.unfinished("systems/"),
    "server_date": lambda store: store.server_date("systems/"),
}

MAY_SUCCEED = {
    "head": {"200 and nothing"},  # an object of no bytes
    "delete": {"201", "202", "204", "205", "206", "no length"}
    | {name for name in ANSWERS if name.startswith("200 and") and "page" not in name}
    | {name for name, text in ANSWERS.items() if b"ListBucket" in text or b"Upload" in text},
    "get": {"an answer of ours", "no length", "200 and nothing", "200 and text", "200 and JSON", "200 and noise"}
    | {
        "200 and other XML",
        "200 and XML cut short",
        "200 and an error",
        "200 and an entity bomb",
        "200 and a page of no type",
    }
    | {name for name, text in ANSWERS.items() if text.startswith(b"HTTP/1.1 200") and b"xml" in text},
}
"""Answers that an operation may accept: an object can have any bytes, and a deletion needs no body."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Disable botocore's delay of up to a second before a retry, and the output of tracebacks."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    with capture_logs():
        yield


@pytest.fixture
async def server(aws):
    async with OddServer() as running:
        yield running


@pytest.fixture
async def store(server):
    opened = S3Store(bucket="memories", endpoint=server.url, region="auto")
    yield opened
    await opened.aclose()


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_odd_answer_is_a_store_error_that_does_not_quote_it(server, store, operation):
    wrong = {}
    for name, odd in ANSWERS.items():
        server.answering = lambda _method, _target, odd=odd: odd
        server.seen.clear()
        try:
            async with asyncio.timeout(30):
                found = await OPERATIONS[operation](store)
        except StoreError as error:
            text = f"{error} {error!r}"
            if SECRET in text or "RecursionError" in text or len(server.seen) > 130:
                wrong[name] = f"{text}, {len(server.seen)} requests"
        except BaseException as error:  # noqa: BLE001 - any other exception is a failure of the test
            wrong[name] = repr(error)
        else:
            believed = operation in ("sweep", "unfinished", "server_date") or name in MAY_SUCCEED.get(operation, ())
            if not believed:
                wrong[name] = f"believed: {found!r}"
    assert wrong == {}


@pytest.mark.parametrize("name", ["301 to a portal", "302 to a portal", "200 and a page", "307 to https"])
async def test_a_portal_or_proxy_is_transient_and_named(server, store, name):
    server.answering = lambda _method, _target: ANSWERS[name]
    with pytest.raises(StoreError) as failure:
        await list_all(store)
    assert failure.value.transient
    assert "captive portal" in failure.value.hint
    assert failure.value.unexpected
    assert str(failure.value).count("status") == 1, str(failure.value)
    assert len(server.seen) == 1, "no redirect is followed"


async def test_an_invalid_listing_is_never_an_empty_bucket(server, store):
    believed = []
    for name, odd in ANSWERS.items():
        server.answering = lambda _method, _target, odd=odd: odd
        with contextlib.suppress(StoreError):
            believed += [(name, await list_all(store))]
    assert believed == []


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "500 Oh"])
@pytest.mark.parametrize("operation", ["list", "delete many", "copy", "unfinished"])
async def test_an_endless_response_is_not_read_into_memory(server, store, monkeypatch, operation, status):
    """It is a response of a terabyte, of which the server sends so much that only a limit ends the reading."""
    monkeypatch.setattr("agent.adapters.s3.session.MAX_RESPONSE_BYTES", MIB)
    opening = "<?xml version='1.0'?><ListBucketResult>" if operation == "list" else "<DeleteResult>"
    endless = answer(status, opening + " " * 4 * MIB, length=str(2**40), **XML)
    server.answering = lambda method, _target: item_head() if method == "HEAD" else endless
    with pytest.raises(StoreError, match="a response of more than 1 MiB"):
        await OPERATIONS[operation](store)
    assert len([request for request in server.seen if not request.startswith("HEAD")]) == 1, "it is not repeated"


def item_head() -> bytes:
    return answer(length="1", Last_Modified=MODIFIED, ETag="x")


async def test_an_endless_listing_of_empty_pages_is_an_error(server, store):
    pages = iter(range(10_000))

    def next_page(_method, _target):
        token = f"<NextContinuationToken>{next(pages)}</NextContinuationToken>"
        return answer(body=listed("", TRUNCATED + token), **XML)

    server.answering = next_page
    with pytest.raises(StoreError, match="does not end"):
        await list_all(store)
    assert len(server.seen) < 200


async def test_keys_outside_the_prefix_are_not_listed(server, store):
    server.answering = lambda *_: answer(body=listed(item(key="<Key>elsewhere/x</Key>") + item()), **XML)
    assert [one.key for one in await list_all(store)] == [KEY]


CREATED = answer(body="<InitiateMultipartUploadResult><UploadId>u-1</UploadId></InitiateMultipartUploadResult>", **XML)
PART_SENT = answer(ETag='"part"')


@pytest.mark.parametrize("odd_from", ["part", "completion"])
async def test_odd_answers_in_the_middle_of_a_put_in_parts(server, store, odd_from):
    wrong = {}
    for name, odd in ANSWERS.items():

        def play(method, target, odd=odd):
            if method == "POST" and "uploads" in target:
                return CREATED
            if odd_from == "completion" and "partNumber" in target:
                return PART_SENT
            return odd

        server.answering = play
        try:
            async with asyncio.timeout(30):
                await put(store, PART + 1)
        except StoreError:
            pass
        except BaseException as error:  # noqa: BLE001 - as above
            wrong[name] = repr(error)
        else:
            wrong[name] = "believed"
    assert wrong == {}


LIBRARY_ERRORS = [
    Exception("anything"),
    KeyError(SECRET),
    RuntimeError("odd"),
    RecursionError(),
    AttributeError("none"),
    TypeError("none"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    StopAsyncIteration(),
    AssertionError(),
    ExceptionGroup("several", [KeyError("a"), OSError("b")]),
    MemoryError(),
]


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_error_of_the_library_is_a_store_error(store, operation, monkeypatch):
    client = (await store._connection._client()).raw
    wrong = {}
    for raised in LIBRARY_ERRORS:

        async def failing(*_, raised=raised, **__):
            raise raised

        for call in ("put_object", "create_multipart_upload", "head_object", "get_object", "list_objects_v2"):
            monkeypatch.setattr(client, call, failing)
        for call in ("copy_object", "delete_object", "delete_objects", "list_multipart_uploads"):
            monkeypatch.setattr(client, call, failing)
        try:
            await OPERATIONS[operation](store)
        except StoreError as error:
            if not error.transient or SECRET in str(error) or not isinstance(error.__cause__, Exception):
                wrong[repr(raised)] = str(error)
        except BaseException as error:  # noqa: BLE001 - as above
            wrong[repr(raised)] = repr(error)
    assert wrong == {}


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(3), StoreError("ours")])
async def test_cancellation_exits_and_own_errors_pass_through(store, raised, monkeypatch):
    client = (await store._connection._client()).raw

    async def failing(*_, **__):
        raise raised

    monkeypatch.setattr(client, "head_object", failing)
    seen = []
    try:
        await store.head(KEY)
    except BaseException as error:  # noqa: BLE001 - as above
        seen.append(error)
    assert seen == [raised]


async def test_an_unknown_error_is_logged_with_its_traceback_once(store, monkeypatch):
    client = (await store._connection._client()).raw

    async def failing(*_, **__):
        raise KeyError("Size")

    monkeypatch.setattr(client, "head_object", failing)
    with capture_logs() as lines:
        for _ in range(3):
            with pytest.raises(StoreError) as failure:
                await store.head(KEY)
            assert failure.value.unexpected == "KeyError in head_object"
    assert [line["event"] for line in lines] == ["unexpected_error"]
    assert isinstance(lines[0]["exc_info"], KeyError)
