"""Builds the webhooks from the settings. Nothing is imported for them if there are none."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from agent.application.signal import Signal
from agent.application.sync.results import ResultRecorder
from agent.application.triggers.publisher import Publisher
from agent.bootstrap.home import Home
from agent.domain.events import Event
from agent.ports import WebhookSender
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.application.agent import Loop


def webhook_sender(home: Home, summary: Callable[[Event], str]) -> WebhookSender | None:
    """Return the sender, None if there are no webhooks. `summary` makes the text of an event, for `format: text`."""
    if not home.settings.agent_webhooks:
        return None
    from agent.adapters.webhook_sender import HttpWebhookSender  # noqa: PLC0415

    return HttpWebhookSender(home.codec, home.clock, summary)


def webhook_loops(
    settings: Settings,
    sender: WebhookSender | None,
    publisher: Publisher,
    recorder: ResultRecorder,
    sync_finished: Signal,
) -> "Mapping[str, Loop]":
    """Return the loops of the webhooks by name, none without a sender."""
    if sender is None:
        return {}
    from agent.application.monitoring.overdue import OverdueMonitor  # noqa: PLC0415
    from agent.application.monitoring.webhooks import WebhookDelivery  # noqa: PLC0415
    from agent.domain.webhooks import overdue_hours  # noqa: PLC0415

    webhooks = [one.webhook(number) for number, one in enumerate(settings.agent_webhooks, 1)]
    loops = dict(WebhookDelivery(webhooks, sender, publisher.ledger, publisher.clock).loops())
    if hours := sorted(overdue_hours(webhooks)):
        monitor = OverdueMonitor(
            hours=hours,
            identity=publisher.identity,
            publisher=publisher,
            recorder=recorder,
            ledger=publisher.ledger,
            clock=publisher.clock,
            signal=Signal(publisher.clock, "overdue"),
        )
        sync_finished.chain(monitor.signal)
        loops["overdue"] = monitor.run
    return loops
