"""Webhooks: which events each of them gets, when a delivery is tried again, and the signature.

Headers and signature follow Standard Webhooks 1.0: https://www.standardwebhooks.com.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self
from urllib.parse import urlsplit

from agent.domain.events import (
    DeliveryOverdue,
    DeliveryRecovered,
    Event,
    SyncFailed,
    SyncSkipped,
    SyncSucceeded,
    UploadVerified,
)
from agent.domain.parsing import parse_json

SUCCEEDED, FAILED, OVERDUE, RECOVERED, DAMAGED = "succeeded", "failed", "overdue", "recovered", "damaged"

KEPT = timedelta(days=3)
"""An event that is older is not sent any more."""

FIRST_DELAY_SECONDS = 5.0
LAST_DELAY_SECONDS = 3600.0
"""Delays after failed attempts, doubling from the first to the last."""

MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
"""The longest delay that a receiver may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A URL that gets events. Its path and query may be secrets, so `str()` has only scheme, host and port.

    `number`: its place in the setting, from 1. `events`: the kinds of events that it gets. `key`: the key of the
    signature, empty for none. `as_text`: it gets a JSON object with a text for people instead of the CloudEvent.
    """

    number: int
    url: str = field(repr=False)
    events: frozenset[str]
    key: bytes = field(default=b"", repr=False)
    overdue_hours: float = 24.0
    as_text: bool = False

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"webhook {self.number} ({parts.scheme}://{parts.netloc.rpartition('@')[2]})"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of events that it gets, in the order of the documentation."""
        return tuple(kind for kind in (SUCCEEDED, FAILED, OVERDUE, RECOVERED, DAMAGED) if kind in self.events)

    @property
    def id(self) -> str:
        """Identifies the webhook in the ledger: a digest of its URL."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def kinds_of(self, event: Event, all_hours: Collection[float]) -> frozenset[str]:
        """Return as which kinds the webhook gets an event of the history; none if it does not get it.

        `all_hours`: the result of `overdue_hours`. The end of an outage that was announced for other hours, before the
        setting was changed, is of interest to every webhook that gets `recovered`.
        """
        if isinstance(event, DeliveryOverdue) and event.hours != self.overdue_hours:
            return frozenset()
        if isinstance(event, DeliveryRecovered) and event.hours in {*all_hours} - {self.overdue_hours}:
            return frozenset()
        return self.events & _kinds(event)


def overdue_hours(webhooks: Iterable[Webhook]) -> frozenset[float]:
    """Return the hours of all webhooks that get `overdue` or `recovered`."""
    return frozenset(one.overdue_hours for one in webhooks if not one.events.isdisjoint({OVERDUE, RECOVERED}))


def _kinds(event: Event) -> frozenset[str]:
    if isinstance(event, SyncSucceeded):
        return frozenset({SUCCEEDED, DAMAGED} if event.unreadable else {SUCCEEDED})
    if isinstance(event, SyncSkipped) and event.found_nothing_to_send:
        return frozenset({SUCCEEDED})
    if isinstance(event, SyncFailed):
        return frozenset({FAILED})
    if isinstance(event, UploadVerified) and not event.whole:
        return frozenset({DAMAGED})
    if isinstance(event, DeliveryOverdue):
        return frozenset({OVERDUE})
    if isinstance(event, DeliveryRecovered):
        return frozenset({RECOVERED})
    return frozenset()


def delay_seconds(attempts: int, retry_after: float | None = None) -> float:
    """Return the delay after this number of failed attempts; `retry_after` is the delay that the receiver asked for."""
    own = min(FIRST_DELAY_SECONDS * 2.0 ** min(attempts - 1, 16), LAST_DELAY_SECONDS)
    return max(own, min(retry_after or 0.0, MAX_RETRY_AFTER_SECONDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookProgress:
    """How far a webhook is: the position in the history of the last event that it does not need any more.

    `starts`: the kinds of events that it gets, each with the position after which it gets them. `attempts`, `last_try`
    and `next_try` are those of the event that it gets next; the times are None before its first attempt. `gone`: the
    receiver answered that it does not exist any more.
    """

    position: int
    starts: Mapping[str, int]
    attempts: int = 0
    last_try: datetime | None = None
    next_try: datetime | None = None
    gone: bool = False

    @classmethod
    def new(cls, webhook: Webhook, position: int) -> Self:
        """Return the progress of a webhook that gets the events after a position."""
        return cls(position=position, starts=dict.fromkeys(webhook.kinds, position))

    def at(self, position: int) -> Self:
        """Return the progress at a later position, before the first attempt of the next event."""
        return type(self)(position=position, starts=self.starts)

    def for_webhook(self, webhook: Webhook, last: int) -> Self:
        """Return the progress of a webhook whose events may have changed: it gets added ones after position `last`."""
        return replace(self, starts={kind: self.starts.get(kind, last) for kind in webhook.kinds})

    def seconds_left(self, now: datetime) -> float:
        """Return the seconds until the next attempt: 0 if the clock was set back to a time before the last one."""
        if self.last_try is None or self.next_try is None or now < self.last_try:
            return 0.0
        return (self.next_try - now).total_seconds()

    def document(self) -> dict[str, object]:
        return {
            "position": self.position,
            "starts": {**self.starts},
            "attempts": self.attempts,
            "last_try": self.last_try.isoformat() if self.last_try else None,
            "next_try": self.next_try.isoformat() if self.next_try else None,
            "gone": self.gone,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        last_try, next_try = document["last_try"], document["next_try"]
        return cls(
            position=int(document["position"]),
            starts={str(kind): int(position) for kind, position in document["starts"].items()},
            attempts=int(document["attempts"]),
            last_try=datetime.fromisoformat(last_try) if last_try else None,
            next_try=datetime.fromisoformat(next_try) if next_try else None,
            gone=document["gone"] is True,
        )


def encode_progress(progress: Mapping[str, WebhookProgress]) -> str:
    """Return the progress of each webhook, by ID, as a text for the ledger."""
    return json.dumps({webhook_id: one.document() for webhook_id, one in sorted(progress.items())})


def decode_progress(text: str) -> dict[str, WebhookProgress]:
    """Return the progress of each webhook from the result of `encode_progress`; nothing for any other text."""
    try:
        return {str(webhook_id): WebhookProgress.of(one) for webhook_id, one in parse_json(text).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def message_id(event: Event) -> str:
    """Return the `webhook-id` of an event: the same at each attempt. It has no dot, as the signature requires."""
    return f"msg_{hashlib.sha256(f'{event.type} {event.system_id} {event.id}'.encode()).hexdigest()[:32]}"


def signature(key: bytes, message: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` of a body. `message`: its `webhook-id`; `timestamp`: Unix time of the attempt."""
    signed = f"{message}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"
