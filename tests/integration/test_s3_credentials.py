"""Credentials and certificates that change while a store is in use, and credential sources that hang."""

import asyncio
import contextlib
import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.adapters.s3 import S3Store, client, credential_sources
from agent.domain.errors import StoreError
from agent.ports import Reconnectable, StoredObject
from tests.support.servers.faulty_proxy import refuse
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY, Authority
from tests.support.waiting import until

pytest_plugins = ["tests.support.servers.fixtures"]

BUILD_SECONDS = 600
"""The timeout in tests with a hanging source. The test lets it expire."""


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@pytest.fixture
def files(aws, tmp_path, monkeypatch):
    """Limit the AWS credential chain to files in the returned directory, which is empty."""
    folder = tmp_path / "aws"
    folder.mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder


@pytest.fixture
async def stores():
    async with contextlib.AsyncExitStack() as stack:

        def make(server, **how):
            made = S3Store(**{"bucket": server.new_bucket(), "endpoint": server.endpoint, "region": "auto", **how})
            stack.push_async_callback(made.aclose)
            return made

        yield make


def write_keys(files: Path, secret: str = SECRET_KEY) -> None:
    keys = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n"
    (files / "credentials").write_text(keys)


async def put(store) -> StoredObject:
    async def body():
        yield b"x"

    return await store.put("key", body(), metadata={}, part_bytes=5 * 2**20, progress=lambda _: None)


class Limits:
    """The running timeouts of building a client and reading credentials, the oldest first."""

    def __init__(self) -> None:
        self._running: list[tuple[asyncio.AbstractEventLoop, asyncio.Timeout]] = []

    @contextlib.asynccontextmanager
    async def timeout(self, seconds: float):
        running = asyncio.get_running_loop(), asyncio.timeout(seconds)
        async with running[1]:
            self._running.append(running)
            try:
                yield
            finally:
                self._running.remove(running)

    def expire(self) -> None:
        """Expire the oldest timeout."""
        loop, timeout = self._running[0]
        loop.call_soon_threadsafe(timeout.reschedule, 0)


@pytest.fixture
def limits(monkeypatch) -> Limits:
    made = Limits()
    for module in (client, credential_sources):
        monkeypatch.setattr(module, "asyncio", SimpleNamespace(**vars(asyncio) | {"timeout": made.timeout}))
    return made


async def refused_in(limits: Limits, store, hangs) -> StoreError:
    """Return the error of a call whose timeout expires once its source hangs."""
    task = asyncio.create_task(refused(store))
    await until(hangs)
    limits.expire()
    return await task


async def refused(store) -> StoreError:
    with pytest.raises(StoreError) as failure:
        await put(store)
    assert SECRET_KEY not in str(failure.value)
    return failure.value


async def client_of(store):
    return await store._connection._client()


async def test_replaced_keys_are_used_by_the_next_attempt(files, rclone, stores):
    write_keys(files, "another secret")
    store = stores(rclone)
    error = await refused(store)
    assert error.credentials_refused
    assert not error.transient
    write_keys(files)
    assert (await put(store)).size == 1


async def test_added_keys_are_used_by_the_next_attempt(files, moto, stores):
    store = stores(moto)
    assert (await refused(store)).credentials_refused
    write_keys(files)
    assert (await put(store)).size == 1


def store_keys(files: Path, secret: str, mode: int = 0o600) -> None:
    path = files / "akosha-agent" / "credentials.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"cloud_access_key_id: {ACCESS_KEY}\ncloud_secret_access_key: {secret}\n")
    path.chmod(mode)


async def test_the_agents_own_keys_have_priority_over_the_chain_and_are_read_again_after_a_refusal(
    files, rclone, stores
):
    write_keys(files)
    store_keys(files, "another secret")
    store = stores(rclone)
    assert (await refused(store)).credentials_refused
    store_keys(files, SECRET_KEY, mode=0o644)
    error = await refused(store)
    assert (error.credentials_refused, error.message.partition("/akosha-agent/")[2]) == (
        True,
        "credentials.yaml is refused: other users can open it (mode 0644)",
    )
    store_keys(files, SECRET_KEY)
    assert (await put(store)).size == 1
    found = await store.credentials()
    assert (found.source, found.key_end) == ("akosha-agent", ACCESS_KEY[-4:])


async def test_keys_in_the_environment_have_priority_over_the_agents_own(files, rclone, stores, monkeypatch):
    store_keys(files, "another secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    assert (await put(stores(rclone))).size == 1


@pytest.mark.parametrize("code", sorted(client.REFUSED))
async def test_a_refusal_of_key_or_token_replaces_the_client(proxied, proxy, code):
    store = proxied()
    before = await client_of(store)
    proxy.on("put_object", refuse(403, code), times=1)
    await refused(store)
    await put(store)
    assert await client_of(store) is not before


async def test_a_missing_permission_replaces_the_client_only_if_the_files_have_changed(files, proxied, proxy):
    write_keys(files)
    store = proxied()
    before = await client_of(store)
    proxy.on("put_object", refuse(403, "AccessDenied"))
    assert not (await refused(store)).credentials_refused
    assert await client_of(store) is before
    write_keys(files, SECRET_KEY + "\n# changed")
    await refused(store)
    assert await client_of(store) is not before


@pytest.mark.parametrize("old", [False, True])
async def test_a_head_refused_without_a_code_replaces_an_old_client(proxied, proxy, monkeypatch, old):
    store = proxied()
    before = await client_of(store)
    for operation in ("head_object", "get_object"):
        proxy.on(operation, refuse(403, ""))
    if old:
        monkeypatch.setattr(client, "STALE_SECONDS", 0.0)
    with pytest.raises(StoreError):
        await store.head("key")
    assert (await client_of(store) is before) != old


async def test_a_reset_lets_running_calls_finish_and_then_closes_the_old_client(aws, moto, stores):
    store = stores(moto)
    assert isinstance(store, Reconnectable)
    await store.reset_client()  # there is no client yet
    await put(store)
    old = await client_of(store)
    pieces = store.get("key")
    assert await anext(pieces) == b"x"
    await store.reset_client()
    await put(store)
    assert await client_of(store) is not old
    assert (old.retired, old.closing) == (True, False)
    assert [piece async for piece in pieces] == []
    assert old.closing
    await store.reset_client()
    await store.reset_client()


async def test_a_reset_while_a_client_is_built_blocks_no_call(files, moto, stores):
    write_keys(files)
    store = stores(moto)
    first = asyncio.create_task(put(store))
    await asyncio.sleep(0)
    await store.reset_client()
    second = await client_of(store)
    assert (await first).size == 1
    assert await client_of(store) is second


async def test_a_replaced_certificate_authority_is_trusted_by_the_next_attempt(
    aws, moto_tls, stores, tmp_path, monkeypatch
):
    bundle = tmp_path / "bundle.pem"
    shutil.copy(Authority(tmp_path).ca, bundle)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    store = stores(moto_tls)
    assert "certificate" in (await refused(store)).message
    shutil.copy(moto_tls.ca, bundle)
    assert (await put(store)).size == 1


# Sources that hang

HELPER = """
import json, os, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "runs").open("a") as runs:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    runs.write(f"{os.getpid()} {child.pid}\\n")
answers = sorted(folder.glob("answer-*"))
if answers:
    child.kill()
    print(answers[0].read_text())
    answers[0].unlink()
else:
    time.sleep(600)
"""


@pytest.fixture
def helper(files, tmp_path, monkeypatch):
    """A credential_process with a child. It hangs unless the returned folder has an `answer-N` for this run."""
    (tmp_path / "helper.py").write_text(HELPER)
    folder = tmp_path / "helper"
    folder.mkdir()
    (files / "config").write_text(
        f"[profile work]\ncredential_process = {sys.executable} {tmp_path / 'helper.py'} {folder}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "work")
    return folder


def answer(folder: Path, number: int, **more: str) -> None:
    keys = {"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, **more}
    (folder / f"answer-{number}").write_text(json.dumps(keys))


def runs(folder: Path) -> list[list[int]]:
    file = folder / "runs"
    return [[int(pid) for pid in line.split()] for line in file.read_text().splitlines()] if file.exists() else []


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_a_hanging_credential_process_is_named_killed_and_run_again_by_the_next_call(
    helper, moto, stores, limits
):
    store = stores(moto, build_seconds=BUILD_SECONDS)
    error = await refused_in(limits, store, lambda: runs(helper))
    assert "credential_process of profile work did not answer within 600 s" in error.message
    assert error.transient
    assert error.credentials_refused
    (first,) = runs(helper)
    await until(lambda: not any(map(is_alive, first)))
    answer(helper, 1)
    assert (await put(store)).size == 1
    assert len(runs(helper)) == 2


async def test_closing_a_store_kills_a_running_credential_process(helper, moto, stores):
    store = stores(moto, build_seconds=600)
    task = asyncio.create_task(put(store))
    await until(lambda: runs(helper))
    async with asyncio.timeout(60):
        await store.aclose()
        with pytest.raises(StoreError, match="closed"):
            await task
    await until(lambda: not any(map(is_alive, runs(helper)[0])))


async def test_a_cancelled_caller_does_not_stop_building_the_client_for_others(helper, moto, stores):
    store = stores(moto, build_seconds=600)
    tasks = [asyncio.create_task(put(store)) for _ in range(2)]
    await until(lambda: runs(helper))
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert all(map(is_alive, runs(helper)[0]))
    assert not tasks[1].done()


async def test_a_hanging_refresh_during_a_request_times_out_and_is_repeated_by_the_next_attempt(
    helper, moto, stores, limits
):
    expiration = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    answer(helper, 1, Expiration=expiration)
    store = stores(moto, build_seconds=BUILD_SECONDS)
    error = await refused_in(limits, store, lambda: len(runs(helper)) == 2)
    assert "credential_process" in error.message
    assert "did not answer within 600 s" in error.message
    await until(lambda: not any(map(is_alive, runs(helper)[1])))
    answer(helper, 2)
    assert (await put(store)).size == 1


async def test_a_credential_process_without_json_output_is_named(helper, moto, stores):
    (helper / "answer-1").write_text("Enter MFA code:")
    store = stores(moto)
    error = await refused(store)
    assert "credential_process" in error.message
    assert error.credentials_refused
    answer(helper, 2)
    assert (await put(store)).size == 1


async def test_a_hanging_instance_metadata_service_is_named(files, moto, stores, monkeypatch, limits):
    asked = asyncio.Event()

    async def silent(_reader, writer):
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "600")
    store = stores(moto, build_seconds=BUILD_SECONDS)
    try:
        assert "IMDS" in (await refused_in(limits, store, asked.is_set)).message
    finally:
        server.close()


async def test_the_credentials_for_doctor_are_read_again_with_a_timeout(helper, moto, stores, limits):
    store = stores(moto, build_seconds=BUILD_SECONDS)
    task = asyncio.create_task(store.credentials())
    await until(lambda: runs(helper))
    limits.expire()
    with pytest.raises(StoreError, match="credential_process of profile work did not answer"):
        await task
    await until(lambda: not any(map(is_alive, runs(helper)[0])))  # it would take the answer of the next one
    answer(helper, 1)
    found = await store.credentials()
    assert (found.source, found.key_end) == ("custom-process", ACCESS_KEY[-4:])


def test_aiobotocore_has_the_private_attributes_that_are_used():
    """`credential_sources` sets private attributes of aiobotocore. A version without them must not be installed."""
    import inspect

    from aiobotocore import credentials
    from aiobotocore.session import AioSession

    assert "popen" in inspect.signature(credentials.AioProcessProvider.__init__).parameters
    resolver = AioSession().get_component("credential_provider")
    found = {provider.METHOD: provider for provider in resolver.providers}
    assert callable(found["custom-process"]._popen)
    builder = found["assume-role"]._profile_provider_builder
    assert callable(builder._create_process_provider("x")._popen)
    made = credentials.AioRefreshableCredentials("k", "s", None, datetime.now(UTC), lambda: None, "m")
    assert callable(made._refresh_using)
    assert callable(credentials.AioDeferredRefreshableCredentials(lambda: None, "m")._refresh_using)
