"""Targets: requests to the control API, and the responses of an Akosha server and of an S3 store.

A real server listens on a loopback port or a Unix socket; it and its client run on one event loop, one example at a
time.
"""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from agent.adapters.akosha import AkoshaSink
from agent.adapters.s3 import S3Store
from agent.domain.errors import SinkError, StoreError
from agent.domain.memories import memory_id
from agent.entrypoints.control_api import Limits
from agent.ports import StoredObject
from tests.fuzz.documents import ODD_TEXTS, encoded, json_near, near, near_bytes, near_text
from tests.fuzz.messages import DOCUMENTS
from tests.fuzz.target import CANARY, Read, Target
from tests.support.control_api import FakeAgentService, serve_agent
from tests.support.memories import memory
from tests.support.servers.odd import OddServer
from tests.support.servers.s3 import aws_environment
from tests.support.values import SYSTEM

SECONDS = 30
"""Time limit of an example; a client or a server that waits for longer hangs."""


def _one_line(text: str) -> bytes:
    """Return a text for the head of a message: a line break would only begin another header."""
    return text.encode("utf-8", "surrogatepass").replace(b"\r", b"").replace(b"\n", b"")


def message(first: str, headers: dict[str, str], body: bytes) -> bytes:
    """Return an HTTP message; a Content-Length is added unless the headers have one."""
    length = {} if "Content-Length" in headers else {"Content-Length": str(len(body))}
    lines = [_one_line(first), *(_one_line(f"{name}: {value}") for name, value in {**headers, **length}.items())]
    return b"\r\n".join([*lines, b"", b""]) + body


# ---------------------------------------------------------------------------------------------------------- control API

ROUTES = (
    "/v1/status",
    "/v1/sync",
    "/v1/events",
    "/v1/sync/r-1",
    "/metrics",
    "/healthz",
    "/readyz",
    "/v1/history",
    "/v1/plots",
    "/v1/uploads",
    "/v1/verify",
    "/v1/page/session",
    "/openapi.json",
    "/page.js",
    "/",
)
TARGETS_OF_REQUESTS = st.builds(
    lambda path, query: path + (f"?{query}" if query else ""),
    st.sampled_from(ROUTES) | st.sampled_from(ROUTES).flatmap(near_text),
    st.sampled_from(
        [
            "",
            "",
            "after=1",
            "after=x",
            "after=9" + "9" * 30,
            "x=1",
            "after",
            "%ff=%00",
            "after=1&after=2",
            "limit=1&before=9",
            "before=x",
            "limit=0",
            "outcome=failed",
            "outcome=x",
        ]
    ),
)
ODD_HEADERS = st.sampled_from([
    ("Content-Type", "application/json"), ("Content-Type", "application/cloudevents+json; charset=utf-8"),
    ("Content-Type", "text/plain"), ("Content-Length", "5"), ("Content-Length", "-1"), ("Content-Length", "9" * 30),
    ("Content-Length", "1_0"), ("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "gzip, chunked"), ("Host", ""),
    ("Content-Encoding", "gzip"), ("Expect", "100-continue"), ("Expect", "x"), ("Upgrade", "websocket"),
    ("Connection", "close"), ("Connection", "upgrade"), ("Last-Event-ID", "1"), ("Last-Event-ID", "٣"),
    ("Authorization", f"Bearer {CANARY}"), ("Cookie", "a=b; c"), ("Accept-Encoding", "br"), ("Range", "bytes=0-"),
    ("If-None-Match", "*"), ("Origin", "https://evil.example"), ("X-Long", "x" * 9000), ("", "x"), ("A B", "x"),
])  # fmt: skip
ORDER = {
    "id": "r-1", "method": "auto", "enable_fallback": True, "upload_reflections": True, "upload_knowledge_graph": False,
}  # fmt: skip
REQUESTS = st.builds(
    lambda first, headers, body: message(first, {"Host": "localhost", **dict(headers)}, body),
    st.builds(
        lambda method, target, version: f"{method} {target} {version}",
        st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get"]) | ODD_TEXTS,
        TARGETS_OF_REQUESTS,
        st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2", "HTTP/9.9", ""]),
    ),
    st.lists(ODD_HEADERS | st.tuples(ODD_TEXTS, ODD_TEXTS), max_size=4),
    st.just(b"") | json_near(ORDER),
)
POSTS = st.builds(
    lambda path, kind, body: message(f"POST {path} HTTP/1.1", {"Host": "x", "Content-Type": kind}, body),
    st.sampled_from(["/v1/sync", "/v1/events", "/v1/page/session"]),
    st.sampled_from(["application/json", "application/json; charset=utf-16", "application/cloudevents+json"]),
    json_near(ORDER, DOCUMENTS[0], keys=("system_id",)),
)
HEALTH = message("GET /healthz HTTP/1.1", {"Host": "localhost", "Connection": "close"}, b"")
REQUEST_LIMITS = Limits(head_seconds=0.2, body_seconds=0.2, heartbeat_seconds=0.2)


@contextlib.contextmanager
def control_api() -> Iterator[Read]:
    """Yield a function that sends bytes to one control API, and checks the response and that it goes on serving."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        serving = serve_agent(FakeAgentService(), Path(directory, "state"), limits=REQUEST_LIMITS, alone=False)
        agent = runner.run(serving.__aenter__())

        async def ask(data: bytes) -> bytes:
            reader, writer = await asyncio.open_unix_connection(agent.path)
            try:
                async with asyncio.timeout(SECONDS):
                    with contextlib.suppress(ConnectionError):
                        writer.write(data)
                        return await _response(reader)
                    return b""
            finally:
                writer.transport.abort()

        def read(data: bytes) -> None:
            response = runner.run(ask(data))
            if response:
                _check_response(response)
            assert runner.run(ask(HEALTH)).startswith(b"HTTP/1.1 200 ")

        try:
            yield read
        finally:
            runner.run(serving.__aexit__(None, None, None))


async def _response(reader: asyncio.StreamReader) -> bytes:
    """Return the first response: all of it, or the head of a stream of events."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    return head if length is None else head + await reader.read(int(length.partition(b":")[2]))


def _check_response(response: bytes) -> None:
    first, _, rest = response.partition(b"\r\n")
    version, status, _ = first.split(b" ", 2)
    assert version in (b"HTTP/1.1", b"HTTP/1.0"), first
    assert int(status) < 500, response
    assert CANARY.encode() not in response
    head, _, body = rest.partition(b"\r\n\r\n")
    if b"application/problem+json" in head and body:
        problem = json.loads(body)
        assert problem["status"] == int(status)
        assert len(problem["detail"]) <= 500, problem


# --------------------------------------------------------------------------------------------------------------- Akosha

MEMORIES = [memory(1), memory(2, kind="reflection"), memory(3, kind="entity"), memory(4, embedded=False)]
STORED = memory_id(SYSTEM, MEMORIES[0].row)
RESULTS = {
    "initialize": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "serverInfo": {"name": "akosha", "version": "1"},
    },
    "tools/list": {
        "tools": [
            {"name": "batch_store_memories", "inputSchema": {"type": "object", "properties": {"memories": {}}}},
            {
                "name": "store_reflection",
                "inputSchema": {
                    "type": "object",
                    "properties": {"content": {"type": "string"}, "tags": {"anyOf": [{"type": ["array", "null"]}]}},
                    "required": ["content"],
                },
            },
        ]
    },
    "tools/call": {
        "content": [{"type": "text", "text": '{"status": "completed"}'}],
        "structuredContent": {
            "status": "partial", "stored": 2, "failed": 1, "total": 3,
            "errors": [{"memory_id": STORED, "error": f"duplicate key {STORED}"}],
        },
        "isError": False,
    },
    "store_reflection": {"content": [{"type": "text", "text": "stored"}], "isError": False},
}  # fmt: skip
STEPS = ("initialize", "notifications/initialized", "tools/list", "tools/call", "store_reflection")
AKOSHA_HEADERS = st.lists(
    st.sampled_from([
        ("Content-Type", "text/html"), ("Content-Type", ""), ("Content-Encoding", "gzip"), ("Location", "//[x"),
        ("Location", f"https://{CANARY}@other.example/"), ("Content-Length", "7"), ("Content-Length", "-5"),
        ("Mcp-Session-Id", "é"), ("Mcp-Session-Id", "s\x01"), ("Mcp-Session-Id", "x" * 600), ("Date", "x"),
        ("Transfer-Encoding", "chunked"), ("Retry-After", "9" * 30), ("Retry-After", "Fri, 31 Dec 9999 23:59:59 -1400"),
        ("Retry-After", ","), ("Set-Cookie", "a=b"), ("Connection", "keep-alive"),
    ]) | st.tuples(st.sampled_from(["Retry-After", "Date", "Location", "Content-Type", "Mcp-Session-Id"]), ODD_TEXTS),
    max_size=2,
)  # fmt: skip


def akosha_response(
    step: str, document: object, *, status: str = "200 OK", events: bytes | None = None, **more
) -> bytes:
    """Return a response with a JSON-RPC message, as JSON or (`events`: the text before the message) as events."""
    body = encoded(document)
    kind = "application/json"
    if events is not None:
        kind, body = "text/event-stream", events + b"data: " + body + b"\r\n\r\n"
    session = {"Mcp-Session-Id": "s-1"} if step == "initialize" else {}
    return message(f"HTTP/1.1 {status}", {"Content-Type": kind, **session, **more}, body)


def _message(step: str) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": (*RESULTS,).index(step) + 1, "result": RESULTS[step]}


VALID = {step: akosha_response(step, _message(step)) for step in RESULTS} | {
    "notifications/initialized": message("HTTP/1.1 202 Accepted", {}, b"")
}
STATUSES = ("200 OK",) * 8 + (
    "201 x",
    "202 Accepted",
    "204 x",
    "301 x",
    "307 x",
    "400 x",
    "401 x",
    "404 x",
    "429 x",
    "503 x",
)
KEYS = ("error", "method", "structuredContent", "nextCursor", "anyOf", "oneOf", "required", "errors", "reason")


def _odd_responses(step: str) -> st.SearchStrategy[tuple[str, bytes]]:
    documents = [_message(step)] if step in RESULTS else []
    documents.append({"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": f"bad token {CANARY}"}})
    built = st.builds(
        lambda document, status, events, headers: akosha_response(
            step, document, status=status, events=events, **dict(headers)
        ),
        st.one_of([near(document, KEYS) for document in documents]),
        st.sampled_from(STATUSES),
        st.none()
        | st.none()
        | st.sampled_from([b"", b": x\n\n", b"event: ping\ndata: {}\n\n", b"id: 1\nretry: x\n", b"\xff\n"]),
        AKOSHA_HEADERS,
    )
    return st.tuples(st.just(step), built | built.flatmap(near_bytes))


@contextlib.contextmanager
def akosha() -> Iterator[Read]:
    """Yield a function that stores memories at a server with one odd response."""
    with asyncio.Runner() as runner:
        server = runner.run(OddServer().__aenter__())

        async def store(odd_step: str, response: bytes) -> None:
            script = iter([response if step == odd_step else VALID[step] for step in STEPS])
            server.answering = lambda _method, _target: next(script, VALID["notifications/initialized"])
            sink = AkoshaSink(endpoint=f"{server.url}/mcp", token=CANARY, timeout_seconds=SECONDS / 3)
            try:
                async with asyncio.timeout(SECONDS):
                    capabilities = await sink.connect()
                    assert {"conversation"} <= capabilities.kinds
                    batch = [sink.pack(each, SYSTEM) for each in MEMORIES]
                    result = await sink.store(batch)
                    positions = result.existing | result.refused.keys()
                    assert len(positions) == len(result.existing) + len(result.refused)
                    assert result.stored + len(positions) == len(batch)
                    assert CANARY not in repr(result)
            finally:
                await sink.aclose()

        try:
            yield lambda example: runner.run(store(*example))
        finally:
            runner.run(server.__aexit__())


# ------------------------------------------------------------------------------------------------------------------- S3

KEY = "systems/mac/uploads/20260101_000000_mac/reflection.duckdb"
XML = {"Content-Type": "application/xml"}
OBJECT = {"ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "x-amz-meta-sha256": "a"}
ITEM = f"<Key>{KEY}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag><Size>1</Size>"
UPLOAD = f"<Key>{KEY}</Key><UploadId>u</UploadId><Initiated>2026-01-01T00:00:00.000Z</Initiated>"
BODIES = {
    "head": b"",
    "get": b"12345",
    "list": f"<ListBucketResult><Contents>{ITEM}</Contents><Contents>{ITEM}</Contents></ListBucketResult>".encode(),
    "put": b"",
    "delete": b"",
    "delete many": f"<DeleteResult><Error><Key>{KEY}</Key><Code>AccessDenied</Code></Error></DeleteResult>".encode(),
    "copy": b'<CopyObjectResult><ETag>"x"</ETag></CopyObjectResult>',
    "unfinished": f"<ListMultipartUploadsResult><Upload>{UPLOAD}</Upload></ListMultipartUploadsResult>".encode(),
}
REFUSAL = f"<Error><Code>AccessDenied</Code><Message>{CANARY}</Message><Region>eu-1</Region></Error>".encode()
ODD_XML = (
    b"<", b">", b"</Key>", b"<Key>", b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"&a;", b"<![CDATA[", b"<Contents/>",
    b"<Upload/>", b"<IsTruncated>true</IsTruncated>", b"<NextContinuationToken>t</NextContinuationToken>",
    b"<Size>-1</Size>", b"<Size>" + b"9" * 5000 + b"</Size>", b"<a>" * 5000, b"<html>",
    b"<LastModified>9999-12-31T23:59:59-14:00</LastModified>",
)  # fmt: skip
S3_HEADERS = st.lists(
    st.sampled_from([
        ("Content-Length", "5"), ("Content-Length", "99"), ("Content-Length", "x"), ("Content-Type", "text/html"),
        ("ETag", ""), ("ETag", "é"), ("Last-Modified", "soon"), ("Last-Modified", "Fri, 31 Dec 9999 23:59:59 -1400"),
        ("x-amz-meta-sha256", "é"), ("x-amz-meta-", "x"), ("x-amz-server-side-encryption", "x"), ("Date", "x"),
        ("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked"), ("x-amz-bucket-region", "x y"),
        ("Expires", "x"), ("Location", f"https://{CANARY}@portal.example/"), ("x-amz-missing-meta", "x"),
        ("x-amz-restore", "x"),
        ("Content-Range", "bytes 0-0/5"), ("x-amz-delete-marker", "x"), ("x-amz-mp-parts-count", "x"),
    ]) | st.tuples(st.sampled_from([*OBJECT, "Content-Type", "Date", "Expires", "x-amz-checksum-crc32"]), ODD_TEXTS),
    max_size=2,
)  # fmt: skip
S3_STATUSES = ("200 OK",) * 8 + (
    "204 x",
    "206 x",
    "301 x",
    "307 x",
    "400 x",
    "404 x",
    "412 x",
    "500 x",
    "501 x",
    "999 x",
)


def _s3_responses(operation: str) -> st.SearchStrategy[tuple[str, bytes]]:
    valid = st.sampled_from([BODIES[operation]] * 3 + [REFUSAL])
    built = st.builds(
        lambda body, status, headers: message(
            f"HTTP/1.1 {status}", {**(XML if body[:1] == b"<" else {}), **OBJECT, **dict(headers)}, body
        ),
        valid | valid.flatmap(lambda body: near_bytes(body, ODD_XML)),
        st.sampled_from(S3_STATUSES),
        S3_HEADERS,
    )
    return st.tuples(st.just(operation), built | built.flatmap(lambda data: near_bytes(data, ODD_XML)))


async def _body() -> AsyncIterator[bytes]:
    yield b"12345"


async def _carry_out(store: S3Store, operation: str) -> None:
    match operation:
        case "head":
            found = await store.head(KEY)
            assert found.size >= 0
        case "get":
            [piece async for piece in store.get(KEY)]
        case "list":
            listed = [item async for item in store.list("systems/")]
            assert all(item.key.startswith("systems/") and item.size >= 0 for item in listed)
        case "put":
            await store.put(KEY, _body(), metadata={"sha256": "a"}, part_bytes=2**20, progress=lambda _: None)
        case "delete":
            await store.delete([KEY])
        case "delete many":
            await store.delete([f"{KEY}{number}" for number in range(3)])
        case "copy":
            await store.copy(KEY, f"{KEY}.2", expected=StoredObject(KEY, 0, {"sha256": "a"}))
        case "unfinished":
            await store.unfinished("systems/")


@contextlib.contextmanager
def s3() -> Iterator[Read]:
    """Yield a function that carries out an operation on a store whose server has one response for everything."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | aws_environment()
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        mock.patch("agent.adapters.s3.client.ATTEMPTS", 1),
        mock.patch("agent.adapters.s3.connection.needs_new_client", mock.AsyncMock(return_value=False)),
        asyncio.Runner() as runner,
    ):
        server = runner.run(OddServer().__aenter__())
        store = S3Store(bucket="memories", endpoint=server.url, region="auto", read_timeout=SECONDS / 3)

        async def carry_out(operation: str, response: bytes) -> None:
            server.answering = lambda _method, _target: response
            async with asyncio.timeout(SECONDS):
                await _carry_out(store, operation)

        try:
            yield lambda example: runner.run(carry_out(*example))
        finally:
            runner.run(store.aclose())
            runner.run(server.__aexit__())


TARGETS = (
    Target("control api", POSTS | REQUESTS | REQUESTS.flatmap(near_bytes), opened=control_api, in_tests=60),
    Target(
        "akosha", st.one_of([_odd_responses(step) for step in STEPS]), opened=akosha, errors=(SinkError,),
        names=r"127\.0\.0\.1", in_tests=60,
    ),
    Target(
        "s3", st.one_of([_s3_responses(operation) for operation in BODIES]), opened=s3, errors=(StoreError,),
        names=r"127\.0\.0\.1|memories|systems/", translated=True, in_tests=60,
    ),
)  # fmt: skip
