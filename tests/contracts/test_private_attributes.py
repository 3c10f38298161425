"""The private attributes of libraries that adapters use exist.

Each library is capped at its minor version in pyproject.toml. Raise the cap only if these tests pass.
"""

import asyncio
import inspect
from contextlib import asynccontextmanager, suppress

import aiohttp
import httpx2
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleProvider,
    AioProcessProvider,
    AioProfileProviderBuilder,
    AioRefreshableCredentials,
)
from aiobotocore.session import AioSession
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport, WebSocketTransport

from agent.adapters.s3.session import DirectSession


@asynccontextmanager
async def http_server():
    """Serve one request on each connection and keep the connection open; yield the URL."""
    writers = []

    async def answer(reader, writer):
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for writer in writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def test_httpx2_has_the_connection_pools_of_its_transports(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    async with http_server() as url, httpx2.AsyncClient() as client:
        mounted = [transport for transport in client._mounts.values() if transport is not None]
        assert all(isinstance(transport._pool.connections, list) for transport in mounted)
        assert mounted
        await client.get(url)
        [connection] = client._transport._pool.connections
        assert connection.is_idle()
        await connection.aclose()


async def test_aiohttp_has_its_idle_connections_and_one_connect_method():
    connector = aiohttp.TCPConnector()
    try:
        assert isinstance(connector._conns, dict)
        assert list(inspect.signature(connector._create_connection).parameters) == ["req", "traces", "timeout"]
        if hasattr(connector, "_cleanup_closed"):
            assert isinstance(connector._cleanup_closed_disabled, bool)
            assert connector._cleanup_closed_period
    finally:
        await connector.close()


async def test_aiohttp_keeps_protocols_with_a_transport():
    async with http_server() as url, aiohttp.ClientSession() as session:
        async with session.get(url):
            pass
        [[(protocol, _since)]] = session.connector._conns.values()
        protocol.transport.abort()


async def test_aiobotocore_has_the_parts_of_a_client_and_of_its_credentials(tmp_path, monkeypatch):
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    session = AioSession()
    session.set_credentials("key", "secret")
    assert session.get_config_variable("ca_bundle") is None
    assert session.get_scoped_config() == {}
    providers = session.get_component("credential_provider").providers
    assert all(provider.METHOD and inspect.iscoroutinefunction(provider.load) for provider in providers)
    [process] = [provider for provider in providers if isinstance(provider, AioProcessProvider)]
    assert callable(process._popen)
    [role] = [provider for provider in providers if isinstance(provider, AioAssumeRoleProvider)]
    builder = role._profile_provider_builder
    assert isinstance(builder, AioProfileProviderBuilder)
    assert isinstance(builder._create_process_provider("default"), AioProcessProvider)
    config = AioConfig(http_session_cls=DirectSession)
    async with session.create_client("s3", "us-east-1", endpoint_url="http://127.0.0.1:9", config=config) as client:
        http = client._endpoint.http_session
        assert isinstance(http, DirectSession)
        assert http._sessions == {}
        await http._get_session(None)
        connectors = [one.connector for one in http._sessions.values()]
        assert [type(one) for one in connectors] == [aiohttp.TCPConnector]
        assert http._timeout.sock_connect


def test_aiobotocore_refreshes_credentials_by_one_function():
    credentials = AioRefreshableCredentials("key", "secret", "token", None, "refresh", "method")
    assert credentials._refresh_using == "refresh"


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_process_info", ["self", "info", "initial_connection"]),
        ("_process_op_err", ["self", "e"]),
        ("_read_loop", ["self"]),
        ("_flusher", ["self"]),
        ("_process_pong", ["self"]),
        ("_process_headers", ["self", "headers"]),
        ("_build_message", ["self", "sid", "subject", "reply", "data", "headers"]),
    ],
)
def test_nats_py_has_the_methods_that_are_overridden(method, parameters):
    assert list(inspect.signature(getattr(Client, method)).parameters) == parameters


def test_nats_py_has_the_attributes_that_are_read():
    client = Client()
    assert client._current_server is None
    assert client._transport is None
    assert (list(client._pongs), client._subs, client._resp_map) == ([], {}, {})
    assert TcpTransport()._io_writer is None
    assert "_client" in inspect.getsource(WebSocketTransport.__init__)
    assert Subscription(client)._wait_for_msgs_task is None
