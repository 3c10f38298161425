"""Outcomes of a sync by http: the result, the ledger's record, and the log."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent.application.memories import push
from agent.domain.delivery_state import Problem, State, next_try
from agent.domain.errors import CloudUploadError, HTTPSyncError
from agent.domain.events import SyncAsked, SyncSkipped
from agent.domain.plain_text import shorten
from agent.domain.routing import RetryRules
from agent.ports import Delivered, Unchanged
from tests.support import values
from tests.support.agent import simulated_agent
from tests.support.http_sync import BROKEN, BUSY, KILLED, TARGET, Report, rig, some
from tests.support.sink import MemorySink

# --------------------------------------------------------------------------------------------- problems of one database


@pytest.mark.parametrize("error", [BROKEN, KILLED])
async def test_a_read_error_of_one_database_does_not_stop_the_others(error):
    async with rig() as r:
        r.files.put("knowledge_graph", *some(1, 2, 3, kind="entity"), fail_at=1, error=error)
        r.files.put("reflection", *some(1, 2, 3))
        done = await r.attempt()
        assert isinstance(done, Delivered)
        assert (done.result.memories, await r.pending()) == (3 + 1, {"knowledge_graph"}), (
            "the rows read before the error are sent"
        )
        assert done.result.incomplete["knowledge_graph"] == error.message
        problem = (await r.ledger.record(TARGET)).databases["knowledge_graph"].problem
        assert (problem.failures, problem.retry_at is None) == (1, error is BROKEN)
        r.files.put("knowledge_graph", *some(1, 2, 3, kind="entity"))
        assert (await r.attempt()).result.memories == 2
        assert await r.pending() == set()


async def listed(r, *memories) -> int:
    """Make an attempt with these memories; return how many of them were looked at one by one."""
    r.files.put("reflection", *memories)
    await r.attempt()
    return r.files.reader.databases["reflection"].listed_rows


async def test_rows_that_the_server_has_are_not_looked_at_again():
    async with rig() as r:
        assert await listed(r, *some(1, 2, 3)) == 3
        assert await listed(r, *some(1, 2, 3)) == 0
        assert await listed(r, *some(1, 3, 4), *some(2, state="changed")) == 2
        assert await listed(r, *some(1), *some(2, state="changed")) == 0
        assert await listed(r, *some(1, 2, 3)) == 2, "only the last states are recorded"
        assert (await r.memories.counts(TARGET)).delivered == 4


async def test_held_rows_are_looked_at_again_until_the_server_has_them():
    async with rig() as r:
        r.sink.refuse = {"conversation-2": "wrong dimension"}
        waits = some(3, embedded=False)
        for _ in range(2):
            assert await listed(r, *some(1, 2, 4), *waits) in (4, 2)
        held = await r.memories.held(TARGET, limit=9)
        assert [entry.row.id for entry in held] == ["conversation-2", "conversation-3"]
        r.sink.refuse = {}
        r.sink.version = "0.12.0"
        assert await listed(r, *some(1, 2, 3, 4)) == 2
        assert list(await r.memories.held(TARGET, limit=9)) == []
        assert await listed(r, *some(1, 2, 3, 4)) == 0


async def test_held_rows_that_were_deleted_are_released_although_the_others_are_not_looked_at():
    async with rig() as r:
        await listed(r, *some(1, 2), *some(3, 4, embedded=False))
        assert await listed(r, *some(1, 2), *some(4, embedded=False)) == 1
        assert [entry.row.id for entry in await r.memories.held(TARGET, limit=9)] == ["conversation-4"]


async def test_if_many_rows_are_held_all_are_looked_at(monkeypatch):
    monkeypatch.setattr(push, "MOST_HELD", 1)
    async with rig() as r:
        for _ in range(2):
            assert await listed(r, *some(1), *some(2, 3, embedded=False)) == 3
        assert await listed(r, *some(1), *some(2, embedded=False)) == 2
        assert await listed(r, *some(1), *some(2, embedded=False)) == 1


async def test_a_push_that_failed_does_not_change_which_rows_are_looked_at():
    async with rig() as r:
        await listed(r, *some(1, 2))
        r.sink.failures = [BUSY]
        assert await listed(r, *some(1, 2, 3)) == 1
        assert await listed(r, *some(1, 2, 3)) == 1


async def test_all_rows_are_looked_at_after_the_server_lost_them():
    async with rig() as r:
        await listed(r, *some(1, 2))
        await r.ledger.forget(TARGET, ["reflection"])
        assert await listed(r, *some(1, 2)) == 2


async def test_rows_that_cannot_be_compared_are_all_looked_at():
    async with rig() as r:
        await listed(r, *some(1, 2))
        r.files.put("reflection", *some(1, 2, 3))
        source = r.files.reader.databases["reflection"]
        source._comparable = False
        assert (await r.attempt()).result.memories == 1
        assert source.listed_rows == 3


async def test_the_readable_part_of_a_database_is_pushed_and_the_rest_reported():
    async with rig() as r:
        r.files.put("reflection", *some(1, 2))
        r.files.unverified, r.files.readable = {"reflection"}, {"reflection"}
        done = await r.attempt()
        assert (done.result.memories, done.result.incomplete) == (2, {"reflection": "too new"})
        assert await r.pending() == set()


async def test_an_unreadable_database_is_not_read_again_before_a_change():
    async with rig() as r:
        r.files.put("reflection", *some(1, 2, 3), fail_at=1, error=BROKEN)
        failed = await r.attempt()
        assert (failed.forwardable, "DuckDB crashed on it" in str(failed)) == (False, True)
        assert isinstance(await r.attempt(), Unchanged)
        assert len(r.files.reader.opened) == 1
        await r.attempt(reason="manual")
        assert len(r.files.reader.opened) == 2


async def test_an_unverified_copy_is_a_problem_of_only_its_database():
    async with rig() as r:
        r.files.put("knowledge_graph", *some(1, kind="entity"))
        r.files.put("reflection", *some(1))
        r.files.unverified = {"knowledge_graph"}
        assert (await r.attempt()).result.incomplete == {"knowledge_graph": "too new"}
        assert await r.pending() == {"knowledge_graph"}


@pytest.mark.parametrize(("later", "reason"), [(30, "retry"), (0, "startup")])
async def test_a_copy_whose_verification_failed_itself_is_tried_again_after_a_back_off_or_at_the_start(later, reason):
    async with rig() as r:
        r.files.put("reflection", *some(1))
        r.files.unverified = r.files.inconclusive = {"reflection"}
        assert isinstance(await r.attempt(), HTTPSyncError)
        assert isinstance(await r.attempt(), Unchanged)
        r.files.unverified = r.files.inconclusive = set()
        await r.clock.advance(later)
        assert (await r.attempt(reason=reason)).result.memories == 1
        assert await r.pending() == set()


async def test_a_database_deleted_before_its_copy_is_left_out():
    async with rig() as r:
        r.files.put("knowledge_graph", *some(1, kind="entity"))
        r.files.put("reflection", *some(1))
        take = r.files.take

        async def delete_and_take(database: str):
            if "knowledge_graph" in await r.files.survey():
                r.files.remove("knowledge_graph")
            return await take(database)

        r.files.take = delete_and_take
        done = await r.attempt()
        assert (done.result.memories, "knowledge_graph" in done.result.incomplete) == (1, True)
        assert await r.pending() == set()
        assert next_try(await r.ledger.record(TARGET), await r.files.survey()) is None


@pytest.mark.parametrize("problem", ["waits", "read error", "unverified"])
async def test_a_problem_of_one_database_leaves_unchanged_ones_clean(problem):
    """Otherwise the next attempt would copy them again and report them as delivered."""
    async with rig() as r:
        r.files.put("reflection", *some(1))
        await r.attempt()
        r.files.put("reflection", *some(1))
        entities = some(1, kind="entity", embedded=problem != "waits")
        r.files.put("knowledge_graph", *entities, fail_at=0 if problem == "read error" else None, error=BROKEN)
        r.files.unverified = {"knowledge_graph"} if problem == "unverified" else set()
        assert isinstance(await r.attempt(), HTTPSyncError)
        assert await r.states() == {"knowledge_graph": State.OWED, "reflection": State.CLEAN}
        assert (await r.ledger.record(TARGET)).intent is None
        assert isinstance(await r.attempt(), Unchanged)
        assert await r.pending() == {"knowledge_graph"}


# ----------------------------------------------------------------------------------------------------------- the intent


@pytest.mark.parametrize("changed", [False, True])
async def test_a_push_given_up_halfway_resumes_and_is_reported_as_delivered(changed):
    async with rig() as r:
        r.files.put("reflection", *some(0))
        await r.attempt()
        r.files.put("reflection", *some(0, 1, 2, 3, 4))
        r.sink.failures = [None, BUSY]
        assert isinstance(await r.attempt(), HTTPSyncError)
        assert await r.states() == {"reflection": State.OWED}
        if changed:
            r.files.put("reflection", *some(0, 1, 2, 3, 4, 5))
        done = await r.attempt()
        assert isinstance(done, Delivered)
        assert len(r.sink.stored) == 6 if changed else 5
        assert (await r.states(), (await r.ledger.record(TARGET)).intent) == ({"reflection": State.CLEAN}, None)


async def test_a_complete_push_without_a_result_is_reported_as_delivered():
    """The agent was killed after the last batch; the database had been delivered before."""
    async with rig() as r:
        r.files.put("reflection", *some(0))
        await r.attempt()
        r.files.put("reflection", *some(0, 1, 2))
        await r.method.sync(values.request("killed", route=("http",)), Report())
        assert (await r.ledger.record(TARGET)).intent is not None
        done = await r.attempt()
        assert isinstance(done, Delivered)
        assert (len(r.sink.stored), await r.pending()) == (3, set())


async def test_a_retried_request_counts_the_memories_of_all_attempts():
    async with rig() as r:
        r.files.put("reflection", *some(*range(6)))
        r.sink.failures = [None, BUSY, None, BUSY]
        request = values.request("r1", route=("http",))
        for _ in range(2):
            with pytest.raises(HTTPSyncError):
                await r.method.sync(request, Report())
        done = await r.method.sync(request, Report())
        assert done.result.memories == 6
        assert done.result.bytes_transferred == r.sink.bytes_sent


async def test_a_database_deleted_while_owed_does_not_block_the_others():
    async with rig() as r:
        r.files.put("knowledge_graph_work", *some(1, kind="entity"))
        r.files.put("reflection", *some(1, 2, 3))
        r.sink.failures = [BUSY]
        await r.attempt()
        r.files.remove("knowledge_graph_work")
        done = await r.attempt()
        assert (done.result.memories, done.result.incomplete, await r.pending()) == (3, {}, set())


# ------------------------------------------------------------------------------------------------ kept and removed rows


async def test_deleted_rows_that_waited_or_were_refused_are_forgotten():
    async with rig() as r:
        r.sink.refuse = {":conversation-3:": "odd", ":conversation-4:": "odd"}
        r.files.put("reflection", *some(1, 2, 3, 4), *some(5, 6, embedded=False))
        await r.attempt()
        assert len(await r.memories.held(TARGET, limit=9)) == 4
        r.files.put("reflection", *some(1, 4), *some(6, embedded=False))
        await r.attempt()
        assert {row.row.id for row in await r.memories.held(TARGET, limit=9)} == {"conversation-4", "conversation-6"}
        assert (await r.memories.counts(TARGET)).delivered == 2
        r.files.put("reflection", *some(1, 4), *some(6, embedded=False))
        r.sink.refuse = {}
        assert isinstance(await r.attempt(), Unchanged), "a refused row is not sent again unchanged"


async def test_an_incomplete_push_forgets_no_waiting_row():
    async with rig() as r:
        r.files.put("reflection", *some(1, 2), *some(5, 6, embedded=False))
        await r.attempt()
        r.files.put("reflection", *some(1, 2, 3), *some(5, 6, embedded=False), fail_at=2, error=BROKEN)
        await r.attempt()
        assert len(await r.memories.held(TARGET, limit=9)) == 2


async def test_rows_of_a_deleted_database_are_forgotten():
    async with rig() as r:
        r.files.put("knowledge_graph", *some(1, kind="entity"), *some(2, kind="entity", embedded=False))
        r.files.put("reflection", *some(1))
        await r.attempt()
        r.files.remove("knowledge_graph")
        r.files.put("reflection", *some(1, 2))
        await r.attempt()
        assert await r.memories.held(TARGET, limit=9) == []


async def test_if_all_waiting_rows_are_deleted_nothing_is_owed():
    async with rig() as r:
        r.files.put("reflection", *some(1, 2, embedded=False))
        assert isinstance(await r.attempt(), HTTPSyncError)
        r.files.put("reflection")
        assert isinstance(await r.attempt(), Delivered)
        assert await r.pending() == set()


# ------------------------------------------------------------------------------------------------------ rows sent again


async def test_refused_rows_stay_owed_to_a_new_version_until_sent_again():
    async with rig() as r:
        r.sink.refuse = {":conversation-1:": "odd"}
        r.files.put("reflection", *some(1, 2))
        await r.attempt()
        r.sink.refuse, r.sink.version, r.sink.failures = {}, "2", [BUSY]
        assert isinstance(await r.attempt(), HTTPSyncError)
        assert await r.pending() == {"reflection"}
        assert (await r.attempt()).result.memories == 1


async def test_waiting_rows_stay_owed_after_a_failed_resend():
    async with rig() as r:
        r.files.put("knowledge_graph", *some(1, 2, kind="relationship", embedded=False))
        assert isinstance(await r.attempt(), HTTPSyncError)
        r.sink.relations, r.sink.version, r.sink.failures = True, "2", [BUSY]
        assert isinstance(await r.attempt(), HTTPSyncError)
        assert (await r.attempt()).result.memories == 2


async def test_forgotten_rows_are_sent_again_even_if_new_rows_wait():
    async with rig() as r:
        r.files.put("reflection", *some(1))
        await r.attempt()
        r.files.put("reflection", *some(1), *some(2, embedded=False))
        assert isinstance(await r.attempt(), HTTPSyncError)
        await r.ledger.forget(TARGET, ["reflection"])
        r.sink.stored.clear()
        assert (await r.attempt()).result.memories == 1


async def test_a_new_version_in_the_health_check_alone_connects_once():
    """The health check reports another version and the session the same one as before: nothing is sent again."""
    async with rig() as r:
        r.files.put("reflection", *some(1), *some(2, embedded=False))
        await r.attempt()
        r.sink.is_available = health_check_of(r.sink, "another")
        await r.attempt()
        r.sink.events.clear()
        await r.attempt()
        assert "connect" not in r.sink.events


async def test_refused_rows_are_sent_again_after_a_new_version_in_the_health_check():
    async with rig() as r:
        r.sink.refuse = {":conversation-1:": "odd"}
        r.files.put("reflection", *some(1, 2))
        await r.attempt()
        r.sink.refuse = {}
        r.sink.is_available = health_check_of(r.sink, "another")
        assert (await r.attempt()).result.memories == 1


def health_check_of(sink: MemorySink, version: str):
    async def is_available() -> bool:
        sink.health_version = version
        return True

    return is_available


async def test_waiting_rows_are_sent_once_the_setting_allows_zero_embeddings():
    async with rig() as r:
        r.files.put("reflection", *some(1, 2, embedded=False))
        assert isinstance(await r.attempt(), HTTPSyncError)
        assert isinstance(await r.attempt(reason="startup"), Unchanged)
        r.method._push.missing_embedding = "zero"
        assert (await r.attempt(reason="startup")).result.memories == 2


# --------------------------------------------------------------------------------------------------------------- stalls


async def test_a_slow_server_is_not_a_stall_while_batches_arrive(monkeypatch):
    """A complete page takes longer than the limit of 60 s; no single batch does."""
    async with rig(batch_size=1) as r:
        r.files.put("reflection", *some(1, 2, 3, 4))
        store, loop, passed = r.sink.store, asyncio.get_running_loop(), 0
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + passed)

        async def slow(batch):
            nonlocal passed
            passed += 40
            for _ in range(2):
                await asyncio.sleep(0)  # a due timeout would fire now
            return await store(batch)

        r.sink.store = slow
        assert (await r.attempt()).result.memories == 4


async def test_a_stalled_push_fails_and_names_the_setting():
    async with rig(standstill_seconds=0.02) as r:
        r.files.put("reflection", *some(1, 2, 3))
        r.sink.store = lambda _: asyncio.Event().wait()
        failed = await r.attempt()
        assert (failed.transient, "no progress for 0.02 s" in str(failed)) == (True, True)
        assert "akosha_upload_timeout_seconds" in str(failed)


# ----------------------------------------------------------------------------------------------------- reports and logs


@pytest.mark.parametrize(
    ("text", "shown"),
    [("c1", "c1"), ("x" * 9_000, "x" * 200 + "..."), ("☂ é", "☂ é")],
)
def test_an_id_of_any_length_is_shortened_for_its_cell(text, shown):
    assert shorten(text, 200) == shown


async def test_a_skipped_fallback_still_reports_the_error_before_it():
    cloud = CloudUploadError("403", "cloud", hint="allow s3:PutObject")
    async with simulated_agent([cloud], fallback=[None], running=False) as w:
        w.files.change(1, notified=False)
        result = await w.agent.once(SyncAsked(id="r1", time=w.clock.now(), system_id=values.SYSTEM))
        assert isinstance(result, SyncSkipped)
        assert result.why == "cloud: 403 (allow s3:PutObject); http: nothing has changed"


async def test_at_start_databases_that_wait_for_a_change_are_requested_too():
    """The settings or the server may have changed; only the method can tell."""
    async with simulated_agent([None], running=False) as w:
        w.files.change(1, notified=False)
        seen = w.files.seen["reflection"]
        problem = Problem("15 wait: no embedding", seen, 1, None)
        await w.agent.ledger.record_problems(w.method.target, {"reflection": problem})
        assert await w.agent.publisher.trigger("file_change") is None
        assert await w.agent.publisher.trigger("startup") is not None


@contextmanager
def printed(capsys) -> Iterator[list[str]]:
    """Yield a list that holds, after the block, the lines logged above debug."""
    capsys.readouterr()
    lines: list[str] = []
    yield lines
    lines += [line for line in capsys.readouterr().out.splitlines() if "[debug" not in line]


async def test_an_agent_offline_for_hours_warns_once_per_method(capsys):
    with printed(capsys) as lines:
        async with simulated_agent(fallback=[], agent_rescan_seconds=600) as w:
            w.method.available = w.fallback.available = False
            w.files.change(1)
            await w.pass_time(3 * 3600)
            assert w.reasons.count("retry") > 10
    assert warned(lines) == ["sync_forwarded", "sync_failed"]


def warned(lines: list[str]) -> list[str]:
    return [line.split("]")[1].split()[0] for line in lines if "[warning" in line]


async def test_waiting_rows_are_warned_of_once_and_again_after_a_command(capsys):
    waits = [
        HTTPSyncError(f"reflection: {1_000 + n:,} wait: no embedding", "cloud", forwardable=False) for n in range(9)
    ]
    with printed(capsys) as lines:
        async with simulated_agent(waits, agent_min_interval_seconds=1) as w:
            for generation in range(1, 5):
                w.files.change(generation)
                await w.pass_time(5)
            assert w.reasons == ["file_change"] * 4
            await w.agent.publisher.submit(SyncAsked(id="r1", time=w.clock.now(), system_id=values.SYSTEM))
            await w.settle()
    assert warned(lines) == ["sync_failed"] * 2


async def test_each_retry_of_the_first_failure_is_logged(capsys):
    with printed(capsys) as lines:
        async with simulated_agent([CloudUploadError("503", "cloud", transient=True)] * 9) as w:
            w.agent.subscribers[0]._rules = RetryRules(2, 2.0)
            w.files.change(1)
            await w.pass_time(300)
            assert w.reasons.count("retry") > 1
    assert warned(lines) == ["sync_retry_scheduled", "sync_retry_scheduled", "sync_failed"]
