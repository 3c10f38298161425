"""Access to the page while the agent ends, and for a client that disconnects while its user is checked."""

import asyncio
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from agent.entrypoints.control_api import page_access
from agent.entrypoints.control_api.auth import LoopbackRules
from agent.entrypoints.control_api.page_access import PageAccess
from agent.entrypoints.control_api.problems import Problem
from agent.entrypoints.page.sessions import PageSessions
from tests.support.clock import ManualClock


class Setup:
    """`ports` are open; `listen` waits for `may_listen`."""

    def __init__(self, state_dir) -> None:
        clock = ManualClock()
        self.access = PageAccess(PageSessions(state_dir, clock), clock, self._listen)
        self.ports, self.opened, self.may_listen = set[int](), 0, asyncio.Event()
        self.may_listen.set()

    async def _listen(self, address, _port):
        await self.may_listen.wait()
        self.opened += 1
        port = self.opened
        self.ports.add(port)
        return SimpleNamespace(rules=LoopbackRules(address, port), close=lambda: self.ports.discard(port))


@pytest.fixture
async def setup(tmp_path):
    setup = Setup(tmp_path)
    yield setup
    await setup.access.aclose()


async def test_an_agent_that_ends_opens_no_page(setup):
    await setup.access.open()
    await setup.access.aclose()
    with pytest.raises(Problem, match="about to end") as caught:
        await setup.access.open()
    assert (caught.value.status, setup.opened, setup.ports) == (503, 1, set())


async def test_a_port_that_is_opened_while_the_agent_ends_is_closed(setup):
    setup.may_listen.clear()
    opening = asyncio.create_task(setup.access.open())
    await asyncio.sleep(0)
    closing = asyncio.create_task(setup.access.aclose())
    await asyncio.sleep(0)
    setup.may_listen.set()
    await asyncio.gather(opening, closing)
    assert (setup.opened, setup.ports) == (1, set())
    assert "page-port" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_client_that_has_closed_is_no_attack_and_does_not_hide_one(setup, monkeypatch):
    def connection():
        aborted = []
        transport = SimpleNamespace(get_extra_info=lambda _: ("127.0.0.1", 4711), abort=lambda: aborted.append(1))
        rules = LoopbackRules("127.1.2.3", 80)
        return SimpleNamespace(rules=rules, has_own_peer=None, transport=transport, aborted=aborted)

    def ended(*_):
        raise ConnectionResetError("the client has disconnected")

    closed = connection()
    with capture_logs() as logs:
        monkeypatch.setattr(page_access, "is_of_this_user", ended)
        with pytest.raises(ConnectionResetError):
            await setup.access.check_peer(closed)
        assert (closed.aborted, logs) == ([1], [])
        monkeypatch.setattr(page_access, "is_of_this_user", lambda *_: False)
        for _ in range(2):
            with pytest.raises(Problem):
                await setup.access.check_peer(connection())
    assert [line["event"] for line in logs] == ["page_peer_refused"]
