"""Faults of the agent's page: it is open while the agent is killed, and clients of its port behave badly."""

import http.client
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from tests.campaign.faults.fault import Fault
from tests.campaign.leftovers import LASTING_SECONDS
from tests.campaign.pages import JSON, SUCCEEDED, Page, half_open, held, position, unread
from tests.campaign.world import NotSettled, World
from tests.support.waiting import happens

TABS = 4
STALLED = 5
"""How many readers of each path never read."""

KILLED_SECONDS = 1.0
"""Maximum time from a commit to the kill of the agent."""

SUSPENDED_SECONDS = 5.0
"""Maximum time that the agent is suspended: longer than `stalled_seconds` of LIMITS."""

UNDELAYED_SECONDS = 20.0
"""Maximum time of the syncs of a round while clients of the page behave badly."""

LIMITS: Mapping[str, object] = {"heartbeat_seconds": 1.0, "stalled_seconds": 3.0, "connections": 60}


class PageFault(Fault):
    """The page is opened before the first fault."""

    delayed = False
    tabs: ClassVar[int] = 0

    def prepare(self, world: World) -> None:
        world.machine.constants["agent.entrypoints.control_api.connection:DEFAULT_LIMITS"] = LIMITS
        self.page: Page | None = None
        self.clients: list[socket.socket] = []
        world.at_end(self.hang_up)

    def strike(self, world: World, rng: random.Random) -> None:
        self.page = self.page or Page(world, tabs=self.tabs)

    def heal(self, world: World, rng: random.Random) -> None:
        world.settle(UNDELAYED_SECONDS)

    def hang_up(self) -> None:
        """Close the connections of bad clients."""
        while self.clients:
            self.clients.pop().close()


class PageOpen(PageFault):
    """The agent is killed, restarted or suspended, or readers never read, while tabs show the page."""

    row = "Page open: agent killed, restarted or suspended, readers that never read"
    rounds = 40
    bar = "the page comes back at its port, with its session and without a gap; such readers are disconnected"
    tabs = TABS

    def strike(self, world: World, rng: random.Random) -> None:
        super().strike(world, rng)
        self.stalled: list[socket.socket] = []
        how = rng.choice((self._kill, self._restart, self._suspend, self._stall))
        how(world, rng)

    def heal(self, world: World, rng: random.Random) -> None:
        if world.agent is None:
            world.start_agent()
        super().heal(world, rng)
        if not happens(lambda: not held(world, self.stalled), LASTING_SECONDS):
            raise NotSettled(f"{held(world, self.stalled)} connections of clients that never read are open")
        self.hang_up()

    def check(self, world: World) -> Iterator[str]:
        assert self.page is not None
        newest = position(world)
        happens(lambda: all(tab.last >= newest or tab.error for tab in self.page.tabs), LASTING_SECONDS)
        for tab in self.page.tabs:
            if tab.error or tab.last < newest:
                yield f"a tab of the page has events up to {tab.last} of {newest}; {tab.error}"
        status, answer = self.page.get("/v1/status")
        if status != http.client.OK:
            yield f"the page has lost its session or its port: {status} {answer[:200]!r}"
            return
        results = [event for event in world.machine.events() if event["type"] == SUCCEEDED]
        if self.page.uploads_of_history() != [event["data"]["upload_id"] for event in results]:
            yield "the history of the page is not the agent's"

    def _kill(self, world: World, rng: random.Random) -> None:
        world.commit()
        threading.Event().wait(rng.uniform(0, KILLED_SECONDS))
        world.kill_agent()

    def _restart(self, world: World, rng: random.Random) -> None:
        assert world.stop_agent() == 0

    def _suspend(self, world: World, rng: random.Random) -> None:
        assert world.agent is not None
        world.commit()
        with world.agent.suspended():
            threading.Event().wait(rng.uniform(0, SUSPENDED_SECONDS))

    def _stall(self, world: World, rng: random.Random) -> None:
        assert self.page is not None
        self.stalled = [unread(self.page, "/v1/history?limit=200", times=100) for _ in range(STALLED)]
        events = [unread(self.page, "/v1/events?after=0") for _ in range(STALLED)]
        self.clients += [*self.stalled, *events]  # buffers may hold all events


DATA = ("/v1/status", "/v1/events", "/v1/history", "/v1/plots", "/v1/uploads", "/metrics")
CHANGES = ("/v1/sync", "/v1/verify", "/v1/events", "/v1/page")
WRONG = "wrong-0123456789-0123456789-0123456789-0123"
FLOOD = 20
"""How often each of the requests of a flood is sent."""


class PageAttacked(PageFault):
    """Clients without a session, with a wrong one, of other sites, or with broken requests; nothing is answered.

    `admitted`: what was answered nevertheless.
    """

    row = "Page: floods of requests without a session, of other sites, too large, half-open, or never read"
    rounds = 40
    bar = "nothing is read or triggered; the control socket answers; no sync waits"
    typical_seconds = 3.0

    def prepare(self, world: World) -> None:
        super().prepare(world)
        self.admitted: list[str] = []

    def strike(self, world: World, rng: random.Random) -> None:
        super().strike(world, rng)
        assert self.page is not None
        ways: tuple[Callable[[World, Page], None], ...] = (
            self._no_session,
            self._wrong_token,
            self._other_site,
            self._too_large,
            self._half_open,
            self._unread,
        )
        for way in rng.sample(ways, 2):
            way(world, self.page)

    def heal(self, world: World, rng: random.Random) -> None:
        super().heal(world, rng)
        self.hang_up()

    def check(self, world: World) -> Iterator[str]:
        yield from self.admitted
        asked = [event for event in world.machine.events() if event["data"].get("reason") == "manual"]
        if asked:
            yield f"a client without access has triggered {asked}"
        sessions = json.loads((world.machine.state / "page.json").read_text())["sessions"]
        if len(sessions) != 1:
            yield f"{len(sessions)} sessions of the page, but one was opened"

    def refused(self, page: Page, method: str, path: str, headers: Mapping[str, str], body: str | None = None) -> None:
        """Send a request that must be refused, or whose connection is closed."""
        try:
            status, _ = page.send(method, path, body, headers)
        except (OSError, http.client.HTTPException):
            return
        if status < http.client.BAD_REQUEST:
            self.admitted.append(f"{method} {path} with {[*headers]} was answered with {status}")

    def _all_refused(self, page: Page, headers: Mapping[str, str]) -> None:
        for _ in range(FLOOD):
            for path in DATA:
                self.refused(page, "GET", path, headers)
            for path in CHANGES:
                self.refused(page, "POST", path, JSON | headers, "{}")

    def _no_session(self, world: World, page: Page) -> None:
        self._all_refused(page, {})
        self._all_refused(page, {"Authorization": f"Bearer {WRONG}"})

    def _wrong_token(self, world: World, page: Page) -> None:
        for token in (WRONG, page.token) * FLOOD:
            self.refused(page, "POST", "/v1/page/session", JSON, json.dumps({"token": token}))

    def _other_site(self, world: World, page: Page) -> None:
        for headers in ({"Host": "example.org"}, {"Origin": "http://example.org"}, {"Sec-Fetch-Site": "cross-site"}):
            self._all_refused(page, page.bearing | headers)

    def _too_large(self, world: World, page: Page) -> None:
        for _ in range(FLOOD):
            self.refused(page, "GET", "/v1/status", page.bearing | {"X-Large": "x" * 2**20})
            self.refused(page, "POST", "/v1/sync", JSON | page.bearing, json.dumps({"id": "x" * 2**20}))

    def _half_open(self, world: World, page: Page) -> None:
        self.clients += [half_open(page) for _ in range(2 * LIMITS["connections"])]
        self._answers(world)

    def _unread(self, world: World, page: Page) -> None:
        self.clients += [unread(page, "/page.js", times=20) for _ in range(2 * LIMITS["connections"])]
        self._answers(world)

    def _answers(self, world: World) -> None:
        if world.status() is None:
            self.admitted.append("the control socket does not answer while clients hold connections to the page")
