"""The engines that write, and the order of tests: the long ones first, so that at the end no worker is left alone with
one of them."""

import atexit
import gc
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from agent.domain import plain_text
from tests.support import botocore_data, zygote
from tests.support.session_buddy import WRITERS

# Every worker and every command that a test starts imports the agent: compile it once, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Temporary files in memory, where there is room: the agent writes every file and every step of its ledger to the disk.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

if zygote.available():
    zygote.fork_children()

# Tracebacks in the log as Python prints them: rich ones take a hundred times as long.
structlog.get_config()["processors"][-1].exception_formatter = structlog.dev.plain_traceback

# How long an example takes depends on the load of the machine.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(params=WRITERS)
def engine(request) -> str:
    """The DuckDB that Session-Buddy writes with: for a test in which its version matters."""
    if not WRITERS[request.param].exists():
        pytest.skip(f"no DuckDB {request.param} here: make setup installs it")
    return request.param


def pytest_collection() -> None:
    gc.disable()  # most of what collection creates stays


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Share botocore's data, unless only unit tests run, and exclude all present objects from garbage collection."""
    if any(item.path.parent.name != "unit" for item in session.items):
        botocore_data.share()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a worker at once: its results have been sent, and to free millions of objects takes more than a second."""
    if hasattr(config, "workerinput") and zygote.available():
        threading._shutdown()
        atexit._run_exitfuncs()
        os._exit(0)
    gc.unfreeze()  # DuckDB's engine reports what is left at the end of the process


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin each test with the default log and no secrets: both are of the process, and a test may set them."""
    structlog.reset_defaults()
    plain_text._hidden = ()
