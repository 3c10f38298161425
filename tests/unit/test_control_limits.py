"""How many connections there may be follows from how many descriptors there are: the agent needs some itself."""

import resource

import pytest

from agent.entrypoints.control_api import Limits


@pytest.mark.parametrize(
    ("descriptors", "connections"),
    [(resource.RLIM_INFINITY, 1100), (524_288, 1100), (2200, 1100), (1024, 512), (256, 128), (1, 1)],
    ids=["infinite", "many", "enough", "linux", "macos", "one"],
)
def test_connections_take_half_of_the_descriptors_at_most(monkeypatch, descriptors, connections):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, resource.RLIM_INFINITY))
    assert Limits().max_connections() == connections
