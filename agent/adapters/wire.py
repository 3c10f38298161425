"""The codec for events: CloudEvents 1.0 in structured JSON mode, used by every bus, the spool and the ledger.

    {"specversion": "1.0", "id": ..., "source": "urn:akosha-agent:{system_id}", "type": "akosha.sync.succeeded.v1",
     "subject": "akosha.sync.{system_id}.succeeded", "time": "2025-06-01T12:00:00+00:00",
     "datacontenttype": "application/json", "data": {"system_id": ..., and the event's own fields}}

Session ends come from other programs and have their `source`; subject and data.system_id name the session's system.

Decoding validates strictly: a string is not accepted as a number, nor a time without an offset. Unknown fields and
newer minor versions of a type (`.v1.2`) are accepted, because they only add fields.
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
    """Encodes and decodes every class of `agent.domain.events.ALL`. Raises WireError with the reason.

    `max_bytes` limits the input of `decode`. The validators are built at the first decoding; there is no other state.
    """

    def __init__(self, *, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_bytes = max_bytes
        self._classes: Mapping[str, type[Event]] = {cls.type: cls for cls in ALL}
        self._validators: dict[str, TypeAdapter[Event]] = {}

    def encode(self, event: Event) -> bytes:
        """Return the encoded event: times in UTC, characters that UTF-8 cannot encode (lone surrogates) as escapes.

        Raises WireError for a time without an offset and for a number that JSON does not support.
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
            # A file name in a result may not be UTF-8. The result must be published nevertheless.
            return orjson.dumps(_as_text(envelope))
        except TypeError as error:
            raise WireError(f"the event {event.type} cannot be encoded as JSON: {error}") from error

    def decode(self, data: bytes, *, subject: str | None = None) -> Event:
        """Return the decoded event. Raises WireError with the invalid value, shortened.

        `subject`: the subject of the message, for an event whose content does not name its system.
        """
        if len(data) > self.max_bytes:
            raise WireError(f"an event of {len(data)} bytes is larger than the {self.max_bytes} allowed")
        try:
            envelope = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise WireError(f"not JSON: {error}") from error
        if not isinstance(envelope, dict):
            raise WireError("not an event: expected a JSON object")
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
            own_subject = event.subject
        except (NamingError, IndexError) as error:
            raise WireError(f"{cls.type}: its content has no valid subject: {str(error)[:_SHOWN]}") from error
        if envelope.get("subject", own_subject) != own_subject:
            raise WireError(
                f"{cls.type}: subject is {_short(envelope['subject'])}, but its content belongs to {own_subject!r}"
            )
        return event

    def _class_of(self, envelope: Mapping[str, object]) -> type[Event]:
        """Check the envelope and return the event's class."""
        version, kind = envelope.get("specversion"), envelope.get("type")
        if not (isinstance(version, str) and re.fullmatch(r"1\.\d+", version)):
            raise WireError(f"not a CloudEvent 1.0: specversion is {_short(version)}")
        if not isinstance(kind, str):
            raise WireError(f"type is {_short(kind)}, expected a string")
        minor = _MINOR.fullmatch(kind)
        cls = self._classes.get(minor[1] if minor else kind)
        if cls is None:
            raise WireError(f"unknown event type {_short(kind)}")
        if not (isinstance(envelope.get("id"), str) and envelope["id"]):
            raise WireError(f"{cls.type}: id is {_short(envelope.get('id'))}, expected a string")
        content = envelope.get("datacontenttype", "application/json")
        if not (isinstance(content, str) and content.partition(";")[0].strip().lower() == "application/json"):
            raise WireError(f"{cls.type}: datacontenttype is {_short(content)}, expected application/json")
        return cls

    def _validated(self, cls: type[Event], given: Mapping[str, object]) -> Event:
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - slow to import, and encoding does not need it

        validator = self._validators.get(cls.type)
        if validator is None:
            validator = self._validators[cls.type] = TypeAdapter(cls)
        try:
            # Encode to JSON again: strict validation accepts an array as a tuple in JSON only.
            event = validator.validate_json(orjson.dumps(given), strict=True)
        except TypeError as error:  # orjson reads values nested more deeply than it writes
            raise WireError(f"{cls.type}: data is nested too deeply") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field_path = ".".join(str(piece) for piece in first["loc"])[:_SHOWN]
            raise WireError(f"{cls.type}: {field_path}: {first['msg']}") from error
        for f in fields(event):
            if isinstance(at := getattr(event, f.name), datetime):
                if not _RFC3339.fullmatch(str(given[f.name])):
                    raise WireError(
                        f"{cls.type}: {f.name} is {_short(given[f.name])}, expected a date, time and offset"
                    )
                _plain(at, f"{cls.type}: {f.name}")  # a decoded event must be encodable
        return event


def _system_in_source(cls: type[Event], source: object) -> str:
    """Return the system that the source of an agent's event names. Raises WireError."""
    if not (isinstance(source, str) and source.startswith(_SOURCE)):
        raise WireError(f"{cls.type}: source is {_short(source)}, expected {_SOURCE}SYSTEM")
    try:
        return check_system_id(source.removeprefix(_SOURCE))
    except NamingError as error:
        raise WireError(f"{cls.type}: source names no system: {_short(source)}") from error


def _system_of_others(
    cls: type[Event], envelope: Mapping[str, object], data: Mapping[str, object], subject: str | None
) -> str:
    """Return the system of an event from another program. Raises WireError if the event does not name one.

    The system is taken from data.system_id, else from the event's subject (the caller checks that they agree), else
    from the subject of the message, else from a source like an agent's.
    """
    source = envelope.get("source")
    if not (isinstance(source, str) and source and _URI_REFERENCE.fullmatch(source)):
        raise WireError(f"{cls.type}: source is {_short(source)}, expected a URI reference")
    given = data.get("system_id", "")
    if not isinstance(given, str):
        raise WireError(f"{cls.type}: data.system_id is {_short(given)}, expected a string")
    try:
        if "system_id" in data:
            return check_system_id(given)
        if (named := envelope.get("subject", subject)) is not None:
            return session_system(str(named))
    except NamingError as error:
        raise WireError(f"{cls.type}: it names no system: {str(error)[:_SHOWN]}") from error
    if source.startswith(_SOURCE):
        return _system_in_source(cls, source)
    raise WireError(f"{cls.type}: the session's system is missing: set data.system_id or subject")


def _plain(value: object, name: str) -> object:
    """Return a field's value for orjson. Raises WireError for a value that JSON would silently lose."""
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
    """Return the value with every string made encodable as UTF-8."""
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
