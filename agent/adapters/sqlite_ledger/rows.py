"""Converts the domain's values to column values and back. A value that cannot be read raises LedgerDamaged."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from agent.adapters.sqlite_ledger.file import damaged
from agent.domain.databases import FileStat, Fingerprint
from agent.domain.delivery_state import Problem, State
from agent.domain.errors import WireError
from agent.domain.memories import Kind, check_kind
from agent.domain.parsing import parse_json
from agent.domain.upload_parts import Part

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def time_text(at: datetime) -> str:
    """Return an aware time as text of fixed length, so that the texts sort like the times."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def read_time(text: str) -> datetime:
    return _read(text, datetime.fromisoformat)


def optional_time_text(at: datetime | None) -> str | None:
    return None if at is None else time_text(at)


def read_optional_time(text: str | None) -> datetime | None:
    return None if text is None else read_time(text)


def microseconds(at: datetime) -> int:
    """Return an aware time as microseconds since 1970, for tables with many rows."""
    return (at - _EPOCH) // _MICROSECOND


def read_microseconds(number: int) -> datetime:
    return _EPOCH + number * _MICROSECOND


def id_bytes(row_id: str) -> bytes:
    """Return a row's ID as bytes. Ids may come from other programs, so lone surrogates are allowed."""
    return row_id.encode("utf-8", "surrogatepass")


def read_id(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def read_kind(text: str) -> Kind:
    return _read(text, check_kind)


def read_state(text: str) -> State:
    return _read(text, State)


def plain(text: str) -> str:
    """Return the text with characters that UTF-8 cannot encode escaped: an error may quote a path that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_text(value: Mapping[str, object] | Iterable[object]) -> str:
    return json.dumps(value, separators=(",", ":"))


def fingerprint_text(fingerprint: Fingerprint | None) -> str | None:
    return None if fingerprint is None else json_text(asdict(fingerprint))


def read_fingerprint(text: str | None) -> Fingerprint | None:
    return None if text is None else _read(text, lambda found: _fingerprint(parse_json(found)))


def parts_text(parts: Iterable[Part]) -> str:
    return json_text([part.to_document() for part in parts])


def read_parts(text: str) -> tuple[Part, ...]:
    return _read(text, lambda found: tuple(Part.from_document(document) for document in parse_json(found)))


def read_counts(text: str) -> dict[str, int]:
    return _read(text, lambda found: {str(key): int(value) for key, value in parse_json(found).items()})


def read_digests(text: str) -> dict[str, str]:
    return _read(text, lambda found: {str(key): str(value) for key, value in parse_json(found).items()})


def read_names(text: str) -> tuple[str, ...]:
    return _read(text, lambda found: tuple(str(name) for name in parse_json(found)))


def problem_text(problem: Problem | None) -> str | None:
    if problem is None:
        return None
    return json_text(
        {
            "reason": problem.reason,
            "fingerprint": asdict(problem.fingerprint),
            "failures": problem.failures,
            "retry_at": optional_time_text(problem.retry_at),
            "cure": problem.hint,
            "incomplete": problem.incomplete,
        }
    )


def read_problem(text: str | None) -> Problem | None:
    return None if text is None else _read(text, _problem)


def _problem(text: str) -> Problem:
    found = parse_json(text)
    return Problem(
        reason=str(found["reason"]),
        fingerprint=_fingerprint(found["fingerprint"]),
        failures=int(found["failures"]),
        retry_at=read_optional_time(found["retry_at"]),
        hint=str(found.get("cure", "")),
        incomplete=found.get("incomplete") is True,
    )


def _fingerprint(found: Mapping[str, object]) -> Fingerprint:
    files = found["files"]
    if not isinstance(files, list):
        raise TypeError("files is not a list")
    stats = (FileStat(str(f["name"]), int(f["inode"]), int(f["size"]), int(f["mtime_ns"])) for f in files)
    return Fingerprint(files=tuple(stats), header=str(found["header"]))


def _read(text: str, reader: Callable[[str], T]) -> T:
    try:
        return reader(text)
    except (ValueError, TypeError, KeyError, AttributeError, WireError) as error:
        raise damaged(f"the value {text[:80]!r} is invalid ({error})") from error
