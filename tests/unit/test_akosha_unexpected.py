"""The Akosha adapter turns any exception of a library into a SinkError and logs its traceback once."""

import asyncio

import httpx2
import pytest
from structlog.testing import capture_logs

from agent.adapters.akosha import AkoshaSink
from agent.adapters.akosha.client import Client
from agent.adapters.akosha.http import McpHttpClient
from agent.adapters.akosha.server_address import ServerAddress
from agent.domain.errors import SinkError
from tests.support.memories import memory
from tests.support.values import SYSTEM

TOKEN = "canary-token-that-never-appears"


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError


RAISED = [
    KeyError("Location"),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    RuntimeError(f"Bearer {TOKEN}"),
    ExceptionGroup("several", [AttributeError("x")]),
    MemoryError(),
    AssertionError(),
    OSError(5, "Input/output error"),
    httpx2.StreamClosed(),
    ValueError("line\nbreak \x1b[31m"),
    UnprintableError(),
]
CALLS = {
    "connect": lambda sink: sink.connect(),
    "store": lambda sink: sink.store([sink.pack(memory(1), SYSTEM)]),
}


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
@pytest.mark.parametrize("where", ["build_request", "send"])
@pytest.mark.parametrize("call", CALLS)
async def test_any_exception_of_the_http_library_is_a_transient_sink_error(monkeypatch, raised, where, call):
    def fail(*_args, **_kwargs):
        raise raised

    monkeypatch.setattr(httpx2.AsyncClient, where, fail)
    sink = AkoshaSink(endpoint="http://127.0.0.1:1/mcp", token=TOKEN)
    with capture_logs(), pytest.raises(SinkError) as caught:
        await CALLS[call](sink)
    with capture_logs():
        assert await sink.is_available(), (
            "an unexpected error does not prove that the server is away; the attempt reports it"
        )
    assert caught.value.transient
    assert caught.value.message.startswith(sink.location)
    assert caught.value.message.isprintable()
    assert TOKEN not in str(caught.value)
    await sink.aclose()


async def test_an_error_while_the_client_closes_is_not_raised(monkeypatch):
    async def fail(*_args):
        raise KeyError("pool")

    sink = AkoshaSink(endpoint="http://127.0.0.1:1/mcp")
    await sink.is_available()
    monkeypatch.setattr(McpHttpClient, "aclose", fail)
    monkeypatch.setattr(McpHttpClient, "drop_idle_connections", fail)
    with capture_logs():
        await sink.drop_idle_connections()
        await sink.aclose()


async def test_an_error_in_the_clients_constructor_is_a_sink_error(monkeypatch):
    def fail(*_args, **_kwargs):
        raise TypeError("unexpected argument")

    monkeypatch.setattr(httpx2, "AsyncClient", fail)
    sink = AkoshaSink(endpoint="http://127.0.0.1:1/mcp")
    with capture_logs(), pytest.raises(SinkError, match="TypeError"):
        await sink.connect()
    await sink.aclose()


@pytest.mark.parametrize("raised", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
async def test_cancellations_and_exits_pass_through(monkeypatch, raised):
    monkeypatch.setattr(Client, "checked_session", lambda _client: _raise(raised()))
    sink = AkoshaSink(endpoint="http://127.0.0.1:1/mcp")
    with pytest.raises(raised):
        await sink.connect()


async def test_a_sink_error_passes_through_unchanged_also_out_of_a_task_group(monkeypatch):
    own = SinkError("there: gone", hint="look")
    for raised in (own, ExceptionGroup("tasks", [ExceptionGroup("inner", [own])])):
        monkeypatch.setattr(Client, "checked_session", lambda _client, raised=raised: _raise(raised))
        with pytest.raises(SinkError) as caught:
            await AkoshaSink(endpoint="http://127.0.0.1:1/mcp").connect()
        assert caught.value is own
        assert not own.unexpected


async def test_the_traceback_of_each_kind_is_logged_once(monkeypatch):
    sink = AkoshaSink(endpoint="http://127.0.0.1:1/mcp")
    with capture_logs() as logs:
        for raised in (KeyError(1), TypeError(1), KeyError(2)):
            monkeypatch.setattr(Client, "checked_session", lambda _client, raised=raised: _raise(raised))
            with pytest.raises(SinkError) as caught:
                await sink.connect()
            assert caught.value.unexpected == f"{type(raised).__name__} in connect"
    assert [line["event"] for line in logs] == ["unexpected_error"] * 2


async def _raise(error):
    raise error


def test_a_quoted_text_is_one_line_without_the_token():
    assert ServerAddress("http://h/mcp", TOKEN).quote(f"a\n{TOKEN}\x1b") == "a ********\\x1b"
