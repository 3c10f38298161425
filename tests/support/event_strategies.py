"""Hypothesis strategies of events, from the event classes."""

from dataclasses import fields
from datetime import datetime, timedelta, timezone
from string import ascii_letters, ascii_lowercase, digits

from hypothesis import strategies as st

from agent.domain.events import DeliveryOverdue, Event, IngestCompleted, IngestFailed, MethodError, UploadVerified

TEXT = st.text(max_size=30)
METHODS = st.builds(
    str.__add__, st.sampled_from(ascii_lowercase), st.text(ascii_lowercase + digits + "_-", max_size=10)
)
TIMES = st.datetimes(
    min_value=datetime(1950, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
FIELDS = {
    "id": st.text(min_size=1, max_size=40),
    "sender": st.sampled_from(["", "urn:akosha-agent:", "//host:80/a?b=c#d", "session-buddy", "https://a.example/%41"]),
    "caused_by": st.lists(TEXT, max_size=3).map(tuple),
    "time": TIMES,
    "system_id": st.text(ascii_letters + digits + "_-", min_size=1, max_size=100),
    "route": st.lists(METHODS, min_size=1, max_size=3).map(tuple),
    "errors": st.lists(st.builds(MethodError, method=METHODS, error=TEXT), max_size=3).map(tuple),
    "files_uploaded": st.lists(TEXT, max_size=4).map(tuple),
    "removed": st.lists(TEXT, max_size=4).map(tuple),
    "unreadable": st.lists(TEXT, max_size=4).map(tuple),
    "incomplete": st.dictionaries(TEXT, TEXT, max_size=3),
    "upload_id": st.none() | TEXT,
    "error": st.none() | TEXT,
    "retry_at": st.none() | TIMES,
    "bytes_transferred": st.integers(0, 2**53),
    "memories": st.integers(0, 2**53),
    "database_bytes": st.integers(0, 2**53),
    "stored": st.integers(0, 2**53),
    "known": st.integers(0, 2**53),
    "kept_back": st.dictionaries(TEXT, st.integers(0, 2**53), max_size=3),
    "problems": st.dictionaries(TEXT, TEXT, max_size=3),
    "upload_ids": st.lists(TEXT, max_size=3).map(tuple),
    "objects": st.integers(0, 2**53),
    "kept": st.integers(0, 2**53),
    "bytes_freed": st.integers(0, 2**53),
    "leftovers": st.integers(0, 2**53),
    "whole": st.booleans(),
    "deep": st.booleans(),
    "held": st.booleans(),
    "hours": st.floats(0, 8760),
    "databases": st.lists(TEXT, max_size=3).map(tuple),
    "since": TIMES,
    "done_bytes": st.integers(0, 2**53),
    "total_bytes": st.integers(0, 2**53),
    "kept_bytes": st.integers(0, 2**53),
    "duration_seconds": st.floats(0, 1e9),
    "success": st.booleans(),
    "enable_fallback": st.booleans(),
    "upload_reflections": st.booleans(),
    "upload_knowledge_graph": st.booleans(),
    "take_over": st.booleans(),
    "new_target": st.booleans(),
}


def events_of(cls: type[Event]) -> st.SearchStrategy[Event]:
    has_texts = issubclass(cls, IngestCompleted | IngestFailed | UploadVerified | DeliveryOverdue)
    own = {"upload_id": TEXT, "error": TEXT} if has_texts else {}
    return st.builds(cls, **{f.name: {**FIELDS, **own}.get(f.name, TEXT) for f in fields(cls)})
