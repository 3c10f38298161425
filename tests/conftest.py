"""The engines that write, and the order of tests: the long ones first, so that at the end no worker is left alone with
one of them."""

import pytest

from tests.fakes.session_buddy import WRITERS


@pytest.fixture(params=WRITERS)
def engine(request) -> str:
    """The DuckDB that Session-Buddy writes with: for a test in which its version matters."""
    if not WRITERS[request.param].exists():
        pytest.skip(f"no DuckDB {request.param} here: make setup installs it")
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
