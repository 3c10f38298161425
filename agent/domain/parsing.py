"""Parses JSON and times of other programs. What is not valid is a ValueError, and nothing else."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

_EARLIEST = datetime.min.replace(tzinfo=UTC) + timedelta(days=2)
_LATEST = datetime.max.replace(tzinfo=UTC) - timedelta(days=2)


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text. Raises ValueError, also for values that are nested too deeply to parse."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can encode a text: JSON may contain lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def aware_time(text: str) -> datetime:
    """Return an ISO 8601 time that has an offset and can be converted to any time zone. Raises ValueError."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"the time {text[:40]!r} has no offset")
    if not _EARLIEST <= at <= _LATEST:
        raise ValueError(f"the time {text[:40]!r} is out of range")
    return at
