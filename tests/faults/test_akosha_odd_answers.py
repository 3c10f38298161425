"""Responses that Akosha never sends, at each step of a session: each is a SinkError that describes it."""

import asyncio
import functools
import gzip
import json
import zlib

import pytest

from agent.adapters.akosha import AkoshaSink
from agent.domain.errors import SinkError
from tests.faults.test_akosha_faults import TOKEN, Rogue, batch, event, respond, rpc

STEPS = ("initialize", "notifications/initialized", "tools/list", "tools/call")
PORTAL = b"<html><title>Sign in</title><form action=/login></form></html>"
DEEP = b'{"a":' * 1020 + b"1" + b"}" * 1020


def nested(depth):
    """Return nested lists: within the limit of the JSON parser, and too deep for recursive code."""
    inner = "1"
    for _ in range(depth):
        inner = f"[{inner}]"
    return inner


def plain(code, body=b"", kind="text/html", more=""):
    return lambda writer, _number: respond(writer, body, status=code, kind=kind, more=more)


@functools.cache
def gzip_bomb(prefix, layers):
    """Return 40 MiB of blanks after `prefix`, compressed `layers` times."""
    data = prefix + b" " * (40 << 20)
    for _ in range(layers):
        data = gzip.compress(data)
    return data


def bomb(kind, prefix=b"", layers=1):
    """Respond with a gzip bomb, which is compressed when it is sent: at import it would delay every test run."""
    more = f"Content-Encoding: {', '.join(['gzip'] * layers)}\r\n"
    return lambda writer, _number: respond(writer, gzip_bomb(prefix, layers), kind=kind, more=more)


def raw(data):
    def play(writer, _number):
        writer.write(data)
        writer.close()

    return play


def result(text):
    """Return a `play` whose result is this JSON text."""
    return lambda writer, number: respond(writer, f'{{"jsonrpc":"2.0","id":{number},"result":{text}}}'.encode())


def failed(text):
    return lambda writer, number: respond(writer, f'{{"jsonrpc":"2.0","id":{number},"error":{text}}}'.encode())


def streamed(text):
    return lambda writer, number: respond(
        writer, text.replace("NUMBER", str(number)).encode(), kind="text/event-stream"
    )


def answered(**data):
    return result(json.dumps({"content": [], "structuredContent": data}))


ANYWHERE = {
    "301 to nowhere": plain(301),
    "302 of a captive portal": plain(302, PORTAL, more="Location: http://login.example.com/?x=%00\r\n"),
    "302 that names no address": plain(302, more="Location: http://[::1/\r\n"),
    "302 to an invalid port": plain(302, more="Location: http://127.0.0.1:99999999/x\r\n"),
    "307 to itself": plain(307, more="Location: /mcp\r\n"),
    "308 to another scheme": plain(308, more="Location: gopher://x/\r\n"),
    "204": lambda writer, _number: writer.write(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "205 with nothing": plain(205),
    "206": plain(206, b"{}", kind="application/json"),
    "304": lambda writer, _number: writer.write(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "a captive portal's page": plain(200, PORTAL),
    "a page that calls itself JSON": plain(200, PORTAL, kind="application/json"),
    "500 with a page": plain(500, PORTAL),
    "502 with a page that is not UTF-8": plain(502, b"\xff\xfe" * 400),
    "503 with a date out of range": plain(503, more="Retry-After: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n"),
    "429 with a time zone offset out of range": plain(
        429, more="Retry-After: Mon, 01 Jan 2026 00:00:00 +99999999999999\r\n"
    ),
    "418": plain(418),
    "599": plain(599),
    "999": plain(999),
    "101 switching protocols": raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "HTTP/0.9": raw(b"<html>hello</html>"),
    "endless headers": raw(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000),
    "an invalid header": raw(b"HTTP/1.1 200 OK\r\n: :\r\n\x00\r\n\r\n"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "a chunk without a size": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "an unknown charset": plain(200, b"{}", kind="application/json; charset=nonsense"),
    "events in an unknown charset": plain(200, b"data: {}\n\n", kind="text/event-stream; charset=nonsense"),
    "a broken gzip": plain(200, b"\x1f\x8bnonsense", kind="application/json", more="Content-Encoding: gzip\r\n"),
    "a gzip bomb": bomb("application/json"),
    "events in a gzip bomb": bomb("text/event-stream", prefix=b"data: "),
    "a gzip bomb in a gzip": bomb("application/json", layers=2),
    "deflate": plain(200, zlib.compress(b"{}"), kind="application/json", more="Content-Encoding: deflate\r\n"),
    "an unknown encoding": plain(200, b"{}", kind="application/json", more="Content-Encoding: x-y\r\n"),
    "an empty body": plain(200, b"", kind="application/json"),
    "null": plain(200, b"null", kind="application/json"),
    "a list": plain(200, b"[]", kind="application/json"),
    "JSON too deep for the parser": plain(200, DEEP * 2, kind="application/json"),
    "JSON in UTF-16": plain(200, '{"id":1}'.encode("utf-16"), kind="application/json"),
    "an invalid cookie": plain(200, b"{}", kind="application/json", more="Set-Cookie: \x01=;;;\r\n"),
    "truncated events": raw(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 900\r\n\r\ndata: {"
    ),
    "no events": streamed(""),
    "an event that is not JSON": streamed("data: hello\n\n"),
    "an event that is not UTF-8": plain(200, b"data: \xff\xfe\n\n", kind="text/event-stream"),
    "an endless event": plain(200, b"data: " + b"x" * (17 << 20), kind="text/event-stream"),
}

IN_THE_MESSAGE = {
    "another id": lambda writer, number: respond(writer, rpc((number or 0) + 1, {})),
    "an id that is a list": lambda writer, _number: respond(writer, b'{"jsonrpc":"2.0","id":[1],"result":{}}'),
    "no id": lambda writer, _number: respond(writer, b'{"jsonrpc":"2.0","result":{}}'),
    "an id beyond 64 bits": lambda writer, _number: respond(
        writer, b'{"jsonrpc":"2.0","id":99999999999999999999999,"result":{}}'
    ),
    "a result that is a list": result("[]"),
    "an empty error": failed("{}"),
    "an error whose code is a list": failed('{"code":[1],"message":{"a":1}}'),
    "a deeply nested error": failed(f'{{"code":-32603,"message":{nested(1000)}}}'),
    "an event with another ID": streamed(event({"jsonrpc": "2.0", "id": 99, "result": {}})),
}

OF_A_STEP = {
    "initialize": {
        "an empty result": result("{}"),
        "a version that is a number": result('{"protocolVersion":1}'),
        "no session id": None,
        "a session id of control characters": lambda writer, number: respond(
            writer, rpc(number, {"protocolVersion": "2025-06-18"}), more="Mcp-Session-Id: a\x7fb\r\n"
        ),
    },
    "tools/list": {
        "no tools": result("{}"),
        "tools that are numbers": result('{"tools":[1,2,null]}'),
        "a tool whose name is a list": result('{"tools":[{"name":["batch_store_memories"]}]}'),
        "a cursor that is a list": result('{"tools":[],"nextCursor":[1]}'),
    },
    "tools/call": {
        "an empty result": result("{}"),
        "content that is a number": result('{"content":5}'),
        "a status that is a list": answered(status=["completed"]),
        "a status that is an object": answered(status={}),
        "errors that are numbers": answered(status="partial", total=2, stored=0, failed=2, errors=[1, 2]),
        "a deeply nested error": result(f'{{"structuredContent":{{"status":"failed","error":{nested(1000)}}}}}'),
        "an id that is a list": answered(
            status="partial", total=2, stored=1, failed=1, errors=[{"memory_id": [], "error": "x"}]
        ),
        "text that is deeply nested JSON": result(json.dumps({"content": [{"type": "text", "text": nested(3000)}]})),
        "a count that is a string": answered(status="completed", total="2", stored="2", failed="0", errors=[]),
        "a count out of range": answered(status="completed", total=2, stored=10**30, failed=0, errors=[]),
    },
}

CASES = [
    *((step, name, play) for step in STEPS for name, play in ANYWHERE.items()),
    *((step, name, play) for step in STEPS if step != STEPS[1] for name, play in IN_THE_MESSAGE.items()),
    *((step, name, play) for step, plays in OF_A_STEP.items() for name, play in plays.items() if play),
]


@pytest.mark.parametrize(("step", "play"), [pytest.param(s, p, id=f"{s}: {n}") for s, n, p in CASES])
async def test_each_odd_answer_is_a_sink_error_that_names_the_server(step, play):
    async with Rogue(play, on=step) as rogue:
        sink = AkoshaSink(endpoint=f"{rogue.origin}/mcp", token=TOKEN, timeout_seconds=60)
        try:
            try:
                async with asyncio.timeout(50):
                    await sink.store(batch(sink))
            except SinkError as error:
                found = error
            assert found.message.startswith(sink.location)
            assert found.hint
            assert TOKEN not in str(found)
        finally:
            await sink.aclose()


@pytest.mark.parametrize("play", ANYWHERE.values(), ids=ANYWHERE)
async def test_the_health_check_survives_each_odd_answer(play):
    async with Rogue(play, on=None) as rogue:
        sink = AkoshaSink(endpoint=f"{rogue.origin}/mcp", token=TOKEN)
        assert await sink.is_available() in (True, False)
        await sink.aclose()
