"""What the sender of webhooks raises, without connections: WebhookError, and nothing else."""

import pytest
from structlog.testing import capture_logs

from agent.adapters import webhook_sender
from agent.adapters.webhook_sender import HttpWebhookSender
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import WebhookError
from agent.domain.webhooks import Webhook
from agent.entrypoints.formatting import event_summary
from tests.support.clock import ManualClock
from tests.support.values import NOON, failed

HOOK = Webhook(number=1, url="https://hooks.example/in", events=frozenset({"failed"}))


def sender() -> HttpWebhookSender:
    return HttpWebhookSender(CloudEventsCodec(), ManualClock(NOON), event_summary)


@pytest.mark.parametrize("broken", ["parsedate_to_datetime", "_check", "_proxy", "message_id", "signature"])
async def test_any_exception_is_a_transient_webhook_error(broken, monkeypatch):
    def fail(*_):
        raise IndexError("a defect")

    async def post(self, webhook, body, headers):
        webhook_sender._proxy(webhook.url)
        return 503, {"Retry-After": "soon"}

    monkeypatch.setattr(HttpWebhookSender, "_post", post)
    monkeypatch.setattr(webhook_sender, broken, fail)
    with pytest.raises(WebhookError) as caught:
        await sender().send(Webhook(number=1, url=HOOK.url, events=HOOK.events, key=b"k" * 24), failed())
    assert (caught.value.unexpected, caught.value.transient) == ("IndexError in send", True)


@pytest.mark.parametrize("method", ["send", "connect"])
@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:99999", "http://[::1", "socks5://127.0.0.1:1", f"http://{'x' * 64}.example:1"]
)
async def test_an_invalid_proxy_is_an_error_with_the_variables_and_no_traceback(address, method, monkeypatch):
    monkeypatch.setenv("https_proxy", address)
    with capture_logs() as logs, pytest.raises(WebhookError, match="the address of the proxy is not valid") as caught:
        await (sender().send(HOOK, failed()) if method == "send" else sender().connect(HOOK))
    assert caught.value.hint == "check HTTPS_PROXY, ALL_PROXY and NO_PROXY"
    assert caught.value.unexpected == ""
    assert logs == []
