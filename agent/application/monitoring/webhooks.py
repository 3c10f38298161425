"""Delivers events of the history to webhooks: each webhook in a loop of its own, in order, at least once.

The ledger keeps the position of each webhook in the history, and no copy of an event. Only the last three days are
delivered, so what a webhook missed is bounded.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

import structlog

from agent.application.monitoring.status import WEBHOOKS
from agent.application.signal import Signal
from agent.application.status_warnings import WEBHOOK_FAILING, clear_warning, set_warning, webhook_warning
from agent.domain.errors import WebhookError
from agent.domain.webhooks import (
    KEPT,
    Webhook,
    WebhookProgress,
    decode_progress,
    delay_seconds,
    encode_progress,
    overdue_hours,
)
from agent.ports import Clock, HistoryEntry, Ledger, WebhookSender

BATCH = 100
"""How many events are read at a time. A position that advances by so many without a delivery is stored, too."""

LONGEST_SLEEP_SECONDS = 900.0
"""Longest sleep before a retry: the event loop's clock stops while the machine is suspended."""

WARNED_ATTEMPTS = 3
"""A webhook is reported in the status after so many failed attempts in a row; at once after a permanent error."""

_log = structlog.get_logger()


class WebhookDelivery:
    """Delivers to all webhooks. A new webhook gets the events from now on, one that was gone as well."""

    def __init__(self, webhooks: Sequence[Webhook], sender: WebhookSender, ledger: Ledger, clock: Clock) -> None:
        self._webhooks, self._sender, self._ledger, self._clock = webhooks, sender, ledger, clock
        self._signals = {webhook.id: Signal(clock, f"webhook-{webhook.number}") for webhook in webhooks}
        self._progress: dict[str, WebhookProgress] = {}
        self._stored: dict[str, int] = {}
        self._hours = overdue_hours(webhooks)
        self._errors: dict[str, WebhookError] = {}
        self._loading = asyncio.Lock()
        for signal in self._signals.values():
            ledger.on_history(signal.set)

    def loops(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Return the loop of each webhook, by name."""
        return {f"webhook-{webhook.number}": partial(self._run, webhook) for webhook in self._webhooks}

    async def _run(self, webhook: Webhook) -> None:
        """Deliver until cancelled, or until the webhook is gone. Raises StateError."""
        await self._load()
        while not self._progress[webhook.id].gone:
            entry = await self._next(webhook)
            left = self._progress[webhook.id].seconds_left(self._clock.now())
            if entry is None:
                await self._signals[webhook.id].wait(None)
            elif left > 0:
                await self._clock.sleep(min(left, LONGEST_SLEEP_SECONDS))
            else:
                await self._deliver(webhook, entry)

    async def _load(self) -> None:
        """Read the positions once. Webhooks that are not configured any more are forgotten."""
        async with self._loading:
            if self._progress:
                return
            last = await self._ledger.last_position()
            known = decode_progress((await self._ledger.notes()).get(WEBHOOKS, ""))
            self._progress = {
                webhook.id: one.for_webhook(webhook, last)
                if (one := known.get(webhook.id)) and not one.gone
                else WebhookProgress.new(webhook, last)
                for webhook in self._webhooks
            }
            await self._store()
            if not any(one.attempts for one in self._progress.values()):
                await clear_warning(self._ledger, WEBHOOK_FAILING)

    async def _next(self, webhook: Webhook) -> HistoryEntry | None:
        """Return the next event that the webhook gets, None if there is none. Skip those that are too old."""
        before = self._progress[webhook.id]
        found: HistoryEntry | None = None
        expired = 0
        while found is None:
            entries = await self._ledger.history(after=self._progress[webhook.id].position, limit=BATCH)
            if not entries:
                break
            for entry in entries:
                kinds = webhook.kinds_of(entry.event, self._hours)
                if any(before.starts[kind] < entry.position for kind in kinds):
                    if entry.event.time >= self._clock.now() - KEPT:
                        found = entry
                        break
                    expired += 1
                self._progress[webhook.id] = before.at(entry.position)
        if before.attempts and not self._progress[webhook.id].attempts:  # the event that failed is not sent any more
            await self._clear_error(webhook)
        if expired:
            _log.warning("webhook_events_expired", webhook=str(webhook), count=expired)
        if self._progress[webhook.id].position - self._stored[webhook.id] >= BATCH:
            await self._store()
        return found

    async def _deliver(self, webhook: Webhook, entry: HistoryEntry) -> None:
        before = self._progress[webhook.id]
        try:
            await self._sender.send(webhook, entry.event)
        except WebhookError as error:
            await self._failed(webhook, before, error)
            return
        self._progress[webhook.id] = before.at(entry.position)
        await self._store()
        if before.attempts:
            _log.info("webhook_recovered", webhook=str(webhook), attempts=before.attempts)
            await self._clear_error(webhook)

    async def _failed(self, webhook: Webhook, before: WebhookProgress, error: WebhookError) -> None:
        attempts = before.attempts + 1
        seconds, now = delay_seconds(attempts, error.retry_after), self._clock.now()
        self._progress[webhook.id] = replace(
            before,
            attempts=attempts,
            last_try=now,
            next_try=now + timedelta(seconds=seconds),
            gone=error.gone,
        )
        await self._store()
        (_log.debug if before.attempts else _log.warning)(
            "webhook_failed",
            webhook=str(webhook),
            error=error.message,
            hint=error.hint,
            next_step="nothing more is sent to it" if error.gone else f"the next attempt is in {seconds:.0f} s",
        )
        if attempts >= WARNED_ATTEMPTS or not error.transient:
            self._errors[webhook.id] = error
            await self._update_warning()

    async def _clear_error(self, webhook: Webhook) -> None:
        self._errors.pop(webhook.id, None)
        await self._update_warning()

    async def _update_warning(self) -> None:
        """Set the status warning about all failing webhooks, or clear it."""
        failing = {one: self._errors[one.id] for one in self._webhooks if one.id in self._errors}
        if failing:
            await set_warning(self._ledger, webhook_warning(failing), self._clock)
        else:
            await clear_warning(self._ledger, WEBHOOK_FAILING)

    async def _store(self) -> None:
        self._stored = {webhook_id: one.position for webhook_id, one in self._progress.items()}
        await self._ledger.note(WEBHOOKS, encode_progress(self._progress))
