"""Events as bytes: CloudEvents 1.0 in structured JSON mode, one codec for every bus, spool and log.

    {"specversion": "1.0", "id": ..., "source": "urn:akosha-agent:{system_id}", "type": "akosha.sync.succeeded.v1",
     "subject": "akosha.sync.{system_id}.succeeded", "time": "2025-06-01T12:00:00+00:00",
     "datacontenttype": "application/json", "data": {"system_id": ..., and the event's own fields}}

Session ends come from other programs, and have the `source` of those; subject and data.system_id say whose session it
was.

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
from agent.domain.events import ALL, Event, SessionEnded
from agent.domain.naming import check_system_id, session_system
from agent.domain.plain_text import shorten

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_EVENT_BYTES = 64 * 1024

_SOURCE = "urn:akosha-agent:"
_ENVELOPE = ("id", "time", "sender")
_MINOR = re.compile(r"(.+\.v\d+)\.\d+")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_URI_REFERENCE = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*:|(?![^/?#]*:))"  # a scheme; without one, the first segment has no colon
    r"([A-Za-z0-9._~:/?\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
    r"(#([A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)?"
)
"""RFC 3986, section 4.1."""

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
            "source": (event.sender if isinstance(event, SessionEnded) else "") or _SOURCE + event.system_id,
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
            # Both rare and real: a file name in a result is not UTF-8. The result must still get out.
            return orjson.dumps(_as_text(envelope))
        except TypeError as error:
            raise WireError(f"an event {event.type} cannot be written as JSON: {error}") from error

    def decode(self, data: bytes, *, subject: str | None = None) -> Event:
        """Return the event that the bytes are. Raises WireError: what is wrong, quoted in brief.

        `subject`: where on the bus it came, for an event whose content does not say to which system it belongs.
        """
        if len(data) > self.max_bytes:
            raise WireError(f"an event of {len(data)} bytes is larger than the {self.max_bytes} allowed")
        try:
            envelope = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise WireError(f"not JSON: {error}") from error
        if not isinstance(envelope, dict):
            raise WireError("not an event: a JSON object is expected")
        cls = self._class_of(envelope)
        inner = envelope.get("data")
        if not isinstance(inner, dict):
            raise WireError(f"{cls.type}: data must be an object")
        source = envelope.get("source")
        given = inner | {"id": envelope["id"], "time": envelope.get("time")}
        if issubclass(cls, SessionEnded):
            given["system_id"] = system_id = _system_of_others(cls, envelope, inner, subject)
            given["sender"] = "" if source == _SOURCE + system_id else source
        else:
            given["system_id"] = system_id = _system_in_source(cls, source)
            if inner.get("system_id", system_id) != system_id:
                raise WireError(
                    f"{cls.type}: data.system_id is {_short(inner['system_id'])}, but source says {system_id!r}"
                )
        event = self._validated(cls, given)
        try:
            belongs = event.subject
        except (NamingError, IndexError) as error:
            raise WireError(f"{cls.type}: no subject can be made of it: {str(error)[:_SHOWN]}") from error
        if envelope.get("subject", belongs) != belongs:
            raise WireError(
                f"{cls.type}: subject is {_short(envelope['subject'])}, but its content belongs to {belongs!r}"
            )
        return event

    def _class_of(self, envelope: Mapping[str, object]) -> type[Event]:
        """Return the event's class, once the envelope has what all events need."""
        version, kind = envelope.get("specversion"), envelope.get("type")
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
        return cls

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
            field_path = ".".join(str(piece) for piece in first["loc"])[:_SHOWN]
            raise WireError(f"{cls.type}: {field_path}: {first['msg']}") from error
        for f in fields(event):
            if isinstance(at := getattr(event, f.name), datetime):
                if not _RFC3339.fullmatch(str(given[f.name])):
                    raise WireError(
                        f"{cls.type}: {f.name} is {_short(given[f.name])}, a date, time and offset are expected"
                    )
                _plain(at, f"{cls.type}: {f.name}")  # what came in must be able to go out again
        return event


def _system_in_source(cls: type[Event], source: object) -> str:
    """Return the system of an event that agents send: its source names it. Raises WireError."""
    if not (isinstance(source, str) and source.startswith(_SOURCE)):
        raise WireError(f"{cls.type}: source is {_short(source)}, {_SOURCE}SYSTEM is expected")
    try:
        return check_system_id(source.removeprefix(_SOURCE))
    except NamingError as error:
        raise WireError(f"{cls.type}: source names no system: {_short(source)}") from error


def _system_of_others(
    cls: type[Event], envelope: Mapping[str, object], data: Mapping[str, object], subject: str | None
) -> str:
    """Return the system of an event that other programs send. Raises WireError where nothing names one.

    data.system_id and subject name it, where they are there (the caller sees that they agree), then the subject that
    the event came on, then a source as agents have it.
    """
    source = envelope.get("source")
    if not (isinstance(source, str) and source and _URI_REFERENCE.fullmatch(source)):
        raise WireError(f"{cls.type}: source is {_short(source)}, a URI reference is expected")
    given = data.get("system_id", "")
    if not isinstance(given, str):
        raise WireError(f"{cls.type}: data.system_id is {_short(given)}, a text is expected")
    try:
        if "system_id" in data:
            return check_system_id(given)
        if (named := envelope.get("subject", subject)) is not None:
            return session_system(str(named))
    except NamingError as error:
        raise WireError(f"{cls.type}: it names no system: {str(error)[:_SHOWN]}") from error
    if source.startswith(_SOURCE):
        return _system_in_source(cls, source)
    raise WireError(f"{cls.type}: whose session it was is not said: give data.system_id or subject")


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
    return shorten(repr(value), _SHOWN)
