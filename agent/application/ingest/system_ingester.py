"""One system: its uploads, in order, into Akosha. The bucket says what there is; events say that it is time to look.

An upload is done with when the position has gone past it: taken, or refused. Until then everything may be done again,
which changes nothing: what Akosha has been given is in the memory ledger.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from agent.application.ingest.cursor import Cursor, passed, plan
from agent.application.ingest.journal import IngestJournal
from agent.application.ingest.turns import Turn, Turns
from agent.application.ingest.upload_ingester import UploadIngester
from agent.application.signal import Signal
from agent.application.sync.bucket_uploads import BucketUploads
from agent.domain.errors import AkoshaError, SinkError, SnapshotError, StagingFull, StateError, WireError
from agent.domain.manifest import Manifest
from agent.domain.memories import Tally
from agent.domain.naming import is_in_future
from agent.domain.routing import target_backoff
from agent.ports import Capabilities, Clock

TRIES = 7
"""An upload that differs from its manifest may still be incomplete: it is tried again after 30 s, 60 s ... 15 min."""

MOST_LOGGED = 10_000

_AKOSHA = "akosha "
"""What all systems wait for; no system is called that."""

_log = structlog.get_logger()


class Outages:
    """Says once that something is waited for, and once that it is there again."""

    def __init__(self) -> None:
        self._waits: set[str] = set()

    def failed(self, system_id: str, error: AkoshaError, **more: object) -> None:
        """What all systems wait for is said once for all."""
        database_cursor = _database_cursor(system_id, error)
        publish = _log.debug if database_cursor in self._waits else _log.warning
        self._waits.add(database_cursor)
        publish("ingest_waiting", system_id=system_id, error=str(error), **more)

    def passed(self, system_id: str, *, akosha: bool) -> None:
        """The system waits for nothing; with `akosha`, that has taken something."""
        over = self._waits & ({system_id, _AKOSHA} if akosha else {system_id})
        if over:
            _log.info("ingest_resumed", system_id=system_id)
        self._waits -= over


def is_final(error: AkoshaError) -> bool:
    """Say whether no later try mends it: the ledger cannot be used."""
    return isinstance(error, StateError) and not error.transient


def _database_cursor(system_id: str, error: AkoshaError) -> str:
    return _AKOSHA if isinstance(error, SinkError) else system_id


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemOutcome:
    """What one catching up has come to: uploads taken, uploads refused, and what became of the memories.

    `why`: the reason of the first refusal.
    """

    taken: int = 0
    refused: int = 0
    why: str = ""
    tally: Tally = field(default_factory=Tally)

    def __add__(self, other: "SystemOutcome") -> "SystemOutcome":
        return SystemOutcome(
            taken=self.taken + other.taken,
            refused=self.refused + other.refused,
            why=self.why or other.why,
            tally=self.tally + other.tally,
        )


@dataclass(slots=True)
class _Taking:
    """An upload in hand."""

    manifest: Manifest
    later: Sequence[str]
    turn: Turn
    tally: Tally = field(default_factory=Tally)
    source: str = "memories"
    faults: list[str] = field(default_factory=list)


class SystemIngester:
    """Brings one system up to date whenever there may be news. Takes turns with others: an upload, or the share of it
    that a turn allows, then the next one's.

    What fails for a passing reason is tried again after 30 s, doubling to 15 min.
    """

    def __init__(
        self,
        system_id: str,
        *,
        ingest: UploadIngester,
        news: IngestJournal,
        clock: Clock,
        turns: Turns,
        outages: Outages,
    ) -> None:
        self.system_id = system_id
        self._ingest, self._news, self._clock, self._turns, self._outages = ingest, news, clock, turns, outages
        self._uploads = BucketUploads(ingest.store, system_id)
        self._signal = Signal(clock, f"react-{system_id}")
        self._position = Cursor()
        self._begun = self._looking = False
        self._failure: AkoshaError | None = None
        self._failures = 0
        self._named_uploads: set[str] = set()
        self._foreign: set[str] = set()
        self._logged_upload, self._attempts = "", 0
        self._unusable: dict[tuple[str, str], tuple[str, str]] = {}

    @property
    def waits_for_akosha(self) -> bool:
        return isinstance(self._failure, SinkError)

    def notify(self, upload: str = "") -> None:
        """Look at once. An `upload` that is named is taken also where newer ones have been.

        Two agents of one system upload at the same time: whose id is the older may come later.
        """
        if upload and len(self._named_uploads) < MOST_LOGGED:
            self._named_uploads.add(upload)
        self._signal.set()

    def look(self) -> None:
        """There may be news: look, unless that is being done, or something is waited for."""
        if self._failure is None and not self._looking:
            self._signal.set()

    async def run(self) -> None:
        """Catch up, and again at each notification, until cancelled; return where the system has nothing at all.

        Raises what a later try does not mend: a ledger that cannot be used.
        """
        while True:
            await self._signal.wait(0)  # this look sees what was notified until now
            wait = None
            self._looking = True
            try:
                await self.catch_up()
            except AkoshaError as error:
                if is_final(error):
                    raise
                wait = self._delay(error).total_seconds()
            finally:
                self._looking = False
            if self._failure is None and self._position == Cursor():
                if await self._signal.wait(0):
                    continue
                return
            await self._signal.wait(wait)

    async def catch_up(self) -> SystemOutcome:
        """Take every upload that is newer than the last one that was done with.

        Raises what it has to wait for: SinkError, StoreError, StateError, and WireError where an upload may be on its
        way yet. Those before it are done with.
        """
        self._position = await self._news.position(self.system_id)
        caught, failure = SystemOutcome(), None
        try:
            async with self._turns.one():
                if not self._begun:
                    await self._welcome()
                whole = await self._new()
            todo = [*await self._late(), *whole]
            for at, upload in enumerate(todo):
                async with self._turns.one() as turn:
                    caught += await self._take(upload, todo[at + 1 :], turn)
                self._named_uploads.discard(upload)
        except AkoshaError as error:
            failure = error
        self._position = await self._news.publish(self.system_id, self._position)
        self._failure, self._failures = failure, self._failures + 1 if failure else 0
        if failure is not None:
            raise failure
        self._begun = True
        self._outages.passed(self.system_id, akosha=False)
        return caught

    async def _new(self) -> list[str]:
        """Return the uploads that are newer than the last one that was done with.

        An id ahead of the clock whose manifest is not of this system is passed over: to go past it would be to miss all
        uploads that follow.
        """
        _, whole = await self._uploads.ids_after(self._position.through)
        now = self._clock.now()
        return [upload for upload in whole if not is_in_future(upload, now) or await self._is_ours(upload)]

    async def _is_ours(self, upload: str) -> bool:
        if upload in self._foreign:
            return False
        try:
            await self._ingest.manifest(self.system_id, upload)
        except WireError as error:
            if error.transient:
                return True  # it may be on its way: it is taken, or refused, in its turn
            self._foreign.add(upload)
            _log.warning("foreign_uploads", system_id=self.system_id, names=[upload], reason=error.message)
            return False
        return True

    def _delay(self, error: AkoshaError) -> timedelta:
        asked = error.retry_after if isinstance(error, SinkError) else None
        delay = max(target_backoff(self._failures), timedelta(seconds=min(asked or 0.0, 900.0)))
        self._outages.failed(self.system_id, error, delay_seconds=delay.total_seconds())
        return delay

    async def _welcome(self) -> None:
        """Where Akosha takes now what it did not before, the newest upload is looked at once more."""
        counts = await self._ingest.push.ledger.counts(self._ingest.target(self.system_id))
        if not (counts.waiting or counts.refused):
            return
        _, again = await self._ingest.meet(self.system_id)
        if again:
            _, whole = await self._uploads.ids_after(None)
            before = [upload for upload in whole[:-1] if upload < (self._position.through or "")]
            await self._keep(replace(self._position.without(again), through=before[-1] if before else None))

    async def _late(self) -> list[str]:
        """Return the uploads that were named and that the position has gone past without seeing them."""
        for upload in sorted(self._named_uploads):
            if await self._news.is_written(upload):
                self._named_uploads.discard(upload)
        return sorted(upload for upload in self._named_uploads if upload <= (self._position.through or ""))

    async def _take(self, upload: str, later: Sequence[str], turn: Turn) -> SystemOutcome:
        started = self._clock.monotonic()
        try:
            manifest = await self._ingest.manifest(self.system_id, upload)
            if manifest is None:
                _log.info("upload_missing", system_id=self.system_id, upload_id=upload)
                await self._keep(self._position.past(upload))
                self._attempts = 0
                return SystemOutcome()
            taking = _Taking(manifest, later, turn)
            await self._capabilities(taking)
        except WireError as error:
            if not error.transient:
                return await self._refuse(upload, str(error), Tally())
            self._attempts += 1
            await self._delayed(upload, error)
            raise
        except (SinkError, SnapshotError) as error:
            self._attempts += not isinstance(error, SinkError | StagingFull)
            await self._delayed(upload, error)
            raise
        if taking.faults:
            return await self._refuse(upload, "; ".join(taking.faults), taking.tally)
        seconds = self._clock.monotonic() - started
        event = self._news.completed(self.system_id, upload, taking.source, taking.tally, seconds)
        self._position = await self._news.write(self._position.past(upload), event)
        self._attempts = 0
        self._outages.passed(self.system_id, akosha=True)
        _log.info(
            "ingest_completed",
            system_id=self.system_id,
            upload_id=upload,
            source=taking.source,
            stored=event.stored,
            known=event.known,
            kept_back=event.kept_back,
            duration_seconds=event.duration_seconds,
        )
        return SystemOutcome(taken=1, tally=taking.tally)

    async def _capabilities(self, taking: _Taking) -> None:
        """Push what Akosha lacks of an upload. What is wrong with it for good is among the faults."""
        manifest = taking.manifest
        todo = plan(manifest, self._position)
        if todo.delta or todo.whole:  # else there is nothing to disturb Akosha for
            capabilities, again = await self._ingest.meet(self.system_id)
            if again:
                await self._keep(self._position.without(again))
                todo = plan(manifest, self._position)
            taking.source = "memories" if todo.delta else "databases"
            if todo.delta:
                await self._memories(taking, capabilities, todo.delta)
            for database in sorted(todo.whole):
                await self._whole(taking, capabilities, database)
        self._position = passed(manifest, self._position, todo.same)

    async def _memories(self, taking: _Taking, capabilities: Capabilities, databases: frozenset[str]) -> None:
        try:
            taking.tally += await self._ingest.memories(taking.manifest, capabilities, taking.turn)
        except (WireError, SnapshotError) as error:
            if self._is_worth_waiting(error):
                raise
            taking.faults.append(str(error))
        else:
            await self._keep(self._position.at(taking.manifest, databases))

    async def _whole(self, taking: _Taking, capabilities: Capabilities, database: str) -> None:
        """Read a database of the newest upload that has it. One that is unusable is not fetched again."""
        newest = await self._newest(taking, database)
        who = newest.agent_id, database
        taking.source = "databases"
        fault = ""
        if self._unusable.get(who, ("", ""))[0] == newest.upload_id:
            fault = self._unusable[who][1]
        else:
            try:
                taking.tally += await self._ingest.database(newest, database, capabilities, taking.turn)
            except (WireError, SnapshotError) as error:
                if self._is_worth_waiting(error):
                    raise
                fault = f"{database}: {error}"
                self._unusable[who] = newest.upload_id, fault
            else:
                await self._keep(self._position.at(newest, [database]))
        if fault:
            taking.faults.append(fault)

    async def _newest(self, taking: _Taking, database: str) -> Manifest:
        for upload in reversed(taking.later):
            try:
                manifest = await self._ingest.manifest(self.system_id, upload)
            except WireError:
                continue  # it is refused in its turn
            if manifest and manifest.agent_id == taking.manifest.agent_id and manifest.of(database):
                return manifest
        return taking.manifest

    def _is_worth_waiting(self, error: AkoshaError) -> bool:
        return isinstance(error, StagingFull) or (error.transient and self._attempts < TRIES - 1)

    async def _delayed(self, upload: str, error: AkoshaError) -> None:
        """Tell of an upload's first failure that is not its last."""
        if self._logged_upload != upload:
            retry_at = self._clock.now() + target_backoff(self._failures + 1)
            event = self._news.failed(self.system_id, upload, str(error), retry_at)
            self._position = await self._news.write(self._position, event)
            self._logged_upload = upload

    async def _refuse(self, upload: str, why: str, tally: Tally) -> SystemOutcome:
        """Go past the upload; a newer one brings what it lacks, from its databases."""
        event = self._news.failed(self.system_id, upload, why, None)
        self._position = await self._news.write(self._position.past(upload), event)
        self._attempts = 0
        _log.error(
            "ingest_failed",
            system_id=self.system_id,
            upload_id=upload,
            error=why,
            next_step="a newer upload is waited for",
        )
        return SystemOutcome(refused=1, why=event.error, tally=tally)

    async def _keep(self, position: Cursor) -> None:
        self._position = position
        await self._news.keep(self.system_id, position)
