"""The http method: the memories that Akosha lacks, pushed to it over MCP.

look     stat fingerprints against the ledger: nothing differs, and nothing that is held back is worth another look
meet     a session; another version of the server, and what it refused is tried again
probe    in a new session, or where a person asks: has the server lost what it was given?
stage    snapshots of what differs
push     each row that this target does not have yet; a batch is remembered before the next is sent
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import tzinfo

import structlog

from agent.application.memories.push import MemoryPush, Pushed
from agent.application.sync.attempt import Attempt, Staging, what_is_wrong
from agent.application.sync.delivery_probe import DeliveryProbe, MemoriesLost
from agent.application.sync.stall import StallMonitor, stall_timeout
from agent.domain.databases import main_name
from agent.domain.delivery_state import Intent, Problem, Target, TargetRecord, due
from agent.domain.errors import HTTPSyncError, SinkError, SnapshotError
from agent.domain.events import SyncRequested, SyncSucceeded, outcome_event_id
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


@dataclass(slots=True)
class PushOutcome:
    """What a request has delivered so far, in all its attempts. `bytes_before`: what the sink had sent before the
    first.

    `memories`: how many the target has now that it lacked.
    """

    request_id: str
    bytes_before: int
    memories: int = 0

    def add(self, count: int) -> None:
        """So many more have arrived."""
        self.memories += count


@dataclass(slots=True)
class PushAttempt:
    """One attempt at pushing, database by database."""

    attempt: Attempt
    outcome: PushOutcome
    pushed: dict[str, Pushed] = field(default_factory=dict)

    @property
    def kept_back(self) -> dict[str, str]:
        """Database -> how many of its memories the target did not take, and why."""
        return {name: kept_back(pushed) for name, pushed in self.pushed.items() if pushed.kept_back}

    @property
    def problems(self) -> dict[str, Problem]:
        """The same as problems of these databases, until they change."""
        waits = any(NO_EMBEDDING in pushed.waiting for pushed in self.pushed.values())
        hint = EMBEDDING_HINT if waits else "akosha-agent memories --failed lists them"
        return {name: Problem(why, self.attempt.survey[name], 1, None, hint) for name, why in self.kept_back.items()}

    def was_for_nothing(self, record: TargetRecord, *, ever: int) -> bool:
        """Say whether an attempt that delivered nothing has failed; `ever`: how many memories the target has in all.

        What has been waiting all along, beside others that were delivered, is no failure: it is reported, and blocks
        nothing.
        """
        before = (record.databases.get(name) for name in self.kept_back)
        return (
            any(pushed.newly_held for pushed in self.pushed.values())
            or any(known and known.problem for known in before)
            or not ever
        )

    @property
    def skip_reason(self) -> str:
        parts = "; ".join(f"{name}: {why}" for name, why in sorted(self.kept_back.items()))
        return f"no memory is new{f' ({parts})' if parts else ''}"


def kept_back(pushed: Pushed) -> str:
    """Return how many memories a target did not take, and why, in words; empty where it took all."""
    parts = [f"{count:,} wait: {why}" for why, count in sorted(pushed.waiting.items())]
    return "; ".join(parts + [f"{count:,} were refused: {why}" for why, count in sorted(pushed.refused.items())])


_NEWS = "http_server"

_log = structlog.get_logger()


class HttpSync:
    """Delivers memories to one Akosha server. `standstill_seconds`: how long nothing may move."""

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
        self._proven_session = 0
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
            except MemoriesLost as error:  # before anything was copied; nothing is left to ask with, so it comes once
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

    async def still_has_it(self) -> bool:
        """Ask the server, apart from any sync, whether it has what it was given; no sync may run meanwhile.

        False: the ledger owes it all again. Raises SinkError, StateError.
        """
        if await self.probe.is_inconclusive():
            await self._start_over("it is not known what the server has")
            return False
        await self._sink.connect()
        try:
            await self._prove()
        except MemoriesLost as error:
            await self._start_over(error.message)
            return False
        return True

    async def _sync(self, attempt: Attempt) -> Delivered | Unchanged:
        if await self.probe.is_inconclusive():
            await self._start_over("it is not known what the server has")
        record = await self._ledger.record(self.target)
        attempt.survey = await self._taker.survey()
        lacking = due(record, attempt.asked, self._clock.now(), urgent=attempt.urgent)
        if not lacking and not await self._has_news():
            return Unchanged(reason=attempt.skip_reason(record) + await self._asked_for(attempt))
        async with self._moving():
            capabilities = await self._sink.connect()
        again = await self._memories.update_version(self.target, f"{capabilities.version}; {self._news()}")
        await self._ledger.note(_NEWS, self._news())  # what is worth another look is owed by now
        if self._proven_session != self._sink.sessions:
            # Within a session it is the same run of the server; in a new one nobody knows.
            async with self._moving():
                await self._prove()
        if not await self._staging.copy(attempt, record, also=again):
            return Unchanged(reason=attempt.skip_reason(record))
        await self._begin(attempt)
        work = PushAttempt(attempt, self._outcome_of(attempt.request.request_id))
        await self._push_all(work, record, capabilities)
        self._proven_session = self._sink.sessions
        await self._staging.settle(attempt)
        return await self._outcome(work, record)

    async def _asked_for(self, attempt: Attempt) -> str:
        """Ask the server, where a person made the request; return its answer, as the end of a sentence."""
        if attempt.request.reason not in ASKED or not attempt.survey:
            return ""
        async with self._moving():
            await self._sink.connect()
            return f"; {CONFIRMED}" if await self._prove() else ""

    async def _prove(self) -> bool:
        """Offer a memory that the server should have. Raises MemoriesLost where it has lost it."""
        proven = await self.probe.capabilities()
        self._proven_session = self._sink.sessions
        return proven

    async def _start_over(self, why: str) -> None:
        """Have all be owed again. Forgetting comes first: a kill in between repeats it."""
        record = await self._ledger.record(self.target)
        await self._ledger.forget(self.target, list(record.databases))
        await self.probe.drop()
        _log.warning("akosha_data_lost", location=self._sink.location, reason=why, system_id=self.target.system_id)

    def _outcome_of(self, request_id: str) -> PushOutcome:
        if self._push_outcome.request_id != request_id:
            self._push_outcome = PushOutcome(request_id, self._sink.bytes_sent)
        return self._push_outcome

    async def _has_news(self) -> bool:
        """Say whether the server, or how it is to be treated, has changed while memories are held back from it."""
        if (await self._ledger.notes()).get(_NEWS) == self._news():
            return False
        counts = await self._memories.counts(self.target)
        return bool(counts.waiting or counts.refused)

    def _news(self) -> str:
        return f"{self.target.endpoint} {self._sink.health_version} {self._push.missing_embedding}"

    async def _begin(self, attempt: Attempt) -> None:
        """Write down what is about to be pushed, or what of it is left once something cannot be.

        There is nothing to clean up after what had begun: pushing again changes nothing.
        """
        for name, snapshot in list(attempt.changed.items()):
            if not snapshot.is_readable:
                seen = attempt.survey[name]
                attempt.problems[name] = Problem(snapshot.unverified_reason, seen, 1, None)
                await self._taker.discard(attempt.changed.pop(name))
        record = await self._ledger.record(self.target)
        if record.intent is not None and record.intent.digests != attempt.digests:
            await self._ledger.abandon(self.target)
            record = await self._ledger.record(self.target)
        if attempt.changed:
            request_id, databases = attempt.request.request_id, tuple(sorted(attempt.changed))
            intent = record.intent or Intent(request_id, request_id, attempt.digests, databases)
            await self._ledger.begin(self.target, intent)

    async def _push_all(self, work: PushAttempt, record: TargetRecord, capabilities: Capabilities) -> None:
        """Push the databases one after the other. One that cannot be read to its end is left out: it stays owed."""
        attempt = work.attempt
        attempt.report.phase("push", sum(attempt.survey[name].size for name in attempt.changed))
        for name, snapshot in sorted(attempt.changed.items()):
            try:
                work.pushed[name] = await self._push_one(name, snapshot, work, capabilities)
            except SnapshotError as error:
                self._staging.fail(attempt, record, name, error, event="memories_unreadable")
                await self._taker.discard(attempt.changed.pop(name))
        if attempt.problems:
            await self._begin(attempt)
        for name in record.databases.keys() - attempt.survey.keys():
            await self._memories.release(self.target, name, ())

    async def _push_one(self, name: str, snapshot: Snapshot, work: PushAttempt, capabilities: Capabilities) -> Pushed:
        attempt = work.attempt
        size, rows = attempt.survey[name].size, max(sum(snapshot.rows.values()), 1)
        zone = await asyncio.to_thread(self._zone)  # it looks at files
        async with (
            self._moving() as moved,
            self._reader.open(snapshot.folder / main_name(name), name, zone=zone) as source,
        ):

            def passed(count: int) -> None:
                attempt.report.moved(size * count // rows)
                moved()

            return await self._push.push(
                self.target,
                capabilities,
                source,
                whole=name,
                moved=passed,
                arrived=work.outcome.add,
                confirmed=self.probe.keep,
            )

    async def _outcome(self, work: PushAttempt, record: TargetRecord) -> Delivered | Unchanged:
        """Tell what came of it. A delivery of which everything had to wait is none."""
        attempt, delivered = work.attempt, work.outcome.memories
        # An attempt before this one, of this request or of one that a kill cut short, may have delivered what is new.
        already_delivered = delivered or record.intent is not None
        if not delivered and work.kept_back:
            ever = (await self._memories.counts(self.target)).delivered
            if work.was_for_nothing(record, ever=ever):
                await self._ledger.record_problems(self.target, work.problems)
                attempt.problems |= work.problems
        if attempt.problems and not (delivered and attempt.changed):
            if not already_delivered:
                await self._nothing_new(attempt, record)
            message, hint = what_is_wrong(attempt.problems)
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
        """What was pushed and had been delivered before is as it was delivered, but for what is in trouble."""
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
            incomplete={**attempt.incomplete(record), **_unread(attempt), **work.kept_back},
            memories=work.outcome.memories,
        )

    def _moving(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        return stall_timeout(
            self._standstill_seconds,
            self._sink.location,
            HTTPSyncError,
            HTTP,
            stall_monitor=self._stall_monitor,
            progress_count=lambda: self._sink.bytes_sent,  # a batch moves long before it is there
        )


def _unread(attempt: Attempt) -> dict[str, str]:
    """Return what the engine could not read of the databases that were pushed, by database."""
    return {name: one.unverified_reason for name, one in sorted(attempt.changed.items()) if not one.verified}


def _was_delivered(record: TargetRecord, database: str) -> bool:
    known = record.databases.get(database)
    return known is not None and bool(known.delivered_by)
