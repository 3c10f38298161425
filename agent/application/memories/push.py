"""From a source of memories to a sink: what the target lacks, in batches, each remembered before the next is sent.

While one batch is on its way the next is read and packed; a kill in between repeats one batch, which changes nothing.
"""

import asyncio
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from agent.domain.delivery_state import Target
from agent.domain.errors import SinkError, SnapshotError
from agent.domain.memories import EMBEDDING_LENGTH, NO_EMBEDDING, Memory, RowState, Tally
from agent.ports import Capabilities, Clock, HeldMemory, MemoryLedger, MemorySink, MemorySource, PackedMemory

MAX_BATCH_BYTES = 4_000_000
"""Of all memories in a batch. Akosha 0.11 takes no request above 4 MiB."""
LARGEST_PROBE_BYTES = 64 * 1024
"""Largest memory that is kept to be offered once more: each status reads the note that holds it."""

OTHER_REASONS = "other reasons"
MOST_REASONS = 10
"""Maximum number of distinct reasons: a server may have another one for each memory."""

ZEROS = f"[{','.join(['0.0'] * EMBEDDING_LENGTH)}]"

MissingEmbedding = Literal["wait", "zero"]


def _nothing(_: int) -> None:
    """Whoever does not want to hear of it."""


async def _kept_by_nobody(_: PackedMemory | None) -> None:
    """For those who never ask whether the server has lost it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed(Tally):
    """What became of the memories of one source. `newly_held`: how many are held back that were not held before."""

    newly_held: int = 0


@dataclass(slots=True)
class MemoryPush:
    """Delivers to one sink; what was delivered is remembered per target. `batch_size` memories at once, and 4 MB."""

    sink: MemorySink
    ledger: MemoryLedger
    clock: Clock
    batch_size: int
    missing_embedding: MissingEmbedding

    async def push(
        self,
        target: Target,
        capabilities: Capabilities,
        source: MemorySource,
        moved: Callable[[int], None] = _nothing,
        *,
        whole: str = "",
        arrived: Callable[[int], None] = _nothing,
        confirmed: Callable[[PackedMemory | None], Awaitable[None]] = _kept_by_nobody,
    ) -> Pushed:
        """Deliver all rows of the source that the target lacks.

        `whole` names the database that the source is all of: held rows that are no longer in it are released.
        `moved` gets how many rows more are done, `arrived` how many more the target has that it lacked.
        `confirmed` gets a memory of the first batch and of the last that the server has from now on and is known to
        name as there when it comes again; None where the first batch has none. It is called before the batch is
        remembered as delivered.

        Raises SinkError and SnapshotError; what was delivered by then is remembered.
        """
        run, there = _Run(self, target, capabilities, moved, arrived, confirmed), _Rows()
        try:
            async with aclosing(source.pages()) as pages:
                async for page in pages:
                    if not page:
                        continue
                    if whole:
                        there.add(page)
                    await run.page(page, source)
            await run.finish()
        except SnapshotError:
            await run.finish()  # the rows that were read are right, whatever could not be read after them
            raise
        finally:
            await run.stop()
        if whole:
            await self.ledger.release(target, whole, there)
        return run.result()


@dataclass(slots=True)
class _Run:
    """One push on its way."""

    push: MemoryPush
    target: Target
    capabilities: Capabilities
    moved: Callable[[int], None]
    arrived: Callable[[int], None]
    confirmed: Callable[[PackedMemory | None], Awaitable[None]]

    _first: bool = field(default=True, init=False)
    _youngest: PackedMemory | None = field(default=None, init=False)
    _batch: list[PackedMemory] = field(default_factory=list, init=False)
    _bytes: int = field(default=0, init=False)
    _under_way: asyncio.Task[None] | None = field(default=None, init=False)
    _stored: int = field(default=0, init=False)
    _known: int = field(default=0, init=False)
    _newly_held: int = field(default=0, init=False)
    _waiting: Counter[str] = field(default_factory=Counter, init=False)
    _refused: Counter[str] = field(default_factory=Counter, init=False)

    async def page(self, page: Sequence[RowState], source: MemorySource) -> None:
        lacking = await self.push.ledger.lacking(self.target, page)
        wanted: list[RowState] = []
        waiting: list[HeldMemory] = []
        for seen in lacking:
            reason = self._why_it_waits(seen)
            if reason:
                waiting.append(HeldMemory(row=seen, state="waiting", reason=reason, since=self.push.clock.now()))
            else:
                wanted.append(seen)
        if waiting:
            _count(self._waiting, waiting)
            self._newly_held += await self.push.ledger.hold(self.target, waiting)
        self.moved(len(page) - len(wanted))
        if wanted:
            async with aclosing(source.read(wanted)) as memories:
                async for memory in memories:
                    await self._add(memory)

    async def finish(self) -> None:
        """Send what is left, and see it arrive."""
        await self._send()
        await self._arrived()
        if self._youngest is not None:
            await self.confirmed(self._youngest)

    async def stop(self) -> None:
        """End what is under way, where the push does not come to its end."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)

    def result(self) -> Pushed:
        return Pushed(
            stored=self._stored,
            known=self._known,
            waiting=dict(self._waiting),
            refused=dict(self._refused),
            newly_held=self._newly_held,
        )

    def _why_it_waits(self, seen: RowState) -> str:
        if seen.kind not in self.capabilities.kinds:
            return f"the server has no tool for a {seen.kind}"
        needs = seen.kind in self.capabilities.need_embedding and self.push.missing_embedding == "wait"
        return NO_EMBEDDING if needs and not seen.embedded else ""

    async def _add(self, memory: Memory) -> None:
        if memory.embedding is None and memory.row.kind in self.capabilities.need_embedding:
            memory = replace(memory, embedding=ZEROS)
        packed = self.push.sink.pack(memory, self.target.system_id)
        if self._batch and self._bytes + len(packed.body) > MAX_BATCH_BYTES:
            await self._send()
        self._batch.append(packed)
        self._bytes += len(packed.body)
        if len(self._batch) >= self.push.batch_size:
            await self._send()

    async def _send(self) -> None:
        """Send the batch once the one before it has arrived and is remembered."""
        await self._arrived()
        if self._batch:
            batch, self._batch, self._bytes = self._batch, [], 0
            self._under_way = asyncio.create_task(self._store(batch), name=f"push-{self.target.system_id}")

    async def _arrived(self) -> None:
        if self._under_way is not None:
            await asyncio.wait({self._under_way})
            done, self._under_way = self._under_way, None
            done.result()

    async def _store(self, batch: Sequence[PackedMemory]) -> None:
        sessions = self.push.sink.sessions
        receipt = await self.push.sink.store(batch)
        if self.push.sink.sessions != sessions:
            # What it was given a moment ago may be gone: nothing is remembered before that was looked after.
            raise SinkError(f"{self.push.sink.location} was restarted during the push", transient=True)
        await self._confirm([packed for at, packed in enumerate(batch) if at not in receipt.refused])
        now = self.push.clock.now()
        refused = [
            HeldMemory(row=batch[at].row, state="refused", reason=reason, since=now)
            for at, reason in sorted(receipt.refused.items())
        ]
        await self.push.ledger.delivered(
            self.target, [packed.row for at, packed in enumerate(batch) if at not in receipt.refused]
        )
        if refused:
            _count(self._refused, refused)
            self._newly_held += await self.push.ledger.hold(self.target, refused)
        self._stored += receipt.stored
        self._known += receipt.known
        self.arrived(receipt.stored + receipt.known)
        self.moved(len(batch))

    async def _confirm(self, taken: Sequence[PackedMemory]) -> None:
        """Hand on what the server can be asked for later: at once of the first batch, else at the end of the push."""
        fit = [
            one
            for one in taken
            if one.row.kind in self.capabilities.reports_known and len(one.body) <= LARGEST_PROBE_BYTES
        ]
        if self._first:
            await self.confirmed(fit[-1] if fit else None)
        self._youngest = fit[-1] if fit and not self._first else self._youngest
        self._first = False


class _Rows:
    """Rows that were seen, at 8 bytes each: a database may have a million. Of `RowState.key`, by its hash."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._sorted = True

    def add(self, page: Sequence[RowState]) -> None:
        self._hashes.extend(hash(seen.key) for seen in page)
        self._sorted = False

    def __contains__(self, key: object) -> bool:
        if not self._sorted:
            self._hashes, self._sorted = array("q", sorted(self._hashes)), True
        wanted = hash(key)
        at = bisect_left(self._hashes, wanted)
        return at < len(self._hashes) and self._hashes[at] == wanted


def _count(counts: Counter[str], held: Sequence[HeldMemory]) -> None:
    for one in held:
        counts[one.reason if one.reason in counts or len(counts) < MOST_REASONS else OTHER_REASONS] += 1
