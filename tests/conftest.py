"""The engines that write, and the order of tests: the long ones first, so that at the end no worker is left alone with
one of them."""

import os
import sys
from collections.abc import Iterator

import pytest
import structlog

from agent.domain import plain_text
from tests.support.session_buddy import WRITERS

# Every worker and every command that a test starts imports the agent: compile it once, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch) -> None:
    """A process masks what it has known as a secret in every text from then on: one test's is another's plain word."""
    monkeypatch.setattr(plain_text, "_hidden", ())


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that runs in this process sets the log level of the whole process: other tests read what is logged."""
    configured, before = structlog.is_configured(), structlog.get_config()
    yield
    if configured:
        structlog.configure(**before)
    else:
        structlog.reset_defaults()


@pytest.fixture(params=WRITERS)
def engine(request) -> str:
    """The DuckDB that Session-Buddy writes with: for a test in which its version matters."""
    if not WRITERS[request.param].exists():
        pytest.skip(f"no DuckDB {request.param} here: make setup installs it")
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
