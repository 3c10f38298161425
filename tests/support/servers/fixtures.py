"""Fixtures of the servers; a test module uses them by `pytest_plugins = ["tests.support.servers.fixtures"]`.

Servers run for the session, one set per worker process; each test has its own buckets and stores.
"""

import contextlib
import os

import pytest

from agent.adapters.s3 import S3Store
from tests.support.servers.faulty_proxy import FaultyProxy
from tests.support.servers.nats import running_nats
from tests.support.servers.s3 import Authority, aws_environment, running_moto, running_rclone


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def both_motos(authority):
    with running_moto(authority) as servers:
        yield servers


@pytest.fixture(scope="session")
def moto(both_motos):
    return both_motos[0]


@pytest.fixture(scope="session")
def moto_tls(both_motos):
    return both_motos[1]


@pytest.fixture(scope="session")
def rclone(tmp_path_factory):
    with running_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_tls(authority, tmp_path_factory):
    with running_rclone(tmp_path_factory.mktemp("rclone"), authority) as server:
        yield server


@pytest.fixture
def aws(monkeypatch):
    """Make the AWS credential chain find the test's credentials, and none of this machine."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in aws_environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def proxy(moto, aws):
    """A proxy before moto that a test can make fail."""
    async with FaultyProxy(moto.endpoint) as running:
        yield running


@pytest.fixture
async def proxied(proxy, moto):
    """Return a function that creates a store on a new bucket behind the proxy; all stores are closed."""
    async with contextlib.AsyncExitStack() as stack:

        def make(**settings):
            settings = {"bucket": moto.new_bucket(), "endpoint": proxy.url, "region": "auto", **settings}
            store = S3Store(**settings)
            stack.push_async_callback(store.aclose)
            return store

        yield make


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory):
    with running_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def fresh_nats(nats_server):
    """The session's server, restarted without a stream: no message of an earlier test can arrive."""
    nats_server.revive()
    nats_server.restart(wipe=True)
    return nats_server
