"""The sync subscriber follows the routing decisions, and each request has one outcome."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from structlog.testing import capture_logs

from agent.adapters.memory_bus import MemoryBus
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.application.status_warnings import warnings_in
from agent.application.sync import subscriber as subscriber_module
from agent.application.sync.request_log import RequestLog
from agent.application.sync.results import ResultRecorder
from agent.application.sync.subscriber import SyncSubscriber
from agent.domain.delivery_state import State
from agent.domain.errors import CloudUploadError, StoreError
from agent.domain.events import Event, MethodError, SyncProgress, SyncRequested
from agent.domain.identity import Identity
from agent.domain.routing import RetryRules, SyncPolicy
from agent.entrypoints.formatting import sync_summary
from agent.entrypoints.result_document import ResultDocument
from tests.support import values
from tests.support.clock import ManualClock, until_idle
from tests.support.consumed_bus import ConsumedMemoryBus
from tests.support.ledger import inline_ledger
from tests.support.method import ScriptedMethod

TRANSIENT = CloudUploadError("the bucket answers 503", "cloud", transient=True)
PERMANENT = CloudUploadError("403", "cloud", hint="allow s3:PutObject")
SOURCE = CloudUploadError("reflection: it is a directory", "cloud", forwardable=False)


NO_CLOUD = SyncPolicy()


@dataclass
class Setup:
    clock: ManualClock
    bus: MemoryBus
    requests: RequestLog
    ledger: SqliteLedger
    recorder: ResultRecorder
    cloud: ScriptedMethod
    http: ScriptedMethod
    received: list[Event] = field(default_factory=list)
    errors: asyncio.Queue = field(default_factory=asyncio.Queue)
    outcomes: int = 0
    subscribers: list[SyncSubscriber] = field(default_factory=list)

    def results(self) -> list[str]:
        return [e.type.split(".")[2] for e in self.received if not isinstance(e, SyncRequested | SyncProgress)]

    async def until(self, condition) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def sync_setup(tmp_path, cloud=(), http=(), policy=NO_CLOUD):
    clock = ManualClock(values.NOON)
    bus, results_bus = MemoryBus(clock), ConsumedMemoryBus(clock)
    ledger = inline_ledger(clock)
    recorder = ResultRecorder(ledger, results_bus, clock)
    requests = RequestLog(Identity("agent-1", values.SYSTEM), bus, ledger)
    b = Setup(
        clock, bus, requests, ledger, recorder, ScriptedMethod(ledger, cloud), ScriptedMethod(ledger, http, "http")
    )
    sync_lock = asyncio.Lock()

    def ended() -> None:
        b.outcomes += 1

    async def survey():
        return {}

    subscribers = b.subscribers
    for method in (b.cloud, b.http):
        subscriber = SyncSubscriber(
            method, bus=bus, requests=requests, ledger=ledger, recorder=recorder,
            clock=clock, rules=RetryRules(3, 2.0), policy=policy, survey=survey,
            sync_lock=sync_lock, after_outcome=ended, errors=b.errors,
            jitter=lambda: 0.5,
        )  # fmt: skip
        subscriber.start()
        subscribers.append(subscriber)
        await bus.subscribe(f"akosha.sync.*.requested.{method.name}", subscriber.handle)

    async def hear(event) -> None:
        b.received.append(event)

    await bus.subscribe("akosha.>", hear)
    await results_bus.consume("akosha.>", hear, durable="test")
    outbox = asyncio.create_task(recorder.run())
    try:
        yield b
    finally:
        outbox.cancel()
        await asyncio.gather(outbox, return_exceptions=True)
        for subscriber in subscribers:
            await subscriber.stop()
        await bus.aclose()
        await results_bus.aclose()
        await ledger.aclose()


async def test_a_delivery_is_recorded_reported_and_confirmed(tmp_path):
    async with sync_setup(tmp_path, cloud=[1]) as b:
        await b.requests.issue(values.request())
        await b.until(lambda: b.results() == ["succeeded"])
        async with asyncio.timeout(60):
            while await b.ledger.outbox():
                await asyncio.sleep(0)
        record = await b.ledger.record(b.cloud.target)
        assert record.databases["reflection"].state is State.CLEAN
        assert (await b.ledger.outcome("r1")).upload_id == values.upload_id(1)


async def test_transient_errors_are_retried_after_2_4_and_8_seconds_then_given_up(tmp_path):
    async with sync_setup(tmp_path, cloud=[TRANSIENT] * 4) as b:
        await b.requests.issue(values.request(route=("cloud",)))
        for number, delay in enumerate((2.0, 4.0, 8.0), 1):
            await b.until(lambda number=number: b.outcomes == number)
            await b.clock.advance(delay * 0.9)
            assert len(b.cloud.asked) == number
            await b.clock.advance(delay * 0.2)
        await b.until(lambda: b.results() == ["failed"])
        assert len(b.cloud.asked) == 4
        record = await b.ledger.record(b.cloud.target)
        assert (record.failures, record.attempts) == (1, 0)
        assert record.backing_off(b.clock.now())


async def test_attempts_are_counted_on_from_the_ledger(tmp_path):
    async with sync_setup(tmp_path, cloud=[TRANSIENT] * 2) as b:
        earlier = values.request("before", reason="file_change")
        await b.ledger.count_attempt(
            b.cloud.target, earlier, attempts=2, retry_at=b.clock.now(), error="the bucket answers 503"
        )
        await b.requests.issue(values.request("r2", reason="startup", route=("cloud",)))
        await b.until(lambda: b.outcomes == 1)
        assert (await b.ledger.record(b.cloud.target)).attempts == 3
        await b.clock.advance(10)
        await b.until(lambda: b.results() == ["failed"])


async def test_a_command_restarts_the_count_of_attempts(tmp_path):
    async with sync_setup(tmp_path, cloud=[TRANSIENT]) as b:
        await b.ledger.count_attempt(
            b.cloud.target, values.request("before"), attempts=3, retry_at=b.clock.now(), error="503"
        )
        await b.requests.issue(values.request("r2", route=("cloud",)))
        await b.until(lambda: b.outcomes == 1)
        record = await b.ledger.record(b.cloud.target)
        assert (record.attempts, record.attempt_request) == (1, "r2")


async def test_a_permanent_error_is_forwarded_and_the_cloud_stays_owed(tmp_path):
    async with sync_setup(tmp_path, cloud=[PERMANENT], http=[1]) as b:
        await b.requests.issue(values.request())
        await b.until(lambda: b.results() == ["succeeded"])
        (forwarded,) = b.http.asked
        assert forwarded.route == ("http",)
        assert [(e.method, e.error) for e in forwarded.errors] == [("cloud", "403 (allow s3:PutObject)")]
        assert (await b.ledger.record(b.cloud.target)).failures == 1


async def test_the_result_of_a_fallback_has_the_error_of_the_cloud(tmp_path):
    async with sync_setup(tmp_path, cloud=[PERMANENT], http=[1]) as b:
        await b.requests.issue(values.request())
        await b.until(lambda: b.results() == ["succeeded"])
        result = await b.ledger.outcome("r1")
        assert result.errors == (MethodError(method="cloud", error="403 (allow s3:PutObject)"),)
        assert sync_summary(result).endswith("; cloud failed: 403 (allow s3:PutObject)")
        errors = ResultDocument.of(result).to_dict()["errors"]
        assert errors == [{"method": "cloud", "error": "403 (allow s3:PutObject)"}]


async def test_an_unavailable_method_forwards_at_once_without_an_attempt(tmp_path):
    async with sync_setup(tmp_path, cloud=[1], http=[2]) as b:
        b.cloud.available = False
        await b.requests.issue(values.request())
        await b.until(lambda: b.results() == ["succeeded"])
        assert b.cloud.asked == []


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        (
            NO_CLOUD,
            "akosha-agent init chooses where memories go; or start Akosha there",
        ),
        (SyncPolicy(cloud_configured=True), "akosha_enable_fallback: false switches the fallback to Akosha off"),
        (SyncPolicy(cloud_configured=True, force_method="http"), "start Akosha there, or set akosha_http_endpoint"),
    ],
    ids=["no bucket", "fallback", "forced"],
)
async def test_the_hint_for_an_akosha_that_is_not_there_fits_the_settings(tmp_path, policy, hint):
    async with sync_setup(tmp_path, policy=policy) as b:
        b.http.available = False
        b.http.target = replace(b.http.target, endpoint="http://localhost:8682/mcp")
        await b.requests.issue(values.request(route=("http",)))
        await b.until(lambda: b.results() == ["failed"])
        assert b.received[-1].error == f"http: no Akosha server at http://localhost:8682/mcp ({hint})"


async def test_if_the_last_method_fails_all_errors_are_reported(tmp_path):
    async with sync_setup(tmp_path, cloud=[PERMANENT], http=[replace_error(PERMANENT, "http")]) as b:
        await b.requests.issue(values.request())
        await b.until(lambda: b.results() == ["failed"])
        (failed,) = [e for e in b.received if e.type == "akosha.sync.failed.v1"]
        assert [e.method for e in failed.errors] == ["cloud", "http"]
        assert failed.retry_at > b.clock.now()


async def test_an_error_of_the_source_does_not_count_against_the_target(tmp_path):
    async with sync_setup(tmp_path, cloud=[SOURCE], http=[1]) as b:
        await b.requests.issue(values.request())
        await b.until(lambda: b.results() == ["failed"])
        assert b.http.asked == []
        record = await b.ledger.record(b.cloud.target)
        assert (record.failures, record.retry_at) == (0, None)


async def test_a_request_that_has_an_outcome_is_ignored(tmp_path):
    async with sync_setup(tmp_path, cloud=[1, 2]) as b:
        await b.requests.issue(values.request())
        await b.until(lambda: b.results() == ["succeeded"])
        await b.requests.issue(values.request())
        await b.until(lambda: b.outcomes == 1 and not b.cloud.hold)
        await b.clock.advance(1)
        assert len(b.cloud.asked) == 1
        assert b.results() == ["succeeded"]


async def test_another_agents_request_is_refused(tmp_path):
    async with sync_setup(tmp_path, cloud=[1, 2]) as b:
        await b.bus.publish(replace(values.request(), agent_id="another-agent"))
        await b.requests.issue(values.request("own"))
        await b.until(lambda: b.results() == ["succeeded"])
        assert [request.request_id for request in b.cloud.asked] == ["own"]


async def test_a_sync_without_changes_is_reported_as_skipped(tmp_path):
    async with sync_setup(tmp_path, cloud=[None]) as b:
        await b.requests.issue(values.request())
        await b.until(lambda: b.results() == ["skipped"])
        assert (await b.ledger.outcome("r1")).why == "nothing has changed"


async def test_one_sync_runs_at_a_time_over_all_methods(tmp_path):
    async with sync_setup(tmp_path, cloud=[1], http=[2]) as b:
        b.cloud.hold = asyncio.Event()
        await b.requests.issue(values.request("first", route=("cloud",)))
        await b.until(lambda: len(b.cloud.asked) == 1)
        await b.requests.issue(values.request("second", route=("http",)))
        await b.clock.advance(5)
        assert b.http.asked == []
        b.cloud.hold.set()
        await b.until(lambda: b.results() == ["succeeded", "succeeded"])


async def test_progress_is_reported_on_the_bus(tmp_path):
    async with sync_setup(tmp_path, cloud=[1]) as b:
        b.cloud.hold = asyncio.Event()
        await b.requests.issue(values.request())
        await b.until(lambda: any(isinstance(e, SyncProgress) for e in b.received))
        recorded = next(e for e in b.received if isinstance(e, SyncProgress))
        assert (recorded.phase, recorded.done_bytes, recorded.total_bytes) == ("upload", 100, 100)
        b.cloud.hold.set()
        await b.until(lambda: b.results() == ["succeeded"])


def replace_error(error: CloudUploadError, method: str) -> CloudUploadError:
    return CloudUploadError(error.message, method, hint=error.hint, transient=error.transient)


async def test_a_command_resets_the_back_off_even_if_it_fails_again(tmp_path):
    async with sync_setup(tmp_path, cloud=[PERMANENT]) as b:
        await b.ledger.give_up(b.cloud.target, error="403", failures=7, retry_at=None, result=None)
        await b.requests.issue(values.request(route=("cloud",)))
        await b.until(lambda: b.results() == ["failed"])
        assert (await b.ledger.record(b.cloud.target)).failures == 1


async def test_an_unexpected_error_is_handed_on_and_another_attempt_follows(tmp_path):
    async with sync_setup(tmp_path, cloud=[RuntimeError("a bug"), 1]) as b:
        await b.requests.issue(values.request())
        await b.until(lambda: b.outcomes == 1)
        assert "a bug" in str(b.errors.get_nowait())
        await b.clock.advance(31)
        await b.until(lambda: b.results() == ["succeeded"])


async def test_refused_credentials_are_a_status_warning_until_a_sync_succeeds(tmp_path):
    original = StoreError("the store does not know this key", hint="renew it", transient=True)
    original.credentials_refused = True
    refused = CloudUploadError(original.message, "cloud", original, transient=True, hint=original.hint)
    async with sync_setup(tmp_path, cloud=[refused, 1]) as b:
        await b.requests.issue(values.request(route=("cloud",)))
        await b.until(lambda: b.outcomes == 1)
        (warning,) = warnings_in(await b.ledger.notes())
        assert (warning.code, warning.hint) == ("credentials_refused_cloud", "renew it")
        assert warning.message.startswith("cloud: an attempt had no usable credentials: ")
        await b.clock.advance(2.2)
        await b.until(lambda: b.results() == ["succeeded"])
        assert warnings_in(await b.ledger.notes()) == ()


async def test_another_answer_of_the_target_ends_the_warning_about_its_credentials(tmp_path):
    original = StoreError("the store does not know this key", transient=True)
    original.credentials_refused = True
    refused = CloudUploadError(original.message, "cloud", original, transient=True)
    missing = StoreError("the bucket does not exist")
    no_bucket = CloudUploadError(missing.message, "cloud", missing)
    async with sync_setup(tmp_path, cloud=[refused, no_bucket]) as b:
        await b.requests.issue(values.request(route=("cloud",)))
        await b.until(lambda: b.outcomes == 1)
        assert len(warnings_in(await b.ledger.notes())) == 1
        await b.clock.advance(2.2)
        await b.until(lambda: b.results() == ["failed"])
        assert warnings_in(await b.ledger.notes()) == ()


def unexpected(hint: str = "") -> CloudUploadError:
    original = StoreError("the store: unknown response", transient=True)
    original.unexpected = "KeyError in head_object"
    return CloudUploadError(original.message, "cloud", original, transient=True, hint=hint)


async def test_a_repeated_error_with_a_hint_keeps_it_in_the_status(tmp_path):
    """A captive portal is not a reason to update the agent, and its traceback is not logged."""
    async with sync_setup(
        tmp_path, cloud=[unexpected("log in to the network"), unexpected("log in to the network"), 1]
    ) as b:
        await b.requests.issue(values.request(route=("cloud",)))
        await b.until(lambda: b.outcomes == 1)
        await b.clock.advance(2.2)
        await b.until(lambda: b.outcomes == 2)
        (warning,) = warnings_in(await b.ledger.notes())
        assert warning.hint == "log in to the network"


async def test_a_repeated_unexpected_error_is_a_status_warning_until_a_sync_succeeds(tmp_path):
    async with sync_setup(tmp_path, cloud=[unexpected(), unexpected(), 1]) as b:
        await b.requests.issue(values.request(route=("cloud",)))
        await b.until(lambda: b.outcomes == 1)
        assert warnings_in(await b.ledger.notes()) == ()
        await b.clock.advance(2.2)
        await b.until(lambda: b.outcomes == 2)
        (warning,) = warnings_in(await b.ledger.notes())
        assert (warning.code, "error repeats: the store" in warning.message) == ("unexpected_error_cloud", True)
        await b.clock.advance(4.4)
        await b.until(lambda: b.results() == ["succeeded"])
        assert warnings_in(await b.ledger.notes()) == ()


async def test_an_urgent_request_does_not_wait_for_the_retry_of_an_earlier_one(tmp_path):
    async with sync_setup(tmp_path, cloud=[TRANSIENT, 1, None, None]) as b:
        await b.requests.issue(values.request("r1", reason="file_change", route=("cloud",)))
        await b.until(lambda: b.outcomes == 1)
        await b.requests.issue(values.request("r2", reason="file_change", route=("cloud",)))
        await b.requests.issue(values.request("r3", reason="manual", route=("cloud",)))
        await b.until(lambda: b.results() == ["succeeded"])
        await b.clock.advance(3)
        await b.until(lambda: len(b.results()) == 3)
        assert [request.request_id for request in b.cloud.asked] == ["r1", "r3", "r1", "r2"]


async def test_a_request_that_is_received_again_keeps_its_place_and_its_delay(tmp_path):
    """After a reconnect, the requests without an outcome are published again."""
    async with sync_setup(tmp_path, cloud=[TRANSIENT, 1]) as b:
        request = values.request(route=("cloud",))
        await b.requests.issue(request)
        await b.until(lambda: b.outcomes == 1)
        for _ in range(3):
            await b.requests.issue(request)
        await b.clock.advance(1)
        assert len(b.cloud.asked) == 1
        await b.clock.advance(1.5)
        await b.until(lambda: b.results() == ["succeeded"])
        b.cloud.hold = asyncio.Event()
        await b.requests.issue(values.request("r2", route=("cloud",)))
        await b.until(lambda: len(b.cloud.asked) == 3)
        await b.requests.issue(values.request("r2", route=("cloud",)))
        b.cloud.hold.set()
        await b.until(lambda: b.results() == ["succeeded", "skipped"])
        await b.clock.advance(60)
        assert len(b.cloud.asked) == 3, "not even if it arrives while it is carried out"


async def test_the_queue_is_bounded_and_drops_the_oldest_request(tmp_path, monkeypatch):
    monkeypatch.setattr(subscriber_module, "MAX_QUEUED", 3)
    async with sync_setup(tmp_path, cloud=[1]) as b:
        b.cloud.hold = asyncio.Event()
        with capture_logs() as logs:
            for number in range(5):
                await b.requests.issue(values.request(f"r{number}", route=("cloud",)))
                await b.until(lambda: b.cloud.asked)
                await until_idle()
        assert [line["request_id"] for line in logs if line["event"] == "request_dropped"] == ["r1", "r2"]
        b.cloud.hold.set()
        await b.until(lambda: len(b.results()) == 3)
        assert [request.request_id for request in b.cloud.asked] == ["r0", "r3", "r4"]


@pytest.mark.parametrize("error", [None, OSError("the disk is gone")])
async def test_stop_cancels_the_sync_and_waits_for_its_cleanup(tmp_path, error):
    async with sync_setup(tmp_path) as b:
        cleaned, started = [], asyncio.Event()

        async def sync(request, report):
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(request.request_id)
                if error is not None:
                    raise error

        b.cloud.sync = sync
        await b.requests.issue(values.request(route=("cloud",)))
        await b.requests.issue(values.request("r2", route=("cloud",)))
        await started.wait()
        async with asyncio.timeout(5):
            await b.subscribers[0].stop()
        assert cleaned == ["r1"]
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("sync-cloud", "progress"))]
