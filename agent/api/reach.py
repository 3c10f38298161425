"""Whether something is there, known within a second: by connecting, without anything heavy, in a thread of its own.

It says that an attempt makes sense, not that it will succeed: credentials and rights are the attempt's to find out.
False is a definite no (a refused connection, no route, a name that does not exist); what is not known in time is True.
"""

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from agent.domain.reachability import is_definite_no

SECONDS = 0.9

_DEFAULT_REGION = "us-east-1"


def answered(question: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Return the answer, True where there is none in time: nobody knows. Raises what the question raises.

    The question goes on in its thread: looking up a host's name or a mount that hangs cannot be interrupted.
    """
    answer: Future[bool] = Future()

    def ask() -> None:
        try:
            answer.set_result(bool(question()))
        except BaseException as error:  # noqa: BLE001 - it is the caller's, to whom it goes
            answer.set_exception(error)

    threading.Thread(target=ask, name="akosha-reach", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        return True


def no_health(endpoint: str) -> str:
    """Return why `/health` at the origin of an http(s) address does not answer with 200 itself, "" where it does.

    A redirect is a no. "", too, where nobody knows: no answer in time, or one that is garbled.
    """
    from http.client import HTTPException  # noqa: PLC0415 - what is below costs 0.1 s
    from urllib.error import HTTPError, URLError  # noqa: PLC0415
    from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener  # noqa: PLC0415

    from agent.settings.endpoints import is_loopback  # noqa: PLC0415

    class Stay(HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    parts = urlsplit(endpoint)
    here = [ProxyHandler({})] if is_loopback(parts.hostname or "") else []
    place = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}/health"
    try:
        with build_opener(Stay, *here).open(f"{parts.scheme}://{parts.netloc}/health", timeout=SECONDS) as response:
            return "" if response.status == HTTPStatus.OK else f"{place} answers {response.status}"
    except HTTPError as error:
        error.close()
        return f"{place} answers {error.code}"
    except URLError as error:
        return _refusal(error.reason, parts.netloc) if isinstance(error.reason, OSError) else ""
    except (OSError, HTTPException, ValueError) as error:
        return _refusal(error, place)


def no_connection(endpoint: str, region: str) -> str:
    """Return why nobody is at an S3 store's host (empty: AWS's), or at the proxy that the environment names for it.

    "" where somebody takes the connection, or nobody knows.
    """
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - as above

    parts = urlsplit(endpoint)
    scheme, host = parts.scheme or "https", parts.hostname or f"s3.{_aws_region(region)}.amazonaws.com"
    door = (host, parts.port or (80 if scheme == "http" else 443))
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    if proxy and (way := urlsplit(proxy if "//" in proxy else f"//{proxy}")).hostname:
        door = (way.hostname, way.port or 80)
    try:
        socket.create_connection(door, timeout=SECONDS, all_errors=True).close()
    except (OSError, ExceptionGroup) as error:
        return _refusal(error, f"{door[0]}:{door[1]}")
    except UnicodeError:  # no host's name: the attempt says so
        return ""
    return ""


def not_writable(directory: Path) -> str:
    """Return why uploads cannot go to a directory, "" where it is there, or may be made, and is ours to write."""
    there = directory if directory.exists() or directory.is_symlink() else directory.parent
    if not there.is_dir():
        return f"{there} is not a directory" if there.exists() else f"there is no directory {there}"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written to"


def _refusal(error: BaseException, place: str) -> str:
    """Return what a failed try to connect says, "" where it proves nothing."""
    if not is_definite_no(error):
        return ""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    words = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return f"{place}: {words.lower()}"


def _aws_region(region: str) -> str:
    if region and region != "auto":
        return region
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _DEFAULT_REGION
