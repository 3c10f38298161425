"""S3Store with its libraries, credentials, certificates and networks."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.adapters.s3 import S3Store
from agent.domain.errors import StoreError
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY, aws_environment

pytest_plugins = ["tests.support.servers.fixtures"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@contextlib.asynccontextmanager
async def store_at(endpoint, **how):
    store = S3Store(**{"bucket": "bucket", "endpoint": endpoint, "region": "auto", **how})
    yield store
    await store.aclose()


async def put(store, data=b"x"):
    async def body():
        yield data

    return await store.put("key", body(), metadata={}, part_bytes=5 * 2**20, progress=lambda _: None)


async def failure_of(store):
    with pytest.raises(StoreError) as failure:
        await put(store)
    text = f"{failure.value!s} {failure.value!r}"
    assert SECRET_KEY not in text
    assert ACCESS_KEY not in text
    return failure.value


@pytest.fixture
def silent_port():
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_no_aws_library_is_loaded_before_the_first_call():
    code = """
import asyncio, json, sys
from agent.adapters.s3 import S3Store
async def main():
    store = S3Store(bucket="b", endpoint="http://127.0.0.1:9", region="auto")
    await store.is_available()
    await store.aclose()
asyncio.run(main())
heavy = {"aiobotocore", "botocore", "boto3", "aiohttp"}
print(json.dumps([name for name in sys.modules if name.split(".")[0] in heavy]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment, cwd=ROOT)
    assert json.loads(done.stdout) == []


def test_a_process_exits_cleanly_after_use(moto):
    """No connection stays open and no thread blocks the exit. Unclosed resources would be warnings on stderr."""
    bucket = moto.new_bucket()
    code = f"""
import asyncio
from agent.adapters.s3 import S3Store
async def body():
    for _ in range(12):
        yield bytes(2**20)
async def main():
    store = S3Store(bucket={bucket!r}, endpoint={moto.endpoint!r}, region="auto")
    await store.put("k", body(), metadata={{}}, part_bytes=5 * 2**20, progress=lambda n: None)
    pieces = store.get("k")
    await anext(pieces)
    await pieces.aclose()
    await store.aclose()
asyncio.run(main())
"""
    environment = {**os.environ, **aws_environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, capture_output=True, check=False, env=environment, cwd=ROOT, timeout=60, text=True)
    assert done.returncode == 0, done.stderr
    assert "Unclosed" not in done.stderr
    assert "unclosed" not in done.stderr
    assert "never" not in done.stderr


async def test_the_client_is_created_once_even_if_the_first_caller_is_cancelled(moto, aws):
    """The first caller is cancelled while the client is created. The other callers get the client."""
    async with store_at(moto.endpoint, bucket=moto.new_bucket()) as store:
        first, *others = (asyncio.create_task(put(store)) for _ in range(4))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(*others)
        with pytest.raises(asyncio.CancelledError):
            await first
        client = (await store._connection._client()).raw
        assert (await store._connection._client()).raw is client


async def test_a_reader_that_stops_early_releases_the_client_at_once(moto, aws):
    """A call that is closed late would keep a retired client open without need."""
    async with store_at(moto.endpoint, bucket=moto.new_bucket()) as store:
        await put(store, data=bytes(2**20))
        pieces = store.get("key")
        await anext(pieces)
        client = await store._connection._client()
        assert client.users == 1
        await pieces.aclose()
        assert client.users == 0


async def test_the_client_is_created_in_a_thread(moto, aws, monkeypatch):
    """Importing botocore and loading models and credentials would block the event loop."""
    async with store_at(moto.endpoint, bucket=moto.new_bucket()) as store:
        threads = []
        make = store._connection._client_builder._open
        monkeypatch.setattr(
            store._connection._client_builder,
            "_open",
            lambda on: (threads.append(threading.current_thread()), make(on))[1],
        )
        await put(store)
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_closing_ends_the_connection_of_a_cancelled_upload(authority, aws):
    """A cancelled TLS connection would stay open: the server reads no more, and aiohttp waits for the TLS shutdown."""
    reached, ended = asyncio.Event(), asyncio.Event()

    async def take_a_little(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if b"100-continue" in head:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(1000)
        writer.transport.pause_reading()
        reached.set()
        await ended.wait()
        writer.transport.abort()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.chain, authority.key)
    server = await asyncio.start_server(take_a_little, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with store_at(f"https://127.0.0.1:{port}", verify=str(authority.ca)) as store:
            task = asyncio.create_task(put(store, bytes(5 * 2**20)))
            await asyncio.wait_for(reached.wait(), 30)
            transports = list(asyncio.get_running_loop()._transports.values())
            ours = [one for one in transports if one.get_extra_info("peername")[1] == port]
            assert len(ours) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert all(transport.is_closing() for transport in ours)
        ended.set()


async def test_closing_twice_and_before_any_use_is_not_an_error(aws):
    async with store_at("http://127.0.0.1:9") as store:
        await store.aclose()


async def test_a_closed_port_is_unavailable_and_a_transient_error(closed_port, aws):
    async with store_at(f"http://127.0.0.1:{closed_port}") as store:
        assert not await store.is_available()
        error = await failure_of(store)
    assert error.transient
    assert "127.0.0.1" in error.hint


async def test_an_unknown_host_name_is_unavailable_and_a_transient_error(aws, monkeypatch):
    patch_dns(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    async with store_at("https://no-such-host.invalid") as store:
        assert not await store.is_available()
        assert (await failure_of(store)).transient


async def test_a_missing_response_is_a_transient_error(silent_port, aws):
    async with store_at(f"http://127.0.0.1:{silent_port}", read_timeout=0.05) as store:
        assert (await failure_of(store)).transient


def patch_dns(monkeypatch, outcome):
    """Replace the DNS lookup by an error, a list of addresses, or the result of a coroutine function."""

    async def getaddrinfo(host, port, **_):
        if isinstance(outcome, Exception):
            raise outcome
        found = await outcome() if callable(outcome) else outcome
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)) for host in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def never(*_, **__):
    await asyncio.Event().wait()


async def test_a_temporary_dns_failure_counts_as_available(aws, monkeypatch):
    patch_dns(monkeypatch, socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    async with store_at("https://store.example.com") as store:
        assert await store.is_available()


async def test_a_connection_that_is_never_established_counts_as_available(aws, monkeypatch):
    """A firewall that drops packets behaves like this."""
    monkeypatch.setattr("agent.adapters.s3.store.AVAILABLE_SECONDS", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    async with store_at("http://127.0.0.1:9") as store:
        assert await store.is_available()


async def test_a_slow_dns_lookup_counts_as_available_and_the_store_is_used(moto, aws, monkeypatch):
    """A dead first name server delays every lookup by 5 s."""
    answered, port = asyncio.Event(), moto.endpoint.rpartition(":")[2]

    async def late():
        await answered.wait()
        return ["127.0.0.1"]

    patch_dns(monkeypatch, late)
    monkeypatch.setattr("agent.adapters.s3.store.AVAILABLE_SECONDS", 0.05)
    async with store_at(f"http://localhost:{port}", bucket=moto.new_bucket()) as store:
        assert await store.is_available()
        putting = asyncio.create_task(put(store))
        answered.set()
        assert (await putting).size == 1


async def test_the_connect_timeout_includes_the_dns_lookup_and_all_tries(aws, monkeypatch):
    asked = []

    async def never_answered():
        asked.append(1)
        await asyncio.Event().wait()

    patch_dns(monkeypatch, never_answered)
    async with store_at("http://store.example.com:9000", connect_timeout=0.05) as store:
        error = await failure_of(store)
    assert error.message.startswith("the connection to store.example.com:9000 timed out")
    assert error.transient
    assert len(asked) == 1


@pytest.mark.parametrize("first", ["refuses", "is silent"])
async def test_a_store_is_available_if_one_of_two_addresses_answers(first, aws, monkeypatch, silent_port):
    patch_dns(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def connecting(sock, address):
        if address[0] == "127.0.0.2" and first == "is silent":
            await never()
        await connect(sock, address)

    monkeypatch.setattr(loop, "sock_connect", connecting)
    monkeypatch.setattr("agent.adapters.s3.store.AVAILABLE_SECONDS", 30)
    async with store_at(f"http://store.example.com:{silent_port}") as store:
        assert await store.is_available()


@pytest.mark.parametrize(("second", "available"), [("refuses", False), ("is silent", True)])
async def test_a_store_is_unavailable_only_if_every_address_refuses(second, available, aws, monkeypatch, closed_port):
    patch_dns(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def connecting(sock, address):
        if address[0] == "127.0.0.1" and second == "is silent":
            await never()
        await connect(sock, address)

    monkeypatch.setattr(loop, "sock_connect", connecting)
    monkeypatch.setattr("agent.adapters.s3.store.AVAILABLE_SECONDS", 0.5)
    async with store_at(f"http://store.example.com:{closed_port}") as store:
        assert await store.is_available() is available


async def test_a_certificate_of_an_unknown_authority_is_permanent_and_names_the_setting(moto_tls, aws):
    async with store_at(moto_tls.endpoint, bucket=moto_tls.new_bucket()) as store:
        error = await failure_of(store)
    assert not error.transient
    assert "AWS_CA_BUNDLE" in error.hint


async def test_the_certificate_authority_may_come_from_the_environment(moto_tls, aws, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(moto_tls.ca))
    async with store_at(moto_tls.endpoint, bucket=moto_tls.new_bucket()) as store:
        assert (await put(store)).size == 1


async def test_tls_to_a_server_without_tls_is_a_permanent_error(moto, aws):
    async with store_at(moto.endpoint.replace("http:", "https:")) as store:
        error = await failure_of(store)
    assert not error.transient
    assert "akosha_cloud_endpoint" in error.hint


async def test_missing_credentials_are_a_permanent_error_with_a_hint(moto, aws, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    async with store_at(moto.endpoint) as store:
        error = await failure_of(store)
        assert not error.transient
        assert "AWS_ACCESS_KEY_ID" in error.hint
        for name, value in aws_environment().items():
            monkeypatch.setenv(name, value)


async def test_a_missing_profile_is_a_permanent_error(moto, aws, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    async with store_at(moto.endpoint, bucket=moto.new_bucket()) as store:
        error = await failure_of(store)
        assert not error.transient
        assert "AWS_PROFILE" in error.hint
        monkeypatch.delenv("AWS_PROFILE")
        assert (await put(store)).size == 1, "a client that could not be created is created again"


async def test_a_wrong_secret_is_a_permanent_error_with_a_hint(rclone, aws, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    async with store_at(rclone.endpoint, bucket=rclone.new_bucket()) as store:
        error = await failure_of(store)
    assert not error.transient
    assert "AWS_SECRET_ACCESS_KEY" in error.hint


async def test_an_invalid_endpoint_is_a_permanent_error(aws):
    async with store_at("https://") as store:
        error = await failure_of(store)
    assert not error.transient
    assert "akosha_cloud_endpoint" in error.hint


async def test_no_trailing_checksum_and_no_content_encoding_is_sent_over_tls(rclone_tls, aws):
    """R2 and B2 refuse them; botocore's default would send them over TLS only."""
    async with store_at(rclone_tls.endpoint, bucket=rclone_tls.new_bucket(), verify=str(rclone_tls.ca)) as store:
        client = (await store._connection._client()).raw
        seen = []
        client.meta.events.register("before-send.s3", lambda request, **_: seen.append(dict(request.headers)))
        await put(store, bytes(100))
        await put(store, bytes(6 * 2**20))
    sent = [{name.lower(): value for name, value in headers.items()} for headers in seen]
    assert len(sent) >= 5
    for headers in sent:
        assert "x-amz-trailer" not in headers
        assert "content-encoding" not in headers
        assert headers["x-amz-content-sha256"] in (b"UNSIGNED-PAYLOAD", "UNSIGNED-PAYLOAD")
    assert sum("content-md5" in headers for headers in sent) == 3
