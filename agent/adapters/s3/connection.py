"""Calls on one bucket, by a client that is built at the first call and replaced where its credentials may be wrong."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from agent.adapters.s3 import answers
from agent.adapters.s3.answers import Answer, ResponseInfo
from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.client import Client, ClientBuilder, Credentials, Limits, concerns_credentials, is_to_be_replaced
from agent.adapters.s3.errors import odd_answer, operation_text, translate
from agent.adapters.s3.object_options import EncryptionCheck, ObjectOptions
from agent.adapters.s3.part import PartBody
from agent.domain.errors import AkoshaError, StoreError
from agent.ports import UnexpectedErrors
from agent.ports.concurrency import mark_retrieved, result_of

T = TypeVar("T")

BARE = frozenset({"400", "403", "Bad Request", "BadRequest", "Forbidden"})
"""What botocore makes of a refusal without a body."""

SILENT = BARE | {"InvalidRange", "416", "NoSuchKey", "404"}
"""Answers to a GET of the first byte that say nothing about why the HEAD before was refused."""

_CLOSING_TURNS = 3

_log = structlog.get_logger()


class Connection:
    """Calls S3 operations on one bucket.

    Every failure is a StoreError. Operations that make an object send the object options.
    """

    def __init__(
        self,
        address: BucketAddress,
        limits: Limits,
        verify: str | bool | None,
        object_options: ObjectOptions = ObjectOptions(),  # noqa: B008 - frozen
    ) -> None:
        self.address = address
        self._object_options = object_options
        self._encryption_check = EncryptionCheck(object_options)
        self._limits = limits
        self._client_builder = ClientBuilder(address, limits, verify)
        self._unexpected = UnexpectedErrors("s3", StoreError)
        self._client_task: asyncio.Task[Client] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call(self, operation: str, key: str = "", **parameters: object) -> Answer:
        """Call an operation of botocore's S3 client on the bucket; `key` is added where there is one.

        A parameter that is None leaves out what would be asked for by the settings.
        """
        return await self.ask(lambda answer: answer, operation, key, **parameters)

    async def ask(self, read: Callable[[Answer], T], operation: str, key: str = "", **parameters: object) -> T:
        """Call an operation as `call` does and return what `read` makes of the answer; it may raise OddAnswer."""
        async with self._client_use(operation, key) as use:
            return read(await self._send(use, operation, key, parameters))

    async def stream(self, operation: str, key: str, piece_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the body of an answer, all that its length announced."""
        async with self._client_use(operation, key) as use:
            answer = await self._send(use, operation, key, {})
            body = answer["Body"]
            answers.check_whole(answer)
            async with body:
                while piece := await body.read(piece_bytes):
                    yield piece

    async def credentials(self) -> Credentials | None:
        """Return what the AWS chain finds now, None where it finds nothing; the client stays as it is."""
        async with self._guarded("looking for credentials", "", _ClientUse()):
            return await self._client_builder.credentials()

    async def reset(self) -> None:
        """Have the next call build a new client. Calls under way finish on the old one."""
        client_task, self._client_task = self._client_task, None
        if (client := result_of(client_task)) is not None:
            self._retire(client)

    async def aclose(self) -> None:
        """Close the client's connections, stop building one. Idempotent."""
        await self.reset()
        for task in self._tasks:
            if task.get_name() == _BUILD:
                task.cancel()
        self._client_builder.helpers.kill()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def drop_idle_connections(self) -> None:
        """Break the connections that nothing uses now."""
        if (client := result_of(self._client_task)) is not None:
            client.raw._endpoint.http_session.drop_idle_connections()  # noqa: SLF001 - there is no public way to it

    async def _detailed_error(self, error: Exception, client: Client | None, operation: str, key: str) -> Exception:
        """Return the refusal that says why a HEAD was refused: the answer to one has no body, and so no code.

        Asks once more, by a GET of the first byte. Where that says no more, the refusal is returned as it was.
        """
        refusal = getattr(error, "response", None)
        if client is None or operation != "head_object" or not isinstance(refusal, dict):
            return error
        if refusal.get("Error", {}).get("Code") not in BARE:
            return error
        try:
            answer = await client.raw.get_object(Bucket=self.address.bucket, Key=key, Range="bytes=0-0")
            answer["Body"].close()
        except Exception as said:  # noqa: BLE001 - it is translated, or the first refusal is
            code = (getattr(said, "response", None) or {}).get("Error", {}).get("Code")
            return error if code is None or code in SILENT else said
        return error

    async def _send(self, use: "_ClientUse", operation: str, key: str, parameters: dict[str, Any]) -> Answer:
        if key:
            parameters["Key"] = key
        asked = self._object_options.asked(operation) | parameters
        parameters = {name: value for name, value in asked.items() if value is not None}
        body = parameters.get("Body")
        patience = body.patience(self._limits.read_timeout) if isinstance(body, PartBody) else nullcontext()
        assert use.client is not None
        token = answers.response_info.set(use.response)
        try:
            async with patience:
                answer: Answer = await getattr(use.client.raw, operation)(Bucket=self.address.bucket, **parameters)
        finally:
            answers.response_info.reset(token)
        self._encryption_check.check(operation, str(answer.get("ServerSideEncryption") or ""), self.address)
        return answer

    @asynccontextmanager
    async def _client_use(self, operation: str, key: str) -> AsyncIterator["_ClientUse"]:
        """Yield the client for one call: it stays open until the call is over, whatever replaces it."""
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
        """Raise a StoreError for whatever the library raises in here: the only place that catches all of it."""
        try:
            yield
        except AkoshaError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a library raises is translated here
            cause = await self._detailed_error(error, use.client, operation, key)
            failure = self._translated(cause, operation, key, use.response)
            failure.credentials_refused = concerns_credentials(cause)
            if use.client is not None and await is_to_be_replaced(use.client, cause):
                self._replace(use.client)
            raise failure from cause

    def _translated(self, error: Exception, operation: str, key: str, note: ResponseInfo) -> StoreError:
        if (odd := odd_answer(error, self.address, operation, key, note)) is not None:
            return odd
        if (
            known := translate(error, self.address, operation, key, self._object_options, answered=bool(note.status))
        ) is not None:
            return known
        doing, answered = operation_text(operation, key), bool(note.status)
        what = (
            f"the answer of {self.address.authority} ({note}) cannot be read" if answered else f"{self.address} failed"
        )
        return self._unexpected.translate(error, operation, f"{what}, {doing}", hint=answers.NOT_S3 if answered else "")

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
        """Have the next call build a new client, if this one is still in use."""
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


_BUILD = "s3-client"


@dataclass(slots=True)
class _ClientUse:
    """The client that a call uses, and what came back."""

    client: Client | None = None
    response: ResponseInfo = field(default_factory=ResponseInfo)


async def _close(client: Client) -> None:
    await client.owner.__aexit__(None, None, None)
    # Connections that broke are closed by the loop in its next turns, if it has any.
    for _ in range(_CLOSING_TURNS):
        await asyncio.sleep(0)
