"""`MemorySink` on an Akosha server. A memory is packed as an element of batch_store_memories' argument."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from agent.adapters.akosha import errors, store_results
from agent.adapters.akosha.client import Client
from agent.adapters.akosha.errors import Rejected
from agent.adapters.akosha.server_address import ServerAddress
from agent.adapters.akosha.tools import BATCH, KindTool, ToolCatalog
from agent.domain.errors import AkoshaError, SinkError
from agent.domain.memories import KINDS, Json, Memory, memory_id
from agent.ports import Capabilities, PackedMemory, RateLimiter, StoreResult, UnexpectedErrors

_MAX_DEPTH = 64
_INTEGER_LIMIT = 2**63

MAX_REFUSED = 16
"""After so many memories were refused one by one and none was stored, the batch fails: the server is at fault."""

Numbered = tuple[int, PackedMemory]
"""A memory with its position in the batch."""


def pack(memory: Memory, system_id: str) -> PackedMemory:
    """Return the memory in its encoded form. Never fails, whatever the memory contains."""
    row = memory.row
    identity = memory_id(system_id, row)
    metadata: dict[str, Json] = {**memory.metadata, "source": system_id, "original_id": row.id, "type": row.kind}
    if memory.created_at is not None:
        metadata["created_at"] = memory.created_at
    document: dict[str, object] = {"memory_id": identity, "text": memory.text, "metadata": metadata}
    # The embedding is copied as text: formatting 384 numbers for each of a thousand memories would be most of the work.
    vector = {} if memory.embedding is None else {"embedding": orjson.Fragment(memory.embedding)}
    try:
        body = orjson.dumps(document | vector)
    except (TypeError, ValueError):
        body = orjson.dumps({str(name): _sanitised(value, _MAX_DEPTH) for name, value in document.items()} | vector)
    return PackedMemory(row=row, memory_id=identity, body=body)


def _sanitised(value: object, depth: int) -> object:
    """Return the value in a form that JSON supports: no lone surrogates, no integers beyond 64 bits, limited depth."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        if not depth:
            return None
        return {str(_sanitised(str(key), 1)): _sanitised(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sanitised(inner, depth - 1) for inner in value] if depth else None
    return value


class AkoshaSink:
    """An Akosha server at a validated address.

    A kind of memory is stored with its own tool if the server offers one and the agent can fill its arguments. That
    tool then decides whether storing a memory again changes something.

    Args:
        endpoint: URL of the MCP endpoint.
        token: bearer token; "" sends none.
        stored_token: returns the stored token, "" if there is none. Blocks. If `token` is the stored one, it is read
            again after a refusal.
        timeout_seconds: maximum time without activity, for the response and for sending.
        max_in_flight: maximum number of concurrent calls of tools that store one memory.
        rate_limiter: limits the rate of batches; a batch is not divided.
        waiting: called every second while a batch waits for the rate limiter.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        token: str = "",
        stored_token: Callable[[], str] = lambda: "",
        timeout_seconds: float = 300.0,
        max_in_flight: int = 4,
        rate_limiter: RateLimiter | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = ServerAddress(endpoint, token)
        self._client = Client(self._address, timeout_seconds, stored_token)
        self._unexpected = UnexpectedErrors("akosha_mcp", SinkError)
        self._slots = asyncio.Semaphore(max_in_flight)
        self._workers = max_in_flight
        self._rate_limiter, self._waiting = rate_limiter, waiting

    @property
    def location(self) -> str:
        return str(self._address)

    @property
    def bytes_sent(self) -> int:
        return self._client.bytes_sent

    @property
    def sessions(self) -> int:
        return self._client.sessions

    @property
    def health_version(self) -> str:
        return self._client.health_version

    async def is_available(self) -> bool:
        try:
            with self._translated("is_available"):
                return await self._client.is_healthy()
        except SinkError:  # unknown: the sync attempt reports the error
            return True

    async def server_date(self, seconds: float) -> str:
        """Return the Date header of a response, "" if it has none. Raises SinkError if there is no response in time."""
        with self._translated("server_date"):
            return await self._client.server_date(seconds)

    async def connect(self) -> Capabilities:
        with self._translated("connect"):
            return (await self._client.checked_session()).catalog.capabilities

    def pack(self, memory: Memory, system_id: str) -> PackedMemory:
        with self._translated("pack"):
            return pack(memory, system_id)

    async def store(self, batch: Sequence[PackedMemory]) -> StoreResult:
        if self._rate_limiter is not None:
            await self._rate_limiter.take(sum(len(packed.body) for packed in batch), self._waiting)
        with self._translated("store"):
            return await self._store(batch)

    async def drop_idle_connections(self) -> None:
        with contextlib.suppress(SinkError), self._translated("drop_idle_connections"):
            await self._client.drop_idle_connections()

    async def reset_client(self) -> None:
        """Discard the HTTP client: the next call reads certificates and the stored token again."""
        with contextlib.suppress(SinkError), self._translated("reset_client"):
            await self._client.reset()

    async def aclose(self) -> None:
        with contextlib.suppress(SinkError), self._translated("aclose"):
            await self._client.aclose()

    @contextlib.contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        """Translate unexpected exceptions within the block into SinkErrors."""
        try:
            yield
        except AkoshaError:
            raise
        except Exception as error:
            first: Exception = error
            while isinstance(first, ExceptionGroup):  # of concurrent tasks
                first = first.exceptions[0]
            if isinstance(first, AkoshaError):
                raise first from error
            text = f"{self._address}: unexpected error in {operation}"
            raise self._unexpected.translate(first, operation, text, hint=errors.UNEXPECTED) from error

    async def _store(self, batch: Sequence[PackedMemory]) -> StoreResult:
        catalog = (await self._client.session()).catalog
        done = _BatchResult()
        batched: list[Numbered] = []
        single: list[tuple[Numbered, KindTool, bytes]] = []
        for numbered in enumerate(batch):
            self._assign(numbered, catalog, batched, single, done)
        if batched:
            await self._store_batch(batched, done)
        # In the order of kinds: a relationship is stored after its entities.
        for kind in KINDS:
            await self._store_each([one for one in single if one[1].kind == kind], done)
        return done.outcome()

    def _assign(
        self,
        numbered: Numbered,
        catalog: ToolCatalog,
        batched: list[Numbered],
        single: list[tuple[Numbered, KindTool, bytes]],
        done: "_BatchResult",
    ) -> None:
        position, packed = numbered
        kind = packed.row.kind
        tool = catalog.kind_tools.get(kind)
        arguments = tool.fill(packed) if tool else None
        if tool and arguments is not None:
            single.append((numbered, tool, arguments))
        elif kind == "relationship" or (tool and not packed.row.embedded):
            if tool is None:
                raise SinkError(
                    f"{self._address}: the server does not accept relationships",
                    hint="was Akosha replaced?",
                    transient=True,
                )
            done.refused[position] = (
                f"{tool.name} requires arguments that are missing: {', '.join(sorted(tool.required))}"
            )
        else:
            batched.append(numbered)

    async def _store_batch(self, items: Sequence[Numbered], done: "_BatchResult") -> None:
        """Store memories with the batch tool. A rejected batch is halved: one memory must not block the others."""
        pieces = [b'{"memories":[', b",".join(packed.body for _, packed in items), b"]}"]
        try:
            result = await self._client.call(BATCH, pieces)
        except Rejected as error:
            if len(items) > 1:
                middle = len(items) // 2
                await self._store_batch(items[:middle], done)
                await self._store_batch(items[middle:], done)
                return
            done.refused[items[0][0]] = error.reason
            if len(done.refused) >= MAX_REFUSED and not done.accepted:
                raise
            return
        outcome = store_results.of_batch(result, [packed.memory_id for _, packed in items], self._address)
        done.add(outcome, items)

    async def _store_each(self, jobs: Sequence[tuple[Numbered, KindTool, bytes]], done: "_BatchResult") -> None:
        """Store memories one by one, several at once. Stops at the first failure and raises it."""
        failures: list[SinkError] = []
        remaining = iter(jobs)

        async def work(jobs: Iterable[tuple[Numbered, KindTool, bytes]]) -> None:
            for numbered, tool, arguments in jobs:
                if failures:
                    return
                try:
                    async with self._slots:
                        await self._store_single(numbered, tool, arguments, done)
                except SinkError as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as group:
            for number in range(min(self._workers, len(jobs))):
                group.create_task(work(remaining), name=f"akosha-tool-{number}")
        if failures:
            raise failures[0]

    async def _store_single(self, numbered: Numbered, tool: KindTool, arguments: bytes, done: "_BatchResult") -> None:
        position, packed = numbered
        try:
            result = await self._client.call(tool.name, [arguments])
        except Rejected as error:
            done.refused[position] = error.reason
            if len(done.refused) >= MAX_REFUSED and not done.accepted:
                raise
            return
        done.add(store_results.of_one(result, packed.memory_id, self._address), [numbered])


@dataclass(slots=True)
class _BatchResult:
    """The result of a batch so far."""

    stored: int = 0
    existing: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        return self.stored + len(self.existing)

    def add(self, outcome: StoreResult, items: Sequence[Numbered]) -> None:
        self.stored += outcome.stored
        self.existing |= {items[at][0] for at in outcome.existing}
        self.refused.update({items[at][0]: reason for at, reason in outcome.refused.items()})

    def outcome(self) -> StoreResult:
        return StoreResult(stored=self.stored, existing=frozenset(self.existing), refused=self.refused)
