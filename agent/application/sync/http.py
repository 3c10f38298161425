"""The http method: pushes to Akosha, over MCP, the memories that it lacks.

survey    compare fingerprints with the ledger; stop if nothing differs and nothing refused can be offered again
connect   open a session; a server of another version is offered the memories that it refused
probe     in a new session, or if a person asks: check whether the server has lost its memories
snapshot  copy the databases that differ
push      send each row that the target lacks; a batch is recorded before the next one is sent
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import tzinfo

import structlog

from agent.application.memories.push import MemoryPush, Pushed
from agent.application.sync.attempt import Attempt, Staging, describe_problems
from agent.application.sync.delivery_probe import DeliveryProbe, MemoriesLost
from agent.application.sync.stall import StallMonitor, stall_timeout
from agent.domain.databases import main_name
from agent.domain.delivery_state import Intent, Problem, Target, TargetRecord
from agent.domain.errors import HTTPSyncError, SinkError, SnapshotError
from agent.domain.events import NO_NEW_MEMORY, SyncRequested, SyncSucceeded, outcome_event_id
from agent.domain.memories import CONFIRMED, EMBEDDING_HINT, NO_EMBEDDING
from agent.domain.routing import ASKED, HTTP
from agent.ports import (
    Capabilities,
    Clock,
    Delivered,
    Ledger,
    MemoryLedger,
    MemoryReader,
    MemorySink,
    Reporter,
    Snapshot,
    SnapshotTaker,
    Unchanged,
)

SERVER_NOTE = "http_server"
"""Ledger note: endpoint, version and settings at the last session."""

_log = structlog.get_logger()


@dataclass(slots=True)
class PushOutcome:
    """What a request has delivered so far, in all its attempts.

    `bytes_before`: bytes that the sink had sent before the first attempt. `memories`: memories that the target has now
    and lacked before.
    """

    request_id: str
    bytes_before: int
    memories: int = 0

    def add(self, count: int) -> None:
        """Add newly delivered memories."""
        self.memories += count


@dataclass(slots=True)
class PushAttempt:
    """One attempt at a push: its result for each database."""

    attempt: Attempt
    outcome: PushOutcome
    pushed: dict[str, Pushed] = field(default_factory=dict)

    @property
    def kept_back(self) -> dict[str, str]:
        """Database -> how many of its memories the target did not take, and the reasons."""
        return {name: kept_back(pushed) for name, pushed in self.pushed.items() if pushed.kept_back}

    @property
    def problems(self) -> dict[str, Problem]:
        """The kept back memories as problems of their databases; they last until the database changes."""
        waits = any(NO_EMBEDDING in pushed.waiting for pushed in self.pushed.values())
        hint = EMBEDDING_HINT if waits else "akosha-agent memories --failed lists them"
        return {
            name: Problem(reason, self.attempt.survey[name], 1, None, hint) for name, reason in self.kept_back.items()
        }

    def has_failed(self, record: TargetRecord, *, delivered_before: int) -> bool:
        """Return whether an attempt that delivered nothing has failed. `delivered_before`: memories of the target.

        Memories that waited before the attempt do not make it fail if others were delivered: they are reported only.
        """
        before = (record.databases.get(name) for name in self.kept_back)
        return (
            any(pushed.newly_held for pushed in self.pushed.values())
            or any(known and known.problem for known in before)
            or not delivered_before
        )

    @property
    def skip_reason(self) -> str:
        """Why nothing was delivered."""
        parts = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.kept_back.items()))
        return NO_NEW_MEMORY + (f" ({parts})" if parts else "")


def kept_back(pushed: Pushed) -> str:
    """Describe how many memories a target did not take, and why; "" if it took all."""
    parts = [f"{count:,} wait: {reason}" for reason, count in sorted(pushed.waiting.items())]
    return "; ".join(parts + [f"{count:,} were refused: {reason}" for reason, count in sorted(pushed.refused.items())])


class HttpSync:
    """Delivers memories to one Akosha server. `standstill_seconds`: longest time without progress."""

    name = HTTP

    def __init__(
        self,
        *,
        target: Target,
        push: MemoryPush,
        taker: SnapshotTaker,
        reader: MemoryReader,
        ledger: Ledger,
        clock: Clock,
        zone: Callable[[], tzinfo],
        standstill_seconds: float,
        stall_monitor: StallMonitor | None = None,
    ) -> None:
        self.target = target
        self._push, self._taker, self._reader, self._ledger = push, taker, reader, ledger
        self._clock, self._zone, self._standstill_seconds = clock, zone, standstill_seconds
        self._stall_monitor = stall_monitor
        self._staging = Staging(target=target, taker=taker, ledger=ledger, clock=clock, deduplicate=False)
        self.probe = DeliveryProbe(target, push.sink, ledger, clock)
        self._probed_session = 0
        self._push_outcome = PushOutcome("", 0)

    @property
    def _sink(self) -> MemorySink:
        return self._push.sink

    @property
    def _memories(self) -> MemoryLedger:
        return self._push.ledger

    async def is_available(self) -> bool:
        return await self._sink.is_available()

    async def aclose(self) -> None:
        await self._sink.aclose()

    async def sync(self, request: SyncRequested, report: Reporter) -> Delivered | Unchanged:
        try:
            try:
                async with self._staging.attempt(request, report) as attempt:
                    return await self._sync(attempt)
            except MemoriesLost as error:  # raised before any copy, and once only: `_start_over` drops the probe
                await self._start_over(error.message)
                async with self._staging.attempt(request, report) as attempt:
                    return await self._sync(attempt)
        except SinkError as error:
            raise HTTPSyncError(
                error.message,
                HTTP,
                error,
                hint=error.hint,
                transient=error.transient,
                retry_after=error.retry_after,
            ) from error
        except SnapshotError as error:
            raise HTTPSyncError(error.message, HTTP, error, hint=error.hint, forwardable=False) from error

    async def still_has_memories(self) -> bool:
        """Return whether the server still has the memories that it was given. No sync may run meanwhile.

        If it has not, the ledger owes all of them again. Raises SinkError, StateError.
        """
        if await self.probe.is_inconclusive():
            await self._start_over("it is unknown which memories the server has")
            return False
        await self._sink.connect()
        try:
            await self._offer_probe()
        except MemoriesLost as error:
            await self._start_over(error.message)
            return False
        return True

    async def _sync(self, attempt: Attempt) -> Delivered | Unchanged:
        if await self.probe.is_inconclusive():
            await self._start_over("it is unknown which memories the server has")
        record = await self._ledger.record(self.target)
        attempt.survey = await self._taker.survey()
        if not attempt.due(record, self._clock.now()) and not await self._server_changed():
            reason = await self._staging.skip_reason(attempt, record)
            return Unchanged(reason=reason + await self._confirm_if_asked(attempt))
        async with self._limit_stalls():
            capabilities = await self._sink.connect()
        to_retry = await self._memories.update_version(self.target, f"{capabilities.version}; {self._server_state()}")
        await self._ledger.note(SERVER_NOTE, self._server_state())  # last: repeated after a crash
        if self._probed_session != self._sink.sessions:
            # Within a session the server has not restarted. In a new session it may have, and lost its memories.
            async with self._limit_stalls():
                await self._offer_probe()
        if not await self._staging.copy(attempt, record, also=to_retry):
            return Unchanged(reason=await self._staging.skip_reason(attempt, record))
        await self._write_intent(attempt)
        work = PushAttempt(attempt, self._push_outcome_of(attempt.request.request_id))
        await self._push_all(work, record, capabilities)
        self._probed_session = self._sink.sessions
        await self._staging.settle(attempt)
        return await self._outcome(work, record)

    async def _confirm_if_asked(self, attempt: Attempt) -> str:
        """Probe the server if a person made the request; return its confirmation as the end of a sentence, or ""."""
        if attempt.request.reason not in ASKED or not attempt.survey:
            return ""
        async with self._limit_stalls():
            await self._sink.connect()
            return f"; {CONFIRMED}" if await self._offer_probe() else ""

    async def _offer_probe(self) -> bool:
        """Offer the server a memory that it should have. Raises MemoriesLost if it has lost it."""
        confirmed = await self.probe.offer()
        self._probed_session = self._sink.sessions
        return confirmed

    async def _start_over(self, reason: str) -> None:
        """Owe everything again. The ledger forgets first, so that a kill in between repeats this."""
        record = await self._ledger.record(self.target)
        await self._ledger.forget(self.target, list(record.databases))
        await self.probe.drop()
        _log.warning("akosha_data_lost", location=self._sink.location, reason=reason, system_id=self.target.system_id)

    def _push_outcome_of(self, request_id: str) -> PushOutcome:
        if self._push_outcome.request_id != request_id:
            self._push_outcome = PushOutcome(request_id, self._sink.bytes_sent)
        return self._push_outcome

    async def _server_changed(self) -> bool:
        """Return whether memories are held back and the server, or the settings for it, have changed since."""
        if (await self._ledger.notes()).get(SERVER_NOTE) == self._server_state():
            return False
        counts = await self._memories.counts(self.target)
        return bool(counts.waiting or counts.refused)

    def _server_state(self) -> str:
        return f"{self.target.endpoint} {self._sink.health_version} {self._push.missing_embedding}"

    async def _write_intent(self, attempt: Attempt) -> None:
        """Record the intent: the databases to push, without those that cannot be read.

        An earlier intent for other bytes is abandoned. It needs no cleanup, because a push is idempotent.
        """
        record = await self._ledger.record(self.target)
        for name, snapshot in list(attempt.changed.items()):
            if not snapshot.is_readable:
                error = snapshot.check_error()
                attempt.problems[name] = self._staging.problem(
                    attempt, record, name, error, event="memories_unreadable"
                )
                await self._taker.discard(attempt.changed.pop(name))
        if record.intent is not None and record.intent.digests != attempt.digests:
            await self._ledger.abandon(self.target)
            record = await self._ledger.record(self.target)
        if attempt.changed:
            request_id, databases = attempt.request.request_id, tuple(sorted(attempt.changed))
            intent = record.intent or Intent(request_id, request_id, attempt.digests, databases)
            await self._ledger.begin(self.target, intent)

    async def _push_all(self, work: PushAttempt, record: TargetRecord, capabilities: Capabilities) -> None:
        """Push the databases one after the other. A database that cannot be read to its end stays owed."""
        attempt = work.attempt
        attempt.report.phase("push", sum(attempt.survey[name].size for name in attempt.changed))
        for name, snapshot in sorted(attempt.changed.items()):
            try:
                work.pushed[name] = await self._push_one(name, snapshot, work, capabilities)
            except SnapshotError as error:
                attempt.problems[name] = self._staging.problem(
                    attempt, record, name, error, event="memories_unreadable"
                )
                await self._taker.discard(attempt.changed.pop(name))
        if attempt.problems:
            await self._write_intent(attempt)
        for name in record.databases.keys() - attempt.survey.keys():
            await self._memories.release(self.target, name, ())

    async def _push_one(self, name: str, snapshot: Snapshot, work: PushAttempt, capabilities: Capabilities) -> Pushed:
        attempt = work.attempt
        size, rows = attempt.survey[name].size, max(sum(snapshot.rows.values()), 1)
        zone = await asyncio.to_thread(self._zone)  # reads files
        async with (
            self._limit_stalls() as progress,
            self._reader.open(snapshot.folder / main_name(name), name, zone=zone) as source,
        ):

            def count_rows(count: int) -> None:
                attempt.report.moved(size * count // rows)
                progress()

            difference = await self._push.compare(self.target, name, source, snapshot.main_sha256)
            if difference is not None:
                count_rows(difference.rows - difference.new_rows)
            pushed = await self._push.push(
                self.target,
                capabilities,
                source,
                complete_database=name,
                progress=count_rows,
                on_delivered=work.outcome.add,
                on_confirmed=self.probe.keep,
            )
            if difference is not None:
                await self._push.record_rows(self.target, name, source)
            return pushed

    async def _outcome(self, work: PushAttempt, record: TargetRecord) -> Delivered | Unchanged:
        """Return the outcome. An attempt after which every memory waits is not a delivery."""
        attempt, delivered = work.attempt, work.outcome.memories
        # An earlier attempt, of this request or of one that was killed, may have delivered the new memories.
        already_delivered = delivered or record.intent is not None
        if not delivered and work.kept_back:
            delivered_before = (await self._memories.counts(self.target)).delivered
            if work.has_failed(record, delivered_before=delivered_before):
                await self._ledger.record_problems(self.target, work.problems)
                attempt.problems |= work.problems
        if attempt.problems and not (delivered and attempt.changed):
            if not already_delivered:
                await self._nothing_new(attempt, record)
            message, hint = describe_problems(attempt.problems)
            raise HTTPSyncError(message, HTTP, hint=hint, forwardable=False)
        if not already_delivered and all(_was_delivered(record, name) for name in attempt.changed):
            await self._nothing_new(attempt, record)
            return Unchanged(reason=work.skip_reason)
        return Delivered(
            manifest=None,
            fingerprints={name: snapshot.fingerprint for name, snapshot in attempt.changed.items()},
            problems=attempt.problems,
            result=self._succeeded(work, record),
        )

    async def _nothing_new(self, attempt: Attempt, record: TargetRecord) -> None:
        """Mark databases clean whose memories were all delivered before, except those with a problem."""
        await self._ledger.abandon(self.target)
        same = {
            name: snapshot.fingerprint
            for name, snapshot in attempt.changed.items()
            if _was_delivered(record, name) and name not in attempt.problems
        }
        await self._ledger.mark_unchanged(self.target, same)

    def _succeeded(self, work: PushAttempt, record: TargetRecord) -> SyncSucceeded:
        attempt = work.attempt
        return SyncSucceeded(
            id=outcome_event_id(attempt.request.request_id, "succeeded"),
            time=self._clock.now(),
            system_id=self.target.system_id,
            request_id=attempt.request.request_id,
            method=HTTP,
            success=True,
            bytes_transferred=self._sink.bytes_sent - work.outcome.bytes_before,
            duration_seconds=round(self._clock.monotonic() - attempt.started, 3),
            upload_id=attempt.request.request_id,
            triggered_by=attempt.request.reason,
            location=self._sink.location,
            incomplete={**attempt.incomplete(record), **_unverified(attempt), **work.kept_back},
            memories=work.outcome.memories,
            database_bytes=sum(seen.size for seen in attempt.requested.values()),
        )

    def _limit_stalls(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        return stall_timeout(
            self._standstill_seconds,
            self._sink.location,
            HTTPSyncError,
            HTTP,
            stall_monitor=self._stall_monitor,
            progress_count=lambda: self._sink.bytes_sent,  # grows while a batch is being sent
        )


def _unverified(attempt: Attempt) -> dict[str, str]:
    """Return, by database, why a pushed copy could not be verified."""
    return {name: copy.unverified_reason for name, copy in sorted(attempt.changed.items()) if not copy.verified}


def _was_delivered(record: TargetRecord, database: str) -> bool:
    known = record.databases.get(database)
    return known is not None and bool(known.delivered_by)
