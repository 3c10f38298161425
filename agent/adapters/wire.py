"""Events as bytes: CloudEvents 1.0 in structured JSON mode, one codec for every bus, spool and log.

    {"specversion": "1.0", "id": ..., "source": "urn:akosha-agent:{system_id}", "type": "akosha.sync.succeeded.v1",
     "subject": "akosha.sync.{system_id}.succeeded", "time": "2025-06-01T12:00:00+00:00",
     "datacontenttype": "application/json", "data": {"system_id": ..., and the event's own fields}}

What comes in is validated strictly: a text is never taken for a number, nor a time without an offset for a time.
Fields that we do not know, and minor versions of a type newer than ours (`.v1.2`), are tolerated: they only add.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

from agent.domain.errors import NamingError, WireError
from agent.domain.events import ALL, Event
from agent.domain.naming import check_system_id

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_EVENT_BYTES = 64 * 1024

_SOURCE = "urn:akosha-agent:"
_ENVELOPE = ("id", "time")
_MINOR = re.compile(r"(.+\.v\d+)\.\d+")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_SHOWN = 80


class CloudEventsCodec:
    """Encodes and decodes every class of `agent.domain.events.ALL`; what it refuses is a WireError that says why.

    `max_bytes` bounds what `decode` looks at. Stateless but for the validators, which are built at the first decoding.
    """

    def __init__(self, *, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_bytes = max_bytes
        self._classes: Mapping[str, type[Event]] = {cls.type: cls for cls in ALL}
        self._validators: dict[str, TypeAdapter[Event]] = {}

    def encode(self, event: Event) -> bytes:
        """Return the event as bytes: times in UTC, what is no Unicode text (a lone surrogate) as its escape.

        Raises WireError for a time without an offset and for numbers that JSON does not have.
        """
        data = {f.name: _plain(getattr(event, f.name), f.name) for f in fields(event) if f.name not in _ENVELOPE}
        envelope = {
            "specversion": "1.0",
            "id": event.id,
            "source": _SOURCE + event.system_id,
            "type": event.type,
            "subject": event.subject,
            "time": _plain(event.time, "time"),
            "datacontenttype": "application/json",
            "data": data,
        }
        try:
            return orjson.dumps(envelope)
        except TypeError:
            pass
        try:
            # Both rare and real: a file name that is not UTF-8 stands in a result. The result must still get out.
            return orjson.dumps(_as_text(envelope))
        except TypeError as error:
            raise WireError(f"an event {event.type} cannot be written as JSON: {error}") from error

    def decode(self, data: bytes) -> Event:
        """Return the event that the bytes are. Raises WireError: what is wrong, quoted in brief."""
        if len(data) > self.max_bytes:
            raise WireError(f"an event of {len(data)} bytes is larger than the {self.max_bytes} allowed")
        try:
            envelope = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise WireError(f"not JSON: {error}") from error
        if not isinstance(envelope, dict):
            raise WireError("not an event: a JSON object is expected")
        cls, system_id = self._opened(envelope)
        inner = envelope.get("data")
        if not isinstance(inner, dict):
            raise WireError(f"{cls.type}: data must be an object")
        if inner.get("system_id", system_id) != system_id:
            raise WireError(
                f"{cls.type}: data.system_id is {_short(inner['system_id'])}, but source says {system_id!r}"
            )
        given = inner | {"id": envelope["id"], "time": envelope.get("time"), "system_id": system_id}
        event = self._validated(cls, given)
        try:
            subject = event.subject
        except (NamingError, IndexError) as error:
            raise WireError(f"{cls.type}: no subject can be made of it: {str(error)[:_SHOWN]}") from error
        if envelope.get("subject", subject) != subject:
            raise WireError(
                f"{cls.type}: subject is {_short(envelope['subject'])}, but its content belongs to {subject!r}"
            )
        return event

    def _opened(self, envelope: Mapping[str, object]) -> tuple[type[Event], str]:
        """Return the event's class and system, as the envelope has them."""
        version, kind, source = envelope.get("specversion"), envelope.get("type"), envelope.get("source")
        if not (isinstance(version, str) and re.fullmatch(r"1\.\d+", version)):
            raise WireError(f"not a CloudEvent 1.0: specversion is {_short(version)}")
        if not isinstance(kind, str):
            raise WireError(f"type is {_short(kind)}, a text is expected")
        minor = _MINOR.fullmatch(kind)
        cls = self._classes.get(minor[1] if minor else kind)
        if cls is None:
            raise WireError(f"unknown event type {_short(kind)}")
        if not (isinstance(envelope.get("id"), str) and envelope["id"]):
            raise WireError(f"{cls.type}: id is {_short(envelope.get('id'))}, a text is expected")
        content = envelope.get("datacontenttype", "application/json")
        if not (isinstance(content, str) and content.partition(";")[0].strip().lower() == "application/json"):
            raise WireError(f"{cls.type}: datacontenttype is {_short(content)}, application/json is expected")
        if not (isinstance(source, str) and source.startswith(_SOURCE)):
            raise WireError(f"{cls.type}: source is {_short(source)}, {_SOURCE}SYSTEM is expected")
        try:
            return cls, check_system_id(source.removeprefix(_SOURCE))
        except NamingError as error:
            raise WireError(f"{cls.type}: source names no system: {_short(source)}") from error

    def _validated(self, cls: type[Event], given: Mapping[str, object]) -> Event:
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - those who only encode do without its weight

        validator = self._validators.get(cls.type)
        if validator is None:
            validator = self._validators[cls.type] = TypeAdapter(cls)
        try:
            # As JSON once more: only there does strict validation know that an array may be a tuple.
            event = validator.validate_json(orjson.dumps(given), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(piece) for piece in first["loc"])[:_SHOWN]
            raise WireError(f"{cls.type}: {place}: {first['msg']}") from error
        for f in fields(event):
            if isinstance(at := getattr(event, f.name), datetime):
                if not _RFC3339.fullmatch(str(given[f.name])):
                    raise WireError(
                        f"{cls.type}: {f.name} is {_short(given[f.name])}, a date, time and offset are expected"
                    )
                _plain(at, f"{cls.type}: {f.name}")  # what came in must be able to go out again
        return event


def _plain(value: object, name: str) -> object:
    """Return a field as orjson should see it. Raises WireError for what JSON would silently lose."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise WireError(f"{name} has no offset")
        try:
            return value.astimezone(UTC)
        except OverflowError as error:
            raise WireError(f"{name} is out of range") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise WireError(f"{name} is not a finite number")
    return value


def _as_text(value: object) -> object:
    """Return the value with every text made encodable."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_as_text(key): _as_text(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_text(inner) for inner in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _as_text(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
