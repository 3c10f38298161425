"""Sending events to webhooks."""

from typing import TYPE_CHECKING, Protocol

from agent.domain.events import Event

if TYPE_CHECKING:  # few have a webhook
    from agent.domain.webhooks import Webhook


class WebhookSender(Protocol):
    """Sends single events. It never tries again, and follows no redirect."""

    async def send(self, webhook: "Webhook", event: Event) -> None:
        """Send an event, and return once the receiver has accepted it. Raises WebhookError, at the latest after 10 s.

        After a cancellation or an error, the receiver may have the event nevertheless.
        """
        ...
