"""`MemorySink` on an Akosha server. A memory is sent as one element of what batch_store_memories takes."""

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
from agent.adapters.akosha.tools import BATCH, OwnTool, ToolCatalog
from agent.domain.errors import AkoshaError, SinkError
from agent.domain.memories import KINDS, Json, Memory, memory_id
from agent.ports import Capabilities, PackedMemory, RateLimiter, StoreResult, UnexpectedErrors

_DEEPEST = 64
_LARGEST = 2**63


def pack(memory: Memory, system_id: str) -> PackedMemory:
    """Return the memory as it will be sent. Whatever is in it, this does not fail."""
    seen = memory.row
    identity = memory_id(system_id, seen)
    metadata: dict[str, Json] = {**memory.metadata, "source": system_id, "original_id": seen.id, "type": seen.kind}
    if memory.created_at is not None:
        metadata["created_at"] = memory.created_at
    sent: dict[str, object] = {"memory_id": identity, "text": memory.text, "metadata": metadata}
    # Copied as it is: to format 384 numbers, a thousand times, would be most of the work.
    vector = {} if memory.embedding is None else {"embedding": orjson.Fragment(memory.embedding)}
    try:
        body = orjson.dumps(sent | vector)
    except (TypeError, ValueError):
        body = orjson.dumps({str(name): _plain(value, _DEEPEST) for name, value in sent.items()} | vector)
    return PackedMemory(row=seen, memory_id=identity, body=body)


def _plain(value: object, depth: int) -> object:
    """Return the value as JSON can hold it: no lone surrogates, no number beyond 64 bits, nothing too deep."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(_plain(str(key), 1)): _plain(inner, depth - 1) for key, inner in value.items()} if depth else None
    if isinstance(value, list | tuple):
        return [_plain(inner, depth - 1) for inner in value] if depth else None
    return value


MAX_REFUSED = 16
"""So many memories refused one by one, and none stored, and it is the server that is to blame."""

Numbered = tuple[int, PackedMemory]
"""A memory with its position in the batch."""


class AkoshaSink:
    """An Akosha server at a checked address. `token` "": none is sent.

    `timeout_seconds`: so long may the server be silent, and sending stand still. `max_in_flight` calls at once of tools
    that take one memory. Kinds with a tool of their own go by it where the server offers one whose arguments we can
    fill; whether storing the same again changes nothing is then up to that tool. Each batch as a whole goes within the
    `rate_limiter`; `waiting` is called every second while one waits for it.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        token: str = "",
        timeout_seconds: float = 300.0,
        max_in_flight: int = 4,
        rate_limiter: RateLimiter | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = ServerAddress(endpoint, token)
        self._client = Client(self._address, timeout_seconds)
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
                return await self._client.healthy()
        except SinkError:  # what nobody knows is no definite no: the attempt says what is wrong
            return True

    async def server_date(self, seconds: float) -> str:
        """Return the Date header of an answer, "" where there is none. Raises SinkError without an answer in time."""
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
        """As `Reconnectable` says: certificates are read again. The token is a setting: another one is another sink."""
        with contextlib.suppress(SinkError), self._translated("reset_client"):
            await self._client.reset()

    async def aclose(self) -> None:
        with contextlib.suppress(SinkError), self._translated("aclose"):
            await self._client.aclose()

    @contextlib.contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        """Raise a SinkError for whatever the adapter does not know; the only place that catches all of it."""
        try:
            yield
        except AkoshaError:
            raise
        except Exception as error:
            first: Exception = error
            while isinstance(first, ExceptionGroup):  # of tasks side by side: its first error says what happened
                first = first.exceptions[0]
            if isinstance(first, AkoshaError):
                raise first from error
            text = f"{self._address}: an error that the agent does not know, in {operation}"
            raise self._unexpected.translate(first, operation, text, hint=errors.UNEXPECTED) from error

    async def _store(self, batch: Sequence[PackedMemory]) -> StoreResult:
        catalog = (await self._client.session()).catalog
        done = _Done()
        batched: list[Numbered] = []
        single: list[tuple[Numbered, OwnTool, bytes]] = []
        for numbered in enumerate(batch):
            self._assign(numbered, catalog, batched, single, done)
        if batched:
            await self._store_batch(batched, done)
        # One kind after the other: a relationship comes after the entities that it is between.
        for kind in KINDS:
            await self._store_each([one for one in single if one[1].kind == kind], done)
        return done.outcome()

    def _assign(
        self,
        numbered: Numbered,
        catalog: ToolCatalog,
        batched: list[Numbered],
        single: list[tuple[Numbered, OwnTool, bytes]],
        done: "_Done",
    ) -> None:
        position, packed = numbered
        kind = packed.row.kind
        tool = catalog.own.get(kind)
        arguments = tool.fill(packed) if tool else None
        if tool and arguments is not None:
            single.append((numbered, tool, arguments))
        elif kind == "relationship" or (tool and not packed.row.embedded):
            if tool is None:
                raise SinkError(
                    f"{self._address}: relationships are not taken (any more)",
                    hint="was Akosha replaced?",
                    transient=True,
                )
            done.refused[position] = f"{tool.name} wants more than there is: {', '.join(sorted(tool.required))}"
        else:
            batched.append(numbered)

    async def _store_batch(self, items: Sequence[Numbered], done: "_Done") -> None:
        """Store memories by the batch tool. Where it refuses to look at them, halve: one must not stop the others."""
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
            if len(done.refused) >= MAX_REFUSED and not done.taken:
                raise
            return
        outcome = store_results.of_batch(result, [packed.memory_id for _, packed in items], self._address)
        done.add(outcome, items)

    async def _store_each(self, jobs: Sequence[tuple[Numbered, OwnTool, bytes]], done: "_Done") -> None:
        """Store memories one by one, a few at once. The first failure ends it and is raised."""
        failures: list[SinkError] = []
        remaining = iter(jobs)

        async def work(jobs: Iterable[tuple[Numbered, OwnTool, bytes]]) -> None:
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

    async def _store_single(self, numbered: Numbered, tool: OwnTool, arguments: bytes, done: "_Done") -> None:
        position, packed = numbered
        try:
            result = await self._client.call(tool.name, [arguments])
        except Rejected as error:
            done.refused[position] = error.reason
            if len(done.refused) >= MAX_REFUSED and not done.taken:
                raise
            return
        done.add(store_results.of_one(result, packed.memory_id, self._address), [numbered])


@dataclass(slots=True)
class _Done:
    """What has become of a batch so far."""

    stored: int = 0
    existing: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def taken(self) -> int:
        return self.stored + len(self.existing)

    def add(self, outcome: StoreResult, items: Sequence[Numbered]) -> None:
        self.stored += outcome.stored
        self.existing |= {items[at][0] for at in outcome.existing}
        self.refused.update({items[at][0]: why for at, why in outcome.refused.items()})

    def outcome(self) -> StoreResult:
        return StoreResult(stored=self.stored, existing=frozenset(self.existing), refused=self.refused)
