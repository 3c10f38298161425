"""The ledger on SQLite. Each call is one transaction, on the thread that owns the connection."""

import asyncio
import functools
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import structlog

from agent.adapters.sqlite_ledger import file
from agent.adapters.sqlite_ledger.history import History
from agent.adapters.sqlite_ledger.memories import Memories, SqliteMemories
from agent.adapters.sqlite_ledger.open_puts import OpenPuts, SqlitePutJournal
from agent.adapters.sqlite_ledger.row_sets import RowSets
from agent.adapters.sqlite_ledger.rows import plain
from agent.adapters.sqlite_ledger.targets import Targets
from agent.adapters.sqlite_ledger.transactions import Transactions, run_to_end
from agent.domain import transitions
from agent.domain.databases import Fingerprint
from agent.domain.delivery_state import Intent, Problem, Target, TargetRecord
from agent.domain.events import Event, SessionEnded, SyncFailed, SyncRequested, SyncResult, SyncSucceeded
from agent.domain.manifest import Manifest
from agent.ports import Clock, Codec, HistoryEntry, OpenPut

TRIM_SECONDS = 86_400.0
"""How often old events are deleted."""

Change = Callable[[TargetRecord], TargetRecord]
Also = Callable[[TargetRecord], None]

_log = structlog.get_logger()


class SqliteLedger:
    """`agent.ports.Ledger` on a SQLite file. Create it with `open`, close it with `aclose`."""

    def __init__(
        self,
        path: Path,
        thread: Executor,
        connection: sqlite3.Connection,
        codec: Codec,
        clock: Clock,
        *,
        read_only: bool,
    ) -> None:
        self._thread, self._connection, self._clock = thread, connection, clock
        self._transactions = Transactions(path, thread, connection, read_only=read_only)
        self._targets, self._history = Targets(connection), History(connection, codec)
        self._memories, self._row_sets = Memories(connection), RowSets(connection)
        self._open_puts = OpenPuts(connection)
        self._trimmed: float | None = None
        self._path = path
        self._listeners: list[Callable[[], None]] = []

    @staticmethod
    async def open(path: Path, codec: Codec, *, clock: Clock, read_only: bool = False) -> "SqliteLedger":
        """Open the file. Raises StateError with a hint if it cannot be used.

        For writing, the file is created if it is missing (mode 0600), migrated and checked; events that were published
        more than 90 days ago, and row sets of former targets, are deleted now and once a day. For reading, the file is
        not changed, and another process may write it; a missing file raises StateError.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

        def opened() -> SqliteLedger:
            connection = file.open_for_reading(path) if read_only else file.open_for_writing(path)
            ledger = SqliteLedger(path, thread, connection, codec, clock, read_only=read_only)
            if not read_only:
                try:
                    ledger._transactions.run("BEGIN IMMEDIATE", ledger._trim_daily)
                except BaseException:
                    ledger._close()
                    raise
            return ledger

        try:
            return await run_to_end(thread, opened, discard=SqliteLedger._close)
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def record(self, target: Target) -> TargetRecord:
        return await self._transactions.read(lambda: self._targets.load(target))

    async def mark_owed(self, target: Target, databases: Collection[str]) -> None:
        await self._change(target, lambda record: transitions.mark_owed(record, databases))

    async def mark_unchanged(self, target: Target, fingerprints: Mapping[str, Fingerprint]) -> None:
        await self._change(target, lambda record: transitions.mark_unchanged(record, fingerprints))

    async def record_problems(self, target: Target, problems: Mapping[str, Problem]) -> None:
        await self._change(target, lambda record: transitions.record_problems(record, problems))

    async def forget(self, target: Target, databases: Collection[str]) -> None:
        def forget_rows(_: TargetRecord) -> None:
            self._memories.forget(target, databases)
            self._row_sets.forget(target, databases)

        await self._change(
            target,
            lambda record: transitions.forget(record, databases),
            also=forget_rows,
        )

    async def begin(self, target: Target, intent: Intent) -> None:
        await self._change(target, lambda record: transitions.begin(record, intent))

    async def abandon(self, target: Target) -> None:
        def dropped(before: TargetRecord) -> None:
            if before.intent is not None:
                self._row_sets.drop(target, before.intent.upload_id)
            self._open_puts.drop_all(target)

        await self._change(target, transitions.abandon, also=dropped)

    def put_journal(self, target: Target, key: str) -> SqlitePutJournal:
        return SqlitePutJournal(self._transactions, self._open_puts, target, key)

    async def open_puts(self, target: Target) -> Sequence[OpenPut]:
        return await self._transactions.read(lambda: self._open_puts.of(target))

    async def count_attempt(
        self, target: Target, request: SyncRequested, *, attempts: int, retry_at: datetime, error: str
    ) -> None:
        def counted(record: TargetRecord) -> TargetRecord:
            return transitions.count_attempt(
                record, request.request_id, attempts=attempts, retry_at=retry_at, error=error
            )

        await self._change(target, counted)

    async def give_up(
        self, target: Target, *, error: str, failures: int, retry_at: datetime | None, result: SyncFailed | None
    ) -> None:
        def given_up(record: TargetRecord) -> TargetRecord:
            return transitions.give_up(record, error=error, failures=failures, retry_at=retry_at)

        await self._change(target, given_up, result)

    async def deliver(
        self,
        target: Target,
        manifest: Manifest,
        fingerprints: Mapping[str, Fingerprint],
        problems: Mapping[str, Problem],
        result: SyncSucceeded,
    ) -> None:
        def delivered(record: TargetRecord) -> TargetRecord:
            return transitions.deliver(record, manifest, fingerprints, problems, result_id=result.id, at=result.time)

        await self._change(target, delivered, result, also=self._settled(target, manifest))

    async def deliver_memories(
        self,
        target: Target,
        fingerprints: Mapping[str, Fingerprint],
        problems: Mapping[str, Problem],
        result: SyncSucceeded,
    ) -> None:
        def handed_over(record: TargetRecord) -> TargetRecord:
            return transitions.deliver_memories(record, fingerprints, problems, result_id=result.id, at=result.time)

        await self._change(target, handed_over, result)

    async def adopt(self, target: Target, manifest: Manifest, result: SyncSucceeded) -> None:
        def adopted(record: TargetRecord) -> TargetRecord:
            return transitions.adopt(record, manifest, result_id=result.id)

        await self._change(target, adopted, result, also=self._settled(target, manifest))

    async def settle(self, target: Target | None, result: SyncResult) -> None:
        if target is None:
            await self._transactions.write(lambda: self._history.add(result, published_at=None))
            self._notify()
        else:
            await self._change(target, transitions.settle, result)

    async def reset(self, target: Target) -> None:
        await self._change(target, transitions.reset)

    async def announce(self, event: Event, *, notes: Mapping[str, str] | None = None) -> None:
        def announced() -> None:
            self._history.add(event, published_at=None)
            for key, value in (notes or {}).items():
                self._note(key, value)

        await self._transactions.write(announced)
        self._notify()

    async def outbox(self) -> Sequence[Event]:
        """Implement the port. An unreadable event would block all others: it is removed from the outbox and logged."""
        results, unreadable = await self._transactions.read(self._history.outbox)
        if unreadable and not self._transactions.read_only:
            for event_id, reason in unreadable.items():
                await self._transactions.write(functools.partial(self._publish, event_id))
                _log.error("result_rejected", id=event_id, reason=reason)
        return results

    async def confirm(self, event: Event) -> None:
        def confirmed() -> None:
            self._publish(event.id)
            self._trim_daily()

        await self._transactions.write(confirmed)

    async def newest_confirmed(self) -> SyncResult | None:
        return await self._transactions.read(self._history.newest_confirmed)

    async def republish_since(self, since: datetime) -> int:
        return await self._transactions.write(lambda: self._history.unpublish(since))

    async def outcome(self, request_id: str) -> SyncResult | None:
        return await self._transactions.read(lambda: self._history.outcome(request_id))

    async def add_to_history(self, event: Event) -> None:
        await self._transactions.write(lambda: self._history.add(event, published_at=self._clock.now()))
        self._notify()

    async def find_event(self, event_id: str) -> Event | None:
        return await self._transactions.read(lambda: self._history.event(event_id))

    async def accept(self, event: SessionEnded) -> bool:
        return await self._transactions.write(lambda: self._history.accept(event))

    async def open_session_ends(self) -> Sequence[str]:
        return await self._transactions.read(self._history.open_session_ends)

    async def history(self, *, after: int = 0, limit: int = 1000) -> Sequence[HistoryEntry]:
        return await self._transactions.read(lambda: self._history.after(after, limit))

    async def past_events(
        self, *, before: int | None, limit: int, types: Collection[type[Event]]
    ) -> Sequence[HistoryEntry]:
        return await self._transactions.read(lambda: self._history.before(before, limit, [one.type for one in types]))

    async def last_position(self) -> int:
        return await self._transactions.read(self._history.last_position)

    def on_history(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    async def size(self) -> int:
        """Return the size of the file with its -wal and -shm."""
        return await asyncio.to_thread(file.size_of, self._path)

    async def note(self, key: str, value: str) -> None:
        await self._transactions.write(lambda: self._note(key, value))

    async def notes(self) -> Mapping[str, str]:
        return await self._transactions.read(
            lambda: dict(self._connection.execute("SELECT key, value FROM notes ORDER BY key"))
        )

    def memories(self) -> SqliteMemories:
        return SqliteMemories(self._transactions, self._connection)

    async def aclose(self) -> None:
        await self._transactions.aclose()

    def _note(self, key: str, value: str) -> None:
        self._connection.execute(
            "INSERT INTO notes VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            " WHERE value <> excluded.value",
            (key, plain(value)),
        )

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()

    def _publish(self, event_id: str) -> None:
        """Remove the event from the outbox and confirm it in the records of the databases that it reports."""
        self._history.publish(event_id, self._clock.now())
        for target in self._targets.reported_by(event_id):
            record = self._targets.load(target)
            self._targets.save(record, transitions.confirm(record, event_id))

    def _trim_daily(self) -> None:
        """Delete old events and unused row sets when the ledger is opened, and once a day in an agent that runs on."""
        now = self._clock.monotonic()
        if self._trimmed is None or now - self._trimmed >= TRIM_SECONDS:
            self._history.trim(self._clock.now())
            self._row_sets.drop_unused(self._clock.now())
            self._trimmed = now

    def _settled(self, target: Target, manifest: Manifest) -> Also:
        def settled(before: TargetRecord) -> None:
            self._row_sets.settle(target, manifest, before.intent)
            self._open_puts.drop_all(target)

        return settled

    def _close(self) -> None:
        self._transactions.close()

    async def _change(
        self, target: Target, change: Change, result: SyncResult | None = None, *, also: Also | None = None
    ) -> None:
        """Change a target's record and put the result into the outbox, in one transaction.

        `also` is called with the previous record in the same transaction, to change what is stored about memories.
        """

        def changed() -> None:
            before = self._targets.load(target)
            record = change(before)
            if result is not None:
                self._history.add(result, published_at=None)
                if self._history.is_published(result.id):
                    record = transitions.confirm(record, result.id)
            if also is not None:
                also(before)
            self._targets.save(before, record)

        await self._transactions.write(changed)
        if result is not None:
            self._notify()
