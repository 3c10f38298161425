"""The table of events: the history, the outcomes of requests, and the outbox.

Runs on the ledger's thread, in a transaction of the caller.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import structlog

from agent.adapters.sqlite_ledger.file import damaged
from agent.adapters.sqlite_ledger.rows import optional_time_text, time_text
from agent.domain.errors import StateError, WireError
from agent.domain.events import (
    DeliveryOverdue,
    DeliveryRecovered,
    Event,
    IngestCompleted,
    IngestFailed,
    SessionEnded,
    SyncResult,
    UploadsPruned,
    UploadVerified,
)
from agent.domain.parsing import LARGEST_NUMBER
from agent.ports import Codec, HistoryEntry

KEPT = timedelta(days=90)
"""How long a published event stays in the history."""

MOST_ACCEPTED = 100_000
"""How many session ends are recognised when they arrive again: more than a person causes, but anyone can forge some."""

_ANNOUNCED = tuple(
    one.type
    for one in (UploadVerified, UploadsPruned, IngestCompleted, IngestFailed, DeliveryOverdue, DeliveryRecovered)
)
"""Types of the events in the outbox that are no results."""

_log = structlog.get_logger()


class History:
    """Reads and writes the table of events."""

    def __init__(self, connection: sqlite3.Connection, codec: Codec) -> None:
        self._connection, self._codec = connection, codec
        self._unreadable = set[int]()

    def add(self, event: Event, *, published_at: datetime | None) -> None:
        """Add an event, unless its ID exists. `published_at` None puts it into the outbox.

        A result closes the session ends in its `caused_by`.
        """
        self._connection.execute(
            "INSERT INTO events (event_id, type, time, result_of, payload, published_at) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (event_id) DO NOTHING",
            (
                event.id,
                event.type,
                time_text(event.time),
                event.request_id if isinstance(event, SyncResult) else None,
                self._codec.encode(event),
                optional_time_text(published_at),
            ),
        )
        if isinstance(event, SyncResult):
            self._connection.executemany(
                "DELETE FROM open_ends WHERE event_id = ?", [(event_id,) for event_id in event.caused_by]
            )

    def publish(self, event_id: str, at: datetime) -> None:
        """Remove an event from the outbox; keep the first time of publishing. Raises StateError for an unknown ID."""
        self._connection.execute(
            "UPDATE events SET published_at = ? WHERE event_id = ? AND published_at IS NULL", (time_text(at), event_id)
        )
        if not self._exists(event_id):
            raise StateError(f"result {event_id} is confirmed, but was never in the outbox")

    def is_published(self, event_id: str) -> bool:
        """Return whether the event exists and is not in the outbox."""
        found = self._connection.execute(
            "SELECT 1 FROM events WHERE event_id = ? AND published_at IS NOT NULL", (event_id,)
        )
        return found.fetchone() is not None

    def outbox(self) -> tuple[Sequence[Event], Mapping[str, str]]:
        """Return the events of the outbox, oldest first, and the unreadable ones: event ID -> reason."""
        found = self._connection.execute(
            "SELECT event_id, payload FROM events WHERE published_at IS NULL ORDER BY position"
        )
        results: list[Event] = []
        unreadable: dict[str, str] = {}
        for event_id, payload in found.fetchall():
            try:
                results.append(self._event(payload))
            except StateError as error:
                unreadable[str(event_id)] = error.message
        return results, unreadable

    def newest_confirmed(self) -> SyncResult | None:
        """Return the newest result that is not in the outbox."""
        found = self._connection.execute(
            "SELECT payload FROM events WHERE result_of IS NOT NULL AND published_at IS NOT NULL"
            " ORDER BY position DESC LIMIT 1"
        ).fetchone()
        return self._result(found[0]) if found else None

    def unpublish(self, since: datetime) -> int:
        """Put results, and events about ingests and the archive, into the outbox again if they were published since.

        Return their number.
        """
        found = self._connection.execute(
            "UPDATE events SET published_at = NULL"
            " WHERE (result_of IS NOT NULL OR type IN (?, ?, ?, ?, ?, ?)) AND published_at IS NOT NULL AND time >= ?",
            (*_ANNOUNCED, time_text(since)),
        )
        return found.rowcount

    def event(self, event_id: str) -> Event | None:
        found = self._connection.execute("SELECT payload FROM events WHERE event_id = ?", (event_id,)).fetchone()
        return self._event(found[0]) if found else None

    def accept(self, event: SessionEnded) -> bool:
        """Return whether this session end is new; if it is, it stays open until a result answers it."""
        name = f"{event.type}\n{event.system_id}\n{event.id}"
        if event.sender:  # without a sender, the digest is the same as in earlier versions
            name = json.dumps([event.type, event.system_id, event.sender, event.id])
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:16]
        found = self._connection.execute("INSERT INTO handled VALUES (?) ON CONFLICT DO NOTHING", (digest,))
        if found.rowcount == 1:
            self._connection.execute("INSERT INTO open_ends (event_id) VALUES (?)", (event.id,))
        return found.rowcount == 1

    def open_session_ends(self) -> Sequence[str]:
        """Return the IDs of the open session ends, oldest first."""
        found = self._connection.execute("SELECT event_id FROM open_ends ORDER BY position")
        return [event_id for (event_id,) in found]

    def outcome(self, request_id: str) -> SyncResult | None:
        """Return the latest result of a request."""
        found = self._connection.execute(
            "SELECT payload FROM events WHERE result_of = ? ORDER BY position DESC LIMIT 1", (request_id,)
        ).fetchone()
        return self._result(found[0]) if found else None

    def after(self, position: int, limit: int) -> Sequence[HistoryEntry]:
        """Return the first `limit` events after a position. Skips an unreadable event with one warning."""
        found = self._connection.execute(
            "SELECT position, payload FROM events WHERE position > ? ORDER BY position", (position,)
        )
        return self._entries(found, limit)

    def before(self, position: int | None, limit: int, types: Sequence[str]) -> Sequence[HistoryEntry]:
        """Return the last `limit` events of these types before a position, newest first; None: of all.

        Skips an unreadable event with one warning.
        """
        found = self._connection.execute(
            f"SELECT position, payload FROM events WHERE position < ? AND type IN ({', '.join('?' * len(types))})"  # noqa: S608 - only placeholders
            " ORDER BY position DESC",
            (LARGEST_NUMBER if position is None else position, *types),
        )
        return self._entries(found, limit)

    def _entries(self, found: Iterable[tuple[int, bytes]], limit: int) -> Sequence[HistoryEntry]:
        entries: list[HistoryEntry] = []
        for at, payload in found:
            try:
                entries.append(HistoryEntry(at, self._event(payload)))
            except StateError as error:
                if at not in self._unreadable:  # readers that follow the history come here each time
                    self._unreadable.add(at)
                    _log.warning("event_unreadable", position=at, reason=error.message)
            if len(entries) == limit:
                break
        return entries

    def last_position(self) -> int:
        """Return the newest event's position, 0 if there are no events."""
        (found,) = self._connection.execute("SELECT COALESCE(MAX(position), 0) FROM events").fetchone()
        return int(found)

    def trim(self, now: datetime) -> None:
        """Delete published events that are older than 90 days, and half of the accepted session ends if very many are.

        The table does not have their order, so it is a random half. One that arrives again causes a sync.
        """
        self._connection.execute(
            "DELETE FROM events WHERE time < ? AND published_at IS NOT NULL", (time_text(now - KEPT),)
        )
        (accepted,) = self._connection.execute("SELECT COUNT(*) FROM handled").fetchone()
        if accepted > MOST_ACCEPTED:
            self._connection.execute("DELETE FROM handled WHERE random() % 2 = 0")

    def _exists(self, event_id: str) -> bool:
        return self._connection.execute("SELECT 1 FROM events WHERE event_id = ?", (event_id,)).fetchone() is not None

    def _result(self, payload: bytes) -> SyncResult:
        event = self._event(payload)
        if not isinstance(event, SyncResult):
            raise damaged(f"{event.id} is stored as a result, but is not a result")
        return event

    def _event(self, payload: bytes) -> Event:
        try:
            return self._codec.decode(payload)
        except WireError as error:
            raise damaged(f"an event cannot be read: {error.message}") from error
