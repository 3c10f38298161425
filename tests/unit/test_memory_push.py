"""A push of memories: batches, what is recorded as delivered and when, waiting and refused rows."""

import asyncio
from contextlib import asynccontextmanager

import orjson
import pytest

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.memories import push
from agent.application.memories.push import MemoryPush
from agent.domain.errors import SinkError, SnapshotError
from agent.domain.memories import memory_id
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger
from tests.support.memories import memory
from tests.support.memory_source import ListedMemories
from tests.support.sink import MemorySink

TARGET = values.OTHER_TARGET


class PushSetup:
    def __init__(self, ledger: SqliteLedger, **rules: object) -> None:
        self.memories, self.sink, self.confirmed = ledger.memories(), MemorySink(), []
        rules = {"batch_size": 4, "missing_embedding": "wait", **rules}
        self.push = MemoryPush(sink=self.sink, ledger=self.memories, clock=ManualClock(values.NOON), **rules)

    async def deliver(self, *memories, target=TARGET, count=None, **options):
        """Push these memories. Add the number of delivered ones to the last of `count`."""
        source = ListedMemories(memories, **options)
        self.source = source

        def add(delivered):
            if count is not None:
                count[-1] += delivered

        capabilities = await self.sink.connect()
        return await self.push.push(target, capabilities, source, on_confirmed=self.confirm, on_delivered=add)

    async def confirm(self, packed) -> None:
        self.confirmed.append((packed and packed.row.id, (await self.memories.counts(TARGET)).delivered))

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.sink.batches]


@asynccontextmanager
async def push_setup(tmp_path, **rules):
    ledger = inline_ledger(ManualClock(values.NOON))
    try:
        yield PushSetup(ledger, **rules)
    finally:
        await ledger.aclose()


def some(count: int, **options):
    return [memory(number, **options) for number in range(count)]


async def test_batches_are_filled_across_pages(tmp_path):
    async with push_setup(tmp_path) as w:
        pushed = await w.deliver(*some(10), page_rows=3)
        assert (w.sizes, pushed.stored, pushed.kept_back) == ([4, 4, 2], 10, 0)
        assert (await w.memories.counts(TARGET)).delivered == 10


async def test_delivered_rows_are_neither_read_completely_nor_sent_again(tmp_path):
    async with push_setup(tmp_path) as w:
        await w.deliver(*some(10))
        assert (await w.deliver(*some(10))).delivered == w.source.read_rows == 0
        pushed = await w.deliver(*some(10), memory("new"), page_rows=500)
        assert (w.sizes[3:], pushed.delivered, w.source.read_rows) == ([1], 1, 1)


async def test_each_target_has_its_own_record_of_deliveries(tmp_path):
    async with push_setup(tmp_path) as w:
        await w.deliver(*some(2))
        pushed = await w.deliver(*some(2), target=values.TARGET)
        assert pushed.known == 2, "the server already has the IDs, which are those of the same system"


async def test_a_changed_row_is_another_memory(tmp_path):
    async with push_setup(tmp_path) as w:
        await w.deliver(memory(1))
        await w.deliver(memory(1, state="changed"))
        ids = {memory_id(TARGET.system_id, memory(1, state=state).row) for state in (0, "changed")}
        assert w.sink.stored.keys() == ids


async def test_rows_that_share_an_id_are_not_reported_as_delivered_again(tmp_path):
    async with push_setup(tmp_path) as w:
        rows, delivered = [memory(1), memory(1, state="other"), memory(2)], []
        for _ in range(3):
            delivered.append(0)
            await w.deliver(*rows, count=delivered)
        assert delivered == [3, 0, 0]
        delivered.append(0)
        await w.deliver(*rows, memory(3), count=delivered)
        assert delivered[-1] == 1


async def test_a_batch_is_limited_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(push, "MAX_BATCH_BYTES", 12_000)
    async with push_setup(tmp_path, batch_size=500) as w:
        await w.deliver(*some(3), memory("long", text="x" * 20_000), *some(5, state="other"))
        assert [sum(len(orjson.dumps(w.sink.stored[i])) for i in batch) > 12_000 for batch in w.sink.batches].count(
            True
        ) == 1, "a memory over the limit is sent alone"
        assert max(w.sizes) > 1


async def test_a_row_without_an_embedding_waits_until_it_has_one(tmp_path):
    async with push_setup(tmp_path) as w:
        pushed = await w.deliver(memory(1), memory(2, embedded=False))
        assert (pushed.stored, dict(pushed.waiting), pushed.newly_held) == (1, {"no embedding": 1}, 1)
        again = await w.deliver(memory(1), memory(2, embedded=False))
        assert (again.stored, dict(again.waiting), again.newly_held) == (0, {"no embedding": 1}, 0)
        pushed = await w.deliver(memory(1), memory(2))
        assert (pushed.stored, (await w.memories.counts(TARGET)).waiting) == (1, {})


async def test_with_the_zero_setting_a_row_is_sent_with_zeros_and_again_with_its_embedding(tmp_path):
    async with push_setup(tmp_path, missing_embedding="zero") as w:
        pushed = await w.deliver(memory(2, embedded=False))
        (sent,) = w.sink.stored.values()
        assert (pushed.stored, sent["embedding"]) == (1, [0.0] * 384)
        assert (await w.deliver(memory(2))).stored == 1


async def test_a_row_without_a_tool_on_the_server_waits_for_one(tmp_path):
    async with push_setup(tmp_path) as w:
        relation = memory(1, kind="relationship", embedded=False)
        pushed = await w.deliver(relation)
        assert dict(pushed.waiting) == {"the server has no tool for a relationship": 1}
        w.sink.relations = True
        assert (await w.deliver(relation)).stored == 1


async def test_a_refused_row_is_kept_with_its_reason_and_not_sent_again_unchanged(tmp_path):
    async with push_setup(tmp_path) as w:
        w.sink.refuse = {":conversation-3:": "too odd"}
        pushed = await w.deliver(*some(5))
        assert (pushed.stored, dict(pushed.refused)) == (4, {"too odd": 1})
        (row,) = await w.memories.held(TARGET, limit=9)
        assert (row.state, row.reason, row.row.id) == ("refused", "too odd", "conversation-3")
        await w.deliver(*some(5))
        assert len(w.sizes) == 2
        w.sink.refuse = {}
        assert (await w.deliver(memory(3, state="changed"))).stored == 1
        assert await w.memories.held(TARGET, limit=9) == []


async def test_another_server_version_gets_the_refused_rows_again(tmp_path):
    async with push_setup(tmp_path) as w:
        w.sink.refuse = {"conversation": "too new"}
        await w.memories.update_version(TARGET, "1")
        await w.deliver(memory(1))
        w.sink.refuse = {}
        assert await w.memories.update_version(TARGET, "2") == {"reflection"}
        assert (await w.deliver(memory(1))).stored == 1


async def test_after_a_failure_only_the_undelivered_rows_are_sent(tmp_path):
    async with push_setup(tmp_path) as w:
        w.sink.failures = [None, SinkError("gone", transient=True)]
        with pytest.raises(SinkError, match="gone"):
            await w.deliver(*some(10))
        assert (await w.memories.counts(TARGET)).delivered == 4
        pushed = await w.deliver(*some(10))
        assert (pushed.stored, len(w.sink.stored)) == (6, 10)


async def test_a_batch_with_a_lost_answer_is_recognised_the_next_time(tmp_path):
    async with push_setup(tmp_path) as w:
        w.sink.lose_answers = 1
        with pytest.raises(SinkError):
            await w.deliver(*some(6))
        pushed = await w.deliver(*some(6))
        assert (pushed.stored, pushed.known, len(w.sink.stored)) == (2, 4, 6)


async def test_a_read_error_loses_no_rows_already_read(tmp_path):
    async with push_setup(tmp_path, batch_size=2) as w:
        with pytest.raises(SnapshotError):
            await w.deliver(*some(9), page_rows=3, fail_at=7)
        pushed = await w.deliver(*some(9))
        assert len(w.sink.stored) == 9
        assert pushed.delivered <= 9


async def test_the_next_batch_is_sent_after_the_previous_one_is_recorded(tmp_path):
    async with push_setup(tmp_path, batch_size=2) as w:
        trace: list[str] = []
        store, delivered = w.sink.store, w.memories.delivered

        async def slow(batch):
            trace.append("send")
            await asyncio.sleep(0)
            receipt = await store(batch)
            trace.append("arrived")
            return receipt

        async def record(target, batch):
            await delivered(target, batch)
            trace.append("recorded")

        w.sink.store, w.memories.delivered = slow, record
        await w.deliver(*some(6))
        assert trace == ["send", "arrived", "recorded"] * 3


async def test_a_cancelled_push_leaves_no_tasks(tmp_path):
    async with push_setup(tmp_path, batch_size=1) as w:
        entered = asyncio.Event()

        async def never(_batch):
            entered.set()
            await asyncio.Event().wait()

        w.sink.store = never
        task = asyncio.create_task(w.deliver(*some(3)))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_many_different_reasons_are_counted_together(tmp_path):
    async with push_setup(tmp_path, batch_size=50) as w:
        w.sink.refuse = {f":conversation-{n}:": f"reason {n}" for n in range(40)}
        pushed = await w.deliver(*some(40))
        assert (len(pushed.refused), sum(pushed.refused.values())) == (push.MOST_REASONS + 1, 40)


async def test_probe_memories_are_confirmed_before_their_batch_is_recorded(tmp_path):
    async with push_setup(tmp_path, batch_size=4) as w:
        await w.deliver(*some(10))
        assert w.confirmed == [("conversation-3", 0), ("conversation-9", 10)]


async def test_unsuitable_memories_are_not_confirmed_as_probe(tmp_path):
    async with push_setup(tmp_path, batch_size=50) as w:
        w.sink.refuse = {"conversation-1:": "odd"}
        await w.deliver(memory(1), memory(2, text="x" * push.LARGEST_PROBE_BYTES), memory(3, kind="reflection"))
        assert w.confirmed == [(None, 0)]


async def test_a_server_restart_during_a_push_fails_before_anything_is_recorded(tmp_path):
    async with push_setup(tmp_path, batch_size=4) as w:
        store = w.sink.store

        async def store_in_another_session(batch):
            w.sink.sessions += len(w.sink.batches) == 1
            if w.sink.sessions > 1:
                w.sink.stored.clear()
            return await store(batch)

        w.sink.store = store_in_another_session
        with pytest.raises(SinkError, match="restarted") as raised:
            await w.deliver(*some(12))
        assert raised.value.transient
        assert (await w.memories.counts(TARGET)).delivered == 4
        assert w.confirmed == [("conversation-3", 0)]
