"""Check of the webhooks: a connection to each, without a request."""

import asyncio

from agent.domain.errors import WebhookError
from agent.domain.webhooks import Webhook
from agent.entrypoints.doctor.context import DoctorContext
from agent.entrypoints.doctor.findings import Finding, Level, from_error, ok, skipped
from agent.entrypoints.formatting import event_summary

WEBHOOKS = "webhooks"


async def webhooks(context: DoctorContext) -> list[Finding]:
    """Connect to each webhook, with TLS if its URL has it. An event is not sent: receivers count it as a result."""
    if not context.settings.agent_webhooks:
        return [skipped(WEBHOOKS, "none are set (akosha_agent_webhooks)")]
    from agent.adapters.webhook_sender import HttpWebhookSender  # noqa: PLC0415 - imports aiohttp

    sender = HttpWebhookSender(context.home.codec, context.home.clock, event_summary)

    async def check(webhook: Webhook) -> Finding:
        try:
            await sender.connect(webhook, seconds=context.step_seconds)
        except WebhookError as problem:
            error = WebhookError(f"{webhook}: {problem.message}", hint=problem.hint)
            hint = "check the network, and akosha_agent_webhooks"
            return from_error(WEBHOOKS, error, hint=hint, level=Level.WARNING)  # the memories do not depend on it
        return ok(WEBHOOKS, f"{webhook} can be reached, and gets {', '.join(webhook.kinds)}")

    found = [one.webhook(number) for number, one in enumerate(context.settings.agent_webhooks, 1)]
    return list(await asyncio.gather(*map(check, found)))
