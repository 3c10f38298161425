"""Checks whether a server or directory is available, within a second and without heavy imports.

Credentials and permissions are not checked. A target is unavailable only if that is certain: a refused connection, no
route, a host name that does not exist. Without an answer in time it counts as available.
"""

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from agent.domain.reachability import is_unreachable

SECONDS = 0.9

_DEFAULT_REGION = "us-east-1"


def within(check: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Return the result of `check`, or True if it takes longer. Raises what `check` raises.

    After the timeout it continues in its thread: a DNS lookup, or a mount that hangs, cannot be interrupted.
    """
    outcome: Future[bool] = Future()

    def run() -> None:
        try:
            outcome.set_result(bool(check()))
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            outcome.set_exception(error)

    threading.Thread(target=run, name="akosha-reach", daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        return True


def health_failure(endpoint: str) -> str:
    """Return why `/health` at the origin of an http(s) address does not respond with 200; "" if it does.

    A redirect counts as a failure. Also "" if the response is late or malformed.
    """
    from http.client import HTTPException  # noqa: PLC0415 - these imports take 0.1 s
    from urllib.error import HTTPError, URLError  # noqa: PLC0415
    from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener  # noqa: PLC0415

    from agent.settings.endpoints import is_loopback  # noqa: PLC0415

    class NoRedirects(HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    parts = urlsplit(endpoint)
    proxies = [ProxyHandler({})] if is_loopback(parts.hostname or "") else []
    url = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}/health"
    try:
        with build_opener(NoRedirects, *proxies).open(
            f"{parts.scheme}://{parts.netloc}/health", timeout=SECONDS
        ) as response:
            return "" if response.status == HTTPStatus.OK else f"{url} responds with {response.status}"
    except HTTPError as error:
        error.close()
        return f"{url} responds with {error.code}"
    except URLError as error:
        return _refusal(error.reason, parts.netloc) if isinstance(error.reason, OSError) else ""
    except (OSError, HTTPException, ValueError) as error:
        return _refusal(error, url)


def connection_refusal(endpoint: str, region: str) -> str:
    """Return why an S3 store's host (AWS's if `endpoint` is empty), or the proxy to it, refuses connections.

    "" if it accepts one, or does not answer in time.
    """
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - as above

    parts = urlsplit(endpoint)
    scheme, host = parts.scheme or "https", parts.hostname or f"s3.{_aws_region(region)}.amazonaws.com"
    address = (host, parts.port or (80 if scheme == "http" else 443))
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    if proxy and (parsed := urlsplit(proxy if "//" in proxy else f"//{proxy}")).hostname:
        address = (parsed.hostname, parsed.port or 80)
    try:
        socket.create_connection(address, timeout=SECONDS, all_errors=True).close()
    except (OSError, ExceptionGroup) as error:
        return _refusal(error, f"{address[0]}:{address[1]}")
    except UnicodeError:  # not a host name: the sync reports that
        return ""
    return ""


def not_writable(directory: Path) -> str:
    """Return why a directory cannot receive uploads; "" if it is writable or can be created."""
    existing = directory if directory.exists() or directory.is_symlink() else directory.parent
    if not existing.is_dir():
        return f"{existing} is not a directory" if existing.exists() else f"{existing} does not exist"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} is not writable"


def _refusal(error: BaseException, address: str) -> str:
    """Return the text of a failed connection; "" if the error does not prove that the target is unavailable."""
    if not is_unreachable(error):
        return ""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return f"{address}: {text.lower()}"


def _aws_region(region: str) -> str:
    if region and region != "auto":
        return region
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _DEFAULT_REGION
