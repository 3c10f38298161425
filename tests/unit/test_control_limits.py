"""The connection limit follows from the limit of file descriptors: the agent needs some of them itself."""

import resource

import pytest

from agent.entrypoints.control_api import Limits


@pytest.mark.parametrize(
    ("descriptors", "connections"),
    [(resource.RLIM_INFINITY, 1100), (524_288, 1100), (2200, 1100), (1024, 512), (256, 128), (1, 1)],
    ids=["infinite", "many", "enough", "linux", "macos", "one"],
)
def test_connections_use_at_most_half_of_the_descriptors(monkeypatch, descriptors, connections):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, resource.RLIM_INFINITY))
    assert Limits().max_connections() == connections
