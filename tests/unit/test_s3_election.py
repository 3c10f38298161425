"""A create on a store without conditional puts: whatever the order of the requests, at most one agent succeeds."""

import asyncio
import random

import pytest

from agent.adapters.s3 import creating
from agent.adapters.s3.creating import ObjectCreator
from agent.domain.errors import NoSuchObject, StoreError
from agent.ports import Creation

KEY = "systems/laptop/owner.json"


class Requests:
    """A store that ignores conditions. It answers one request at a time, in the order that `rng` chooses."""

    def __init__(self, rng: random.Random) -> None:
        self.objects: dict[str, bytes] = {}
        self.writers: list[bytes] = []
        self._rng = rng
        self._waiting: list[asyncio.Future[None]] = []

    async def call(self, operation: str, key: str, **parameters):
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn
        if operation == "put_object":
            self.objects[key] = parameters["Body"].read()
            if key == KEY:
                self.writers.append(self.objects[key])
        elif operation == "delete_object":
            self.objects.pop(key, None)
        elif key not in self.objects:
            raise NoSuchObject(key)
        return self.objects.get(key, b"")

    async def answer(self, running: "asyncio.Future[object]", *, most: int = 10**6) -> None:
        """Answer requests until the callers have ended, or `most` requests were answered."""
        while not running.done() and most:
            await asyncio.sleep(0)
            if self._waiting:
                self._waiting.pop(self._rng.randrange(len(self._waiting))).set_result(None)
                most -= 1
        await asyncio.sleep(0)

    def forget_waiting(self) -> None:
        """Never answer the requests that wait now: their agent was killed."""
        self._waiting.clear()


@pytest.fixture(autouse=True)
def md5_in_this_thread(monkeypatch):
    async def at_once(work):
        return work()

    async def read(connection, key):
        yield await connection.call("get_object", key)

    monkeypatch.setattr(creating.asyncio, "to_thread", at_once)
    monkeypatch.setattr(creating, "read", read)


async def created(requests: Requests, agents: int) -> list[Creation]:
    creates = [ObjectCreator(requests).create(KEY, b"%d" % number, replace=False) for number in range(agents)]
    running = asyncio.gather(*creates)
    await requests.answer(running)
    return running.result()


@pytest.mark.parametrize("agents", [2, 3])
async def test_at_most_one_of_concurrent_creates_writes_the_object(agents):
    seen = set()
    for seed in range(1000):
        requests = Requests(random.Random(seed))
        results = await created(requests, agents)
        assert requests.writers == [b"%d" % at for at, result in enumerate(results) if result is Creation.CREATED], seed
        assert len(requests.writers) <= 1, seed
        assert requests.objects.get(KEY) == (requests.writers[0] if requests.writers else None), seed
        seen |= {*results}
    assert seen == {Creation.CREATED, Creation.EXISTS, Creation.CONTENDED}


async def test_an_agent_alone_creates_the_object_and_leaves_nothing_else():
    requests = Requests(random.Random(0))
    assert await created(requests, 1) == [Creation.CREATED]
    assert requests.objects == {KEY: b"0"}


async def test_what_a_killed_agent_left_makes_a_create_contended_until_the_object_was_replaced():
    requests = Requests(random.Random(0))
    requests.objects = {f"{KEY}.closed": b"killed", f"{KEY}.candidate": b"killed"}
    assert await created(requests, 1) == [Creation.CONTENDED]
    replacing = asyncio.ensure_future(ObjectCreator(requests).create(KEY, b"0", replace=True))
    await requests.answer(replacing)
    assert replacing.result() is Creation.UNPROVEN
    assert requests.objects == {KEY: b"0"}


@pytest.mark.parametrize("answered", range(11))
async def test_after_a_kill_at_any_request_another_agent_gets_the_object(answered):
    """An election needs ten requests."""
    requests = Requests(random.Random(0))
    killed = asyncio.ensure_future(ObjectCreator(requests).create(KEY, b"killed", replace=False))
    await requests.answer(killed, most=answered)
    killed.cancel()
    await asyncio.wait({killed})
    requests.forget_waiting()
    (result,) = await created(requests, 1)
    assert (result is Creation.EXISTS) == (requests.writers == [b"killed"])
    if result is Creation.CONTENDED:
        replacing = asyncio.ensure_future(ObjectCreator(requests).create(KEY, b"0", replace=True))
        await requests.answer(replacing)
    assert requests.objects[KEY] == (b"killed" if result is Creation.EXISTS else b"0")


async def test_a_create_that_fails_does_not_write_the_object(monkeypatch):
    requests = Requests(random.Random(0))
    call = requests.call

    async def refused(operation, key, **parameters):
        if operation == "head_object" and key.endswith(".closed"):
            raise StoreError("503", transient=True)
        return await call(operation, key, **parameters)

    monkeypatch.setattr(requests, "call", refused)
    with pytest.raises(StoreError):
        await created(requests, 1)
    assert requests.writers == []
