"""The S3 client: built on a daemon thread with its own event loop and a time limit, and closed after its last call.

Importing the library, loading its models and finding credentials takes up to 2 s. A client is not bound to a loop
before its first request. It is replaced if its credentials or certificates are refused or may be out of date.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.adapters.s3 import responses
from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.credential_sources import CredentialChain, Fingerprint, Helpers, SourceTimeout, fingerprint
from agent.adapters.s3.local_faults import check_ca_bundle, check_proxy, check_variants
from agent.ports.concurrency import DaemonResolverLoop, in_daemon_thread
from agent.settings.own_files import S3Credentials

T = TypeVar("T")

ATTEMPTS = 3
"""Attempts of a single request, in botocore's standard mode. The caller retries complete operations."""

BUILD_SECONDS = 30.0
"""Time limit for building a client, and for each refresh of its credentials."""

SHOWN_CHARACTERS = 4
MIN_KEY_CHARACTERS = 16
"""The last four characters of a key ID are shown if it is as long as AWS's key IDs; shorter ones are not shown."""

REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
    | {"InvalidToken", "InvalidTokenId", "InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure"}
    | {"InvalidSecurity", "NotSignedUp", "RequestExpired"}
)
"""Error codes that refuse the key or token itself."""

_AMBIGUOUS = frozenset({400, 401, 403})
_BARE = frozenset({"", "400", "401", "403", "Bad Request", "BadRequest", "Forbidden"})
"""Codes of a refusal without a body, as for HEAD: an expired token or a missing permission."""

STALE_SECONDS = 60.0
"""After a refusal without a body, only an older client is replaced: a younger one has just read its credentials."""


def sign_by_md5(request: Any, **_: object) -> None:
    """Replace botocore's CRC of a batch with Content-MD5, before it is signed.

    Older S3-compatible stores do not support the CRC; all of them accept Content-MD5.
    """
    headers: Any = request.headers
    for name in [name for name in headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))]:
        del headers[name]
    body = request.data if isinstance(request.data, bytes) else str(request.data).encode()
    headers["Content-MD5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits in seconds, and the maximum number of connections.

    `read_timeout` limits the wait for a response after the request is sent; sending and copying have no limit.
    `build_seconds` limits building a client, and each refresh of its credentials.
    """

    connect_timeout: float
    read_timeout: float
    connections: int
    build_seconds: float = BUILD_SECONDS


@dataclass(frozen=True, slots=True)
class Credentials:
    """The part of the AWS chain that has credentials, and the end of the key ID ("" if it is too short to show)."""

    source: str
    key_end: str


@dataclass(slots=True, eq=False)
class Client:
    """A botocore client, the number of calls that use it, and the state of the AWS chain's files when it was built."""

    raw: Any
    owner: AbstractAsyncContextManager[Any]
    files: Fingerprint
    built_at: float = field(default_factory=time.monotonic)
    users: int = 0
    retired: bool = False
    closing: bool = False

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self.built_at


class ClientBuilder:
    """Builds clients and finds credentials, with a time limit; does not wait for work that hangs."""

    def __init__(
        self, address: BucketAddress, limits: Limits, verify: str | bool | None, credentials: S3Credentials | None
    ) -> None:
        self._address, self._limits, self._verify, self._given = address, limits, verify, credentials
        self.helpers = Helpers(limits.build_seconds)

    async def client(self) -> Client:
        """Build a client. Raises SourceTimeout and the library's errors."""
        return await self._in_thread(self._open)

    async def credentials(self) -> Credentials | None:
        """Return the credentials that the AWS chain finds now, or None. Raises as `client` does."""
        return await self._in_thread(self._find_credentials)

    async def _in_thread(self, work: "Callable[[_WorkerThread], Coroutine[Any, Any, T]]") -> T:
        seconds = self._limits.build_seconds
        thread = _WorkerThread()
        try:
            async with asyncio.timeout(seconds):
                return await in_daemon_thread(lambda: thread.run(work), name="s3-client")
        except TimeoutError as error:
            if thread.failed_with is error:
                raise
            raise SourceTimeout(thread.current_source(), seconds) from error
        finally:
            thread.stop()

    async def _open(self, thread: "_WorkerThread") -> Client:
        from aiobotocore.config import AioConfig  # noqa: PLC0415 - takes 0.3 s and 40 MB, only needed for uploads
        from aiobotocore.session import AioSession  # noqa: PLC0415

        from agent.adapters.s3.session import DirectSession  # noqa: PLC0415

        address, limits = self._address, self._limits
        files = fingerprint()
        config = AioConfig(
            http_session_cls=DirectSession,
            connect_timeout=limits.connect_timeout,
            read_timeout=limits.read_timeout,
            max_pool_connections=limits.connections,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            # R2 and B2 refuse trailing checksums, botocore's default. Content-MD5 replaces them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # The settings already take the endpoint of the AWS configuration into account.
            ignore_configured_endpoint_urls=True,
            s3={"addressing_style": address.addressing_style, "payload_signing_enabled": False},
        )
        check_proxy(address)
        session = AioSession()
        check_variants(address, session.get_scoped_config())
        await self._chain(session, thread).credentials()
        region = address.signing_region or session.get_config_variable("region") or "us-east-1"
        verify = self._verify
        if address.uses_tls:
            check_ca_bundle(verify, session.get_config_variable("ca_bundle"))
        else:
            verify = False  # loading the CAs takes 40 ms of processor time
        owner: AbstractAsyncContextManager[Any] = session.create_client(
            "s3", region_name=region, endpoint_url=address.endpoint or None, verify=verify, config=config
        )
        client = await owner.__aenter__()
        client.meta.events.register("before-sign.s3.DeleteObjects", sign_by_md5)
        client.meta.events.register("before-parse.s3", responses.check_response)
        return Client(client, owner, files)

    async def _find_credentials(self, thread: "_WorkerThread") -> Credentials | None:
        from aiobotocore.session import AioSession  # noqa: PLC0415 - as above

        credentials = await self._chain(AioSession(), thread).credentials()
        if credentials is None:
            return None
        frozen = await credentials.get_frozen_credentials()
        key = str(frozen.access_key or "")
        return Credentials(str(credentials.method), key[-SHOWN_CHARACTERS:] if len(key) >= MIN_KEY_CHARACTERS else "")

    def _chain(self, session: Any, thread: "_WorkerThread") -> CredentialChain:
        chain = CredentialChain(session, self.helpers, self._limits.build_seconds, self._given)
        thread.current_source = lambda: chain.current_source
        return chain


class _WorkerThread:
    """An event loop in its own thread, which another thread can stop."""

    def __init__(self) -> None:
        self.current_source: Callable[[], str] = lambda: "the AWS library"
        self.failed_with: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    def run(self, work: "Callable[[_WorkerThread], Coroutine[Any, Any, T]]") -> T:
        async def working() -> T:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._stopped:
                raise asyncio.CancelledError
            return await work(self)

        try:
            with asyncio.Runner(loop_factory=DaemonResolverLoop) as runner:
                return runner.run(working())
        except BaseException as error:
            self.failed_with = error
            raise

    def stop(self) -> None:
        """Cancel the work if it is not complete. A credential helper that it waits for is killed."""
        self._stopped = True
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the work is complete
                loop.call_soon_threadsafe(task.cancel)


def is_credentials_error(error: Exception) -> bool:
    """Return whether the key or token was refused or could not be found."""
    from botocore import exceptions as boto  # noqa: PLC0415 - the client has loaded it

    if isinstance(error, boto.ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) in REFUSED
    if isinstance(error, RuntimeError) and "refreshed credentials are still expired" in str(error):
        return True
    return isinstance(
        error,
        boto.NoCredentialsError
        | boto.PartialCredentialsError
        | boto.NoAuthTokenError
        | boto.CredentialRetrievalError
        | boto.MetadataRetrievalError
        | boto.TokenRetrievalError
        | boto.RefreshWithMFAUnsupportedError
        | boto.SSOError
        | SourceTimeout
        | json.JSONDecodeError,
    )


async def needs_new_client(client: Client, error: Exception) -> bool:
    """Return whether the next call needs a new client.

    A new client does not fix a missing permission. After such a refusal the client is replaced only if the files of the
    AWS chain have changed since it was built.
    """
    from botocore import exceptions as boto  # noqa: PLC0415 - as above

    if is_credentials_error(error) or _is_file_or_certificate_error(error):
        return True
    if not isinstance(error, boto.ClientError):
        return False
    refusal = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status not in _AMBIGUOUS:
        return False
    if str(refusal.get("Code", "")) in _BARE and client.age_seconds > STALE_SECONDS:
        return True
    return await in_daemon_thread(fingerprint, name="s3-credential-files") != client.files


def _is_file_or_certificate_error(error: Exception) -> bool:
    """Return whether a certificate was not trusted, or a local file (a CA bundle, a token) could not be read."""
    import aiohttp  # noqa: PLC0415 - as above
    from botocore import exceptions as boto  # noqa: PLC0415

    if isinstance(error, boto.SSLError | ssl.SSLError | aiohttp.ClientSSLError):
        return True
    inner: object = error
    for _ in range(3):
        if isinstance(inner, FileNotFoundError | PermissionError | IsADirectoryError):
            return True
        inner = getattr(inner, "kwargs", {}).get("error") or getattr(inner, "__cause__", None)
    return False
