"""Results for programs on other machines over a real NATS that restarts, and publishing the end of a session."""

import asyncio
import subprocess
import sys
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace

import pytest
from nats.js.errors import NotFoundError
from structlog.testing import capture_logs

from agent.adapters.nats.bus import NatsBuses
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import BusError, NamingError, SettingsError, WireError
from agent.events_client import Login, NatsOptions, Patience, publish_session_ended, results
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.machine import Machine
from tests.support.servers.nats import connected, running_nats
from tests.support.servers.nats_credentials import TOKEN, token_config

pytest_plugins = ["tests.support.servers.fixtures"]

ACK_WAIT = 0.5
HOUR = 3600.0
LEFT = "the body was left"
NOWHERE = "nats://127.0.0.1:9"
SECONDS = 30
STREAM = "AKOSHA_SYNC"


def options(server) -> NatsOptions:
    patience = Patience(connect=5, ping=5, reconnect=0.05, reconnect_max=0.1, ack_wait=ACK_WAIT)
    return NatsOptions(servers=(server.url,), name="client", patience=patience)


@asynccontextmanager
async def agent_bus(server):
    """A newly connected bus, independent of earlier failures of the server."""
    buses = NatsBuses(options(server), CloudEventsCodec(), clock=SystemClock(), wait_for_connection=True)
    try:
        yield buses.durable
    finally:
        await buses.aclose()


async def publish(server, *events):
    async with agent_bus(server) as bus:
        for event in events:
            await bus.publish(event)


def of(system, event):
    return replace(event, system_id=system)


async def receive(found, count):
    """Return the IDs of the next `count` results. All but the last are acked."""
    async with asyncio.timeout(SECONDS):
        return [(await anext(found)).id for _ in range(count)]


async def consumers(server, wanted=lambda found: found):
    """Return the stream's consumers once `wanted` accepts them."""

    async def there_are():
        with suppress(NotFoundError):  # no stream yet
            return await client.jsm().consumers_info(STREAM)

    async with asyncio.timeout(SECONDS), connected(server.url) as client:
        while (found := await there_are()) is None or not wanted(found):
            pass
        return found


async def consumer_position(server):
    """Return (last acked sequence, number of unacked messages) of the only consumer."""
    (info,) = await consumers(server)
    return info.ack_floor.stream_seq, info.num_ack_pending


# --------------------------------------------------------------------------------------------------- ack, and not ack


async def test_a_result_is_acked_when_the_next_one_is_requested(fresh_nats):
    reported = [values.skipped("r1"), values.failed("r2"), values.succeeded(values.manifest(reflection=1))]
    await publish(fresh_nats, *reported)
    async with aclosing(results(options(fresh_nats), durable="one")) as found:
        for number, expected in enumerate(reported):
            async with asyncio.timeout(SECONDS):
                assert await anext(found) == expected
            assert await consumer_position(fresh_nats) == (number, 1)
    async with aclosing(results(fresh_nats.url, durable="one")) as found:
        assert await receive(found, 1) == [reported[-1].id], "no result after the last one was requested"


async def raises(found):
    async for _ in found:
        raise ValueError(LEFT)


async def breaks(found):
    async for _ in found:
        break
    raise ValueError(LEFT)


async def is_cancelled(found):
    async for _ in found:
        asyncio.current_task().cancel()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
            raise ValueError(LEFT) from None


@pytest.mark.parametrize("body", [raises, breaks, is_cancelled])
async def test_a_loop_body_that_does_not_finish_gets_its_result_again(fresh_nats, body):
    await publish(fresh_nats, values.skipped("r1"), values.skipped("r2"))
    patient = replace(
        options(fresh_nats), patience=Patience()
    )  # the client sends a nak, so the ack wait of a minute does not matter
    for _ in range(2):
        with pytest.raises(ValueError, match=LEFT):
            async with aclosing(results(patient, durable="one")) as found:
                await body(found)
        assert await consumer_position(fresh_nats) == (0, 1)
    async with aclosing(results(patient, durable="one")) as found:
        assert await receive(found, 2) == ["r1.skipped", "r2.skipped"]


async def test_a_loop_left_without_closing_releases_its_result(fresh_nats):
    await publish(fresh_nats, values.skipped("r1"))
    with pytest.raises(ValueError, match=LEFT):
        await raises(results(options(fresh_nats), durable="one"))
    async with aclosing(results(options(fresh_nats), durable="one")) as found:
        assert await receive(found, 1) == ["r1.skipped"]


async def test_a_slow_loop_body_does_not_get_its_result_twice(fresh_nats):
    await publish(fresh_nats, values.skipped("r1"), values.skipped("r2"))
    async with connected(fresh_nats.url) as observer, aclosing(results(options(fresh_nats), durable="one")) as found:
        settling = await observer.subscribe(f"$JS.ACK.{STREAM}.one.>")
        await observer.flush()
        assert await receive(found, 1) == ["r1.skipped"]
        for _ in range(7):  # more than two ack waits
            assert (await settling.next_msg(timeout=SECONDS)).data == b"+WPI"
        assert await receive(found, 1) == ["r2.skipped"]
        (info,) = await consumers(fresh_nats)
        assert (info.num_redelivered, info.ack_floor.stream_seq) == (0, 1)


# ------------------------------------------------------------------------------------------------------- positions


async def test_a_durable_client_gets_the_results_that_it_missed(fresh_nats):
    await publish(fresh_nats, values.skipped("r1"), values.skipped("r2"))
    async with aclosing(results(options(fresh_nats), durable="one")) as found:
        assert await receive(found, 2) == ["r1.skipped", "r2.skipped"]
    await publish(fresh_nats, values.skipped("r3"))
    async with aclosing(results(options(fresh_nats), durable="one")) as found:
        assert await receive(found, 2) == ["r2.skipped", "r3.skipped"]
    async with aclosing(results(options(fresh_nats), durable="another")) as found:
        assert await receive(found, 3) == ["r1.skipped", "r2.skipped", "r3.skipped"]


async def test_a_durable_client_gets_all_results_of_an_hour(fresh_nats, tmp_path):
    """Only the agent's clock advances by an hour. The configuration shows that the server keeps results for longer."""
    clock = ManualClock(values.NOON)
    ledger = await SqliteLedger.open(tmp_path / "ledger.sqlite", CloudEventsCodec(), clock=clock)
    async with agent_bus(fresh_nats) as bus:
        recorder = ResultRecorder(ledger, bus, clock)

        async def sync(name):
            await recorder.skipped(None, values.request(name), method="cloud", reason="nothing has changed")
            await recorder.flush()

        await sync("before")
        async with aclosing(results(fresh_nats.url, durable="one")) as found:
            assert await receive(found, 1) == ["before.skipped"]
        for minute in range(0, 60, 5):
            await clock.advance(300)
            await sync(f"at-{minute}")
    await ledger.aclose()
    async with aclosing(results(fresh_nats.url, durable="one")) as found, asyncio.timeout(SECONDS):
        received = [await anext(found) for _ in range(13)]
    assert [one.request_id for one in received] == ["before", *(f"at-{minute}" for minute in range(0, 60, 5))]
    assert (received[-1].time - received[0].time).total_seconds() == HOUR
    (info,) = await consumers(fresh_nats)
    async with connected(fresh_nats.url) as client:
        kept = (await client.jsm().stream_info(STREAM)).config
    assert info.config.inactive_threshold > HOUR
    assert kept.max_age > HOUR


async def test_a_client_without_a_durable_name_gets_only_new_results(fresh_nats):
    await publish(fresh_nats, values.skipped("r1"))
    async with aclosing(results(options(fresh_nats))) as found:
        first = asyncio.create_task(receive(found, 1), name="first")
        await subscribed(fresh_nats)
        await publish(fresh_nats, values.skipped("r2"))
        assert await first == ["r2.skipped"]
        assert await consumers(fresh_nats, lambda _: True) == [], "it needs no consumer"


async def subscribed(server, pattern="akosha.sync.*.*"):
    """Return once the server has a plain subscription to the pattern."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = await asyncio.to_thread(server.monitor, "/subsz?subs=1&limit=1000")
            if pattern in [one["subject"] for one in found.get("subscriptions_list", ())]:
                return


# ----------------------------------------------------------------------------------------------------- NATS restarts


@pytest.mark.parametrize("durable", ["one", None])
async def test_nats_killed_while_a_client_waits(fresh_nats, durable):
    with capture_logs() as logs:
        async with aclosing(results(options(fresh_nats), durable=durable)) as found:
            first = asyncio.create_task(receive(found, 1), name="first")
            if durable:
                await consumers(fresh_nats, lambda found: [one.num_waiting for one in found] == [1])
            else:
                await subscribed(fresh_nats)
            fresh_nats.restart()
            if not durable:
                await subscribed(fresh_nats)
            await publish(fresh_nats, values.skipped("r1"))
            assert await first == ["r1.skipped"]
    assert [one["event"] for one in logs].count("nats_waiting") == 1


@pytest.mark.parametrize("wipe", [False, True])
async def test_nats_killed_between_body_and_ack(fresh_nats, wipe):
    """The ack takes the next connection. If it was lost with the stream, the client drops the second delivery."""
    await publish(fresh_nats, values.skipped("r1"))
    async with aclosing(results(options(fresh_nats), durable="one")) as found:
        assert await receive(found, 1) == ["r1.skipped"]
        fresh_nats.kill()
        second = asyncio.create_task(receive(found, 1), name="second")
        await asyncio.sleep(0)
        if wipe:
            fresh_nats.wipe()
        fresh_nats.start()
        await publish(fresh_nats, *[values.skipped("r1")] * wipe, values.skipped("r2"))
        assert await second == ["r2.skipped"]
        assert await consumer_position(fresh_nats) == (1, 1)


async def test_a_client_waits_for_nats_and_reports_it_once(fresh_nats):
    await publish(fresh_nats, values.skipped("r1"))
    fresh_nats.kill()
    with capture_logs() as logs:
        async with aclosing(results(options(fresh_nats), durable="one")) as found:
            first = asyncio.create_task(receive(found, 1), name="first")
            async with asyncio.timeout(SECONDS):
                while [one["event"] for one in logs].count("nats_unreachable") < 3:
                    await asyncio.sleep(0)
            fresh_nats.start()
            assert await first == ["r1.skipped"]
    reported = [one for one in logs if one["log_level"] != "debug" and one["event"].startswith("nats_")]
    assert [(one["event"], one["log_level"]) for one in reported] == [
        ("nats_waiting", "warning"), ("nats_recovered", "info"),
    ]  # fmt: skip
    assert fresh_nats.url.removeprefix("nats://") in reported[0]["reason"]


async def test_a_server_with_authentication_requires_the_token(tmp_path):
    with running_nats(tmp_path, config=token_config()) as server:
        await publish_session_ended(server.url, system_id="laptop", login=Login(token=TOKEN))
        with pytest.raises(BusError) as failure:
            await publish_session_ended(server.url, system_id="laptop", login=Login(token="guess"), timeout=0.5)
        assert "uthorization" in str(failure.value)
        assert "guess" not in str(failure.value)


# ---------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("asked", "pattern", "expected"),
    [
        ({}, "akosha.sync.*.*", ["laptop-7 r1", "other r2", "laptop-7 r3", "other r4"]),
        ({"system": "other"}, "akosha.sync.other.*", ["other r2", "other r4"]),
        ({"outcomes": {"failed"}}, "akosha.sync.*.*", ["laptop-7 r3", "other r4"]),
        ({"system": "laptop-7", "outcomes": ["failed"]}, "akosha.sync.laptop-7.failed", ["laptop-7 r3"]),
        ({"system": "other", "outcomes": ("skipped", "succeeded")}, "akosha.sync.other.*", ["other r2"]),
    ],
    ids=str,
)
async def test_only_matching_results_are_returned(fresh_nats, asked, pattern, expected):
    await publish(
        fresh_nats,
        values.request("r0"),
        values.skipped("r1"),
        of("other", values.skipped("r2")),
        values.failed("r3"),
        of("other", values.failed("r4")),
        of("other", values.request("r5")),
    )
    async with aclosing(results(options(fresh_nats), durable="one", **asked)) as found:
        async with asyncio.timeout(SECONDS):
            received = [await anext(found) for _ in expected]
        assert [f"{one.system_id} {one.request_id}" for one in received] == expected
        (info,) = await consumers(fresh_nats)
        assert info.config.filter_subject == pattern


@pytest.mark.parametrize(
    "asked",
    [
        {"system": "a.b"}, {"system": ">"}, {"system": "a*"}, {"system": ""}, {"system": "x" * 101},
        {"outcomes": {"done"}}, {"outcomes": ("done", "failed")}, {"outcomes": ()}, {"outcomes": "failed"},
        {"durable": "a.b"}, {"durable": ""}, {"durable": "*"},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_arguments_are_refused_without_a_request(asked):
    with pytest.raises(NamingError) as failure:
        results(NOWHERE, **asked)
    assert failure.value.hint


@pytest.mark.parametrize("url", ["", "localhost:4222", "http://a:s3cret@host", "nats://", "nats://a,", "nats://a:x"])
def test_an_invalid_url_is_refused_and_not_quoted(url):
    with pytest.raises(SettingsError, match="nats://") as failure:
        results(url)
    assert "s3cret" not in str(failure.value)


# ---------------------------------------------------------------------------------------------------- a session's end


def test_a_session_end_starts_a_sync_of_the_agent_at_once(fresh_nats, tmp_path):
    machine = Machine(tmp_path, agent_nats_url=fresh_nats.url, agent_upload_on_change="false")
    machine.write(commits=1, entities=1)
    with machine.run() as agent, machine.follow() as events:
        events.reported("succeeded")
        machine.write(commits=2)
        reported = publish_session_ended(fresh_nats.url, system_id="laptop", session_id="9d1b2c", reason="logout")
        name = asyncio.run(reported)
        (line,) = agent.logged("session_ended")
        assert (line["session_id"], line["reason"]) == ("9d1b2c", "logout")
        assert events.reported("succeeded", 2)[1]["triggered_by"] == "session_end"
        again = publish_session_ended(fresh_nats.url, system_id="laptop", id=name)
        assert asyncio.run(again) == name
    assert len(machine.manifests) == 2


async def test_an_unconfirmed_session_end_is_an_error_with_a_hint():
    with pytest.raises(BusError, match=r"not confirmed within 0\.5 s: .*127\.0\.0\.1:9") as failure:
        await publish_session_ended(NOWHERE, system_id="laptop", id="e-1", timeout=0.5)
    assert "e-1" in failure.value.hint
    assert failure.value.transient


async def test_a_paused_server_does_not_confirm_a_session_end(fresh_nats):
    fresh_nats.pause()
    with pytest.raises(BusError, match="not confirmed"):
        await publish_session_ended(fresh_nats.url, system_id="laptop", timeout=0.5)


async def test_a_session_end_is_published_if_nats_starts_in_time(fresh_nats):
    fresh_nats.kill()
    publishing = asyncio.create_task(publish_session_ended(options(fresh_nats), system_id="laptop", timeout=SECONDS))
    await asyncio.sleep(0)
    fresh_nats.start()
    name = await publishing
    async with connected(fresh_nats.url) as client:
        kept = await client.jetstream().get_last_msg(STREAM, "akosha.session.laptop.ended")
    assert CloudEventsCodec().decode(kept.data).id == name


@pytest.mark.parametrize(
    ("words", "error"),
    [({"system_id": "a.b"}, NamingError), ({"system_id": "a", "reason": "x" * 70_000}, WireError)],
    ids=["system", "size"],
)
async def test_an_invalid_session_end_is_refused(fresh_nats, words, error):
    with pytest.raises(error):
        await publish_session_ended(fresh_nats.url, **words)


# ------------------------------------------------------------------------------------ imports of the client

PROGRAM = """
import asyncio, sys
HEAVY = ("aiobotocore", "botocore", "duckdb", "typer", "click", "rich", "watchfiles", "yaml",
         "platformdirs")
sys.modules.update(dict.fromkeys(HEAVY))  # as if they were not installed; structlog would use rich if it were
from agent.events_client import BusError, publish_session_ended, results

async def main(listening, nowhere):
    await publish_session_ended(listening, system_id="laptop")
    try:
        await asyncio.wait_for(anext(results(nowhere)), 0.5)
    except TimeoutError:
        print("waits")
    try:
        await publish_session_ended(nowhere, system_id="laptop", timeout=0.1)
    except BusError:
        print("not confirmed")

asyncio.run(main(*sys.argv[1:]))
loaded = [name for name in sys.modules if name.split(".")[0] in HEAVY and sys.modules[name]]
ours = ("agent.settings", "agent.bootstrap", "agent.entrypoints")
print(loaded + [name for name in sys.modules if name.startswith(ours)])
"""


def test_a_program_loads_no_module_of_the_agent_and_prints_nothing_extra(fresh_nats):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, fresh_nats.url, NOWHERE], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "waits\nnot confirmed\n[]\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("event='nats_waiting'")
