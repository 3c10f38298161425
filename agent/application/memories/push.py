"""Pushes the memories that a target lacks from a source to a sink, in batches.

Each batch is recorded as delivered before the next one is sent. The next batch is read and packed while one is sent. A
kill repeats one batch at most, which changes nothing on the server.
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
from agent.ports import (
    Capabilities,
    Clock,
    DatabaseSource,
    HeldMemory,
    MemoryLedger,
    MemorySink,
    MemorySource,
    PackedMemory,
    RowDifference,
)

MAX_BATCH_BYTES = 4_000_000
"""Size of all memories in a batch. Akosha 0.11 takes no request above 4 MiB."""

LARGEST_PROBE_BYTES = 64 * 1024
"""Size of the largest memory that is kept for the delivery probe: each `status` reads the note that contains it."""

MOST_HELD = 10_000
"""Number of held back memories of a database up to which its row set is recorded."""

OTHER_REASONS = "other reasons"
MOST_REASONS = 10
"""Maximum number of distinct reasons: a server may give a different one for each memory."""

ZEROS = f"[{','.join(['0.0'] * EMBEDDING_LENGTH)}]"

MissingEmbedding = Literal["wait", "zero"]


def _ignore_count(_: int) -> None:
    """Do nothing: default of the callbacks with a count."""


async def _ignore_memory(_: PackedMemory | None) -> None:
    """Do nothing: default of `on_confirmed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed(Tally):
    """The result of a push. `newly_held`: how many memories are held back that were not held back before."""

    newly_held: int = 0


@dataclass(slots=True)
class MemoryPush:
    """Delivers to one sink, at most `batch_size` memories and 4 MB at once. Deliveries are recorded per target."""

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
        progress: Callable[[int], None] = _ignore_count,
        *,
        complete_database: str = "",
        on_delivered: Callable[[int], None] = _ignore_count,
        on_confirmed: Callable[[PackedMemory | None], Awaitable[None]] = _ignore_memory,
    ) -> Pushed:
        """Deliver all rows of the source that the target lacks.

        `complete_database`: the database of which the source has every row; held back rows that are no longer in it are
        released. `progress` gets the number of rows done, `on_delivered` the number of memories that the target lacked
        and has now, both since the last call. A memory whose ID another row has, too, and that the server knows is not
        counted.

        `on_confirmed` gets one memory of the first batch, and one of the last, that the server has stored and would
        report as known if it came again; None if the first batch has none. It is called before the batch is recorded
        as delivered.

        Raises SinkError and SnapshotError; batches that were delivered before stay recorded.
        """
        run, rows = _Run(self, target, capabilities, progress, on_delivered, on_confirmed), _Rows()
        try:
            async with aclosing(source.pages()) as pages:
                async for page in pages:
                    if not page:
                        continue
                    if complete_database:
                        rows.add(page)
                    await run.page(page, source)
            await run.finish()
        except SnapshotError:
            await run.finish()  # the rows that were read are valid
            raise
        finally:
            await run.stop()
        if complete_database:
            await self.ledger.release(target, complete_database, rows)
        return run.result()

    async def compare(
        self, target: Target, database: str, source: DatabaseSource, main_sha256: str
    ) -> RowDifference | None:
        """Let the source have only the rows that are not in the row set of the target. Result as that of `compare`."""
        await self.ledger.known_rows(target, database, source.known_rows)
        return await source.compare(main_sha256)

    async def record_rows(self, target: Target, database: str, source: DatabaseSource) -> None:
        """Record after a push that the target has all rows except those that are held back.

        The next push does not look at them one by one. If many are held back, it does.
        """
        held = await self.ledger.held_keys(target, database, limit=MOST_HELD + 1)
        if len(held) <= MOST_HELD:
            await self.ledger.set_rows(target, database, await source.row_set(held))


@dataclass(slots=True)
class _Run:
    """One push in progress."""

    push: MemoryPush
    target: Target
    capabilities: Capabilities
    progress: Callable[[int], None]
    on_delivered: Callable[[int], None]
    on_confirmed: Callable[[PackedMemory | None], Awaitable[None]]

    _first: bool = field(default=True, init=False)
    _last_confirmed: PackedMemory | None = field(default=None, init=False)
    _batch: list[PackedMemory] = field(default_factory=list, init=False)
    _bytes: int = field(default=0, init=False)
    _sending: asyncio.Task[None] | None = field(default=None, init=False)
    _repeated: set[tuple[str, str, str]] = field(default_factory=set, init=False)
    """The keys that several rows of a page have. The ledger has one state for them, so each push sends one again."""
    _stored: int = field(default=0, init=False)
    _known: int = field(default=0, init=False)
    _newly_held: int = field(default=0, init=False)
    _waiting: Counter[str] = field(default_factory=Counter, init=False)
    _refused: Counter[str] = field(default_factory=Counter, init=False)

    async def page(self, page: Sequence[RowState], source: MemorySource) -> None:
        lacking = await self.push.ledger.lacking(self.target, page)
        if lacking:
            self._repeated |= {key for key, count in Counter(seen.key for seen in page).items() if count > 1}
        to_send: list[RowState] = []
        waiting: list[HeldMemory] = []
        for seen in lacking:
            reason = self._wait_reason(seen)
            if reason:
                waiting.append(HeldMemory(row=seen, state="waiting", reason=reason, since=self.push.clock.now()))
            else:
                to_send.append(seen)
        if waiting:
            _count(self._waiting, waiting)
            self._newly_held += await self.push.ledger.hold(self.target, waiting)
        self.progress(len(page) - len(to_send))
        if to_send:
            async with aclosing(source.read(to_send)) as memories:
                async for memory in memories:
                    await self._add(memory)

    async def finish(self) -> None:
        """Send the last batch and wait until it is stored."""
        await self._send()
        await self._wait_for_batch()
        if self._last_confirmed is not None:
            await self.on_confirmed(self._last_confirmed)

    async def stop(self) -> None:
        """Cancel the request that is still in progress when a push fails."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    def result(self) -> Pushed:
        return Pushed(
            stored=self._stored,
            known=self._known,
            waiting=dict(self._waiting),
            refused=dict(self._refused),
            newly_held=self._newly_held,
        )

    def _wait_reason(self, seen: RowState) -> str:
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
        """Send the batch once the previous one is stored and recorded."""
        await self._wait_for_batch()
        if self._batch:
            batch, self._batch, self._bytes = self._batch, [], 0
            self._sending = asyncio.create_task(self._store(batch), name=f"push-{self.target.system_id}")

    async def _wait_for_batch(self) -> None:
        if self._sending is not None:
            await asyncio.wait({self._sending})
            done, self._sending = self._sending, None
            done.result()

    async def _store(self, batch: Sequence[PackedMemory]) -> None:
        sessions = self.push.sink.sessions
        receipt = await self.push.sink.store(batch)
        if self.push.sink.sessions != sessions:
            # The server may have lost this batch and earlier ones: record nothing until the next attempt's probe.
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
        self.on_delivered(receipt.stored + sum(batch[at].row.key not in self._repeated for at in receipt.existing))
        self.progress(len(batch))

    async def _confirm(self, stored: Sequence[PackedMemory]) -> None:
        """Choose a memory for the delivery probe; report it now for the first batch, else at the end of the push."""
        suitable = [
            one
            for one in stored
            if one.row.kind in self.capabilities.reports_known and len(one.body) <= LARGEST_PROBE_BYTES
        ]
        if self._first:
            await self.on_confirmed(suitable[-1] if suitable else None)
        self._last_confirmed = suitable[-1] if suitable and not self._first else self._last_confirmed
        self._first = False


class _Rows:
    """The keys that were seen, stored as hashes of 8 bytes each: a database may have a million rows."""

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
    for memory in held:
        counts[memory.reason if memory.reason in counts or len(counts) < MOST_REASONS else OTHER_REASONS] += 1
