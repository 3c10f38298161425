"""The sender of webhooks without connections: it raises only WebhookError, and its texts mention and link nothing."""

import asyncio
import json
import socket
import threading
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from agent.adapters import webhook_sender
from agent.adapters.webhook_sender import HttpWebhookSender
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import WebhookError
from agent.domain.webhooks import Webhook
from agent.entrypoints.formatting import event_summary
from agent.entrypoints.shutdown import run_to_end
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
        await sender().send(replace(HOOK, key=b"k" * 24), failed())
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


async def test_a_text_for_people_has_no_mention_no_markdown_link_and_no_url(monkeypatch):
    sent = []

    async def post(self, webhook, body, headers):
        sent.append(json.loads(body)["text"])
        return 200, {}

    monkeypatch.setattr(HttpWebhookSender, "_post", post)
    event = replace(failed(), errors=(), error="@channel @all [log in](evil.example) https://evil.example <!here>")
    await sender().send(replace(HOOK, as_text=True), event)
    (text,) = sent
    assert not any(mark in text for mark in ("@c", "@a", "](", "://", "<"))
    assert text.replace("\u200b", "").endswith(
        "@channel @all [log in](evil.example) https://evil.example &lt;!here&gt;"
    )


def test_names_that_are_not_resolved_keep_neither_other_calls_nor_the_end_of_the_process_waiting(monkeypatch):
    count, hanging, resolved = 40, [], threading.Event()

    def getaddrinfo(*_, **__):
        hanging.append(True)
        resolved.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def work():
        sending = [
            asyncio.create_task(sender().send(replace(HOOK, url="http://hooks.example/"), failed()))
            for _ in range(count)
        ]
        async with asyncio.timeout(10):
            while len(hanging) < count:
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(int) == 0
        for task in sending:
            task.cancel()
        await asyncio.wait(sending)
        return 0

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        assert run_to_end(work()) == 0
        assert len(hanging) == count
    finally:
        resolved.set()
