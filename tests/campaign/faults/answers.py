"""Answers of the S3 store and of Akosha that are errors, get lost, or are wrong.

An HTTP proxy before the server gives them while a change is synced. Afterwards the agent must deliver by itself.
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
    ANY,
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
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY
from tests.support.servers.threaded_proxy import running_faulty_proxy

FEW, MANY = 0.01, 0.5
"""The share of the requests that fail."""

LAST_SECONDS = 2.0
"""Longest time for which many requests fail."""

LAG_SECONDS = 1.0
YEARS = timedelta(days=4 * 365)
WRONG_ETAG = '"' + "0" * 32 + '"'


class Answers(Fault):
    """A share of the requests fails. The agent delivers although a few of them do; many fail for a while only."""

    delayed = False

    def proxy(self, world: World) -> FaultyProxy:
        assert world.target.proxy is not None
        return world.target.proxy

    def failures(self, rng: random.Random) -> Iterator[Action]:
        """Yield the ways in which a request may fail."""
        for status, code in ((500, "InternalError"), (503, "SlowDown"), (429, "Throttling")):
            yield refuse(status, code)
        for status, code in ((301, "PermanentRedirect"), (307, "TemporaryRedirect")):
            yield refuse(status, code, headers={"Location": "http://127.0.0.1:9/elsewhere"})
        yield reset(after=0)
        yield lose_the_answer()

    def strike(self, world: World, rng: random.Random) -> None:
        self.share = rng.choice((FEW, MANY))
        failure = rng.choice([*self.failures(rng)])
        self.proxy(world).on(ANY, sometimes(self.share, failure, random.Random(rng.random())))

    def heal(self, world: World, rng: random.Random) -> None:
        if self.share == FEW:
            world.settle()
        else:
            threading.Event().wait(rng.uniform(0, LAST_SECONDS))
        self.proxy(world).clear()


class StoreAnswers(Answers):
    row = "S3: 1 % or 50 % of answers are 500, 503, 429, 301, 307, or lost"
    rounds = 60
    target = "s3"

    def failures(self, rng: random.Random) -> Iterator[Action]:
        yield from super().failures(rng)
        yield ending("manifest.json", lose_the_answer())


class AkoshaAnswers(Answers):
    """The proxy is before Akosha; a 401 is an expired token that is accepted again later."""

    row = "Akosha: 1 % or 50 % of answers are 500, 503, 429, 307, 401, or lost"
    rounds = 40
    target = "akosha"

    def prepare(self, world: World) -> None:
        assert isinstance(world.target, AkoshaTarget)
        self._proxy = world.enter(running_faulty_proxy(world.target.server.url.removesuffix("/mcp")))
        world.machine.set(http_endpoint=f"{self._proxy.url}/mcp")

    def proxy(self, world: World) -> FaultyProxy:
        return self._proxy

    def failures(self, rng: random.Random) -> Iterator[Action]:
        yield from super().failures(rng)
        yield refuse(401, "Unauthorized")


class StoreLies(Fault):
    """The store answers a few requests as if it had done what it has not done, or with wrong facts."""

    row = "S3: PUTs that lie, lists that lag, wrong ETags and sizes, a skewed clock"
    rounds = 60
    target = "s3"
    delayed = False

    def prepare(self, world: World) -> None:
        world.machine.constants["agent.application.sync.upload:CONFIRM_SECONDS"] = 2 * LAG_SECONDS

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.target.proxy is not None
        self.is_lasting, operation, lie = rng.choice([*_lies(rng)])
        world.target.proxy.on(operation, lie, times=None if self.is_lasting else rng.randint(1, 3))

    def heal(self, world: World, rng: random.Random) -> None:
        assert world.target.proxy is not None
        if self.is_lasting:
            world.settle()
        else:
            threading.Event().wait(rng.uniform(0, LAST_SECONDS))
        world.target.proxy.clear()


def _lies(rng: random.Random) -> Iterator[tuple[bool, str, Action]]:
    """Yield whether the agent delivers although all answers are such, the operation, and its answer."""
    ahead = rng.choice((YEARS, -YEARS))
    date = format_datetime(datetime.now(UTC) + ahead, usegmt=True)
    yield True, "list_objects_v2", outdated_lists(LAG_SECONDS)
    yield True, "list_objects_v2", answer_with(replace=("<Size>", "<Size>1"))
    yield True, ANY, skewed_clock(ahead)
    yield False, ANY, refuse(403, "RequestTimeTooSkewed", headers={"Date": date})
    yield False, "head_object", answer_with(headers={"Content-Length": "5"})
    for lie in (swallow(), store_other_bytes(), answer_with(headers={"ETag": WRONG_ETAG})):
        yield False, "put_object", lie
        yield False, "put_object", ending("manifest.json", lie)
    for operation in ("head_object", "get_object"):
        yield False, operation, answer_with(headers={"ETag": WRONG_ETAG})
    for operation in ("copy_object", "list_objects_v2"):
        yield False, operation, answer_with(replace=("<ETag>", "<ETag>0"))


class StoreTokenExpired(Fault):
    """The store accepts only the newest session token; the agent finds it in a file some time later."""

    row = "S3: expired token, renewed later"
    rounds = 20
    target = "s3"
    delayed = False

    def prepare(self, world: World) -> None:
        assert world.target.proxy is not None
        self.file, self.token = world.folder / "credentials", ""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del world.machine.environ[name]
        world.machine.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(self.file)
        self._renew(world)
        self._write()
        world.target.proxy.on(ANY, self._check_token)

    def strike(self, world: World, rng: random.Random) -> None:
        self._renew(world)

    def heal(self, world: World, rng: random.Random) -> None:
        world.said("expired token")
        threading.Event().wait(rng.uniform(0, LAST_SECONDS))
        self._write()

    async def _check_token(self, request: web.Request, forward: Forward) -> web.StreamResponse:
        is_valid = request.headers.get("x-amz-security-token") == self.token
        return await (forward() if is_valid else refuse(400, "ExpiredToken")(request, forward))

    def _renew(self, world: World) -> None:
        self.token = f"canary-of-a-session-{world.rng.random()}"
        world.machine.secrets += (self.token,)

    def _write(self) -> None:
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "aws_session_token": self.token}
        draft = self.file.with_suffix(".draft")
        draft.write_text("\n".join(["[default]", *(f"{name} = {value}" for name, value in keys.items())]))
        draft.replace(self.file)
