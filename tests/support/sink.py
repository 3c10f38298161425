"""An in-memory Akosha server: `agent.ports.MemorySink` with the answers of the real server and scripted failures."""

from collections.abc import Sequence

import orjson

from agent.adapters.akosha.sink import pack
from agent.domain.errors import SinkError
from agent.domain.memories import KINDS, Memory
from agent.ports import Capabilities, PackedMemory, StoreResult

NO_EMBEDDING = "Embedding is required: must be a 384-dimensional vector"


class MemorySink:
    """`stored` (id -> memory) survives closing. `events` lists the calls in order.

    `refuse`: a memory's id, or a part of it -> the reason. The next calls of `store` raise `failures`, one each, before
    anything is stored; a `None` lets one call succeed. `lose_answers`: the answers of so many batches are lost after
    they are stored. `relations`: relationships are accepted.
    """

    def __init__(self, *, location: str = "http://127.0.0.1:8682/mcp", version: str = "1", relations: bool = False):
        self.location, self.version, self.relations = location, version, relations
        self.available = True
        self.unreachable: SinkError | None = None
        self.failures: list[SinkError | None] = []
        self.lose_answers = 0
        self.refuse: dict[str, str] = {}
        self.stored: dict[str, dict[str, object]] = {}
        self.batches: list[list[str]] = []
        self.events: list[str] = []
        self.bytes_sent = 0
        self.closed = 0
        self.health_version = ""
        self.sessions = 1

    async def is_available(self) -> bool:
        self.events.append("is_available")
        if self.available:
            self.health_version = self.version
        return self.available

    async def connect(self) -> Capabilities:
        self.events.append("connect")
        if self.unreachable is not None:
            raise self.unreachable
        need = frozenset({kind for kind in KINDS if kind != "relationship"})
        kinds = frozenset(KINDS) if self.relations else need
        return Capabilities(version=self.version, kinds=kinds, need_embedding=need)

    def pack(self, memory: Memory, system_id: str) -> PackedMemory:
        return pack(memory, system_id)

    async def store(self, batch: Sequence[PackedMemory]) -> StoreResult:
        self.events.append("store")
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        self.batches.append([packed.memory_id for packed in batch])
        self.bytes_sent += sum(len(packed.body) for packed in batch)
        stored, existing = 0, set()
        refused = {}
        for position, packed in enumerate(batch):
            if packed.memory_id in self.stored:
                existing.add(position)
            elif reason := self._refusal(packed):
                refused[position] = reason
            else:
                self.stored[packed.memory_id] = orjson.loads(packed.body)
                stored += 1
        if self.lose_answers:
            self.lose_answers -= 1
            raise SinkError(f"{self.location}: the connection was closed", transient=True)
        return StoreResult(stored=stored, existing=frozenset(existing), refused=refused)

    async def aclose(self) -> None:
        self.closed += 1

    def _refusal(self, packed: PackedMemory) -> str:
        for part, reason in self.refuse.items():
            if part in packed.memory_id:
                return reason
        needs = packed.row.kind != "relationship" and "embedding" not in orjson.loads(packed.body)
        return NO_EMBEDDING if needs else ""
