"""Webhooks: the filter, the signature, and the delivery from the ledger with a scripted sender."""

import asyncio
import base64
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from agent.application.monitoring.status import OVERDUE, WEBHOOKS, describe, forget_webhooks
from agent.application.monitoring.webhooks import BATCH, WebhookDelivery
from agent.application.status_warnings import WEBHOOK_FAILING, warnings_in
from agent.application.sync.attempt import skip_reason
from agent.domain.delivery_state import DatabaseRecord, State, TargetRecord
from agent.domain.errors import WebhookError
from agent.domain.events import DeliveryOverdue, DeliveryRecovered, UploadVerified
from agent.domain.webhooks import (
    KEPT,
    Webhook,
    WebhookProgress,
    decode_progress,
    delay_seconds,
    encode_progress,
    message_id,
    overdue_hours,
    signature,
)
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger
from tests.support.values import (
    NOON,
    SYSTEM,
    TARGET,
    failed,
    fingerprint,
    manifest,
    request,
    skipped,
    succeeded,
    upload_id,
)

ALL = frozenset({"succeeded", "failed", "overdue", "recovered", "damaged"})
URL = "https://me:pass@hooks.example:8443/services/T0/B0?token=abc"


def webhook(*events: str, number: int = 1, **changes) -> Webhook:
    return Webhook(**{"number": number, "url": f"{URL}{number}", "events": frozenset(events) or ALL} | changes)


def verified(*, whole: bool) -> UploadVerified:
    problems = {} if whole else {"reflection.duckdb": "is missing"}
    return UploadVerified(
        id="v", time=NOON, system_id=SYSTEM, upload_id=upload_id(), whole=whole, deep=False, objects=3,
        problems=problems,
    )  # fmt: skip


def overdue(hours: float) -> DeliveryOverdue:
    return DeliveryOverdue(
        id="o", time=NOON, system_id=SYSTEM, method="cloud", hours=hours, databases=("reflection",), since=NOON
    )


def recovered(hours: float) -> DeliveryRecovered:
    return DeliveryRecovered(id="r", time=NOON, system_id=SYSTEM, method="cloud", hours=hours, since=NOON)


SUCCESS = succeeded(manifest(reflection=1))
LOST = TargetRecord(
    TARGET,
    databases={
        "reflection": DatabaseRecord("reflection", State.OWED, fingerprint=fingerprint("reflection")),
        "other": DatabaseRecord("other", State.CLEAN, fingerprint=fingerprint("other")),
    },
)
"""A record after the file of `reflection` was removed before its last changes were delivered."""


@pytest.mark.parametrize(
    ("event", "kinds"),
    [
        (SUCCESS, {"succeeded"}),
        (replace(SUCCESS, unreadable=("reflection",)), {"succeeded", "damaged"}),
        (replace(skipped(), why="nothing has changed since the last sync"), {"succeeded"}),
        (replace(skipped(), why="the contents have already been delivered"), {"succeeded"}),
        (replace(skipped(), why="no memory is new (reflection: 3 wait: no embedding)"), {"succeeded"}),
        (replace(skipped(), why="akosha_sync_enabled is false"), set()),
        (replace(skipped(), why="reflection waits: permission denied"), set()),
        (replace(skipped(), why=skip_reason(LOST, {"other": fingerprint("other", 0)})), set()),
        (failed(), {"failed"}),
        (verified(whole=False), {"damaged"}),
        (verified(whole=True), set()),
        (overdue(24.0), {"overdue"}),
        (overdue(48.0), set()),
        (recovered(24.0), {"recovered"}),
        (recovered(48.0), set()),
        (request(), set()),
    ],
)
def test_a_webhook_gets_the_events_that_it_names(event, kinds):
    assert {kind for kind in ALL if webhook(kind).kinds_of(event, {24.0, 48.0})} == kinds
    assert webhook(*ALL).kinds_of(event, {24.0, 48.0}) == kinds


def test_the_end_of_an_outage_for_hours_that_are_not_set_any_more_is_for_each_webhook_that_gets_recovered():
    hooks = webhook("overdue", "recovered", overdue_hours=48.0), webhook("succeeded")
    assert overdue_hours(hooks) == {48.0}
    assert [bool(one.kinds_of(recovered(24.0), overdue_hours(hooks))) for one in hooks] == [True, False]
    assert not hooks[0].kinds_of(overdue(24.0), overdue_hours(hooks))


def test_the_signature_is_that_of_the_standards_test_vector():
    """From the test suite of the reference libraries."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_id_of_a_message_has_no_dot_and_no_text_of_the_event():
    odd = replace(failed(), id="a.b\r\nx: y")
    assert message_id(odd).isidentifier()
    assert message_id(odd) != message_id(failed())


def test_texts_about_a_webhook_have_only_scheme_host_and_port_of_its_url():
    assert str(webhook()) == "webhook 1 (https://hooks.example:8443)"
    assert "pass" not in repr(webhook(key=b"k" * 24))


def test_delays_double_up_to_an_hour_and_a_receiver_may_ask_for_a_day():
    assert [delay_seconds(n) for n in (1, 2, 3, 10, 11, 10**6)] == [5, 10, 20, 2560, 3600, 3600]
    assert (delay_seconds(1, 600), delay_seconds(1, 1), delay_seconds(1, 1e9)) == (600, 5, 86_400)


@pytest.mark.parametrize("text", ["", "[]", "5", '{"a": 5}', '{"a": {"position": "x"}}', "[" * 10_000])
def test_an_unreadable_note_is_no_progress(text):
    assert decode_progress(text) == {}


def test_a_clock_that_was_set_back_does_not_delay_a_retry():
    waiting = WebhookProgress(
        position=1, starts={"failed": 1}, attempts=1, last_try=NOON, next_try=NOON + timedelta(hours=1)
    )
    for restored in (waiting, decode_progress(encode_progress({"a": waiting}))["a"]):
        assert restored.seconds_left(NOON) == 3600
        assert restored.seconds_left(NOON - timedelta(seconds=1)) == 0
        assert restored.seconds_left(NOON - timedelta(days=2)) == 0


class ScriptedSender:
    """`answers` maps a webhook's number to the errors of its next attempts; then events are accepted."""

    def __init__(self) -> None:
        self.answers: dict[int, list[WebhookError | None]] = {}
        self.attempts: list[tuple[int, str]] = []
        self.accepted: dict[int, list[str]] = {}
        self.hanging: set[int] = set()

    async def send(self, webhook, event):
        self.attempts.append((webhook.number, event.id))
        if webhook.number in self.hanging:
            await asyncio.Event().wait()
        error = self.answers.get(webhook.number, []).pop(0) if self.answers.get(webhook.number) else None
        if error is not None:
            raise error
        self.accepted.setdefault(webhook.number, []).append(event.id)


def refused(text: str = "status 500", *, transient: bool = True, **more) -> WebhookError:
    return WebhookError(text, hint="check the receiver", transient=transient, **more)


def result(number: int, at=NOON):
    return replace(failed(), id=f"f-{number}", request_id=f"r-{number}", time=at)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock(NOON)
        self.ledger = inline_ledger(self.clock)
        self.sender = ScriptedSender()

    @asynccontextmanager
    async def delivering(self, *webhooks: Webhook):
        delivery = WebhookDelivery(webhooks, self.sender, self.ledger, self.clock)
        tasks = [asyncio.create_task(loop(), name=name) for name, loop in delivery.loops().items()]
        try:
            await self.clock.advance(0)
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(one is None or isinstance(one, asyncio.CancelledError) for one in ended), ended

    async def add(self, *events) -> None:
        for event in events:
            await self.ledger.announce(event)
        await self.clock.advance(0)

    async def warnings(self):
        return [one for one in warnings_in(await self.ledger.notes()) if one.code == WEBHOOK_FAILING]


@pytest.fixture
async def world():
    made = World()
    yield made
    await made.ledger.aclose()


async def test_a_new_webhook_gets_the_events_from_now_on_in_order(world):
    await world.add(result(1))
    async with world.delivering(webhook()):
        assert world.sender.attempts == []
        await world.add(result(2), request(), result(3))
        assert world.sender.accepted == {1: ["f-2", "f-3"]}


async def test_a_webhook_gets_events_of_an_added_kind_from_then_on_and_loses_none_of_the_others(world):
    world.sender.hanging = {1}
    async with world.delivering(webhook("damaged")):
        await world.add(result(1), verified(whole=False), result(2))
    world.sender.hanging = set()
    async with world.delivering(webhook("damaged", "failed")):
        await world.add(result(3))
        assert world.sender.accepted == {1: ["v", "f-3"]}


async def test_after_a_restart_a_webhook_gets_what_it_missed_once(world):
    async with world.delivering(webhook()):
        await world.add(result(1))
    await world.add(result(2), result(3))
    async with world.delivering(webhook()):
        assert world.sender.accepted == {1: ["f-1", "f-2", "f-3"]}


async def test_an_event_is_sent_again_if_the_agent_ended_before_its_acceptance_was_recorded(world):
    world.sender.hanging = {1}
    async with world.delivering(webhook()):
        await world.add(result(1))
    world.sender.hanging = set()
    async with world.delivering(webhook()):
        assert world.sender.attempts == [(1, "f-1"), (1, "f-1")]


async def test_failed_attempts_are_repeated_with_growing_delays_and_keep_the_order(world):
    world.sender.answers[1] = [refused(), refused(), refused(retry_after=600)]
    async with world.delivering(webhook()):
        await world.add(result(1), result(2))
        for seconds, attempts in ((4, 1), (1, 2), (10, 3), (599, 3), (1, 5)):
            await world.clock.advance(seconds)
            assert len(world.sender.attempts) == attempts
        assert world.sender.accepted == {1: ["f-1", "f-2"]}


async def test_a_restart_keeps_the_time_of_the_next_attempt(world):
    world.sender.answers[1] = [refused(retry_after=600)]
    async with world.delivering(webhook()):
        await world.add(result(1))
    async with world.delivering(webhook()):
        await world.clock.advance(599)
        assert len(world.sender.attempts) == 1
        await world.clock.advance(1)
        assert world.sender.accepted == {1: ["f-1"]}


async def test_a_webhook_that_hangs_or_fails_does_not_delay_another(world):
    world.sender.hanging, world.sender.answers[2] = {1}, [refused()]
    async with world.delivering(webhook(), webhook(number=2), webhook(number=3)):
        await world.add(result(1))
        assert world.sender.accepted == {3: ["f-1"]}


async def test_a_webhook_that_failed_for_days_gets_the_last_three_days_and_the_ledger_has_only_a_position(world):
    world.sender.answers[1] = [refused()] * 10_000
    async with world.delivering(webhook()):
        size = None
        for day in range(4):
            await world.add(*(result(10 * day + n, world.clock.now()) for n in range(2)))
            await world.clock.advance(86_400)
            note = (await world.ledger.notes())[WEBHOOKS]
            size = size or len(note)
            assert len(note) <= size + 10
        world.sender.answers[1] = []
        await world.clock.advance(3600)
        assert world.sender.accepted[1][-4:] == ["f-20", "f-21", "f-30", "f-31"]
        assert len(world.sender.accepted[1]) <= 6


async def test_events_older_than_three_days_are_not_sent(world):
    async with world.delivering(webhook()):
        await world.add(result(1, NOON - KEPT - timedelta(seconds=1)), result(2))
        assert world.sender.accepted == {1: ["f-2"]}


async def test_a_webhook_that_keeps_failing_is_a_status_warning_until_it_accepts_an_event(world):
    world.sender.answers[1] = [refused()] * 3
    async with world.delivering(webhook()):
        await world.add(result(1))
        await world.clock.advance(5)
        assert await world.warnings() == []
        await world.clock.advance(10)
        (warning,) = await world.warnings()
        assert warning.message == "events do not arrive: webhook 1 (https://hooks.example:8443): status 500"
        assert warning.hint == "check the receiver"
        await world.clock.advance(20)
        assert await world.warnings() == []


async def test_each_failing_webhook_has_its_own_hint_and_a_shared_one_is_named_once(world):
    gone = WebhookError("status 410", hint="remove it", gone=True)
    world.sender.answers = {1: [gone], 2: [WebhookError("status 404", hint="correct the URL")] * 2}
    async with world.delivering(webhook(), webhook(number=2)):
        await world.add(result(1))
        (warning,) = await world.warnings()
        assert warning.hint == "webhook 1: remove it; webhook 2: correct the URL"
        await world.clock.advance(15)
        (warning,) = await world.warnings()
        assert (warning.message.count("webhook"), warning.hint) == (1, "remove it")


async def test_the_warning_ends_although_the_event_that_failed_was_not_sent_any_more(world):
    world.sender.answers[1] = [refused("status 404", transient=False)]
    async with world.delivering(webhook()):
        await world.add(result(1, NOON - KEPT))
        assert await world.warnings()
        await world.clock.advance(5)
        assert await world.warnings() == []
        await world.add(result(2))
        assert world.sender.accepted == {1: ["f-2"]}


async def test_a_permanent_error_is_reported_at_once_and_tried_again(world):
    world.sender.answers[1] = [refused("status 404", transient=False)]
    async with world.delivering(webhook()):
        await world.add(result(1))
        assert [one.message.rpartition(": ")[2] for one in await world.warnings()] == ["status 404"]
        await world.clock.advance(5)
        assert world.sender.accepted == {1: ["f-1"]}


async def test_a_webhook_that_is_gone_gets_nothing_until_the_agent_starts_again(world):
    world.sender.answers[1] = [refused("status 410", transient=False, gone=True)]
    async with world.delivering(webhook(), webhook(number=2)):
        await world.add(result(1))
        await world.clock.advance(4 * 86_400)
        await world.add(result(2, world.clock.now()))
        assert world.sender.attempts == [(1, "f-1"), (2, "f-1"), (2, "f-2")]
        assert len(await world.warnings()) == 1
    async with world.delivering(webhook(), webhook(number=2)):
        await world.add(result(3, world.clock.now()))
        assert world.sender.accepted[1] == ["f-3"]


async def test_an_unreadable_event_is_logged_once_however_often_the_history_is_read(world):
    with capture_logs() as logs:
        async with world.delivering(webhook(), webhook(number=2)):
            world.ledger._connection.execute(
                "INSERT INTO events (event_id, type, time, payload, published_at) VALUES ('x', 'x', 'x', 'no', 'x')"
            )
            for _ in range(3):
                for signal in world.ledger._listeners:
                    signal()
                await world.clock.advance(0)
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == ["event_unreadable"]


async def test_the_position_is_stored_although_no_event_is_delivered(world):
    async with world.delivering(webhook("damaged")):
        await world.add(*(result(number) for number in range(2 * BATCH)))
        (progress,) = decode_progress((await world.ledger.notes())[WEBHOOKS]).values()
        assert progress.position >= BATCH


async def test_without_webhooks_nothing_of_them_is_left_in_the_ledger_and_the_status(world):
    world.sender.answers[1] = [refused("status 404", transient=False)]
    async with world.delivering(webhook()):
        await world.add(result(1))
    notes = await world.ledger.notes()
    assert notes[WEBHOOKS]
    status = describe(
        system_id=SYSTEM, agent_id="a", route=(), records=(), memory_counts={}, survey={}, notes=notes,
        results_waiting=0, running=True,
    )  # fmt: skip
    assert WEBHOOKS not in status.notes
    await world.ledger.note(OVERDUE, "what was announced")
    await forget_webhooks(world.ledger, ["webhook-1", OVERDUE])
    assert (await world.ledger.notes())[OVERDUE]
    await forget_webhooks(world.ledger, ["webhook-1"])
    assert not (await world.ledger.notes())[OVERDUE]
    assert await world.warnings()
    await forget_webhooks(world.ledger, [])
    assert not (await world.ledger.notes())[WEBHOOKS]
    assert await world.warnings() == []
