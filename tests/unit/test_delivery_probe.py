"""An Akosha that has lost what it was given is found out by one memory that it should have, offered once more."""

import asyncio
from dataclasses import replace

import pytest

from agent.application.monitoring.status import DELIVERED_TO_AKOSHA, describe
from agent.application.signal import Signal
from agent.application.sync.delivery_probe import PREFIX, ProbeState, without_probes
from agent.application.triggers.probe_loop import FIRST_SECONDS, ProbeLoop
from agent.domain.delivery_state import Target
from agent.domain.errors import HTTPSyncError, SinkError
from agent.domain.memories import memory_id
from agent.domain.routing import SyncPolicy
from agent.entrypoints.cli.status import _counted
from agent.ports import Delivered, MemoryCounts, Unchanged
from tests.support import values
from tests.support.http_sync import TARGET, rig, some
from tests.support.memories import memory, seen

GONE = SinkError("the connection was closed", transient=True)


async def delivered(r, count=5):
    r.files.put("reflection", *some(*range(count)))
    assert isinstance(await r.attempt(), Delivered)
    r.sink.batches.clear()


async def test_a_manual_sync_without_news_offers_the_youngest_memory_and_no_other_trigger_does():
    async with rig() as r:
        await delivered(r)
        assert isinstance(await r.attempt(), Unchanged)
        assert r.sink.batches == []
        done = await r.attempt(reason="manual")
        assert done.reason.endswith("; the server still has what was delivered")
        assert r.sink.batches == [[memory_id(values.SYSTEM, seen(4))]]
        assert len(r.files.reader.opened) == 1


async def test_a_server_that_stores_it_as_new_is_given_everything_again():
    async with rig() as r:
        await delivered(r)
        r.sink.stored.clear()
        done = await r.attempt(reason="manual")
        assert isinstance(done, Delivered)
        assert (done.result.memories, len(r.sink.stored)) == (5, 5)
        assert r.sink.stored.keys() == {memory_id(values.SYSTEM, seen(n)) for n in range(5)}


async def test_in_a_new_session_it_is_offered_before_what_is_new():
    async with rig() as r:
        await delivered(r)
        r.files.put("reflection", *some(*range(6)))
        r.sink.sessions += 1
        await r.attempt()
        assert r.sink.batches == [[memory_id(values.SYSTEM, seen(n))] for n in (4, 5)]
        r.files.put("reflection", *some(*range(7)))
        await r.attempt()
        assert len(r.sink.batches) == 3


@pytest.mark.parametrize("reason", ["manual", "file_change"])
async def test_an_offer_without_an_answer_starts_over(reason):
    """The server may have lost everything and stored the memory: the next answer would be that it is there."""
    async with rig() as r:
        await delivered(r)
        r.sink.stored.clear()
        r.sink.lose_answers = 1
        assert isinstance(await r.attempt(reason="manual"), HTTPSyncError)
        assert len(r.sink.stored) == 1
        assert isinstance(await r.attempt(reason=reason), Delivered)
        assert len(r.sink.stored) == 5


async def test_that_it_is_offered_is_in_the_ledger_before_it_is_sent():
    async with rig() as r:
        await delivered(r)
        store, noted = r.sink.store, []

        async def look(batch):
            noted.append(ProbeState.from_notes(await r.ledger.notes(), TARGET).sent)
            return await store(batch)

        r.sink.store = look
        await r.attempt(reason="manual")
        assert noted == [values.NOON]
        assert ProbeState.from_notes(await r.ledger.notes(), TARGET).sent is None


async def test_a_refusal_that_came_before_anything_was_stored_does_not_start_over():
    async with rig() as r:
        await delivered(r)
        r.sink.failures = [SinkError("status 401")]
        assert isinstance(await r.attempt(reason="manual"), HTTPSyncError)
        assert isinstance(await r.attempt(), Unchanged)


async def test_a_server_that_refuses_what_it_took_before_proves_nothing():
    async with rig() as r:
        await delivered(r)
        r.sink.stored.clear()
        r.sink.refuse = {"conversation": "odd"}
        assert "the server still has" not in (await r.attempt(reason="manual")).reason


async def test_deliveries_of_a_ledger_that_has_nothing_to_ask_with_are_sent_once_more():
    async with rig() as r:
        await delivered(r)
        await r.ledger.note(PREFIX + TARGET.id, "")
        assert isinstance(await r.attempt(), Delivered)
        assert len(r.sink.stored) == 5
        assert isinstance(await r.attempt(reason="manual"), Unchanged)


async def test_where_no_memory_is_fit_to_be_offered_none_is_and_nothing_starts_over():
    async with rig() as r:
        r.files.put("reflection", *some(1, 2, kind="reflection"))
        await r.attempt()
        r.sink.batches.clear()
        assert isinstance(await r.attempt(reason="manual"), Unchanged)
        assert r.sink.batches == []


async def test_each_target_has_its_own_and_the_status_shows_none():
    async with rig() as r:
        await delivered(r)
        notes = await r.ledger.notes()
        assert ProbeState.from_notes(notes, replace(TARGET, endpoint="http://127.0.0.1:1/mcp")) is None
        assert not any(memory(4).text in text for text in without_probes(notes).values())


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"body":"x"}', '{"body":"x","sent":"never","answered":"","seen":{}}']
)
def test_a_note_that_cannot_be_read_is_none(text):
    assert ProbeState.from_notes({PREFIX + TARGET.id: text}, TARGET) is None


async def test_the_status_says_what_delivered_means_and_when_it_was_confirmed():
    async with rig() as r:
        await delivered(r)
        status = describe(
            system_id=values.SYSTEM,
            agent_id="a",
            route=("http",),
            records=[await r.ledger.record(TARGET)],
            memory_counts={"http": await r.memories.counts(TARGET)},
            survey=await r.files.survey(),
            notes=await r.ledger.notes(),
            results_waiting=0,
            running=False,
        )
        (target,) = status.targets
        assert (target.confirmed_at, target.delivered_means) == (values.NOON, DELIVERED_TO_AKOSHA)
        assert not any(memory(4).text in text for text in status.notes.values())


def test_memories_that_wait_for_an_embedding_are_counted_with_the_setting_that_sends_zeros():
    assert "16 wait: no embedding (" in (reported := _counted(MemoryCounts(waiting={"no embedding": 16})))
    assert "akosha_http_missing_embedding to zero" in reported


# ------------------------------------------------------------------------------------------------------ once a day


class Publisher:
    """What the loop asks of the publisher."""

    def __init__(self, r, **settings) -> None:
        self._r, self.policy, self.triggered = r, SyncPolicy(**settings), []

    async def records(self):
        records = {"http": await self._r.ledger.record(TARGET)}
        cloud = Target("cloud", "https://s3.example.com", "memories", values.SYSTEM)
        return records | ({"cloud": await self._r.ledger.record(cloud)} if self.policy.cloud_configured else {})

    async def survey(self):
        return await self._r.files.survey()

    async def trigger(self, reason):
        self.triggered.append(reason)


class Day:
    """The loop over a rig, and its clock."""

    def __init__(self, r, **settings) -> None:
        self.r, self.publisher = r, Publisher(r, **settings)
        self.loop = ProbeLoop(
            probe=r.method.probe,
            still_has_memories=r.method.still_has_memories,
            publisher=self.publisher,
            clock=r.clock,
            sync_lock=asyncio.Lock(),
            rescan_seconds=900,
            signal=Signal(r.clock, "probe"),
        )

    async def look_in(self, hours: float) -> None:
        await self.r.clock.advance(hours * 3600)
        await self.loop.check()


async def test_once_a_day_it_is_offered_and_what_is_lost_is_owed_again():
    async with rig() as r:
        await delivered(r)
        day = Day(r)
        await day.look_in(hours=23)
        assert r.sink.batches == []
        await day.look_in(hours=2)
        await day.look_in(hours=1)
        assert len(r.sink.batches) == 1
        r.sink.stored.clear()
        await day.look_in(hours=24)
        assert day.publisher.triggered == ["retry"]
        assert await r.pending() == {"reflection"}


async def test_a_server_that_is_away_is_asked_again_and_no_sync_is_said_to_fail():
    async with rig() as r:
        await delivered(r)
        r.sink.unreachable = GONE
        day = Day(r)
        await day.look_in(hours=25)
        r.sink.unreachable = None
        assert r.sink.batches == []
        await day.look_in(hours=1)
        assert len(r.sink.batches) == 1
        assert not (await r.ledger.record(TARGET)).failures


async def test_the_loop_looks_a_minute_after_the_start_and_with_each_pass():
    async with rig() as r:
        looks = []
        loop = Day(r).loop
        loop.probe.is_due = None

        async def records():
            looks.append(r.clock.monotonic())
            return {"http": replace(await r.ledger.record(TARGET), failures=1)}

        loop.publisher.records = records
        task = asyncio.create_task(loop.run())
        await r.clock.until_asleep()
        await r.clock.advance(FIRST_SECONDS)
        await r.clock.until_asleep()
        await r.clock.advance(900)
        await r.clock.until_asleep()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert looks == [60, 960]


@pytest.mark.parametrize("settings", [{"enabled": False}, {"cloud_configured": True}])
async def test_where_nothing_goes_to_akosha_it_is_not_asked(settings):
    async with rig() as r:
        await delivered(r)
        await Day(r, **settings).look_in(hours=30)
        assert r.sink.batches == []


async def test_a_sync_that_runs_and_one_that_is_due_go_first():
    async with rig() as r:
        await delivered(r)
        day = Day(r)
        async with day.loop.sync_lock:
            await day.look_in(hours=30)
        r.files.put("reflection", *some(*range(6)))
        await day.look_in(hours=1)
        assert r.sink.batches == []
