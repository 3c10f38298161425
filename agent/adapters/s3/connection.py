"""Calls on one bucket. The first call builds the client; it is replaced if its credentials may be wrong."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from agent.adapters.s3 import responses
from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.client import Client, ClientBuilder, Credentials, Limits, is_credentials_error, needs_new_client
from agent.adapters.s3.errors import invalid_response, operation_text, translate
from agent.adapters.s3.object_options import EncryptionCheck, ObjectOptions
from agent.adapters.s3.part import PartBody
from agent.adapters.s3.responses import Response, ResponseInfo
from agent.domain.errors import AkoshaError, StoreError
from agent.ports import UnexpectedErrors
from agent.ports.concurrency import mark_retrieved, result_of
from agent.settings.own_files import S3Credentials

T = TypeVar("T")

BODYLESS = frozenset({"400", "403", "Bad Request", "BadRequest", "Forbidden"})
"""botocore's codes for a refusal without a body."""

UNINFORMATIVE = BODYLESS | {"InvalidRange", "416", "NoSuchKey", "404"}
"""Codes of a GET of the first byte that do not explain why the HEAD before was refused."""

_CLOSING_TURNS = 3

_BUILD = "s3-client"

_log = structlog.get_logger()


class Connection:
    """Calls S3 operations on one bucket.

    Every failure is a StoreError. Operations that create an object send the object options.
    """

    def __init__(
        self,
        address: BucketAddress,
        limits: Limits,
        verify: str | bool | None,
        object_options: ObjectOptions = ObjectOptions(),  # noqa: B008 - frozen
        credentials: S3Credentials | None = None,
    ) -> None:
        self.address = address
        self._object_options = object_options
        self._encryption_check = EncryptionCheck(object_options)
        self._limits = limits
        self._client_builder = ClientBuilder(address, limits, verify, credentials)
        self._unexpected = UnexpectedErrors("s3", StoreError)
        self._client_task: asyncio.Task[Client] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def object_parameters(self) -> dict[str, str]:
        """The parameters that each operation that creates an object sends: encryption, storage class."""
        return self._object_options.parameters("create_multipart_upload")

    async def call(self, operation: str, key: str = "", **parameters: object) -> Response:
        """Call an operation of botocore's S3 client on the bucket, and on `key` if it is not empty.

        A parameter that is None removes the object option of that name.
        """
        return await self.call_and_read(lambda response: response, operation, key, **parameters)

    async def call_and_read(
        self, read: Callable[[Response], T], operation: str, key: str = "", **parameters: object
    ) -> T:
        """Call an operation as `call` does and return `read(response)`. `read` may raise InvalidResponse."""
        async with self._client_use(operation, key) as use:
            return read(await self._send(use, operation, key, parameters))

    async def stream(self, operation: str, key: str, piece_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the body of a response. Raises StoreError if it is shorter than its announced length."""
        async with self._client_use(operation, key) as use:
            response = await self._send(use, operation, key, {})
            body = response["Body"]
            responses.check_complete(response)
            async with body:
                while piece := await body.read(piece_bytes):
                    yield piece

    async def credentials(self) -> Credentials | None:
        """Return the credentials that the AWS chain finds now, or None. Does not affect the client."""
        async with self._guarded("looking for credentials", "", _ClientUse()):
            return await self._client_builder.credentials()

    async def reset(self) -> None:
        """Discard the client: the next call builds a new one. Calls in progress finish on the old one."""
        client_task, self._client_task = self._client_task, None
        if (client := result_of(client_task)) is not None:
            self._retire(client)

    async def aclose(self) -> None:
        """Close the client's connections; cancel the building of a client. Idempotent."""
        await self.reset()
        for task in self._tasks:
            if task.get_name() == _BUILD:
                task.cancel()
        self._client_builder.helpers.kill()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def drop_idle_connections(self) -> None:
        """Close the connections that are not in use."""
        if (client := result_of(self._client_task)) is not None:
            client.raw._endpoint.http_session.drop_idle_connections()  # noqa: SLF001 - no public way

    async def _detailed_error(self, error: Exception, client: Client | None, operation: str, key: str) -> Exception:
        """Return an error that says why a HEAD was refused; the response to a HEAD has no body and no error code.

        Requests the first byte with a GET. If the response is not more specific, returns `error`.
        """
        refusal = getattr(error, "response", None)
        if client is None or operation != "head_object" or not isinstance(refusal, dict):
            return error
        if refusal.get("Error", {}).get("Code") not in BODYLESS:
            return error
        try:
            response = await client.raw.get_object(Bucket=self.address.bucket, Key=key, Range="bytes=0-0")
            response["Body"].close()
        except Exception as detailed:  # noqa: BLE001 - the caller translates it, or `error`
            code = (getattr(detailed, "response", None) or {}).get("Error", {}).get("Code")
            return error if code is None or code in UNINFORMATIVE else detailed
        return error

    async def _send(self, use: "_ClientUse", operation: str, key: str, parameters: dict[str, Any]) -> Response:
        if key:
            parameters["Key"] = key
        with_options = self._object_options.parameters(operation) | parameters
        parameters = {name: value for name, value in with_options.items() if value is not None}
        body = parameters.get("Body")
        limit = body.limit_wait(self._limits.read_timeout) if isinstance(body, PartBody) else nullcontext()
        assert use.client is not None
        token = responses.response_info.set(use.response)
        try:
            async with limit:
                response: Response = await getattr(use.client.raw, operation)(Bucket=self.address.bucket, **parameters)
        finally:
            responses.response_info.reset(token)
        self._encryption_check.check(operation, str(response.get("ServerSideEncryption") or ""), self.address)
        return response

    @asynccontextmanager
    async def _client_use(self, operation: str, key: str) -> AsyncIterator["_ClientUse"]:
        """Yield the client for one call. A replaced client stays open until its calls are complete."""
        use = _ClientUse()
        async with self._guarded(operation, key, use):
            client = use.client = await self._client()
            client.users += 1
            try:
                yield use
            finally:
                client.users -= 1
                self._close_if_unused(client)

    @asynccontextmanager
    async def _guarded(self, operation: str, key: str, use: "_ClientUse") -> AsyncIterator[None]:
        """Translate all exceptions of the library within the block into StoreErrors."""
        try:
            yield
        except AkoshaError:
            raise
        except Exception as error:  # noqa: BLE001 - libraries raise exceptions of many kinds
            cause = await self._detailed_error(error, use.client, operation, key)
            failure = self._translated(cause, operation, key, use.response)
            failure.credentials_refused = is_credentials_error(cause)
            if use.client is not None and await needs_new_client(use.client, cause):
                self._replace(use.client)
            raise failure from cause

    def _translated(self, error: Exception, operation: str, key: str, info: ResponseInfo) -> StoreError:
        if (invalid := invalid_response(error, self.address, operation, key, info)) is not None:
            return invalid
        answered = bool(info.status)
        known = translate(error, self.address, operation, key, self._object_options, answered=answered)
        if known is not None:
            return known
        host = self.address.authority
        what = f"the response of {host} ({info}) cannot be read" if answered else f"{self.address} failed"
        text = f"{what}, {operation_text(operation, key)}"
        return self._unexpected.translate(error, operation, text, hint=responses.NOT_S3 if answered else "")

    async def _client(self) -> Client:
        client_task = self._client_task
        if client_task is None or (client_task.done() and result_of(client_task) is None):
            client_task = self._client_task = self._start(self._client_builder.client(), _BUILD)
        try:
            client = await asyncio.shield(client_task)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if client_task.cancelled() and (task is None or not task.cancelling()):
                raise StoreError(f"{self.address}: the store is being closed", transient=True) from None
            raise
        if self._client_task is not client_task:
            client.retired = True
        return client

    def _replace(self, client: Client) -> None:
        """Discard the client unless it was replaced already."""
        if result_of(self._client_task) is client:
            self._client_task = None
            self._retire(client)
            _log.info(
                "s3_client_discarded", store=str(self.address), next_step="the next attempt reads the credentials again"
            )

    def _retire(self, client: Client) -> None:
        client.retired = True
        self._close_if_unused(client)

    def _close_if_unused(self, client: Client) -> None:
        if client.retired and not client.users and not client.closing:
            client.closing = True
            self._start(_close(client), "s3-client-close")

    def _start(self, work: Any, name: str) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(mark_retrieved)
        return task


@dataclass(slots=True)
class _ClientUse:
    """The client that a call uses, and the status of its response."""

    client: Client | None = None
    response: ResponseInfo = field(default_factory=ResponseInfo)


async def _close(client: Client) -> None:
    await client.owner.__aexit__(None, None, None)
    # The loop closes broken connections in its next iterations.
    for _ in range(_CLOSING_TURNS):
        await asyncio.sleep(0)
