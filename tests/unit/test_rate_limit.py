"""The rate limit holds over any period and for all senders together, and is fully used."""

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
def test_within_ten_seconds_at_most_the_rate_and_one_piece_are_sent(rate, pieces):
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
def test_a_continuous_sender_uses_the_full_rate(pieces, kib):
    bucket, now = TokenBucket.of(kib * KIB, 0), 0.0
    for size in pieces:
        now += bucket.wait(size, now)
        bucket = bucket.taken(size, now)
    assert now <= sum(pieces) / (kib * KIB) + 1e-6


def test_unused_time_gives_no_extra_burst():
    bucket = TokenBucket.of(100 * KIB, 0).taken(25 * KIB, 0)
    assert bucket.wait(25 * KIB, 3600) == 0
    assert bucket.taken(25 * KIB, 3600).wait(25 * KIB, 3600) == 0.25


def test_a_clock_set_back_changes_no_wait():
    bucket = TokenBucket.of(KIB, 100).taken(256, 100)
    assert bucket.wait(256, 50) == 0.25


async def finished(clock: ManualClock, work: asyncio.Task, *, most: float = 1e6) -> float:
    """Advance the clock until the work is done; return the seconds that it took."""
    start = clock.monotonic()
    await clock.advance(0)
    while not work.done() and clock.monotonic() - start < most:
        await clock.advance(clock.next_due or 0)
    return clock.monotonic() - start


async def body(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def send(limiter: RateLimiter, *pieces: bytes, progress=ignore_progress) -> bytes:
    """Send a body like a store that writes each piece on arrival; return the bytes received."""
    received = bytearray()
    async with aclosing(limiter.limited(body(*pieces), progress)) as limited:
        async for piece in limited:
            progress(len(piece))
            received += piece
    return bytes(received)


async def test_a_limited_object_takes_the_expected_time_and_arrives_unchanged():
    clock = ManualClock()
    pieces = [bytes([n]) * 333_333 for n in range(6)]
    sending = asyncio.create_task(send(RateLimiter(100 * KIB, clock), *pieces))
    took = await finished(clock, sending)
    assert abs(took - 6 * 333_333 / (100 * KIB)) < 0.3
    assert sending.result() == b"".join(pieces)


async def test_a_waiting_sender_reports_progress_every_second_and_counts_each_byte_once():
    clock, reports = ManualClock(), []

    def report(count):
        reports.append((clock.monotonic(), count))

    took = await finished(clock, asyncio.create_task(send(RateLimiter(KIB, clock), bytes(10 * KIB), progress=report)))
    assert sum(count for _, count in reports) == 10 * KIB
    report_times = [at for at, _ in reports]
    assert max(after - before for before, after in zip([0, *report_times], [*report_times, took], strict=True)) <= 1.0


async def test_two_objects_and_a_batch_share_the_limit_evenly():
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
    """A sink with a server that stores everything at once."""

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


async def test_a_batch_is_sent_at_once_and_delays_the_next_one():
    clock, report_times = ManualClock(), []
    sink = limited_sink(RateLimiter(KIB, clock), lambda: report_times.append(clock.monotonic()))
    first, second = packed(40), packed(40, start=40)
    size = sum(len(one.body) for one in first)
    assert await finished(clock, asyncio.create_task(sink.store(first))) == 0
    assert report_times == []
    took = await finished(clock, asyncio.create_task(sink.store(second)))
    assert abs(took - size / KIB) < 0.01
    assert max(after - before for before, after in zip([0, *report_times], [*report_times, took], strict=True)) <= 1.0


async def test_a_cancelled_wait_ends_at_once_and_uses_no_tokens():
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


async def test_a_cancelled_sender_leaves_no_waiter():
    clock = ManualClock()
    work = asyncio.create_task(send(RateLimiter(KIB, clock), bytes(100 * KIB)))
    await clock.advance(3)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert clock.sleepers == 0


async def sent(clock: ManualClock, part: PartBody) -> list[tuple[float, int]]:
    """Read the body like a connection; return the time and size of each piece sent."""
    return [(clock.monotonic(), len(piece)) async for piece in part]


async def test_parallel_parts_are_sent_evenly_and_retries_count_against_the_limit():
    """Bytes count when they are sent, not when they are read: within ten seconds at most the limit and a slice."""
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
        assert max(after - before for before, after in zip([0, *ats], ats, strict=False)) <= 1, (
            "no part waits for the others"
        )
    assert await finished(clock, asyncio.create_task(sent(clock, bodies[0]))) > 9
    assert sum(count for _, count in recorded) == 3 * size, "a retry is not progress"


async def test_a_sender_that_waits_behind_a_large_piece_reports_progress_too():
    clock, report_times = ManualClock(), []
    rate_limiter = RateLimiter(KIB, clock)
    await rate_limiter.take(100 * KIB, lambda: None)
    first = asyncio.create_task(rate_limiter.take(1, lambda: None))
    await clock.advance(0)
    second = asyncio.create_task(rate_limiter.take(1, lambda: report_times.append(clock.monotonic())))
    await finished(clock, asyncio.gather(first, second))
    assert len(report_times) >= 99
