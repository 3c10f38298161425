"""Requests for the same document share a call, but never one that began before the request."""

import asyncio

import pytest

from agent.entrypoints.control_api.shared import SharedCalls
from tests.support.clock import until_idle


class Source:
    """Makes documents, each when it is released; `begun` counts the calls."""

    def __init__(self) -> None:
        self.begun, self.version = 0, b"1"
        self.released = asyncio.Event()
        self.error: Exception | None = None

    async def make(self) -> bytes:
        self.begun += 1
        version = self.version
        await self.released.wait()
        if self.error:
            raise self.error
        return version


@pytest.fixture
async def shared():
    calls = SharedCalls()
    yield calls
    await calls.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("control-")]


async def test_requests_share_calls_and_none_gets_a_document_from_before_it(shared):
    source = Source()
    first = [asyncio.create_task(shared.result("a", source.make)) for _ in range(50)]
    await until_idle()
    source.version = b"2"
    later = [asyncio.create_task(shared.result("a", source.make)) for _ in range(50)]
    await until_idle()
    assert source.begun == 1
    source.released.set()
    assert await asyncio.gather(*first) == [b"1"] * 50
    assert await asyncio.gather(*later) == [b"2"] * 50
    assert source.begun == 2
    assert await shared.result("a", source.make) == b"2"
    assert source.begun == 3


async def test_other_documents_do_not_wait(shared):
    slow, quick = Source(), Source()
    waiting = asyncio.create_task(shared.result("slow", slow.make))
    await until_idle()
    quick.released.set()
    assert await shared.result("quick", quick.make) == b"1"
    slow.released.set()
    await waiting


async def test_a_request_that_is_cancelled_does_not_cancel_the_others(shared):
    source = Source()
    first, second = (asyncio.create_task(shared.result("a", source.make)) for _ in range(2))
    await until_idle()
    first.cancel()
    source.released.set()
    assert await second == b"1"


async def test_an_error_reaches_each_request_and_ends_with_them(shared):
    source = Source()
    source.error = RuntimeError("the disk is gone")
    source.released.set()
    asked = [asyncio.create_task(shared.result("a", source.make)) for _ in range(3)]
    assert [str(error) for error in await asyncio.gather(*asked, return_exceptions=True)] == ["the disk is gone"] * 3
    source.error = None
    assert await shared.result("a", source.make) == b"1"


async def test_closing_ends_calls_that_nobody_waits_for():
    calls, source = SharedCalls(), Source()
    asked = [asyncio.create_task(calls.result("a", source.make)) for _ in range(2)]
    await until_idle()
    asked.append(asyncio.create_task(calls.result("a", source.make)))
    await until_idle()
    for task in asked:
        task.cancel()
    await calls.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("control-")]
