"""Webhooks over real connections: receivers that refuse, hang, redirect and lie, and one with TLS."""

import asyncio
import base64
import hmac
import socket
import ssl
from dataclasses import replace

import pytest
import trustme

from agent.adapters import webhook_sender
from agent.adapters.system_clock import SystemClock
from agent.adapters.webhook_sender import HttpWebhookSender
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import WebhookError
from agent.domain.webhooks import Webhook, message_id
from agent.entrypoints.doctor.context import DoctorContext
from agent.entrypoints.doctor.webhook_checks import webhooks as doctor_check
from agent.entrypoints.formatting import event_summary
from agent.settings import Settings
from tests.support.servers.webhook import HANG, OK, Receiver, answer
from tests.support.values import SYSTEM, failed, manifest, succeeded

CODEC = CloudEventsCodec()
EVENT = succeeded(manifest(reflection=1))
KEY = b"k" * 32
SECRET_PATH = "/services/T0PSECRET/B0PSECRET"


def hook(url: str, **changes) -> Webhook:
    return Webhook(number=1, url=url, events=frozenset({"succeeded"}), **changes)


async def send(url: str, **changes) -> None:
    await HttpWebhookSender(CODEC, SystemClock(), event_summary).send(hook(url, **changes), EVENT)


async def error_of(url: str, **changes) -> WebhookError:
    with pytest.raises(WebhookError) as caught:
        await send(url, **changes)
    assert "T0PSECRET" not in f"{caught.value!r} {caught.value}"
    assert caught.value.hint
    assert caught.value.unexpected == ""
    return caught.value


async def test_the_event_arrives_as_a_signed_cloudevent():
    async with Receiver() as receiver:
        await send(receiver.url + "?a=%2F", key=KEY)
    (request,) = receiver.received
    assert (request.target, request.body) == ("/hook?a=%2F", CODEC.encode(EVENT))
    headers = request.headers
    assert headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert headers["webhook-id"] == message_id(EVENT)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    expected = base64.b64encode(hmac.digest(KEY, signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


async def test_without_a_secret_there_is_no_signature_and_a_user_in_the_url_is_basic_authentication():
    async with Receiver() as receiver:
        await send(receiver.url.replace("//", "//me:pass@"))
    (request,) = receiver.received
    assert "webhook-signature" not in request.headers
    assert request.headers["authorization"] == f"Basic {base64.b64encode(b'me:pass').decode()}"


@pytest.mark.parametrize(
    ("status", "more", "transient", "retry_after"),
    [
        ("500 Internal Server Error", {}, True, None),
        ("503 Service Unavailable", {"Retry_After": "120"}, True, 120),
        ("429 Too Many Requests", {"Retry_After": "7"}, True, 7),
        ("429 Too Many Requests", {"Retry_After": "soon"}, True, None),
        ("503 Service Unavailable", {"Retry_After": f"Fri, 31 Dec {'9' * 20} 23:59:59 GMT"}, True, None),
        ("400 Bad Request", {}, False, None),
        ("401 Unauthorized", {}, False, None),
        ("404 Not Found", {}, False, None),
        ("410 Gone", {}, False, None),
    ],
)
async def test_a_refusal_is_an_error_with_the_time_that_the_receiver_asks_for(status, more, transient, retry_after):
    async with Receiver(lambda _: answer(status, **more)) as receiver:
        error = await error_of(receiver.url + SECRET_PATH)
    assert status[:3] in error.message
    assert ("secret" in error.hint) == (status[:3] in ("400", "401"))
    assert (error.transient, error.retry_after, error.gone) == (transient, retry_after, status.startswith("410"))


async def test_a_redirect_is_not_followed():
    async with Receiver() as other:
        for status in ("301 Moved Permanently", "307 Temporary Redirect", "308 Permanent Redirect"):
            async with Receiver(lambda _, status=status: answer(status, Location=other.url)) as receiver:
                error = await error_of(receiver.url + SECRET_PATH)
            assert "redirects" in error.message
            assert not error.transient
        assert other.connections == 0


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno",
        OK,
    ],
    ids=["short", "not gzip", "empty"],
)
async def test_only_the_status_counts(data):
    async with Receiver(lambda _: data) as receiver:
        await send(receiver.url)


async def test_an_endless_body_is_not_read():
    async with Receiver(lambda _: b"HTTP/1.1 200 OK\r\n\r\n", endless=True) as receiver:
        await send(receiver.url)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nA: b",
        b"HTTP/1.1 2 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_an_incomplete_or_foreign_response_is_a_transient_error(data):
    async with Receiver(lambda _: data) as receiver:
        assert (await error_of(receiver.url + SECRET_PATH)).transient


async def test_a_receiver_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(webhook_sender, "SECONDS", 0.2)
    async with Receiver(lambda _: HANG) as receiver:
        error = await error_of(receiver.url + SECRET_PATH)
    assert (error.message, error.transient) == ("no response within 0.2 s", True)


@pytest.fixture
def closed_port():
    """A port that refuses connections, and that no other process gets meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


async def test_a_closed_port_is_a_transient_error(closed_port):
    error = await error_of(closed_port + SECRET_PATH)
    assert (error.message, error.transient) == ("no connection: Connection refused", True)


@pytest.fixture
def authority(monkeypatch, tmp_path):
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


async def test_an_own_certificate_is_trusted_by_ssl_cert_file_and_another_is_refused(authority):
    async with Receiver(context=server_context(authority)) as receiver:
        await send(receiver.url)
        assert receiver.kinds == ["succeeded"]
    async with Receiver(context=server_context(trustme.CA())) as receiver:
        error = await error_of(receiver.url + SECRET_PATH)
        assert receiver.received == []
    assert (error.message, error.transient) == ("the certificate is not trusted", False)


async def test_the_check_of_doctor_connects_and_sends_no_request(authority, closed_port):
    sender = HttpWebhookSender(CODEC, SystemClock(), event_summary)
    async with Receiver(context=server_context(authority)) as receiver:
        await sender.connect(hook(receiver.url))
        await receiver.until_connected()
    assert receiver.received == []
    with pytest.raises(WebhookError, match="no connection"):
        await sender.connect(hook(closed_port))


async def test_an_event_for_another_machine_goes_through_the_proxy(monkeypatch):
    async with Receiver() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/hook"))
        await send("http://hooks.example/in")
        assert proxy.received[0].target == "http://hooks.example/in"
        await send(proxy.url)
        assert proxy.received[1].target == "/hook"


async def test_a_cancelled_attempt_ends_at_once():
    async with Receiver(lambda _: HANG) as receiver:
        task = asyncio.create_task(send(receiver.url))
        await receiver.until(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_text_for_people_is_escaped_and_signed():
    event = replace(failed(), errors=(), error="<!channel> & more")
    async with Receiver() as receiver:
        sender = HttpWebhookSender(CODEC, SystemClock(), event_summary)
        await sender.send(hook(receiver.url, as_text=True, key=KEY), event)
    (request,) = receiver.received
    assert request.event == {"text": f"akosha-agent on {SYSTEM}: &lt;!channel&gt; &amp; more"}
    assert request.headers["content-type"] == "application/json; charset=utf-8"
    assert request.headers["webhook-signature"]


async def test_doctor_names_each_webhook_and_the_cure_and_no_path(closed_port, tmp_path):
    async with Receiver() as receiver:
        given = [{"url": url + SECRET_PATH, "events": ["failed"]} for url in (receiver.url, closed_port)]
        reached, unreached = await doctor_check(
            DoctorContext(settings=Settings(agent_webhooks=given, agent_state_dir=tmp_path))
        )
    assert (reached.level, unreached.level) == ("ok", "warning")
    assert unreached.found == f"webhook 2 ({closed_port}): no connection: Connection refused"
    assert "akosha_agent_webhooks" in unreached.hint
    assert "T0PSECRET" not in f"{reached} {unreached}"
    assert receiver.received == []
