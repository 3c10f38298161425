"""The delivery probe sends one delivered memory again, to detect an Akosha server that has lost its memories."""

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
from agent.entrypoints.status_text import counted_memories
from agent.ports import Delivered, MemoryCounts, Unchanged
from tests.support import values
from tests.support.http_sync import TARGET, rig, some
from tests.support.memories import memory, seen

CONNECTION_CLOSED = SinkError("the connection was closed", transient=True)


async def delivered(r, count=5):
    r.files.put("reflection", *some(*range(count)))
    assert isinstance(await r.attempt(), Delivered)
    r.sink.batches.clear()


async def test_only_a_manual_sync_without_changes_sends_the_probe():
    async with rig() as r:
        await delivered(r)
        assert isinstance(await r.attempt(), Unchanged)
        assert r.sink.batches == []
        done = await r.attempt(reason="manual")
        assert done.reason.endswith("; the server still has what was delivered")
        assert r.sink.batches == [[memory_id(values.SYSTEM, seen(4))]]
        assert len(r.files.reader.opened) == 1


async def test_a_server_that_stores_the_probe_as_new_gets_all_memories_again():
    async with rig() as r:
        await delivered(r)
        r.sink.stored.clear()
        done = await r.attempt(reason="manual")
        assert isinstance(done, Delivered)
        assert (done.result.memories, len(r.sink.stored)) == (5, 5)
        assert r.sink.stored.keys() == {memory_id(values.SYSTEM, seen(n)) for n in range(5)}


async def test_in_a_new_session_the_probe_precedes_new_memories():
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
async def test_a_probe_without_an_answer_delivers_all_memories_again(reason):
    """The server may have lost everything and stored the probe: the next probe would then find it."""
    async with rig() as r:
        await delivered(r)
        r.sink.stored.clear()
        r.sink.lose_answers = 1
        assert isinstance(await r.attempt(reason="manual"), HTTPSyncError)
        assert len(r.sink.stored) == 1
        assert isinstance(await r.attempt(reason=reason), Delivered)
        assert len(r.sink.stored) == 5


async def test_the_probe_is_noted_in_the_ledger_before_it_is_sent():
    async with rig() as r:
        await delivered(r)
        store, noted = r.sink.store, []

        async def record_and_store(batch):
            noted.append(ProbeState.from_notes(await r.ledger.notes(), TARGET).sent)
            return await store(batch)

        r.sink.store = record_and_store
        await r.attempt(reason="manual")
        assert noted == [values.NOON]
        assert ProbeState.from_notes(await r.ledger.notes(), TARGET).sent is None


async def test_a_probe_refused_before_storing_does_not_deliver_all_memories_again():
    async with rig() as r:
        await delivered(r)
        r.sink.failures = [SinkError("status 401")]
        assert isinstance(await r.attempt(reason="manual"), HTTPSyncError)
        assert isinstance(await r.attempt(), Unchanged)


async def test_a_refused_probe_does_not_confirm_the_delivery():
    async with rig() as r:
        await delivered(r)
        r.sink.stored.clear()
        r.sink.refuse = {"conversation": "odd"}
        assert "the server still has" not in (await r.attempt(reason="manual")).reason


async def test_deliveries_without_a_probe_memory_are_sent_once_more():
    async with rig() as r:
        await delivered(r)
        await r.ledger.note(PREFIX + TARGET.id, "")
        assert isinstance(await r.attempt(), Delivered)
        assert len(r.sink.stored) == 5
        assert isinstance(await r.attempt(reason="manual"), Unchanged)


async def test_without_a_memory_fit_for_a_probe_nothing_is_sent():
    async with rig() as r:
        r.files.put("reflection", *some(1, 2, kind="reflection"))
        await r.attempt()
        r.sink.batches.clear()
        assert isinstance(await r.attempt(reason="manual"), Unchanged)
        assert r.sink.batches == []


async def test_each_target_has_its_own_probe_and_the_status_shows_none():
    async with rig() as r:
        await delivered(r)
        notes = await r.ledger.notes()
        assert ProbeState.from_notes(notes, replace(TARGET, endpoint="http://127.0.0.1:1/mcp")) is None
        assert not any(memory(4).text in text for text in without_probes(notes).values())


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"body":"x"}', '{"body":"x","sent":"never","answered":"","seen":{}}']
)
def test_an_unreadable_note_is_ignored(text):
    assert ProbeState.from_notes({PREFIX + TARGET.id: text}, TARGET) is None


async def test_the_status_states_what_delivered_means_and_when_it_was_confirmed():
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


def test_the_count_of_memories_without_embeddings_names_the_setting_that_sends_zeros():
    assert "16 wait: no embedding (" in (reported := counted_memories(MemoryCounts(waiting={"no embedding": 16})))
    assert "akosha_http_missing_embedding to zero" in reported


# ----------------------------------------------------------------------------------------------------------- once a day


class Publisher:
    """The methods of the publisher that the loop calls."""

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


class DailyProbe:
    """The probe loop of a rig, driven by the rig's clock."""

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

    async def check_after(self, hours: float) -> None:
        await self.r.clock.advance(hours * 3600)
        await self.loop.check()


async def test_the_probe_is_sent_once_a_day_and_lost_memories_are_owed_again():
    async with rig() as r:
        await delivered(r)
        day = DailyProbe(r)
        await day.check_after(hours=23)
        assert r.sink.batches == []
        await day.check_after(hours=2)
        await day.check_after(hours=1)
        assert len(r.sink.batches) == 1
        r.sink.stored.clear()
        await day.check_after(hours=24)
        assert day.publisher.triggered == ["retry"]
        assert await r.pending() == {"reflection"}


async def test_an_unreachable_server_is_probed_again_without_a_failed_sync():
    async with rig() as r:
        await delivered(r)
        r.sink.unreachable = CONNECTION_CLOSED
        day = DailyProbe(r)
        await day.check_after(hours=25)
        r.sink.unreachable = None
        assert r.sink.batches == []
        await day.check_after(hours=1)
        assert len(r.sink.batches) == 1
        assert not (await r.ledger.record(TARGET)).failures


async def test_the_loop_checks_a_minute_after_the_start_and_after_each_interval():
    async with rig() as r:
        checks = []
        loop = DailyProbe(r).loop
        loop.probe.is_due = None

        async def records():
            checks.append(r.clock.monotonic())
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
        assert checks == [60, 960]


@pytest.mark.parametrize("settings", [{"enabled": False}, {"cloud_configured": True}])
async def test_a_server_that_receives_no_memories_is_not_probed(settings):
    async with rig() as r:
        await delivered(r)
        await DailyProbe(r, **settings).check_after(hours=30)
        assert r.sink.batches == []


async def test_a_running_or_due_sync_precedes_the_probe():
    async with rig() as r:
        await delivered(r)
        day = DailyProbe(r)
        async with day.loop.sync_lock:
            await day.check_after(hours=30)
        r.files.put("reflection", *some(*range(6)))
        await day.check_after(hours=1)
        assert r.sink.batches == []
