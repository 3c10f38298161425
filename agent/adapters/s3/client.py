"""A client of S3: built on a daemon thread with a loop of its own, within a limit, and closed after its last call.

Importing the library, loading its models and looking for credentials takes up to 2 s. Nothing of a client is bound to a
loop before its first request. It is replaced when its credentials or certificates are refused, or may be out of date.
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

from agent.adapters.s3 import answers
from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.credential_sources import Fingerprint, Helpers, Sources, SourceTimeout, fingerprint
from agent.adapters.s3.local_faults import check_ca_bundle, check_proxy, check_variants
from agent.ports.concurrency import DaemonExecutor, in_daemon_thread


def sign_by_md5(request: Any, **_: object) -> None:
    """Check a batch by Content-MD5, before it is signed.

    The CRC that botocore puts in its place is unknown to older relatives of S3; MD5 is what all of them ask for.
    """
    headers: Any = request.headers
    for name in [name for name in headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))]:
        del headers[name]
    body = request.data if isinstance(request.data, bytes) else str(request.data).encode()
    headers["Content-MD5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


T = TypeVar("T")

ATTEMPTS = 3
"""Of a single request, by botocore's standard mode; attempts as a whole are the caller's."""

BUILD_SECONDS = 30.0
"""How long building a client, and each refresh of its credentials, may take."""

SHOWN = 4
SHORTEST = 16
"""Of a key id the last four characters are shown, if it has as many as AWS gives it; others may be anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds until a connection is made, and that an answer may take once the request is out; sending has no limit.

    `build_seconds` limits the building of a client and each refresh of its credentials.
    """

    connect_timeout: float
    read_timeout: float
    connections: int
    build_seconds: float = BUILD_SECONDS


@dataclass(frozen=True, slots=True)
class Credentials:
    """Which part of the AWS chain has credentials, and the end of the key's id ("" where it is too short to show)."""

    source: str
    key_end: str


@dataclass(slots=True, eq=False)
class Client:
    """A client of botocore, how many calls use it, and what the files of the AWS chain were like when it was built."""

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
    """Builds clients, and looks for credentials. Of what hangs nobody waits for the end."""

    def __init__(self, address: BucketAddress, limits: Limits, verify: str | bool | None) -> None:
        self._address, self._limits, self._verify = address, limits, verify
        self.helpers = Helpers(limits.build_seconds)

    async def client(self) -> Client:
        """Build a client. Raises SourceTimeout, and what the library raises."""
        return await self._aside(self._open)

    async def credentials(self) -> Credentials | None:
        """Return what the AWS chain finds now, None where that is nothing. Raises as `client` does."""
        return await self._aside(self._look)

    async def _aside(self, work: "Callable[[_Thread], Coroutine[Any, Any, T]]") -> T:
        seconds = self._limits.build_seconds
        thread = _Thread()
        try:
            async with asyncio.timeout(seconds):
                return await in_daemon_thread(lambda: thread.run(work), name="s3-client")
        except TimeoutError as error:
            if thread.failed_with is error:
                raise
            raise SourceTimeout(thread.asked(), seconds) from error
        finally:
            thread.stop()

    async def _open(self, thread: "_Thread") -> Client:
        import aioboto3  # noqa: PLC0415 - 0.5 s and 40 MB, only for those who upload
        from aiobotocore.config import AioConfig  # noqa: PLC0415

        from agent.adapters.s3.session import DirectSession  # noqa: PLC0415

        address, limits = self._address, self._limits
        files = fingerprint()
        config = AioConfig(
            http_session_cls=DirectSession,
            connect_timeout=limits.connect_timeout,
            read_timeout=limits.read_timeout,
            max_pool_connections=limits.connections,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            # R2 and B2 refuse the trailing checksums that are botocore's default; Content-MD5 does their work.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # The settings have decided on the endpoint, by the AWS configuration, too: the client knows no other.
            ignore_configured_endpoint_urls=True,
            s3={"addressing_style": address.addressing_style, "payload_signing_enabled": False},
        )
        check_proxy(address)
        session = aioboto3.Session()
        check_ca_bundle(self._verify, session._session.get_config_variable("ca_bundle"))  # noqa: SLF001 - no public way
        check_variants(address, session._session.get_scoped_config())  # noqa: SLF001
        await self._chain(session, thread).credentials()
        region = address.signing_region or session.region_name or "us-east-1"
        owner: AbstractAsyncContextManager[Any] = session.client(
            "s3", region_name=region, endpoint_url=address.endpoint or None, verify=self._verify, config=config
        )
        client = await owner.__aenter__()
        client.meta.events.register("before-sign.s3.DeleteObjects", sign_by_md5)
        client.meta.events.register("before-parse.s3", answers.check_answer)
        return Client(client, owner, files)

    async def _look(self, thread: "_Thread") -> Credentials | None:
        import aioboto3  # noqa: PLC0415 - as above

        found = await self._chain(aioboto3.Session(), thread).credentials()
        if found is None:
            return None
        frozen = await found.get_frozen_credentials()
        key = str(frozen.access_key or "")
        return Credentials(str(found.method), key[-SHOWN:] if len(key) >= SHORTEST else "")

    def _chain(self, session: Any, thread: "_Thread") -> Sources:
        sources = Sources(session._session, self.helpers, self._limits.build_seconds)  # noqa: SLF001 - aiobotocore's own
        thread.asked = lambda: sources.now
        return sources


class _Thread:
    """A loop on a thread of its own, which can be stopped from another one."""

    def __init__(self) -> None:
        self.asked: Callable[[], str] = lambda: "the AWS library"
        self.failed_with: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    def run(self, work: "Callable[[_Thread], Coroutine[Any, Any, T]]") -> T:
        async def working() -> T:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            self._loop.set_default_executor(DaemonExecutor("s3-client-lookup"))
            if self._stopped:
                raise asyncio.CancelledError
            return await work(self)

        try:
            return asyncio.run(working())
        except BaseException as error:
            self.failed_with = error
            raise

    def stop(self) -> None:
        """Cancel the work, if it goes on; a helper that it waits for is killed with it."""
        self._stopped = True
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: the work is done
                loop.call_soon_threadsafe(task.cancel)


REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
    | {"InvalidToken", "InvalidTokenId", "InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure"}
    | {"InvalidSecurity", "NotSignedUp", "RequestExpired"}
)
"""Refusals of the key or token itself."""

_DOUBTFUL = frozenset({400, 401, 403})
_BARE = frozenset({"", "400", "401", "403", "Bad Request", "BadRequest", "Forbidden"})
"""Codes of a refusal without a body, as HEAD has it: an expired token, or a permission that is missing."""

STALE_SECONDS = 60.0
"""A client younger than this is not replaced for a refusal without a body: its credentials have just been read."""


def concerns_credentials(error: Exception) -> bool:
    """Say whether the key or token was refused, or there is none."""
    from botocore import exceptions as boto  # noqa: PLC0415 - loaded by the client long before

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


async def is_to_be_replaced(client: Client, error: Exception) -> bool:
    """Say whether the next call needs a new client.

    A permission that is missing is not mended by another client: a refusal that says so counts only where the files of
    the AWS chain have changed since the client was built.
    """
    from botocore import exceptions as boto  # noqa: PLC0415 - as above

    if concerns_credentials(error) or _is_local(error):
        return True
    if not isinstance(error, boto.ClientError):
        return False
    refusal = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status not in _DOUBTFUL:
        return False
    if str(refusal.get("Code", "")) in _BARE and client.age_seconds > STALE_SECONDS:
        return True
    return await in_daemon_thread(fingerprint, name="s3-credential-files") != client.files


def _is_local(error: Exception) -> bool:
    """Say whether a certificate was not trusted, or a file of ours (a CA, a token) could not be read."""
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
