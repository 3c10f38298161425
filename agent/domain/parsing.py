"""Parses JSON and times of other programs, and checks the types of fields."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

LARGEST_NUMBER = 2**63 - 1
"""The largest number that the ledger and JSON readers accept."""

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


def expect(document: Mapping[str, object], kind: type, *names: str) -> None:
    """Raise TypeError if a field is not of this type, or a number out of range; KeyError if one is missing."""
    for name in names:
        value = document[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name} is not {kind.__name__}")  # bool is a subclass of int
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise TypeError(f"{name} is out of range")


def expect_optional(document: Mapping[str, object], kind: type, name: str) -> None:
    """Raise TypeError if the field exists, is not null, and is not of this type."""
    if document.get(name) is not None:
        expect(document, kind, name)


def expect_optional_texts(document: Mapping[str, object]) -> None:
    """Raise TypeError unless every field is a string or null."""
    for name in document:
        expect_optional(document, str, name)
