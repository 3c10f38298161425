"""An HTTP proxy before a real S3 server, or another server, that fails as a test says.

    proxy.on("upload_part", refuse(503, "SlowDown"), times=2)
    proxy.on("put_object", stall(reached, at=100_000))
    proxy.on("", sometimes(0.5, lose_the_answer(), random.Random(1)))

Operations have botocore's names. `proxy.seen` lists them in order of arrival.
"""

import asyncio
import hashlib
import io
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import aiohttp
from aiohttp import web
from yarl import URL

Forward = Callable[..., Awaitable[web.Response]]
"""Passes the request on; `headers` and `query` are added to it, `body` replaces its body."""
Action = Callable[[web.Request, Forward], Awaitable[web.StreamResponse]]

_LISTED = re.compile("<Contents>.*?</Contents>", re.DOTALL)
_MODIFIED = re.compile("(?<=<LastModified>)[^<]+")
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server", "expect"}


@dataclass
class _Rule:
    operation: str
    action: Action
    times: int | None


@dataclass
class FaultyProxy:
    upstream: str
    seen: list[str] = field(default_factory=list)
    requests: list[web.BaseRequest] = field(default_factory=list)

    def __post_init__(self):
        self._rules: list[_Rule] = []
        self._arrived = asyncio.Condition()

    async def __aenter__(self):
        self._session = aiohttp.ClientSession(auto_decompress=False)
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()
        await self._session.close()

    def on(self, operation: str, action: Action, *, times: int | None = None) -> None:
        """Apply the action to the next `times` requests of an operation, "" for any; None: to all requests."""
        self._rules.append(_Rule(operation, action, times))

    def clear(self) -> None:
        """Pass all requests on from now on."""
        self._rules.clear()

    def count(self, operation: str) -> int:
        return Counter(self.seen)[operation]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        operation = _operation(request)
        self.seen.append(operation)
        self.requests.append(request)
        for rule in self._rules:
            if rule.operation in ("", operation) and rule.times != 0:
                if rule.times is not None:
                    rule.times -= 1
                return await rule.action(request, partial(self._forward, request))
        return await self._forward(request)

    async def _forward(
        self,
        request: web.Request,
        *,
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> web.Response:
        sent = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        sent |= headers or {}
        body = await request.read() if body is None else body
        url = URL(self.upstream + request.raw_path, encoded=True).update_query(query or {})
        data = io.BytesIO(body) if body else None
        async with self._session.request(request.method, url, headers=sent, data=data) as answer:
            content = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if request.method == "HEAD":
                kept["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=kept, body=content or None)


def refuse(status: int, code: str, *, secret: str = "", headers: dict[str, str] | None = None) -> Action:
    """Answer with an error in S3's format, once the body has been read."""

    async def action(request: web.Request, _forward: Forward) -> web.StreamResponse:
        await request.read()
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{secret or 'no'}</Message></Error>"
        return web.Response(status=status, text=text, content_type="application/xml", headers=headers)

    return action


def reset(*, after: int) -> Action:
    """Abort the connection after `after` bytes of the body."""

    async def action(request: web.Request, _forward: Forward) -> web.StreamResponse:
        if after:
            await request.content.readexactly(after)
        request.transport.abort()
        return web.Response()

    return action


def another_protocol() -> Action:
    """Answer as a server that does not speak HTTP."""

    async def action(request: web.Request, _forward: Forward) -> web.StreamResponse:
        await request.read()
        request.transport.write(b"SSH-2.0-OpenSSH_9\r\n")
        request.transport.close()
        return web.Response()

    return action


def stall(reached: asyncio.Event, *, at: int = 0) -> Action:
    """Read `at` bytes of the body, set `reached`, and never answer."""

    async def action(request: web.Request, _forward: Forward) -> web.StreamResponse:
        if at:
            await request.content.readexactly(at)
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    return action


def lose_the_answer() -> Action:
    """Pass the request on, and abort the connection instead of answering."""

    async def action(request: web.Request, forward: Forward) -> web.StreamResponse:
        await forward()
        request.transport.abort()
        return web.Response()

    return action


def answer_with(
    *, headers: dict[str, str] | None = None, replace: tuple[str, str] | None = None, empty: bool = False
) -> Action:
    """Pass the request on, and answer with other headers, a changed body, or an empty one."""

    async def action(_request: web.Request, forward: Forward) -> web.StreamResponse:
        answer = await forward()
        answer.headers.update(headers or {})
        if replace:
            answer.text = answer.text.replace(*replace)
        if empty:
            answer.body = None
        return answer

    return action


def swallow() -> Action:
    """Answer a PUT as if the object were stored, with the correct ETag, but store nothing."""

    async def action(request: web.Request, _forward: Forward) -> web.StreamResponse:
        etag = hashlib.md5(await request.read(), usedforsecurity=False).hexdigest()
        return web.Response(status=200, headers={"ETag": f'"{etag}"'})

    return action


def store_other_bytes() -> Action:
    """Store an object, then replace it by one with a changed byte; answer as if nothing had changed."""

    async def action(request: web.Request, forward: Forward) -> web.StreamResponse:
        answer = await forward()
        await damage()(request, forward)
        return answer

    return action


def outdated_lists(seconds: float) -> Action:
    """Answer a listing as it was so long ago: without newer objects, with those that were deleted since.

    Only a listing that is repeated has deleted objects.
    """
    listed: dict[str, dict[str, datetime]] = {}

    async def action(request: web.Request, forward: Forward) -> web.StreamResponse:
        answer = await forward()
        now = datetime.now(UTC)
        since = now - timedelta(seconds=seconds)
        deleted = {item: at for item, at in listed.get(request.query_string, {}).items() if at > since}
        found = _LISTED.findall(answer.text)
        present = {item: now for item in found if datetime.fromisoformat(_MODIFIED.search(item)[0]) < since}
        listed[request.query_string] = deleted | present
        items = "".join(sorted(deleted | present))
        answer.text = _LISTED.sub("", answer.text).replace("</ListBucketResult>", f"{items}</ListBucketResult>")
        return answer

    return action


def skewed_clock(ahead: timedelta) -> Action:
    """Answer with times of a store whose clock is ahead, or behind."""

    def shifted(found: re.Match[str]) -> str:
        return (datetime.fromisoformat(found[0]) + ahead).isoformat()

    async def action(_request: web.Request, forward: Forward) -> web.StreamResponse:
        answer = await forward()
        answer.headers["Date"] = format_datetime(datetime.now(UTC) + ahead, usegmt=True)
        if answer.body and b"<LastModified>" in answer.body:
            answer.text = _MODIFIED.sub(
                lambda found: (datetime.fromisoformat(found[0]) + ahead).isoformat(), answer.text
            )
        return answer

    return action


def sometimes(share: float, action: Action, rng: random.Random) -> Action:
    """Apply the action to a share of the requests; pass other requests on."""

    async def chosen(request: web.Request, forward: Forward) -> web.StreamResponse:
        return await (action(request, forward) if rng.random() < share else forward())

    return chosen


def ending(suffix: str, action: Action) -> Action:
    """Apply the action to keys that end with the suffix; pass other requests on."""

    async def chosen(request: web.Request, forward: Forward) -> web.StreamResponse:
        return await (action(request, forward) if request.path.endswith(suffix) else forward())

    return chosen


def damage() -> Action:
    """Change a byte of the body, like a store with faulty memory."""

    async def action(request: web.Request, forward: Forward) -> web.StreamResponse:
        body = bytearray(await request.read())
        body[len(body) // 2] ^= 1
        return await forward(body=bytes(body))

    return action


def _operation(request: web.Request) -> str:
    query, method, copied = request.query, request.method, "x-amz-copy-source" in request.headers
    if "partNumber" in query:
        return "upload_part_copy" if copied else "upload_part"
    if "uploadId" in query:
        return {"POST": "complete_multipart_upload", "DELETE": "abort_multipart_upload"}.get(method, "list_parts")
    if "uploads" in query:
        return "create_multipart_upload" if method == "POST" else "list_multipart_uploads"
    if "list-type" in query:
        return "list_objects_v2"
    if "delete" in query:
        return "delete_objects"
    if method == "PUT":
        return "copy_object" if copied else "put_object"
    return {"HEAD": "head_object", "GET": "get_object", "DELETE": "delete_object"}.get(method, method)
