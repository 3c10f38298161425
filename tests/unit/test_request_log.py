"""The request log accepts requests that this agent issued and refuses all others."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from agent.adapters.memory_bus import MemoryBus
from agent.adapters.wire import CloudEventsCodec
from agent.application.sync import request_log as module
from agent.application.sync.request_log import RequestLog
from agent.domain.errors import BusError
from agent.domain.events import MethodError
from agent.domain.identity import Identity
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger

CODEC = CloudEventsCodec()


@asynccontextmanager
async def agent_run(tmp_path):
    """One run of the agent: a request log with an empty bus and the ledger that all runs share."""
    clock = ManualClock(values.NOON)
    ledger = inline_ledger(clock, tmp_path / "ledger")
    yield RequestLog(Identity("agent-1", values.SYSTEM), MemoryBus(clock), ledger)
    await ledger.aclose()


@pytest.fixture
async def requests(tmp_path):
    async with agent_run(tmp_path) as log:
        yield log


def over_the_wire(request):
    return CODEC.decode(CODEC.encode(request))


async def test_an_issued_request_is_accepted_also_when_redelivered(requests):
    await requests.issue(values.request())
    for _ in range(2):
        assert requests.is_ours(over_the_wire(values.request()))


async def test_a_copy_of_a_request_issued_in_an_earlier_run_is_refused(tmp_path):
    async with agent_run(tmp_path) as earlier:
        await earlier.issue(values.request())
    async with agent_run(tmp_path) as later:
        assert not later.is_ours(over_the_wire(values.request()))


async def test_a_request_issued_again_is_published_unchanged_also_in_a_later_run(tmp_path):
    """NATS drops a second message with the same ID and delivers the first, which must not be refused."""
    first, again = values.request(), replace(values.request(), time=values.NOON.replace(year=2027))
    async with agent_run(tmp_path) as earlier:
        assert await earlier.issue(first) == first
        assert await earlier.issue(again) == first
        assert earlier.is_ours(over_the_wire(first))
    async with agent_run(tmp_path) as later:
        assert await later.issue(again) == first
        assert later.is_ours(over_the_wire(first))


async def test_the_number_of_remembered_requests_is_bounded_and_a_request_issued_again_is_accepted(
    requests, monkeypatch
):
    monkeypatch.setattr(module, "REMEMBERED", 2)
    issued = [values.request(f"r{number}") for number in range(5)]
    for request in issued:
        await requests.issue(request)
    assert [request for request in issued if requests.is_ours(over_the_wire(request))] == issued[3:]
    await requests.issue(issued[0])
    assert requests.is_ours(over_the_wire(issued[0]))


async def test_forged_requests_with_this_agents_id_are_refused_without_reading_the_ledger_and_few_are_warnings(
    requests, monkeypatch
):
    await requests.issue(values.request("r"))
    monkeypatch.setattr(requests, "_ledger", None)
    with capture_logs() as logs:
        for number in range(2000):
            assert not requests.is_ours(values.request(f"r{number}"))
    assert {line["event"] for line in logs} == {"request_refused"}
    warned = [line["so_far"] for line in logs if line["log_level"] == "warning"]
    assert warned == [*range(1, 11), 1000, 2000]


ALTERED = {
    "route": {"route": ("cloud",)},
    "reason": {"reason": "remote"},
    "request": {"request_id": "r2"},
    "system": {"system_id": "another"},
    "errors": {"errors": (MethodError(method="cloud", error="403"),)},
    "reflections": {"upload_reflections": False},
    "graph": {"upload_knowledge_graph": False},
    "time": {"time": values.NOON.replace(year=2027)},
}


async def test_an_altered_copy_of_a_request_is_refused_and_the_original_still_accepted(requests):
    issued = values.request()
    await requests.issue(issued)
    copies = {name: over_the_wire(replace(issued, **change)) for name, change in ALTERED.items()}
    assert not [name for name, copy in copies.items() if requests.is_ours(copy)]
    assert requests.is_ours(over_the_wire(issued))


async def test_requests_of_other_agents_are_refused_and_each_agent_logged_once(requests):
    with capture_logs() as logs:
        for agent in ("agent-2", "agent-3", "agent-2"):
            for number in range(3):
                assert not requests.is_ours(replace(values.request(f"r{number}"), agent_id=agent))
    warned = [line["reason"] for line in logs if line["log_level"] == "warning"]
    assert warned == [f"another agent issued it: {agent}" for agent in ("agent-2", "agent-3")]


async def test_the_number_of_remembered_foreign_agents_is_bounded(requests, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 10)
    with capture_logs() as logs:
        for number in range(50):
            assert not requests.is_ours(replace(values.request(), agent_id=f"made-up-{number}"))
    assert len(requests._others) == 10
    assert len([line for line in logs if line["log_level"] == "warning"]) == 10


async def test_a_failed_publish_raises_and_the_request_is_accepted_if_it_arrives(requests, monkeypatch):
    async def lost(event):
        raise BusError("no answer", transient=True)

    monkeypatch.setattr(requests._bus, "publish", lost)
    with pytest.raises(BusError):
        await requests.issue(values.request())
    assert requests.is_ours(over_the_wire(values.request()))


async def test_a_request_with_lone_surrogates_is_accepted(requests):
    error = MethodError(method="cloud", error="cannot read caf\udce9.duckdb")
    issued = replace(values.request(route=("http",)), errors=(error,))
    await requests.issue(issued)
    assert requests.is_ours(over_the_wire(issued))
