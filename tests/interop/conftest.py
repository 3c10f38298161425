"""Fixtures of the tests with the real Akosha, which `make interop` runs. They skip if no interpreter has Akosha."""

import shutil
from pathlib import Path
from zlib import crc32

import pytest

from tests.interop.real import VARIABLE, interpreter, running_akosha
from tests.support.machine import Machine
from tests.support.session_buddy import REAL

pytest_plugins = ["tests.support.servers.fixtures"]


@pytest.fixture(autouse=True, scope="session")
def akosha_python():
    """The path of the interpreter in which Akosha is installed."""
    if not interpreter():
        pytest.skip(f"{VARIABLE} is not set to a Python with Akosha; `make interop` sets it")
    return interpreter()


@pytest.fixture(scope="session")
def akosha(akosha_python, tmp_path_factory):
    """A server that all tests share, each with its own system ID; its rows are in memory."""
    with running_akosha(tmp_path_factory.mktemp("akosha")) as server:
        yield server


@pytest.fixture
def persistent_akosha(akosha_python, tmp_path):
    """A server for one test, whose rows survive a restart."""
    with running_akosha(tmp_path / "akosha", persistent=True) as server:
        yield server


@pytest.fixture
def system_id(request):
    """A system ID that no other test uses."""
    return f"{request.node.originalname[5:50].replace('_', '-')}-{crc32(request.node.nodeid.encode()):08x}"


@pytest.fixture
def machine(tmp_path, akosha, system_id):
    """A machine that sends its memories to the real server by the http method only."""
    return Machine(
        tmp_path / "machine", force_method="http", http_endpoint=akosha.url, system_id=system_id, cloud_endpoint=None
    )


@pytest.fixture
def real_databases():
    """Return a function that copies a state of Session-Buddy's databases into a data directory."""
    if not REAL.is_dir():
        pytest.skip(f"the databases of Session-Buddy are not at {REAL}")

    def copy(state: str, data_dir: Path) -> None:
        for path in (REAL / state).iterdir():
            temporary = data_dir / f".{path.name}.new"
            shutil.copyfile(path, temporary)
            temporary.replace(data_dir / path.name)

    return copy
