"""What tests against the real Akosha share: `make interop` runs them. Each skips where no interpreter has Akosha."""

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
    """The interpreter that has the real Akosha."""
    if not interpreter():
        pytest.skip(f"{VARIABLE} does not name a Python that has Akosha: `make interop` does")
    return interpreter()


@pytest.fixture(scope="session")
def akosha(akosha_python, tmp_path_factory):
    """One for all tests that tell their systems apart; it keeps its rows in memory."""
    with running_akosha(tmp_path_factory.mktemp("akosha")) as server:
        yield server


@pytest.fixture
def kept_akosha(akosha_python, tmp_path):
    """A test's own, whose rows outlive it."""
    with running_akosha(tmp_path / "akosha", kept=True) as server:
        yield server


@pytest.fixture
def system_id(request):
    """A name that no other test has."""
    return f"{request.node.originalname[5:50].replace('_', '-')}-{crc32(request.node.nodeid.encode()):08x}"


@pytest.fixture
def machine(tmp_path, akosha, system_id):
    """A user's machine whose memories go to the real server over http alone."""
    return Machine(
        tmp_path / "machine", force_method="http", http_endpoint=akosha.url, system_id=system_id, cloud_endpoint=None
    )


@pytest.fixture
def real_databases():
    """Return a function that puts a copy of a state of Session-Buddy's own databases into a data directory."""
    if not REAL.is_dir():
        pytest.skip(f"the databases of Session-Buddy are not at {REAL}")

    def place(state: str, data_dir: Path) -> None:
        for path in (REAL / state).iterdir():
            copy = data_dir / f".{path.name}.new"
            shutil.copyfile(path, copy)
            copy.replace(data_dir / path.name)

    return place
