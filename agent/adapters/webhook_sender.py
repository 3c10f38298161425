"""Sends events to webhooks with aiohttp. Redirects are not followed, so an event is sent to no other address.

Only the status of a response counts: nothing reads its body. Each event has a connection of its own, because hours may
pass between two of them.
"""

import asyncio
import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import escape
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from agent import __version__
from agent.adapters.tcp_probe import proxy_address
from agent.domain.errors import WebhookError
from agent.domain.events import Event
from agent.domain.webhooks import Webhook, message_id, signature
from agent.ports import Clock, Codec, UnexpectedErrors
from agent.ports.concurrency import in_daemon_thread
from agent.settings.endpoints import check_webhook_url, is_loopback

SECONDS = 10.0
"""Time limit of an attempt, from the name resolution to the status."""

SETTING = "akosha_agent_webhooks"
_ADDRESS = f"correct the URL in {SETTING}"
_REFUSED = f"correct the secret or the URL in {SETTING}, or the clock of this machine: the signature has the time"
_RECEIVER = f"check the receiver, and the URL in {SETTING}"
_PROXY = "check HTTPS_PROXY, ALL_PROXY and NO_PROXY"
_CERTIFICATE = f"set SSL_CERT_FILE to the certificate file of the CA that signed it, or correct {SETTING}"

_MARKUP = re.compile(r"@|:(?=//)|\](?=\()")
_ZERO_WIDTH_SPACE = "\u200b"

_REFUSALS = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
"""How receivers answer to a signature or a time that they do not accept."""

_TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HttpWebhookSender:
    """`agent.ports.WebhookSender`. The certificates of the authorities are read at the first use, in a thread.

    `summary` makes the text of an event, for webhooks that get a text.
    """

    def __init__(self, codec: Codec, clock: Clock, summary: Callable[[Event], str]) -> None:
        self._codec, self._clock, self._summary = codec, clock, summary
        self._context: ssl.SSLContext | None = None
        self._unexpected = UnexpectedErrors("webhook", WebhookError)

    async def send(self, webhook: Webhook, event: Event) -> None:
        try:
            body = self._text(event) if webhook.as_text else self._codec.encode(event)
            async with asyncio.timeout(SECONDS):
                status, answered = await self._post(webhook, body, self._headers(webhook, event, body))
            _check(status, answered, self._clock.now())
        except WebhookError:
            raise
        except Exception as error:
            raise self._translated(error, SECONDS) from error

    async def connect(self, webhook: Webhook, *, seconds: float = SECONDS) -> None:
        """Connect, with TLS for https://, and send no request: some receivers count any request as an event.

        Behind a proxy, connect to the proxy. Raises WebhookError.
        """
        parts = urlsplit(webhook.url)
        try:
            async with asyncio.timeout(seconds):
                if proxy := _proxy(webhook.url):
                    _, writer = await asyncio.open_connection(proxy.host, proxy.port)
                else:
                    port = parts.port or _DEFAULT_PORTS[parts.scheme]
                    encrypted = await self._tls() if parts.scheme == "https" else None
                    _, writer = await asyncio.open_connection(parts.hostname, port, ssl=encrypted)
                writer.transport.abort()
        except WebhookError:
            raise
        except Exception as error:
            raise self._translated(error, seconds) from error

    def _text(self, event: Event) -> bytes:
        """Return `{"text": ...}` without mentions, Markdown links and URLs.

        Slack shows a text between < and > as a link or a mention. Mattermost knows @all and Markdown, both link URLs.
        """
        text = escape(f"akosha-agent on {event.system_id}: {self._summary(event)}", quote=False)
        return json.dumps({"text": _MARKUP.sub(r"\g<0>" + _ZERO_WIDTH_SPACE, text)}).encode()

    def _headers(self, webhook: Webhook, event: Event, body: bytes) -> Mapping[str, str]:
        message, timestamp = message_id(event), int(self._clock.now().timestamp())
        headers = {
            "Content-Type": f"application/{'json' if webhook.as_text else 'cloudevents+json'}; charset=utf-8",
            "User-Agent": f"akosha-agent/{__version__}",
            "webhook-id": message,
            "webhook-timestamp": str(timestamp),
        }
        if webhook.key:
            headers["webhook-signature"] = signature(webhook.key, message, timestamp, body)
        return headers

    async def _post(self, webhook: Webhook, body: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        encrypted = urlsplit(webhook.url).scheme == "https"
        connector = aiohttp.TCPConnector(ssl=await self._tls() if encrypted else True, force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            ) as session,
            session.post(
                URL(webhook.url, encoded=True),
                data=body,
                headers=headers,
                allow_redirects=False,
                proxy=_proxy(webhook.url),
            ) as response,
        ):
            return response.status, response.headers

    async def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = await in_daemon_thread(ssl.create_default_context, name="webhook-certificates")
        return self._context

    def _translated(self, error: Exception, seconds: float) -> WebhookError:
        """Return the WebhookError for an exception. Its text has no part of the URL."""
        inner: BaseException | None = error
        while inner is not None:
            if isinstance(inner, ssl.SSLCertVerificationError):
                self._context = None  # read again at the next attempt
                return WebhookError("the certificate is not trusted", hint=_CERTIFICATE)
            if isinstance(inner, ssl.SSLError):
                return WebhookError("TLS failed: does the receiver use TLS?", hint=_RECEIVER, transient=True)
            if isinstance(inner, TimeoutError):
                return WebhookError(f"no response within {seconds:g} s", hint=_RECEIVER, transient=True)
            if isinstance(inner, OSError) and not isinstance(inner, aiohttp.ClientError):
                return WebhookError(f"no connection: {_reason(inner)}", hint=_RECEIVER, transient=True)
            inner = inner.__cause__ or inner.__context__
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return WebhookError(f"the proxy answers with status {error.status}", hint=_PROXY, transient=True)
        if isinstance(error, aiohttp.ClientConnectionError):
            return WebhookError("the connection was closed before a response", hint=_RECEIVER, transient=True)
        if isinstance(error, aiohttp.ClientResponseError):
            return WebhookError("the response is not HTTP", hint=_RECEIVER, transient=True)
        return self._unexpected.translate(error, "send", "the event could not be sent")


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or type(error).__name__
    return os.strerror(error.errno)


def _check(status: int, headers: Mapping[str, str], now: datetime) -> None:
    """Raise WebhookError unless the status says that the event was accepted."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    if status == HTTPStatus.GONE:
        hint = f"remove it from {SETTING}; akosha-agent service restart tries it again"
        raise WebhookError("status 410: it wants no more events", hint=hint, gone=True)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        raise WebhookError(f"status {status}: it redirects to another address, which is not followed", hint=_ADDRESS)
    transient = status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    raise WebhookError(
        f"status {status}",
        hint=_RECEIVER if transient else _REFUSED if status in _REFUSALS else _ADDRESS,
        transient=transient,
        retry_after=_retry_after(headers, now),
    )


def _retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds of the Retry-After header, None without a valid one."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # OverflowError: a year or an offset out of range
        return None
    return ((until if until.tzinfo else until.replace(tzinfo=UTC)) - now).total_seconds()


def _proxy(url: str) -> URL | None:
    """Return the proxy, with its user and password; None for an address on this machine. Raises WebhookError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    found = None if is_loopback(host) else proxy_address(host, parts.scheme, "all")
    if found is None:
        return None
    try:
        check_webhook_url(found[1])  # a proxy may have the same parts
        return URL(found[1])
    except ValueError as error:
        raise WebhookError("the address of the proxy is not valid", hint=_PROXY) from error
