"""The one S3 client of a store: made at the first call, off the event loop, and closed with the store."""

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from agent.adapters.s3_store.at_rest import AtRest, Doubt
from agent.adapters.s3_store.batch_check import sign_by_md5
from agent.adapters.s3_store.errors import translate
from agent.adapters.s3_store.local_faults import check_ca_bundle, check_proxy, check_variants
from agent.adapters.s3_store.part import PartBody
from agent.adapters.s3_store.place import Place

Answer = dict[str, Any]
"""What botocore makes of a response. It does not leave this package."""

ATTEMPTS = 3
"""Of a single request, by botocore's standard mode; attempts as a whole are the caller's."""

BARE = frozenset({"400", "403", "Bad Request", "BadRequest", "Forbidden"})
"""What botocore makes of a refusal without a body."""

SILENT = BARE | {"InvalidRange", "416", "NoSuchKey", "404"}
"""Answers to a GET of the first byte that say nothing about why the HEAD before was refused."""

_CLOSING_TURNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds until a connection stands, and that an answer may take once the request is out; sending has no limit."""

    connect_timeout: float
    read_timeout: float
    connections: int


class Connection:
    """Calls S3 operations on one bucket. Every failure is a StoreError. What makes an object says how it is to lie."""

    def __init__(
        self,
        place: Place,
        limits: Limits,
        verify: str | bool | None,
        at_rest: AtRest = AtRest(),  # noqa: B008 - frozen
    ) -> None:
        self.place = place
        self._at_rest = at_rest
        self._doubt = Doubt(at_rest)
        self._limits = limits
        self._verify = verify
        self._making: asyncio.Task[Any] | None = None
        self._owner: AbstractAsyncContextManager[Any] | None = None

    async def call(self, operation: str, key: str = "", **parameters: object) -> Answer:
        """Call an operation of botocore's S3 client on the bucket; `key` is added where there is one.

        A parameter that is None leaves out what would be asked for by the settings.
        """
        if key:
            parameters["Key"] = key
        asked = self._at_rest.asked(operation) | parameters
        parameters = {name: value for name, value in asked.items() if value is not None}
        try:
            client = await self._client()
            body = parameters.get("Body")
            patience = body.patience(self._limits.read_timeout) if isinstance(body, PartBody) else nullcontext()
            async with patience:
                answer: Answer = await getattr(client, operation)(Bucket=self.place.bucket, **parameters)
        except Exception as error:
            cause = await self._explained(error, operation, key)
            if (translated := translate(cause, self.place, operation, key, self._at_rest)) is None:
                raise
            raise translated from cause
        self._doubt.look(operation, str(answer.get("ServerSideEncryption") or ""), self.place)
        return answer

    async def aclose(self) -> None:
        """Close the client's connections. Idempotent."""
        making, self._making = self._making, None
        if making is not None:
            await asyncio.wait({making})
        owner, self._owner = self._owner, None
        if owner is not None:
            await owner.__aexit__(None, None, None)
            # Connections that broke are closed by the loop in its next turns, if it has any.
            for _ in range(_CLOSING_TURNS):
                await asyncio.sleep(0)

    def let_go(self) -> None:
        """Break the connections that nothing uses now."""
        making = self._making
        if making is not None and making.done() and not making.cancelled() and making.exception() is None:
            making.result()._endpoint.http_session.let_go()  # noqa: SLF001 - there is no public way to it

    async def _explained(self, error: Exception, operation: str, key: str) -> Exception:
        """Return the refusal that says why a HEAD was refused: the answer to one has no body, and so no code.

        Asks once more, by a GET of the first byte. Where that says no more, the refusal is returned as it was.
        """
        refusal = getattr(error, "response", None)
        if operation != "head_object" or not isinstance(refusal, dict):
            return error
        if refusal.get("Error", {}).get("Code") not in BARE:
            return error
        try:
            client = await self._client()
            answer = await client.get_object(Bucket=self.place.bucket, Key=key, Range="bytes=0-0")
            answer["Body"].close()
        except Exception as said:  # noqa: BLE001 - it is translated, or the first refusal is
            code = (getattr(said, "response", None) or {}).get("Error", {}).get("Code")
            return error if code is None or code in SILENT else said
        return error

    async def _client(self) -> Any:
        if self._making is None or (self._making.done() and self._making.exception() is not None):
            self._making = asyncio.create_task(asyncio.to_thread(self._make), name="s3-client")
            self._making.add_done_callback(_retrieve)
        return await asyncio.shield(self._making)

    def _make(self) -> Any:
        """Import the library, load its models, look for credentials: up to 2 s, so on a thread with a loop of its own.

        Nothing of a client is bound to a loop before its first request.
        """
        return asyncio.run(self._open())

    async def _open(self) -> Any:
        import aioboto3  # noqa: PLC0415 - 0.5 s and 40 MB, only for those who upload
        from aiobotocore.config import AioConfig  # noqa: PLC0415

        from agent.adapters.s3_store.session import DirectSession  # noqa: PLC0415

        place, limits = self.place, self._limits
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
            s3={"addressing_style": place.addressing_style, "payload_signing_enabled": False},
        )
        check_proxy(place)
        session = aioboto3.Session()
        check_ca_bundle(self._verify, session._session.get_config_variable("ca_bundle"))  # noqa: SLF001 - no public way
        check_variants(place, session._session.get_scoped_config())  # noqa: SLF001
        region = place.signing_region or session.region_name or "us-east-1"
        owner: AbstractAsyncContextManager[Any] = session.client(
            "s3", region_name=region, endpoint_url=place.endpoint or None, verify=self._verify, config=config
        )
        client = await owner.__aenter__()
        client.meta.events.register("before-sign.s3.DeleteObjects", sign_by_md5)
        self._owner = owner
        return client


def _retrieve(task: "asyncio.Task[Any]") -> None:
    """Look at a failure, so that one whose callers have all been cancelled does not count as overlooked."""
    if not task.cancelled():
        task.exception()


async def see_through(task: "asyncio.Task[Any]", seconds: float) -> None:
    """Wait for a clean-up that a cancellation must not stop, but no longer than `seconds`; then it is cancelled."""
    done = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.shield(task)
            done = True
    if not done:
        task.cancel()
