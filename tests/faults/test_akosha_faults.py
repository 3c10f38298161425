"""An Akosha server that misbehaves: clear errors, no unconfirmed memory counts as stored, the token stays secret."""

import asyncio
import contextlib
import json
import socket
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from agent.adapters.akosha import AkoshaSink
from agent.domain.errors import SinkError
from tests.support.memories import memory
from tests.support.servers.s3 import Authority
from tests.support.values import SYSTEM

TOKEN = "canary-token-that-never-appears"
TOOL = {"name": "batch_store_memories", "inputSchema": {"type": "object"}}


class Rogue:
    """A server with just enough HTTP and MCP to open a session, and one response that a test chooses.

    `play(writer, number)` writes the raw response to the JSON-RPC method `on`; `number` is the ID of the request.
    """

    def __init__(self, play, *, on="tools/call", tls=None):
        self.play, self.on, self.tls = play, on, tls
        self.requests = []
        self.arrived = asyncio.Event()
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.origin = f"http{'s' if self.tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)  # the loop closes aborted transports in its next iteration

    def count(self, method):
        return sum(body.get("method") == method for _, _, body in self.requests)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            await self._converse(reader, writer)
        finally:
            writer.transport.abort()

    async def _converse(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
                self.requests.append((line.decode(), headers, body))
                await self._answer(writer, body)
                await writer.drain()
                if writer.is_closing():
                    await writer.wait_closed()
                    return

    async def _answer(self, writer, body):
        method, number = body.get("method"), body.get("id")
        if method == self.on:
            self.arrived.set()
            pending = self.play(writer, number)
            if pending is not None:
                await pending
        elif method == "initialize":
            result = {"protocolVersion": "2025-06-18", "serverInfo": {"name": "rogue", "version": "1"}}
            respond(writer, rpc(number, result), more="Mcp-Session-Id: s1\r\n")
        elif method == "tools/list":
            respond(writer, rpc(number, {"tools": [TOOL]}))
        else:
            respond(writer, b"", status=202)


def rpc(number, result):
    return json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()


def respond(writer, body, *, status=200, kind="application/json", more=""):
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + body)


def stored(count):
    answer = {"status": "completed", "total": count, "stored": count, "failed": 0, "errors": []}
    return {"content": [], "structuredContent": answer, "isError": False}


def tool_result(**answer):
    """Return a `play` that responds with this result of the tool."""
    return lambda writer, number: respond(writer, rpc(number, {"content": [], "structuredContent": answer}))


def status(code, body=b"", more="", kind="text/html"):
    return lambda writer, _number: respond(writer, body, status=code, more=more, kind=kind)


def events(*chunks, length=None):
    """Return a `play` that sends server-sent events. NUMBER in `chunks` is the request's ID; `length` closes early."""

    def play(writer, number):
        body = "".join(chunks).replace("NUMBER", str(number)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(f"Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
        if length:
            writer.close()

    return play


def event(message):
    return f"event: message\r\ndata: {json.dumps(message).replace(chr(34) + 'NUMBER' + chr(34), 'NUMBER')}\r\n\r\n"


GOOD_EVENT = event({"jsonrpc": "2.0", "id": "NUMBER", "result": stored(2)})


def garbage(body):
    return lambda writer, _number: respond(writer, body)


def huge(writer, _number):
    respond(writer, b'{"x":"' + b"x" * (17 << 20) + b'"}')


def closed(writer, _number):
    writer.close()


def half(writer, _number):
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"jsonrpc"')
    writer.close()


def other_id(writer, number):
    respond(writer, rpc(number + 1, stored(2)))


@contextlib.asynccontextmanager
async def rogue_sink(play, *, on="tools/call", **options):
    async with Rogue(play, on=on) as rogue:
        sink = AkoshaSink(endpoint=f"{rogue.origin}/mcp", token=TOKEN, **{"timeout_seconds": 10, **options})
        try:
            yield rogue, sink
        finally:
            await sink.aclose()


def batch(sink, count=2):
    return [sink.pack(memory(number), SYSTEM) for number in range(count)]


async def failure(sink, count=2):
    with pytest.raises(SinkError) as raised:
        await sink.store(batch(sink, count))
    error = raised.value
    assert TOKEN not in str(error)
    assert sink.location in error.message
    assert error.hint
    return error


def errors_for(*positions, reason="Embedding is required", total=2, **more):
    ids = [f"{SYSTEM}:conversation-{n}" for n in positions]
    one = AkoshaSink(endpoint="http://127.0.0.1:1/mcp")
    ids = [batch(one, total)[n].memory_id for n in positions]
    failures = [{"memory_id": memory_id, "error": reason} for memory_id in ids]
    counted = {"total": total, "stored": total - len(ids), "failed": len(ids), "errors": failures}
    return {"status": "partial" if len(ids) < total else "failed", **counted, **more}


TRANSIENT = {
    "500": (status(500), "status 500"),
    "503": (status(503), "status 503"),
    "429": (status(429), "status 429"),
    "closes before answering": (closed, "closed"),
    "closes in the middle": (half, "closed"),
    "truncated events": (events(GOOD_EVENT[:60], length=2000), "closed"),
    "events without the answer": (
        events(event({"jsonrpc": "2.0", "method": "notifications/x"})),
        "response is incomplete",
    ),
    "not JSON": (garbage(b"{nope"), "not JSON"),
    "not an object": (garbage(b"[1]"), "not a JSON object"),
    "neither result nor error": (garbage(b'{"jsonrpc":"2.0","id":4}'), "another request|neither"),
    "wrong id": (other_id, "another request"),
    "wrong id in events": (events(event({"jsonrpc": "2.0", "id": 999, "result": stored(2)})), "another request"),
    "a huge body": (huge, "larger than 16 MiB"),
    "does not say what was stored": (tool_result(ok=True), "does not say"),
    "an unknown status": (tool_result(status="fine", stored=2, errors=[]), "does not say"),
    "stored too few": (tool_result(status="partial", total=2, stored=1, failed=1, errors=[]), "inconsistent"),
    "stored too many": (tool_result(status="completed", total=2, stored=3, failed=0, errors=[]), "inconsistent"),
    "no count": (tool_result(status="completed", errors=[]), "inconsistent"),
    "true as a count": (tool_result(status="partial", stored=True, errors=errors_for(0)["errors"]), "inconsistent"),
    "no errors key": (tool_result(status="completed", stored=2), "does not list"),
    "names a memory that was not sent": (
        tool_result(status="partial", stored=1, errors=[{"memory_id": "other", "error": "x"}]),
        "not sent",
    ),
    "the batch fails": (tool_result(status="failed", total=2, stored=0, failed=2, error="boom", errors=[]), "boom"),
    "its database is locked": (tool_result(**errors_for(0, reason="IO Error: database is locked")), "locked"),
    "it refuses everything for one reason": (
        tool_result(**errors_for(0, 1, reason="Catalog: no table conversations")),
        "accepts no memories",
    ),
}

PERMANENT = {
    "an HTML page": (status(200, b"<html>hello</html>"), "text/html", "akosha_http_endpoint"),
    "401": (status(401), "401", "akosha_http_token"),
    "403": (status(403), "403", "akosha_http_token"),
    "501": (status(501), "501", "akosha_http_endpoint"),
    "too large a batch": (
        tool_result(status="failed", total=2, stored=0, failed=2, error="Batch size exceeds maximum of 1000 memories"),
        "exceeds maximum",
        "update Akosha",
    ),
}


@pytest.mark.parametrize("case", TRANSIENT)
async def test_a_transient_error_is_reported_and_a_later_attempt_works(case):
    play, words = TRANSIENT[case]
    async with rogue_sink(play) as (rogue, sink):
        error = await failure(sink)
        assert error.transient
        assert words.split("|")[0] in str(error) or words.split("|")[-1] in str(error)
        rogue.play = events(GOOD_EVENT)
        assert (await sink.store(batch(sink))).stored == 2
        assert rogue.count("tools/call") == 2


@pytest.mark.parametrize("case", PERMANENT)
async def test_a_permanent_error_names_the_setting_that_fixes_it(case):
    play, words, setting = PERMANENT[case]
    async with rogue_sink(play) as (rogue, sink):
        error = await failure(sink)
        assert not error.transient
        assert words in error.message
        assert setting in error.hint
        assert rogue.count("tools/call") == 1


@pytest.mark.parametrize("code", [404, 405])
async def test_a_server_without_mcp_names_the_endpoint_setting(code):
    async with rogue_sink(status(code), on="initialize") as (_, sink):
        error = await failure(sink)
        assert (error.transient, "not an MCP server" in error.message) == (False, True)
        assert "akosha_http_endpoint" in error.hint


async def test_a_server_without_the_store_tool_is_a_permanent_error():
    def no_tools(writer, number):
        respond(writer, rpc(number, {"tools": [{"name": "search_all_systems", "inputSchema": {}}]}))

    async with rogue_sink(no_tools, on="tools/list") as (_, sink):
        error = await failure(sink)
        assert not error.transient
        assert "batch_store_memories" in error.message


def rpc_error(code, message):
    body = {"jsonrpc": "2.0", "error": {"code": code, "message": message}}
    return lambda writer, number: respond(writer, json.dumps({**body, "id": number}).encode())


@pytest.mark.parametrize(
    ("on", "play", "transient"),
    [
        ("initialize", lambda writer, number: respond(writer, rpc(number, {"protocolVersion": "x\n"})), False),
        (
            "initialize",
            lambda w, n: respond(w, rpc(n, {"protocolVersion": "2025-06-18"}), more="Mcp-Session-Id: a b\r\n"),
            False,
        ),
        ("initialize", rpc_error(-32602, "Unsupported protocol version"), False),
        ("initialize", rpc_error(-32603, "still starting"), True),
        ("tools/list", rpc_error(-32601, "Method not found"), False),
        ("tools/list", lambda writer, number: respond(writer, rpc(number, {"tools": "none"})), False),
        ("tools/call", rpc_error(-32603, "boom"), True),
    ],
)
async def test_an_invalid_session_is_reported(on, play, transient):
    async with rogue_sink(play, on=on) as (_, sink):
        assert (await failure(sink)).transient is transient


async def test_an_endless_list_of_tools_is_an_error():
    def more(writer, number):
        respond(writer, rpc(number, {"tools": [], "nextCursor": str(number)}))

    async with rogue_sink(more, on="tools/list") as (_, sink):
        assert "does not end" in (await failure(sink)).message


@pytest.mark.parametrize("seconds", [7, None])
async def test_retry_after_is_read_as_seconds_or_as_a_date(seconds):
    # The server's clock differs by years: its date is relative to its own Date header.
    now = datetime(2020, 1, 1, tzinfo=UTC)
    until = format_datetime(now + timedelta(seconds=7), usegmt=True)
    more = f"Retry-After: {seconds or until}\r\nDate: {format_datetime(now, usegmt=True)}\r\n"
    async with rogue_sink(status(429, more=more)) as (_, sink):
        error = await failure(sink)
        assert (error.transient, error.retry_after) == (True, 7.0)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host_is_not_followed(code):
    async with Rogue(closed) as elsewhere:
        where = f"Location: {elsewhere.origin}/mcp?{TOKEN}\r\n"
        for on in ("initialize", "tools/call"):
            async with rogue_sink(status(code, more=where), on=on) as (_, sink):
                error = await failure(sink)
                assert not error.transient
                assert "redirect" in error.message
        async with Rogue(status(code, more=where), on=None) as health:
            sink = AkoshaSink(endpoint=f"{health.origin}/mcp", token=TOKEN)
            assert not await sink.is_available()
            await sink.aclose()
        assert elsewhere.requests == []


async def test_a_redirect_on_the_same_host_is_named_in_the_hint():
    async with rogue_sink(status(307, more="Location: /mcp/ akosha-agent prune\r\n"), on="initialize") as (
        rogue,
        sink,
    ):
        error = await failure(sink)
        assert error.hint == f"set akosha_http_endpoint to {rogue.origin}/mcp/%20akosha-agent%20prune"
        assert len(rogue.requests) == 1


async def test_a_silent_server_is_a_timeout():
    async with rogue_sink(lambda *_: None, timeout_seconds=0.2) as (_, sink):
        error = await failure(sink)
        assert error.transient
        assert "no answer for 0.2 s" in error.message


async def test_sse_comments_do_not_extend_the_timeout():
    async def comment(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while not writer.is_closing():
            writer.write(b": ping\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with rogue_sink(lambda writer, _: comment(writer), timeout_seconds=0.3) as (_, sink):
        assert "no answer" in (await failure(sink)).message


async def test_progress_events_extend_the_timeout_and_other_events_are_ignored():
    async def work(writer, number):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for message in (
            {"method": "notifications/progress", "params": {}},
            {"method": "notifications/message", "params": {"data": "x"}},
            {"method": "ping", "id": number},
            {"method": "notifications/progress", "params": {}},
            {"method": "sampling/createMessage", "id": 1, "params": {}},
        ):
            writer.write(b"id: 1\r\nretry: 10\r\n" + event({"jsonrpc": "2.0", **message}).encode())
            await writer.drain()
            await asyncio.sleep(0.5)
        writer.write(GOOD_EVENT.replace("NUMBER", str(number)).encode())
        writer.close()

    async with rogue_sink(work, timeout_seconds=2.0) as (_, sink):
        assert (await sink.store(batch(sink))).stored == 2


async def test_a_refused_connection_is_transient_and_not_available():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    sink = AkoshaSink(endpoint=f"http://127.0.0.1:{port}/mcp", token=TOKEN)
    assert not await sink.is_available()
    error = await failure(sink)
    assert error.transient
    assert "refused" in error.message
    await sink.aclose()


async def test_a_silent_server_counts_as_available_after_a_second():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = AkoshaSink(endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}/mcp")
        await sink.is_available()  # loads the library
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert await sink.is_available()
        assert loop.time() - started < 1.5
        await sink.aclose()


@pytest.mark.parametrize(
    ("code", "available"),
    [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)],
    ids=["no such name", "temporary failure"],
)
async def test_only_a_name_that_does_not_exist_is_unavailable(code, available, monkeypatch):
    async def getaddrinfo(*_, **__):
        raise socket.gaierror(code, "from the name server")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    sink = AkoshaSink(endpoint="https://akosha.example.com/mcp")
    assert await sink.is_available() is available
    await sink.aclose()


@pytest.mark.parametrize(
    ("answer", "expected"), [((404, b"{}"), False), ((200, b"<html>"), False), ((200, b"{}"), True)]
)
async def test_a_server_is_healthy_if_it_answers_200_with_json(answer, expected):
    code, body = answer
    async with Rogue(status(code, body), on=None) as rogue:
        sink = AkoshaSink(endpoint=f"{rogue.origin}/mcp")
        assert await sink.is_available() is expected
        await sink.aclose()


async def test_a_server_that_forgets_every_session_is_tried_twice():
    async with rogue_sink(status(404)) as (rogue, sink):
        error = await failure(sink)
        assert error.transient
        assert "session" in error.message
        assert (rogue.count("initialize"), rogue.count("tools/call")) == (2, 2)


async def test_a_400_about_the_session_opens_a_new_session():
    body = json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "No valid session ID"}})

    def forgetful(writer, number):
        if rogue.count("initialize") == 1:
            respond(writer, body.encode(), status=400)
        else:
            respond(writer, rpc(number, stored(2)))

    async with rogue_sink(forgetful) as (rogue, sink):
        assert (await sink.store(batch(sink))).stored == 2


async def test_one_rejected_memory_does_not_stop_the_others():
    rejected = 5

    def picky(writer, number):
        sent = rogue.requests[-1][2]["params"]["arguments"]["memories"]
        if any(one["metadata"]["original_id"] == f"conversation-{rejected}" for one in sent):
            text = {"type": "text", "text": f"1 validation error\n  {TOKEN} is bad {'x' * 500}"}
            respond(writer, rpc(number, {"content": [text], "isError": True}))
        else:
            respond(writer, rpc(number, stored(len(sent))))

    async with rogue_sink(picky) as (rogue, sink):
        receipt = await sink.store(batch(sink, 12))
        assert receipt.stored == 11
        assert list(receipt.refused) == [rejected]
        assert "validation error" in receipt.refused[rejected]
        assert TOKEN not in receipt.refused[rejected]
        assert len(receipt.refused[rejected]) <= 300


async def test_a_server_that_rejects_everything_is_not_called_for_each_memory():
    def never(writer, number):
        respond(writer, rpc(number, {"content": [{"type": "text", "text": "unexpected keyword"}], "isError": True}))

    async with rogue_sink(never) as (rogue, sink):
        error = await failure(sink, 200)
        assert not error.transient
        assert rogue.count("tools/call") < 50


def unknown_tool(writer, number):
    text = {"type": "text", "text": "Unknown tool: 'batch_store_memories'"}
    respond(writer, rpc(number, {"content": [text], "isError": True}))


@pytest.mark.parametrize("play", [unknown_tool, rpc_error(-32602, "Unknown tool: batch_store_memories")])
async def test_an_unknown_tool_makes_the_next_connection_list_tools_again(play):
    async with rogue_sink(play) as (rogue, sink):
        assert (await failure(sink)).transient
        await sink.connect()
        assert (rogue.count("tools/list"), rogue.count("tools/call")) == (2, 1)


async def test_a_token_that_is_invalid_in_a_header_is_not_shown():
    sink = AkoshaSink(endpoint="http://127.0.0.1:1/mcp", token=f"{TOKEN}\n\u00e9")
    error = await failure(sink)
    assert (error.transient, error.__cause__) == (False, None)
    await sink.aclose()


async def test_a_cancelled_batch_leaves_no_task_and_no_connection():
    async with rogue_sink(lambda *_: None) as (rogue, sink):
        before = asyncio.all_tasks()
        storing = asyncio.create_task(sink.store(batch(sink)))
        await rogue.arrived.wait()
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        serving = asyncio.all_tasks() - before
        # The remaining tasks are the server's: they end with the client's connections.
        await sink.aclose()
        async with asyncio.timeout(60):
            await asyncio.gather(*serving)


async def test_the_token_is_sent_to_the_server_and_shown_nowhere(caplog):
    caplog.set_level("DEBUG")
    echo = json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": f"bad Bearer {TOKEN}"}})
    async with rogue_sink(status(400, echo.encode(), kind="application/json")) as (rogue, sink):
        receipt = await sink.store(batch(sink, 1))
        assert all(TOKEN not in reason for reason in receipt.refused.values())
        assert {headers["authorization"] for _, headers, _ in rogue.requests} == {f"Bearer {TOKEN}"}
        assert TOKEN not in repr(vars(sink))
    assert TOKEN not in caplog.text


async def test_loopback_addresses_bypass_the_proxy(monkeypatch):
    async with Rogue(closed, on=None) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.origin)
        async with rogue_sink(events(GOOD_EVENT)) as (_, sink):
            assert (await sink.store(batch(sink))).stored == 2
        assert proxy.requests == []


async def test_a_proxy_gets_a_connect_request_without_the_token(monkeypatch):
    async with Rogue(status(403), on=None) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.origin)
        sink = AkoshaSink(endpoint="https://akosha.example.com/mcp", token=TOKEN)
        error = await failure(sink)
        assert "proxy" in error.message
        assert [line.split()[:2] for line, _, _ in proxy.requests] == [["CONNECT", "akosha.example.com:443"]]
        assert TOKEN not in str(proxy.requests)
        await sink.aclose()


async def test_a_certificate_is_trusted_if_its_authority_is(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.chain, authority.key)
    async with Rogue(events(GOOD_EVENT), tls=tls) as rogue:
        untrusting = AkoshaSink(endpoint=f"{rogue.origin}/mcp", token=TOKEN)
        error = await failure(untrusting)
        assert not error.transient
        assert "SSL_CERT_FILE" in error.hint
        assert rogue.requests == []
        await untrusting.aclose()
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        sink = AkoshaSink(endpoint=f"{rogue.origin}/mcp", token=TOKEN)
        assert (await sink.store(batch(sink))).stored == 2
        await sink.aclose()


async def test_replaced_certificates_are_read_after_a_failed_attempt(tmp_path, monkeypatch):
    for name in ("server", "other"):
        (tmp_path / name).mkdir()
    authority, trusted = Authority(tmp_path / "server"), tmp_path / "trusted.pem"
    trusted.write_bytes(Authority(tmp_path / "other").ca.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.chain, authority.key)
    async with Rogue(events(GOOD_EVENT), tls=tls) as rogue:
        sink = AkoshaSink(endpoint=f"{rogue.origin}/mcp", token=TOKEN)
        assert "SSL_CERT_FILE" in (await failure(sink)).hint
        trusted.write_bytes(authority.ca.read_bytes())
        assert (await sink.store(batch(sink))).stored == 2
        trusted.write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
        assert (await sink.store(batch(sink))).stored == 2, "certificates are kept until an attempt fails"
        await sink.reset_client()
        assert "SSL_CERT_FILE" in (await failure(sink)).hint
        await sink.aclose()


async def test_a_missing_certificate_file_is_named(tmp_path, monkeypatch):
    missing = tmp_path / "missing.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(missing))
    sink = AkoshaSink(endpoint="https://akosha.example.com/mcp")
    with pytest.raises(SinkError) as raised:
        await sink.connect()
    assert str(missing) in raised.value.message
    await sink.aclose()


async def test_a_running_call_completes_while_its_client_is_replaced():
    answer = asyncio.Event()

    async def late(writer, number):
        await answer.wait()
        respond(writer, rpc(number, stored(2)))

    async with rogue_sink(late) as (rogue, sink):
        storing = asyncio.create_task(sink.store(batch(sink)))
        await rogue.arrived.wait()
        async with asyncio.timeout(30):
            await sink.reset_client()
            await sink.reset_client()
        answer.set()
        assert (await storing).stored == 2
        assert (await sink.store(batch(sink))).stored == 2
        assert (rogue.count("initialize"), sink.sessions) == (1, 1)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
async def test_a_proxy_error_names_the_proxy_and_its_variable(name, monkeypatch):
    for other in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    where = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    monkeypatch.setenv(name, f"http://user:canary@{where}")
    sink = AkoshaSink(endpoint="https://akosha.example.com/mcp", token=TOKEN)
    async with proxy:
        refused = await failure(sink)
    unreachable = await failure(sink)
    await sink.aclose()
    assert f"the proxy {where} requires a user and a password" in refused.message
    assert not refused.transient
    assert f"no connection to the proxy {where}" in unreachable.message
    assert unreachable.transient
    for error in (refused, unreachable):
        assert name in error.hint
        assert "canary" not in str(error)


async def test_an_invalid_proxy_variable_is_named(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "nonsense://x")
    sink = AkoshaSink(endpoint="https://akosha.example.com/mcp")
    assert await sink.is_available(), "the attempt reports the error"
    with pytest.raises(SinkError, match="ALL_PROXY"):
        await sink.connect()
    await sink.aclose()


async def test_a_batch_refused_with_413_is_sent_in_smaller_ones():
    def strict(writer, number):
        count = len(rogue.requests[-1][2]["params"]["arguments"]["memories"])
        respond(writer, b"", status=413) if count > 1 else respond(writer, rpc(number, stored(1)))

    async with rogue_sink(strict) as (rogue, sink):
        assert (await sink.store(batch(sink, 3))).stored == 3


async def test_an_embedding_is_sent_as_it_is_stored(monkeypatch):
    async with rogue_sink(events(GOOD_EVENT)) as (rogue, sink):
        odd = replace(memory(1), embedding="[ 1.50, 2e0 ]")
        await sink.store([sink.pack(odd, SYSTEM), sink.pack(memory(2), SYSTEM)])
        assert b"[ 1.50, 2e0 ]" in sink.pack(odd, SYSTEM).body
        assert rogue.requests[-1][2]["params"]["arguments"]["memories"][0]["embedding"] == [1.5, 2.0]
