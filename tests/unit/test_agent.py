"""When the agent requests a sync by itself (changes, times, session ends, notes), and when it does not."""

import asyncio
from datetime import timedelta

import pytest

from agent.domain.databases import Survey
from agent.domain.errors import NO_THREAD, CloudUploadError, SnapshotError, StateError
from agent.domain.events import (
    SessionEnded,
    SyncFailed,
    SyncResult,
    SyncSkipped,
    SyncSucceeded,
)
from tests.support import values
from tests.support.agent import PERMANENT, SimulatedAgent, ask, simulated_agent


async def test_without_databases_the_agent_requests_nothing():
    async with simulated_agent() as w:
        await w.pass_time(600)
        assert w.reasons == []


async def test_changes_made_while_the_agent_was_stopped_are_synced_at_start():
    async with simulated_agent([1], running=False) as w:
        w.files.change(1, notified=False)
        task = asyncio.create_task(w.agent.run())
        await w.settle()
        assert w.reasons == ["startup"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_change_is_synced_after_the_quiet_time():
    async with simulated_agent([1]) as w:
        w.files.change(1)
        await w.pass_time(1.9)
        assert w.reasons == []
        await w.pass_time(0.2)
        assert w.reasons == ["file_change"]


async def test_the_quiet_time_starts_at_the_change_not_at_its_notification():
    async with simulated_agent([1]) as w:
        w.files.reported_late = 0.5
        w.files.change(1)
        await w.pass_time(1.4)
        assert w.reasons == []
        await w.pass_time(0.2)
        assert w.reasons == ["file_change"]


async def test_constant_changes_are_synced_at_the_deadline():
    async with simulated_agent([1]) as w:
        for second in range(31):
            w.files.change(second)
            await w.pass_time(1)
        assert w.reasons == ["file_change"]


async def test_changes_within_the_minimum_interval_are_synced_at_its_end():
    async with simulated_agent([1, 2], agent_rescan_seconds=10_000) as w:
        w.files.change(1)
        await w.pass_time(3)
        w.files.change(2)
        await w.pass_time(290)
        assert w.reasons == ["file_change"]
        await w.pass_time(10)
        assert w.reasons == ["file_change", "file_change"]


async def test_changes_during_a_long_sync_are_synced_once_after_it():
    async with simulated_agent([1, 2], agent_rescan_seconds=10_000) as w:
        w.method.hold = asyncio.Event()
        for version in range(1, 5):
            w.files.change(version)
            await w.pass_time(301)
        assert w.reasons == ["file_change"]
        w.method.hold.set()
        await w.settle()
        assert w.reasons == ["file_change", "file_change"]


async def test_a_change_that_the_watcher_missed_is_found_by_the_stat_pass():
    async with simulated_agent([1]) as w:
        w.files.change(1, notified=False)
        await w.pass_time(63)
        assert w.reasons == ["file_change"]


async def test_with_upload_on_change_off_only_a_session_end_syncs_changes():
    async with simulated_agent([1], agent_upload_on_change=False) as w:
        w.files.change(1)
        await w.pass_time(600)
        assert w.reasons == []
        await w.agent.bus.publish(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.settle()
        assert w.reasons == ["session_end"]


async def test_a_session_end_syncs_at_once():
    async with simulated_agent([1]) as w:
        w.files.change(1)
        w.notes.leave(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.settle()
        assert w.reasons == ["session_end"]
        assert w.notes.notes == {}
        assert [(type(result), result.caused_by) for result in await results(w)] == [(SyncSucceeded, ("s1",))]


async def results(w: SimulatedAgent) -> list[SyncResult]:
    history = await w.agent.ledger.history()
    return [entry.event for entry in history if isinstance(entry.event, SyncResult)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"upload_on_session_end": False}, "akosha_upload_on_session_end is false"),
        ({"sync_enabled": False}, "akosha_sync_enabled is false"),
    ],
)
async def test_a_session_end_without_a_sync_names_the_setting_that_prevents_it(settings, reason):
    async with simulated_agent([1], agent_upload_on_change=False, **settings) as w:
        w.files.change(1)
        w.notes.leave(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.settle()
        assert w.reasons == []
        (result,) = await results(w)
        assert (type(result), result.caused_by, result.why) == (SyncSkipped, ("s1",), reason)
        assert (result.triggered_by, result.success) == ("session_end", True)
        assert result in w.received, "the result is published too"


async def test_a_session_end_without_changes_has_a_skipped_result():
    async with simulated_agent([1]) as w:
        w.files.change(1)
        await w.pass_time(2.1)
        w.notes.leave(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.settle()
        delivered, skipped = await results(w)
        assert (type(delivered), delivered.caused_by) == (SyncSucceeded, ())
        assert (type(skipped), skipped.caused_by) == (SyncSkipped, ("s1",))
        assert "nothing has changed" in skipped.why


async def test_the_skipped_result_of_a_session_end_names_changes_that_were_removed_before_their_delivery():
    async with simulated_agent([]) as w:
        both, target = {"reflection": 1, "knowledge_graph": 1}, w.method.target
        seen = {name: values.fingerprint(name, 1) for name in both}
        manifest = values.manifest(1, **both)
        await w.agent.ledger.mark_owed(target, [*both])
        await w.agent.ledger.begin(target, values.intent(1, **both))
        await w.agent.ledger.deliver(target, manifest, seen, {}, values.succeeded(manifest))
        await w.agent.ledger.mark_owed(target, ["reflection"])
        w.files.seen = {"knowledge_graph": seen["knowledge_graph"]}
        w.notes.leave(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.settle()
        *_, skipped = await results(w)
        assert "removed before their last changes were uploaded" in skipped.why
        assert not skipped.found_nothing_to_send


async def test_a_failed_session_end_sync_has_a_failed_result_and_its_retry_a_result_of_its_own():
    async with simulated_agent([PERMANENT, 1], agent_upload_on_change=False) as w:
        w.files.change(1)
        w.notes.leave(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.settle()
        await w.pass_time(32)
        assert [(type(result), result.caused_by) for result in await results(w)] == [
            (SyncFailed, ("s1",)),
            (SyncSucceeded, ()),
        ]


async def test_a_session_end_is_not_requested_again_while_its_sync_waits_for_a_retry():
    """A server may ask for 15 min. That is longer than the agent waits before it publishes a lost request again."""
    busy = CloudUploadError("503", "cloud", transient=True, retry_after=900.0)
    async with simulated_agent([busy, 1], max_retries=3) as w:
        w.files.change(1, notified=False)
        w.notes.leave(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.pass_time(890)
        assert (w.reasons, len(w.method.asked)) == (["session_end"], 1)
        await w.pass_time(20)
        (result,) = [event for event in w.received if isinstance(event, SyncResult)]
        assert (type(result), result.caused_by) == (SyncSucceeded, ("s1",))
        assert len(w.method.asked) == 2


async def test_a_session_end_has_a_failed_result_if_the_data_directory_is_unreadable():
    async def unreadable() -> Survey:
        raise SnapshotError("the data directory cannot be read", hint="check its permissions")

    async with simulated_agent([1]) as w:
        w.files.survey = unreadable
        w.notes.leave(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.settle()
        (result,) = await results(w)
        assert (type(result), result.caused_by) == (SyncFailed, ("s1",))
        assert "the data directory cannot be read" in result.error


async def test_a_failed_target_is_retried_after_30_s_then_60_s():
    async with simulated_agent([PERMANENT, PERMANENT, 1], agent_rescan_seconds=10_000) as w:
        w.files.change(1)
        await w.pass_time(2.1)
        await w.pass_time(28)
        assert w.reasons == ["file_change"]
        await w.pass_time(5)
        assert w.reasons == ["file_change", "retry"]
        await w.pass_time(55)
        assert w.reasons == ["file_change", "retry"]
        await w.pass_time(10)
        assert w.reasons == ["file_change", "retry", "retry"]
        assert (await w.agent.ledger.record(w.method.target)).failures == 0


async def test_after_the_fallback_delivered_only_the_cloud_is_retried():
    async with simulated_agent([PERMANENT, 1], fallback=[1, 2], agent_rescan_seconds=10_000) as w:
        w.files.change(1)
        await w.pass_time(3)
        assert len(w.fallback.asked) == 1
        await w.pass_time(40)
        assert (w.reasons, len(w.method.asked), len(w.fallback.asked)) == (
            ["file_change", "file_change", "retry"],
            2,
            1,
        )


async def test_while_the_cloud_backs_off_the_fallback_delivers_changes():
    async with simulated_agent([PERMANENT] * 9, fallback=[1, 2], agent_min_interval_seconds=1) as w:
        w.files.change(1)
        await w.pass_time(3)
        w.files.change(2)
        await w.pass_time(3)
        assert (len(w.method.asked), len(w.fallback.asked)) == (1, 2)


async def test_once_the_cloud_has_everything_the_failed_fallback_is_not_retried():
    async with simulated_agent([PERMANENT, 1], fallback=[PERMANENT] * 9) as w:
        w.files.change(1)
        await w.pass_time(40)
        assert (await w.agent.ledger.record(w.method.target)).failures == 0
        asked = len(w.fallback.asked)
        await w.pass_time(3_600)
        assert (len(w.method.asked), len(w.fallback.asked)) == (2, asked)


async def test_a_repeated_failure_of_retries_is_logged_once(capsys):
    async with simulated_agent([PERMANENT] * 9, agent_rescan_seconds=10_000) as w:
        w.files.change(1)
        await w.pass_time(400)
        assert len(w.method.asked) > 3
    printed = [line for line in capsys.readouterr().out.splitlines() if "[debug" not in line]
    assert len([line for line in printed if "sync_failed" in line]) == 1
    assert len([line for line in printed if "sync_requested" in line]) == 1


async def test_a_file_change_does_not_retry_a_target_that_backs_off():
    async with simulated_agent([PERMANENT] * 9, agent_min_interval_seconds=1) as w:
        w.files.change(1)
        await w.pass_time(3)
        for generation in range(2, 10):
            w.files.change(generation)
            await w.pass_time(3)
        assert w.reasons == ["file_change"]


async def test_a_session_end_retries_a_target_that_backs_off():
    async with simulated_agent([PERMANENT, 1]) as w:
        w.files.change(1)
        await w.pass_time(3)
        await w.agent.bus.publish(SessionEnded(id="s1", time=w.clock.now(), system_id=values.SYSTEM))
        await w.settle()
        assert w.reasons == ["file_change", "session_end"]


async def test_a_recovered_target_is_retried_before_its_back_off_ends():
    async with simulated_agent([1], agent_rescan_seconds=5) as w:
        w.method.available = False
        w.files.change(1)
        await w.pass_time(3)
        await w.agent.ledger.give_up(
            w.method.target, error="away", failures=9, retry_at=w.clock.now() + timedelta(days=1), result=None
        )
        await w.pass_time(6)
        w.method.available = True
        await w.pass_time(6)
        assert w.reasons[-1] == "retry"
        assert (await w.agent.ledger.record(w.method.target)).failures == 0


async def test_with_sync_enabled_off_nothing_is_synced():
    async with simulated_agent([1], sync_enabled=False) as w:
        w.files.change(1)
        await w.pass_time(600)
        assert w.method.asked == []


async def test_the_outcome_of_a_note_has_the_id_of_the_note():
    async with simulated_agent([1]) as w:
        w.files.change(1, notified=False)
        w.notes.leave(ask())
        await w.settle()
        assert (await w.agent.ledger.outcome("ask-1")).success


async def test_a_note_for_another_system_is_refused():
    async with simulated_agent([1]) as w:
        w.notes.leave(ask(system_id="other"))
        await w.settle()
        assert (w.reasons, w.notes.notes) == ([], {})
        assert "other" in (await w.agent.ledger.outcome("ask-1")).error, (
            "the process that left the note gets an outcome"
        )


async def test_a_request_for_an_unavailable_method_fails_with_a_hint():
    async with simulated_agent(running=False) as w:
        async with asyncio.timeout(60):
            result = await w.agent.once(ask(method="http"))
        assert isinstance(result, SyncFailed)
        assert "choose cloud" in result.error


async def test_once_returns_the_result():
    async with simulated_agent([1], running=False) as w:
        w.files.change(1, notified=False)
        async with asyncio.timeout(60):
            result = await w.agent.once(ask())
        assert result.upload_id == values.upload_id(1)


async def test_an_unexpected_error_in_a_loop_stops_the_agent():
    async with simulated_agent(running=False) as w:

        async def broken() -> Survey:
            raise RuntimeError("the disk is gone")

        w.files.survey = broken
        with pytest.raises(ExceptionGroup, check=lambda group: "the disk is gone" in repr(group)):
            await w.agent.run()


def fail_once(ledger, method: str, errors: list[Exception]) -> None:
    """Make the next call of the ledger's method raise; later calls work."""
    original = getattr(ledger, method)

    async def failing(*args):
        if errors:
            raise errors.pop()
        return await original(*args)

    setattr(ledger, method, failing)


@pytest.mark.parametrize(
    "error", [StateError("the disk is full", transient=True), RuntimeError(NO_THREAD)], ids=["disk", "threads"]
)
async def test_an_exhausted_resource_interrupts_a_loop_and_does_not_stop_the_agent(error):
    async with simulated_agent([1]) as w:
        errors = [error]
        fail_once(w.agent.ledger, "record", errors)
        w.agent.errors.put_nowait(error)
        w.files.change(1)
        await w.pass_time(70)
        assert (w.reasons, errors) == (["file_change"], [])


async def test_a_request_is_published_even_if_the_history_cannot_be_written():
    async with simulated_agent([1]) as w:
        full = [StateError("the disk is full", transient=True)]
        fail_once(w.agent.ledger, "add_to_history", full)
        w.files.change(1)
        await w.pass_time(3)
        assert (w.reasons, full) == (["file_change"], [])
        assert len(w.method.asked) == 1


async def test_an_unreadable_data_directory_is_logged_once_and_surveyed_again(capsys):
    async with simulated_agent([1]) as w:
        survey = w.files.survey

        async def unreadable() -> Survey:
            raise SnapshotError("cannot read the data directory")

        w.files.survey = unreadable
        for _ in range(3):
            w.files.change(1)
            await w.pass_time(70)
        assert w.reasons == []
        w.files.survey = survey
        await w.pass_time(400)
        assert w.reasons == ["file_change"]
    assert "".join(capsys.readouterr()).count("data_directory_unreadable") == 1


async def test_a_change_during_a_survey_starts_a_new_burst():
    async with simulated_agent([1, 2], agent_min_interval_seconds=0, agent_rescan_seconds=10_000) as w:
        survey, during = w.files.survey, [True]

        async def changing() -> Survey:
            seen = await survey()
            if during:
                during.pop()
                w.files.change(2)
                w.agent.file_changes.record_change()
            return seen

        w.files.change(1)
        await w.settle()
        w.files.survey = changing
        await w.pass_time(10)
        assert w.reasons == ["file_change", "file_change"]


async def test_an_error_in_the_error_queue_stops_the_agent():
    async with simulated_agent(running=False) as w:
        w.agent.errors.put_nowait(RuntimeError("a bug"))
        with pytest.raises(ExceptionGroup, check=lambda group: "a bug" in repr(group)):
            await w.agent.run()


async def test_a_note_is_kept_until_its_request_has_an_outcome():
    async with simulated_agent([1]) as w:
        w.method.hold = asyncio.Event()
        w.files.change(1, notified=False)
        w.notes.leave(ask())
        await w.settle()
        assert list(w.notes.notes) == ["ask-1"]
        w.method.hold.set()
        await w.pass_time(61)
        assert w.notes.notes == {}
        assert len(w.method.asked) == 1
