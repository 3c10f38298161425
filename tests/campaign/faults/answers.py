"""Answers of the S3 store and of Akosha that are errors, get lost, or are wrong, while a change is synced.

An HTTP proxy before the server gives them until the agent has met one, and for a random time after that. Then the agent
must deliver by itself.
"""

import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from aiohttp import web

from tests.campaign.faults.fault import Fault
from tests.campaign.targets import AkoshaTarget
from tests.campaign.world import World
from tests.support.servers.faulty_proxy import (
    Action,
    FaultyProxy,
    Forward,
    answer_with,
    ending,
    lose_the_answer,
    outdated_lists,
    refuse,
    reset,
    skewed_clock,
    sometimes,
    store_other_bytes,
    swallow,
)
from tests.support.servers.threaded_proxy import running_faulty_proxy

MEET_SECONDS = 5.0
"""Longest time in which the agent meets a wrong answer."""

LAST_SECONDS = 1.0
"""Longest time that wrong answers go on after that."""

BAR = "recovers by itself; the agent never exits"

FEW, MANY = 0.01, 0.5
"""The share of the requests that fail."""

LAG_SECONDS = 1.0
YEARS = timedelta(days=4 * 365)
MANIFEST = "manifest.json"
WRONG_ETAG = '"' + "0" * 32 + '"'

Answer = tuple[str, str, Action]
"""The operation, the end of the keys ("" for any), and what the proxy does."""


class Answers(Fault):
    """A proxy before the server answers instead of it, or changes its answers. `lasts`: until the agent has delivered.

    A strike sets `lasts`.
    """

    bar = BAR
    delayed = False
    lasts: bool

    def proxy(self, world: World) -> FaultyProxy:
        """Return the proxy before the server."""
        assert world.target.proxy is not None
        return world.target.proxy

    def begin(self, world: World, rng: random.Random, answer: Answer, *, share: float = 1.0) -> None:
        """Give an answer to a share of the requests from now on."""
        self.met = threading.Event()
        operation, suffix, action = answer

        async def noted(request: web.Request, forward: Forward) -> web.StreamResponse:
            self.met.set()
            return await action(request, forward)

        self.proxy(world).on(operation, sometimes(share, ending(suffix, noted), random.Random(rng.random())))

    def heal(self, world: World, rng: random.Random) -> None:
        if self.lasts:
            world.settle()
        else:
            self.met.wait(MEET_SECONDS)
            threading.Event().wait(rng.uniform(0, LAST_SECONDS))
        self.proxy(world).clear()


class Failures(Answers):
    """A share of the requests fails. The agent delivers while a few of them do; many fail only for a while."""

    def failures(self) -> Iterator[Answer]:
        """Yield the ways in which a request may fail."""
        for status, code in ((500, "InternalError"), (503, "SlowDown"), (429, "Throttling")):
            yield "", "", refuse(status, code)
        for status, code in ((301, "PermanentRedirect"), (307, "TemporaryRedirect")):
            yield "", "", refuse(status, code, headers={"Location": "http://127.0.0.1:9/elsewhere"})
        yield "", "", reset(after=0)
        yield "", "", lose_the_answer()

    def strike(self, world: World, rng: random.Random) -> None:
        share = rng.choice((FEW, MANY))
        self.lasts = share == FEW
        self.begin(world, rng, rng.choice([*self.failures()]), share=share)


class StoreAnswers(Failures):
    row = "S3: 1 % or 50 % of answers are 500, 503, 429, 301, 307, or lost"
    rounds = 60
    target = "s3"

    def failures(self) -> Iterator[Answer]:
        yield from super().failures()
        yield "put_object", MANIFEST, lose_the_answer()


class AkoshaAnswers(Failures):
    """A 401 is a token that has expired, and is accepted again later."""

    row = "Akosha: 1 % or 50 % of answers are 500, 503, 429, 301, 307, 401, or lost"
    rounds = 30
    target = "akosha"

    def prepare(self, world: World) -> None:
        assert isinstance(world.target, AkoshaTarget)
        self._proxy = world.enter(running_faulty_proxy(world.target.server.url.removesuffix("/mcp")))
        world.machine.set(http_endpoint=f"{self._proxy.url}/mcp")

    def proxy(self, world: World) -> FaultyProxy:
        return self._proxy

    def failures(self) -> Iterator[Answer]:
        yield from super().failures()
        yield "", "", refuse(401, "Unauthorized")


class StoreLies(Answers):
    """The store reports that it has done what it has not done, or reports wrong facts."""

    row = "S3: PUTs that lie, lists that lag, wrong ETags and sizes, a skewed clock"
    rounds = 70
    target = "s3"

    def prepare(self, world: World) -> None:
        world.machine.constants["agent.application.sync.confirmation:CONFIRM_SECONDS"] = 2 * LAG_SECONDS

    def strike(self, world: World, rng: random.Random) -> None:
        ahead = rng.choice((YEARS, -YEARS))
        lasting = [*_lies_that_last(ahead)]
        lie = rng.choice([*lasting, *_lies(ahead)])
        self.lasts = lie in lasting
        self.begin(world, rng, lie)


def _lies_that_last(ahead: timedelta) -> Iterator[Answer]:
    """Yield lies that do not stop the agent: it asks about each object, too."""
    yield "list_objects_v2", "", outdated_lists(LAG_SECONDS)
    yield "list_objects_v2", "", answer_with(replace=("<Size>", "<Size>1"))
    yield "list_objects_v2", "", answer_with(replace=("<ETag>", "<ETag>0"))
    yield "", "", skewed_clock(ahead)


def _lies(ahead: timedelta) -> Iterator[Answer]:
    """Yield lies that stop the agent as long as all answers are such."""
    date = format_datetime(datetime.now(UTC) + ahead, usegmt=True)
    yield "", "", refuse(403, "RequestTimeTooSkewed", headers={"Date": date})
    yield "head_object", "", answer_with(headers={"Content-Length": "5"})
    yield "head_object", "", answer_with(headers={"ETag": WRONG_ETAG})
    yield "copy_object", "", answer_with(replace=("<ETag>", "<ETag>0"))
    for suffix in (MANIFEST, ".duckdb", ".wal", "memories.json.gz"):
        yield "put_object", suffix, swallow()
        yield "put_object", suffix, store_other_bytes()
        yield "put_object", suffix, answer_with(headers={"ETag": WRONG_ETAG})
