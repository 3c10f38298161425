"""The cursors of systems, and the events about their uploads: in the ledger, then published by its outbox."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

import structlog

from agent.application.ingest.cursor import Cursor
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import WireError
from agent.domain.events import LONGEST_TEXT, MOST_NAMED, IngestCompleted, IngestFailed, ingest_event_id
from agent.domain.identity import Identity
from agent.domain.memories import Tally
from agent.domain.plain_text import shorten
from agent.ports import Clock, Ledger

_log = structlog.get_logger()


class IngestJournal:
    """Stores the cursors of systems and the events about their uploads. `recorder`, None without a bus, publishes them.

    Cursors belong to a pair of bucket and Akosha (`endpoints`): with another pair, every system starts over. One task
    at a time writes a system's cursor.
    """

    def __init__(
        self,
        ledger: Ledger,
        recorder: ResultRecorder | None,
        identity: Identity,
        clock: Clock,
        *,
        endpoints: tuple[str, str],
    ) -> None:
        self._ledger, self._recorder, self._agent_id, self._clock = ledger, recorder, identity.agent_id, clock
        self._notes = note_prefix(endpoints)

    async def cursor(self, system_id: str) -> Cursor:
        """Return the cursor of a system; an empty one if it is unreadable, so that the system starts over."""
        note = (await self._ledger.notes()).get(f"{self._notes}{system_id}")
        try:
            return Cursor.decode(note) if note else Cursor()
        except WireError as error:
            _log.warning(
                "cursor_lost",
                system_id=system_id,
                reason=error.message,
                next_step="all uploads of the system are checked again",
            )
            return Cursor()

    async def save(self, system_id: str, cursor: Cursor) -> None:
        await self._ledger.note(f"{self._notes}{system_id}", cursor.encode())

    async def systems(self) -> list[str]:
        """Return the systems that have a cursor."""
        return [key.removeprefix(self._notes) for key in await self._ledger.notes() if key.startswith(self._notes)]

    def completed(self, system_id: str, upload: str, source: str, tally: Tally, seconds: float) -> IngestCompleted:
        return IngestCompleted(
            id=ingest_event_id(upload, self._agent_id, "completed"),
            time=self._clock.now(),
            system_id=system_id,
            upload_id=upload,
            source=source,
            stored=tally.stored,
            known=tally.known,
            kept_back=_most_frequent({**tally.waiting, **tally.refused}),
            duration_seconds=round(seconds, 3),
        )

    def failed(self, system_id: str, upload: str, error: str, retry_at: datetime | None) -> IngestFailed:
        """Return the event of a refused upload or, with `retry_at`, of an upload's first failed attempt."""
        return IngestFailed(
            id=ingest_event_id(upload, self._agent_id, "delayed" if retry_at else "failed"),
            time=self._clock.now(),
            system_id=system_id,
            upload_id=upload,
            error=shorten(error, 5 * LONGEST_TEXT),
            retry_at=retry_at,
        )

    async def is_finished(self, upload: str) -> bool:
        """Return whether an upload was ingested or refused."""
        ids = [ingest_event_id(upload, self._agent_id, outcome) for outcome in ("completed", "failed")]
        return any([await self._ledger.find_event(each) is not None for each in ids])

    async def write(self, cursor: Cursor, event: IngestCompleted | IngestFailed) -> None:
        """Store an event, then the cursor.

        If the process is killed in between, the upload is ingested again, and the event keeps its ID.
        """
        if self._recorder is None:
            await self._ledger.add_to_history(event)
        else:
            await self._ledger.announce(event)
            self._recorder.flush_soon()
        await self.save(event.system_id, cursor)


def finished_uploads(notes: Mapping[str, str], endpoints: tuple[str, str]) -> dict[str, str]:
    """Return system ID -> the newest upload that was ingested or refused, by the notes of a ledger."""
    prefix = note_prefix(endpoints)
    found: dict[str, str] = {}
    for key, note in notes.items():
        if key.startswith(prefix):
            with suppress(WireError):  # the system starts over
                if through := Cursor.decode(note).through:
                    found[key.removeprefix(prefix)] = through
    return found


def note_prefix(endpoints: tuple[str, str]) -> str:
    """Return the prefix of the keys of cursors' notes, for a pair of bucket and Akosha."""
    return f"react:{hashlib.sha256(chr(10).join(endpoints).encode()).hexdigest()[:12]}:"


def _most_frequent(reasons: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of the most frequent reasons, and of all others together: a server may have one per row."""
    ordered = sorted(reasons.items(), key=lambda each: -each[1])
    counts: dict[str, int] = {}
    for reason, count in ordered[:MOST_NAMED]:
        name = shorten(reason, LONGEST_TEXT)
        counts[name] = counts.get(name, 0) + count
    rest = sum(count for _, count in ordered[MOST_NAMED:])
    return {**counts, "other reasons": rest} if rest else counts
