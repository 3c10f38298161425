"""Invalid or malicious messages of other clients: they are refused and stop nothing."""

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import BusError
from agent.domain.naming import STREAM_SUBJECTS
from tests.support import values
from tests.support.nats_bus import (
    CLOCK,
    CODEC,
    SECONDS,
    RecordingHandler,
    ended,
    opened_buses,
    progress,
    pub,
    send_lines,
    until,
)
from tests.support.servers.nats import connected, running_nats

pytest_plugins = ["tests.support.servers.fixtures"]


@pytest.mark.parametrize("data", [CODEC.encode(progress(1)), b"no event"], ids=["event", "garbage"])
@pytest.mark.parametrize("reply", [b"some.where", b"$JS.ACK.a.b.c.d.e.f.g"])
async def test_progress_with_a_reply_subject_does_not_end_a_subscription(fresh_nats, data, reply):
    inbox = RecordingHandler()
    async with opened_buses(fresh_nats.url) as buses:
        await buses.volatile.subscribe("akosha.progress.*", inbox)
        await send_lines(fresh_nats, pub(b"akosha.progress.mac", data, reply=reply))
        await buses.volatile.publish(progress(2))
        assert await inbox.wait_for_event("p-2")


NO_UTF8 = {
    "subject": pub(b"akosha.progress.\xff", b"x"),
    "reply": pub(b"akosha.progress.mac", b"x", reply=b"\xff"),
    "header": pub(b"akosha.progress.mac", b"x", headers=b"NATS/1.0 \xff\xff\xff x\r\n\r\n"),
}


@pytest.mark.parametrize("where", NO_UTF8)
async def test_invalid_utf8_does_not_stop_subscriptions(fresh_nats, where):
    inbox = RecordingHandler()
    async with opened_buses(fresh_nats.url, patience={"ping": 0.2, "ping_timeout": 0.2}) as buses:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        await buses.volatile.subscribe("akosha.progress.*", RecordingHandler())
        await send_lines(fresh_nats, NO_UTF8[where])
        async with opened_buses(fresh_nats.url) as other:
            await other.durable.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]


@pytest.mark.parametrize("status", [b"100", b"404", b"408", b"409"])
async def test_an_event_with_a_status_header_is_delivered(fresh_nats, status):
    inbox = RecordingHandler()
    async with opened_buses(fresh_nats.url) as buses:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        header = b"NATS/1.0\r\nStatus: %b\r\nDescription: x\r\n\r\n" % status
        await send_lines(fresh_nats, pub(b"akosha.session.mac.ended", CODEC.encode(ended(1)), headers=header))
        await buses.durable.publish(ended(2))
        assert await inbox.wait_for_count(2) == ["e-1", "e-2"]


@pytest.mark.parametrize("answer", [b"ok", b"{}", b"[]", b'{"stream": 5}', b'{"error": 5}'])
async def test_a_reply_of_another_client_instead_of_the_stream_is_a_bus_error_or_ignored(fresh_nats, answer):
    async with opened_buses(fresh_nats.url) as buses, connected(fresh_nats.url) as other_client:
        await other_client.jsm().delete_stream("AKOSHA_SYNC")

        async def reply(message) -> None:
            await message.respond(answer)

        await other_client.subscribe("akosha.session.>", cb=reply)
        await other_client.flush()
        (failure,) = await asyncio.gather(buses.durable.publish(ended(1)), return_exceptions=True)
        if failure is None:
            assert (await other_client.jetstream().stream_info("AKOSHA_SYNC")).state.messages == 1
        else:
            assert isinstance(failure, BusError)
            assert failure.transient


async def test_a_stream_deleted_while_another_client_listens_is_created_again_by_publishing(fresh_nats):
    async with (
        opened_buses(fresh_nats.url, patience={"connect": 0.5}) as buses,
        connected(fresh_nats.url) as other_client,
    ):
        await other_client.subscribe("akosha.>", cb=ignore)
        await other_client.jsm().delete_stream("AKOSHA_SYNC")
        for _ in range(3):
            try:
                await buses.durable.publish(ended(1))
            except BusError:
                continue
            break
        else:
            pytest.fail("the stream was not created again")


async def ignore(message) -> None:
    pass


async def test_a_stream_with_too_many_subjects_is_not_used_and_the_fix_is_reported(fresh_nats):
    async with connected(fresh_nats.url) as other:
        await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=["akosha.>"])
        async with opened_buses(fresh_nats.url, ready=False) as buses:
            await until(lambda: not buses.durable.state.ready)
            hint = f"nats stream edit AKOSHA_SYNC --subjects {','.join(STREAM_SUBJECTS)}"
            assert hint in buses.durable.state.detail
            with pytest.raises(BusError, match="stores subjects that must not be stored"):
                await buses.durable.publish(ended(1))
            assert (await other.jetstream().stream_info("AKOSHA_SYNC")).state.messages == 0


async def test_a_stream_of_an_earlier_version_gets_the_new_subjects_and_direct_gets(fresh_nats):
    async with connected(fresh_nats.url) as other:
        async with opened_buses(fresh_nats.url):
            pass
        config = (await other.jetstream().stream_info("AKOSHA_SYNC")).config
        fewer = [subject for subject in STREAM_SUBJECTS if subject != "akosha.archive.>"]
        for earlier in (replace(config, subjects=fewer), replace(config, allow_direct=False)):
            await other.jetstream().update_stream(earlier)
            async with opened_buses(fresh_nats.url) as buses:
                assert buses.durable.state.ready
                assert await buses.durable.newest("akosha.session.mac.ended") is None
            kept = (await other.jetstream().stream_info("AKOSHA_SYNC")).config
            assert (sorted(kept.subjects), kept.max_age) == (sorted(STREAM_SUBJECTS), config.max_age)


async def test_a_fixed_stream_is_used_and_delivers_progress_and_replies_once(fresh_nats):
    inbox = RecordingHandler()

    async def answer(question: bytes) -> bytes:
        return b"fine"

    async with connected(fresh_nats.url) as other:
        await other.jetstream().add_stream(name="AKOSHA_SYNC", subjects=["akosha.>"])
        async with opened_buses(fresh_nats.url, ready=False) as buses:
            await other.jetstream().update_stream(name="AKOSHA_SYNC", subjects=list(STREAM_SUBJECTS))
            await buses.volatile.subscribe("akosha.>", inbox)
            await buses.volatile.respond("akosha.agent.mac.status", answer)
            await buses.volatile.publish(progress(1))
            await buses.durable.publish(ended(1))
            async with asyncio.timeout(SECONDS):
                await buses.durable.wait_until_ready()
            assert sorted(await inbox.wait_for_count(2)) == ["e-1", "p-1"]
            assert (await other.request("akosha.agent.mac.status", b"?", timeout=60)).data == b"fine"
            await buses.durable.publish(ended(2))
            assert sorted(await inbox.wait_for_count(3)) == ["e-1", "e-2", "p-1"]


async def test_a_flood_of_rubbish_is_refused_with_few_log_lines(fresh_nats):
    inbox = RecordingHandler()
    with capture_logs() as logs:
        async with opened_buses(fresh_nats.url) as buses:
            await buses.volatile.subscribe("akosha.session.>", inbox)
            await send_lines(fresh_nats, *[pub(b"akosha.session.mac.ended", b"rubbish")] * 5000)
            await buses.volatile.publish(ended(1))
            assert await inbox.wait_for_event("e-1")
    refused = [line["so_far"] for line in logs if (line["event"], line["log_level"]) == ("message_refused", "warning")]
    assert refused == [*range(1, 11), 1000, 2000, 3000, 4000, 5000]


async def test_a_result_larger_than_the_server_accepts_does_not_block_others(tmp_path):
    ledger = await SqliteLedger.open(tmp_path / "ledger", CODEC, clock=CLOCK)
    with running_nats(tmp_path / "nats", max_payload=8192) as server:
        async with opened_buses(server.url) as buses:
            await ledger.settle(None, replace(values.skipped("r1"), why="x" * 20_000))
            await ledger.settle(None, values.skipped("r2"))
            try:
                await ResultRecorder(ledger, buses.durable, CLOCK).flush()
                assert not await ledger.outbox()
            finally:
                await ledger.aclose()
