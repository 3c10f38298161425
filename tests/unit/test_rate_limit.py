"""Uploads within their limit: over any stretch of time, for all who send together; and no slower than it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from hypothesis import given, settings, strategies as st

from agent.adapters.akosha import AkoshaSink
from agent.adapters.s3.part import PartBody
from agent.ports import StoreResult, ignore_progress
from agent.ports.rate_limit import RateLimiter, TokenBucket
from tests.support.clock import ManualClock
from tests.support.memories import memory

KIB = 1024
WINDOW = 10


@given(
    rate=st.integers(1, 10_000).map(lambda kib: kib * KIB),
    pieces=st.lists(st.tuples(st.integers(0, 5_000_000), st.floats(0, 30)), min_size=1, max_size=60),
)
@settings(max_examples=30)
def test_no_ten_seconds_see_more_than_the_rate_and_one_piece(rate, pieces):
    bucket, now, sent = TokenBucket.of(rate, 0), 0.0, []
    for size, idle in pieces:
        now += idle
        now += bucket.wait(size, now)
        assert bucket.wait(size, now) == 0
        bucket = bucket.taken(size, now)
        sent.append((now, size))
    slack = max(bucket.full, *(size for size, _ in pieces)) + max(1, rate * 1e-6)
    for start, _ in sent:
        within = sum(size for at, size in sent if start <= at < start + WINDOW)
        assert within <= rate * WINDOW + slack


@given(st.lists(st.integers(1, 5_000_000), min_size=1, max_size=60), st.integers(1, 10_000))
@settings(max_examples=20)
def test_who_always_has_more_to_send_gets_all_of_the_rate(pieces, kib):
    bucket, now = TokenBucket.of(kib * KIB, 0), 0.0
    for size in pieces:
        now += bucket.wait(size, now)
        bucket = bucket.taken(size, now)
    assert now <= sum(pieces) / (kib * KIB) + 1e-6


def test_time_that_went_by_unused_is_not_made_up_for():
    bucket = TokenBucket.of(100 * KIB, 0).taken(25 * KIB, 0)
    assert bucket.wait(25 * KIB, 3600) == 0
    assert bucket.taken(25 * KIB, 3600).wait(25 * KIB, 3600) == 0.25


def test_a_clock_that_went_back_gives_and_takes_nothing():
    bucket = TokenBucket.of(KIB, 100).taken(256, 100)
    assert bucket.wait(256, 50) == 0.25


async def finished(clock: ManualClock, work: asyncio.Task, *, most: float = 1e6) -> float:
    """Let time pass until the work is done; return how long that took."""
    start = clock.monotonic()
    await clock.advance(0)
    while not work.done() and clock.monotonic() - start < most:
        await clock.advance(clock.next_due or 0)
    return clock.monotonic() - start


async def body(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def send(limiter: RateLimiter, *pieces: bytes, progress=ignore_progress) -> bytes:
    """Send a body as a store does that writes each piece when it gets it; return what came."""
    came = bytearray()
    async with aclosing(limiter.limited(body(*pieces), progress)) as limited:
        async for piece in limited:
            progress(len(piece))
            came += piece
    return bytes(came)


async def test_an_object_takes_the_time_that_the_limit_gives_it_and_arrives_as_it_is():
    clock = ManualClock()
    pieces = [bytes([n]) * 333_333 for n in range(6)]
    sending = asyncio.create_task(send(RateLimiter(100 * KIB, clock), *pieces))
    took = await finished(clock, sending)
    assert abs(took - 6 * 333_333 / (100 * KIB)) < 0.3
    assert sending.result() == b"".join(pieces)


async def test_a_waiting_sender_reports_every_second_and_counts_no_byte_twice():
    clock, reports = ManualClock(), []

    def report(count):
        reports.append((clock.monotonic(), count))

    took = await finished(clock, asyncio.create_task(send(RateLimiter(KIB, clock), bytes(10 * KIB), progress=report)))
    assert sum(count for _, count in reports) == 10 * KIB
    signs = [at for at, _ in reports]
    assert max(after - before for before, after in zip([0, *signs], [*signs, took], strict=True)) <= 1.0


async def test_two_objects_and_a_batch_share_the_limit_and_take_turns():
    clock = ManualClock()
    limiter = RateLimiter(100 * KIB, clock)
    sink, batch = limited_sink(limiter), packed(50)
    size = sum(len(one.body) for one in batch)
    objects = [asyncio.create_task(send(limiter, bytes(500 * KIB))) for _ in "ab"]
    pushed = asyncio.create_task(sink.store(batch))
    ends = [asyncio.create_task(finished_at(clock, task)) for task in objects]
    took = await finished(clock, asyncio.gather(*ends, pushed))
    assert abs(took - (1_000 * KIB + size) / (100 * KIB)) < 0.5
    first, second = (end.result() for end in ends)
    assert abs(first - second) < 0.5
    assert pushed.result().stored == 50


class Sink(AkoshaSink):
    """Its server stores everything at once."""

    async def _store(self, batch):
        return StoreResult(stored=len(batch))


def limited_sink(limiter: RateLimiter, waiting=lambda: None) -> Sink:
    return Sink(endpoint="http://127.0.0.1:9/mcp", rate_limiter=limiter, waiting=waiting)


def packed(count: int, start: int = 0):
    sink = Sink(endpoint="http://127.0.0.1:9/mcp")
    return [sink.pack(memory(n), "mac") for n in range(start, start + count)]


async def finished_at(clock: ManualClock, task: asyncio.Task) -> float:
    await task
    return clock.monotonic()


async def test_a_batch_goes_at_once_and_is_paid_for_by_the_next():
    clock, signs = ManualClock(), []
    sink = limited_sink(RateLimiter(KIB, clock), lambda: signs.append(clock.monotonic()))
    first, second = packed(40), packed(40, start=40)
    size = sum(len(one.body) for one in first)
    assert await finished(clock, asyncio.create_task(sink.store(first))) == 0
    assert signs == []
    took = await finished(clock, asyncio.create_task(sink.store(second)))
    assert abs(took - size / KIB) < 0.01
    assert max(after - before for before, after in zip([0, *signs], [*signs, took], strict=True)) <= 1.0


async def test_who_is_cancelled_while_held_back_has_ended_at_once_and_used_nothing_up():
    clock = ManualClock()
    rate_limiter = RateLimiter(KIB, clock)
    await rate_limiter.take(100 * KIB, lambda: None)
    waiting = [asyncio.create_task(rate_limiter.take(50 * KIB, lambda: None)) for _ in range(3)]
    await clock.advance(10)
    for task in waiting[:2]:
        task.cancel()
    await asyncio.gather(*waiting[:2], return_exceptions=True)
    assert all(task.cancelled() for task in waiting[:2])
    assert abs(await finished(clock, waiting[2]) - 90) < 1


async def test_a_sender_that_is_cancelled_leaves_nothing_waiting():
    clock = ManualClock()
    work = asyncio.create_task(send(RateLimiter(KIB, clock), bytes(100 * KIB)))
    await clock.advance(3)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert clock.sleepers == 0


async def sent(clock: ManualClock, part: PartBody) -> list[tuple[float, int]]:
    """Take the body as a connection would; return when how many bytes of it left."""
    return [(clock.monotonic(), len(piece)) async for piece in part]


async def test_parts_on_their_way_together_leave_evenly_and_again_at_a_price():
    """Bytes count when they leave, not when they are gathered: no ten seconds see more than the limit and a slice."""
    clock, recorded = ManualClock(), []
    rate_limiter = RateLimiter(512 * KIB, clock)
    size = 5 * KIB * KIB
    bodies = [
        PartBody([bytes(size - 7), bytearray(7)], size, lambda n: recorded.append((clock.monotonic(), n)), rate_limiter)
        for _ in range(3)
    ]
    tasks = [asyncio.create_task(sent(clock, one)) for one in bodies]
    took = await finished(clock, asyncio.gather(*tasks))
    assert abs(took - 3 * size / (512 * KIB)) < 0.3
    left = sorted(piece for task in tasks for piece in task.result())
    assert sum(count for _, count in recorded) == sum(count for _, count in left) == 3 * size
    for start, _ in left:
        within = sum(count for at, count in left if start <= at < start + WINDOW)
        assert within <= 512 * KIB * WINDOW + 2 * rate_limiter.piece_bytes + 1
    for task in tasks:
        ats = [at for at, _ in task.result()]
        assert max(after - before for before, after in zip([0, *ats], ats, strict=False)) <= 1, "none waits for others"
    assert await finished(clock, asyncio.create_task(sent(clock, bodies[0]))) > 9
    assert sum(count for _, count in recorded) == 3 * size, "a retry is no progress"


async def test_who_waits_behind_a_large_piece_gives_signs_of_life_too():
    clock, signs = ManualClock(), []
    rate_limiter = RateLimiter(KIB, clock)
    await rate_limiter.take(100 * KIB, lambda: None)
    first = asyncio.create_task(rate_limiter.take(1, lambda: None))
    await clock.advance(0)
    second = asyncio.create_task(rate_limiter.take(1, lambda: signs.append(clock.monotonic())))
    await finished(clock, asyncio.gather(first, second))
    assert len(signs) >= 99
