"""Requests of local processes to the running agent: one that arrives twice, by socket and by note, counts once."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from agent.application.status_warnings import PORT_UNAVAILABLE
from agent.bootstrap.metrics import metering
from agent.domain.errors import BusError, SnapshotError, WireError
from agent.domain.events import CAUSED_BY_BYTES, Event, SessionEnded, SyncRequested, SyncResult, SyncSucceeded
from agent.domain.status_warning import StatusWarning
from agent.ports import BusState
from tests.support import values
from tests.support.agent import ask, simulated_agent


def ended(number: int = 1, system: str = values.SYSTEM) -> SessionEnded:
    return SessionEnded(id=f"s{number}", time=values.NOON, system_id=system, session_id=f"{number}")


async def test_a_sync_command_becomes_a_request_with_its_id():
    async with simulated_agent([1]) as w:
        w.files.change(1, notified=False)
        request = await w.agent.agent_service.request_sync(ask())
        assert (request.request_id, request.reason) == ("ask-1", "manual")
        await w.settle()
        assert (await w.agent.agent_service.outcome("ask-1")).success
        assert await w.agent.agent_service.outcome("ask-2") is None


async def test_only_a_full_status_checks_the_target():
    """The supervisor's status line is updated at each event, and metrics are scraped: neither shows target warnings."""
    async with simulated_agent() as w:
        unmounted, checks = StatusWarning(code="target_not_mounted", message="the disk is not mounted"), []

        async def check():
            checks.append(1)
            return (unmounted,)

        w.agent.agent_service._warnings = check
        assert (await w.agent.agent_service.brief_status()).warnings == ()
        assert (await metering().exposition(w.agent.agent_service))[0]
        assert checks == []
        assert (await w.agent.agent_service.status()).warnings == (unmounted,)


async def test_a_port_that_is_not_open_is_a_warning_until_an_agent_reports_none():
    async with simulated_agent() as w:
        problem = StatusWarning(code=PORT_UNAVAILABLE, message="port 8700 for HTTP is not open: in use")
        await w.agent.agent_service.report_port(problem)
        assert [str(one) for one in (await w.agent.agent_service.status()).warnings] == [problem.message]
        await w.agent.agent_service.report_port(None)
        assert (await w.agent.agent_service.status()).warnings == ()


async def test_a_repeated_sync_command_is_the_same_request_before_during_and_after_its_sync():
    async with simulated_agent([1]) as w:
        w.method.hold = asyncio.Event()
        w.files.change(1, notified=False)
        at_once = await asyncio.gather(*(w.agent.agent_service.request_sync(ask()) for _ in range(10)))
        await w.settle()
        during = await w.agent.agent_service.request_sync(ask())
        w.method.hold.set()
        await w.settle()
        after = await w.agent.agent_service.request_sync(ask())
        assert [*at_once, during, after] == [at_once[0]] * 12
        await w.pass_time(120)
        assert (w.reasons, len(w.method.asked)) == (["manual"], 1)


async def test_a_sync_command_by_socket_and_by_note_is_one_request_with_one_outcome():
    async with simulated_agent([1, 2]) as w:
        w.method.hold = asyncio.Event()
        w.files.change(1, notified=False)
        assert await w.agent.agent_service.accept(ask())
        w.notes.leave(ask())
        await w.settle()
        w.notes.leave(ask(id="ask-2"))
        await w.settle()
        assert not await w.agent.agent_service.accept(ask(id="ask-2"))
        assert list(w.notes.notes) == ["ask-1", "ask-2"], "a note is kept until its request has an outcome"
        w.method.hold.set()
        await w.pass_time(61)
        assert (w.reasons, w.notes.notes) == (["manual", "manual"], {})
        assert not await w.agent.agent_service.accept(ask())
        results = [e.event for e in await w.agent.ledger.history() if getattr(e.event, "request_id", "") == "ask-1"]
        assert len([one for one in results if not isinstance(one, SyncRequested)]) == 1


async def test_a_repeated_refused_command_is_recorded_once():
    async with simulated_agent(sync_enabled=False) as w:
        assert await w.agent.agent_service.request_sync(ask()) is None
        assert await w.agent.agent_service.request_sync(ask()) is None
        assert "disabled" in (await w.agent.agent_service.outcome("ask-1")).error
        assert len(await w.agent.ledger.history()) == 1


async def test_a_command_for_another_system_is_refused_with_a_hint():
    async with simulated_agent() as w:
        for method in (w.agent.agent_service.request_sync, w.agent.agent_service.accept):
            with pytest.raises(WireError, match="other") as refused:
                await method(ask(system_id="other"))
            assert values.SYSTEM in refused.value.hint


async def test_an_open_request_of_an_earlier_agent_is_published_again_and_has_one_outcome():
    async with simulated_agent([1]) as w:
        w.method.hold = asyncio.Event()
        await w.agent.agent_service.request_sync(ask())
        assert await w.agent.agent_service.request_sync(ask(id="refused", method="http")) is None
        await w.settle()
        left = await w.agent.open_asks()
        assert [one.id for one in left] == ["ask-1"]
    unanswered = [*left, ask(id="other-1", system_id="other")]
    async with simulated_agent([1], running=False, unanswered=unanswered) as w:
        w.files.change(1, notified=False)
        task = asyncio.create_task(w.agent.run())
        await w.settle()
        assert w.reasons == ["manual", "startup"]
        assert (await w.agent.ledger.outcome("ask-1")).upload_id == values.upload_id(1)
        assert "other" in (await w.agent.ledger.outcome("other-1")).error
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_hundred_session_ends_by_socket_and_by_note_cause_one_sync():
    async with simulated_agent([1]) as w:
        w.files.change(1, notified=False)
        for number in range(100):
            w.notes.leave(ended(number))
        new = await asyncio.gather(*(w.agent.agent_service.accept(ended(number)) for number in range(100)))
        assert set(new) <= {True, False}
        await w.pass_time(1)
        assert (w.reasons, len(w.method.asked), w.notes.notes) == (["session_end"], 1, {})


async def test_a_session_end_by_socket_and_by_note_is_one_event():
    async with simulated_agent([1]) as w:
        assert await w.agent.agent_service.accept(ended())
        assert not await w.agent.agent_service.accept(ended())
        w.notes.leave(ended())
        await w.settle()
        assert w.notes.notes == {}
        assert len([event for event in w.received if isinstance(event, SessionEnded)]) == 1


async def test_a_session_end_with_the_system_id_of_an_older_hook_gets_this_id_and_counts_once():
    async with simulated_agent([1]) as w:
        w.files.change(1, notified=False)
        for _ in ("by the note", "by the same note, after a crash"):
            w.notes.leave(ended(system="former"))
            await w.settle()
        assert (w.reasons, w.notes.notes) == (["session_end"], {})
        (published,) = (event for event in w.received if isinstance(event, SessionEnded))
        assert (published.id, published.system_id, published.session_id) == ("s1", values.SYSTEM, "1")


async def test_accepting_a_session_end_does_not_remove_its_note():
    """If the agent is killed right after its answer, the next agent finds the note."""
    async with simulated_agent([1]) as w:
        await w.settle()  # the spool has been read
        w.notes.notes["s1"] = ended()  # written, and the spool's watch has not reported it yet
        assert await w.agent.agent_service.accept(ended())
        assert list(w.notes.notes) == ["s1"]


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(ended(system="other"), id="another system"),
        pytest.param(values.skipped(), id="a result"),
        pytest.param(values.request(), id="a request"),
    ],
)
async def test_events_that_other_processes_may_not_send_are_refused(event):
    async with simulated_agent() as w:
        with pytest.raises(WireError):
            await w.agent.agent_service.accept(event)
        await w.settle()
        assert w.reasons == []


async def test_while_the_bus_is_not_ready_a_command_fails_at_once_and_a_session_end_is_recorded():
    async with simulated_agent() as w:
        w.agent.bus.state = BusState("nats", ready=False, detail="nats://nowhere", since=values.NOON)
        with pytest.raises(BusError, match="nowhere"):
            await w.agent.agent_service.request_sync(ask())
        with pytest.raises(BusError, match="nowhere"):
            await w.agent.agent_service.accept(ask())
        assert await w.agent.agent_service.accept(ended())


@pytest.mark.parametrize("by_note", [True, False], ids=["note", "socket"])
async def test_a_session_end_that_the_bus_loses_is_named_by_one_result(by_note, monkeypatch):
    """When the note is removed, or the socket answers, the session end is in the ledger: a kill does not lose it."""
    async with simulated_agent([1]) as w:
        publish = w.agent.bus.publish

        async def lose(event: Event) -> None:
            if not isinstance(event, SessionEnded):
                await publish(event)

        monkeypatch.setattr(w.agent.bus, "publish", lose)
        recorded_before: list[bool] = []
        remove = w.notes.remove

        async def remove_note(note: str) -> None:
            recorded_before.append(not await w.agent.ledger.accept(ended()))
            await remove(note)

        monkeypatch.setattr(w.notes, "remove", remove_note)
        w.files.change(1, notified=False)
        if by_note:
            w.notes.leave(ended())
        else:
            assert await w.agent.agent_service.accept(ended())
        await w.settle()
        history = [entry.event for entry in await w.agent.ledger.history()]
        assert [result.caused_by for result in history if isinstance(result, SyncResult)] == [("s1",)]
        assert recorded_before == [True] * by_note


async def test_a_session_end_whose_id_no_result_can_name_is_refused():
    async with simulated_agent() as w:
        with pytest.raises(WireError, match="longer than"):
            await w.agent.agent_service.accept(replace(ended(), id="x" * CAUSED_BY_BYTES))


async def test_a_request_that_the_bus_has_lost_is_published_again_by_the_next_rescan(monkeypatch):
    async with simulated_agent([1]) as w:
        publish, lost = w.agent.bus.publish, []

        async def lose_one(event: Event) -> None:
            if not lost and isinstance(event, SyncRequested):
                lost.append(event)
            else:
                await publish(event)

        monkeypatch.setattr(w.agent.bus, "publish", lose_one)
        w.files.change(1, notified=False)
        w.method.hold = asyncio.Event()
        request = await w.agent.agent_service.request_sync(ask())
        await w.settle()
        assert (lost, w.method.asked) == ([request], [])
        await w.pass_time(60)
        assert w.method.asked == [request]
        await w.pass_time(60)
        w.method.hold.set()
        await w.settle()
        assert (w.reasons, w.method.asked) == (["manual"], [request])


async def test_after_a_bus_change_only_requests_that_no_subscriber_has_are_published_again():
    async with simulated_agent([1]) as w:
        w.method.hold = asyncio.Event()
        w.files.change(1, notified=False)
        await w.agent.agent_service.request_sync(ask())
        await w.settle()
        await w.agent.bus_recovery._switched()
        w.method.hold.set()
        await w.settle()
        assert (w.reasons, len(w.method.asked)) == (["manual"], 1)


async def test_after_a_bus_change_databases_that_changed_are_synced_at_once():
    """The bus may have lost the request for them."""
    async with simulated_agent([1]) as w:
        w.files.change(1, notified=False)
        await w.agent.bus_recovery._switched()
        await w.settle()
        assert (w.reasons, len(w.method.asked)) == (["retry"], 1)


async def test_the_status_combines_the_ledger_the_files_and_the_settings():
    async with simulated_agent([1]) as w:
        w.files.change(1)
        await w.pass_time(3)
        w.files.change(2, notified=False)
        status = await w.agent.agent_service.status()
        assert (status.system_id, status.route, status.pending) == (values.SYSTEM, ("cloud",), ("reflection",))
        assert status.targets[0].newest_upload_id == values.upload_id(1)
        assert (status.notes["watcher"], status.bus.text) == ("native", "in this process")
        assert (await w.agent.agent_service.survey_problem(), status.warnings) == ("", ())
        w.files.room = 5
        (full,) = (await w.agent.agent_service.status()).warnings
        assert (full.code, "5 are free" in full.message) == ("state_disk_full", True)

        async def unreadable():
            raise SnapshotError("cannot read the data directory")

        w.files.survey = unreadable
        assert "cannot read" in await w.agent.agent_service.survey_problem()
        assert (await w.agent.agent_service.status()).targets[0].databases[0].size == 0


async def test_following_from_the_last_position_misses_no_event():
    async with simulated_agent(sync_enabled=False) as w:
        assert await w.agent.agent_service.last_position() == 0
        await w.agent.agent_service.request_sync(ask())
        position = await w.agent.agent_service.last_position()
        assert position == (await w.agent.ledger.history())[-1].position
        await w.agent.agent_service.request_sync(replace(ask(), id="ask-2"))
        async with aclosing(w.agent.agent_service.events(after=position)) as events:
            assert (await anext(events)).event.request_id == "ask-2"


async def test_a_reader_follows_a_sync_from_its_request_to_its_result():
    async with simulated_agent([1]) as w:
        w.files.change(1, notified=False)
        async with aclosing(w.agent.agent_service.events(after=None)) as events:
            first = asyncio.create_task(anext(events))
            await w.settle()
            await w.agent.agent_service.request_sync(replace(ask(), id="ask-9"))
            await w.settle()
            received = [(await first).event]
            while not isinstance(received[-1], SyncSucceeded):
                one = await anext(events)
                received.append(getattr(one, "event", one))
        assert [event.type.split(".")[2] for event in received] in (
            ["requested", "progress", "succeeded"],
            ["requested", "succeeded"],
        )
