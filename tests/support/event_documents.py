"""Checks encoded events against the documents in docs/events: `check(message.data)`."""

import re
from functools import cache
from pathlib import Path

import orjson
import yaml
from jsonschema import Draft202012Validator

from agent.adapters.wire import MAX_EVENT_BYTES
from agent.domain.events import SessionEnded

FOLDER = Path(__file__).parents[2] / "docs" / "events"


def check(raw: bytes) -> None:
    """Assert that the bytes are an event that matches its schema, with the subject of its type's channel."""
    assert len(raw) <= MAX_EVENT_BYTES, f"{len(raw)} bytes"
    event = orjson.loads(raw)
    errors = complaints(event)
    assert not errors, f"{errors}: {event}"
    subject = event.get("subject", "")
    matching = channels(subject)
    assert len(matching) == 1, f"{subject!r} belongs to {matching}"
    [(channel, tokens)] = matching.items()
    names = [message["name"] for message in messages(channel)]
    assert names == [_kind(event)], f"{subject!r} is for {names}"
    if names != [SessionEnded.type]:  # other programs send it, too
        assert event["source"].endswith(f":{tokens['system']}"), f"{subject!r} is not of {event['source']}"
    for parameter, token in tokens.items():
        location = asyncapi()["components"]["parameters"][parameter]["location"]
        assert _at(event, location, token) == token, f"{subject!r} is not where {location} belongs"


def complaints(event: object) -> list[str]:
    """Return the errors of the event against the schema of its type."""
    kind = _kind(event)
    if not (FOLDER / f"{kind}.schema.json").exists():
        return [f"no schema for {kind!r}"]
    return [f"{error.json_path}: {error.message}" for error in validator(kind).iter_errors(event)]


def channels(subject: str) -> dict[str, dict[str, str]]:
    """Return the channels that match a subject, each with the values of its parameters."""
    found = {}
    for name, channel in asyncapi()["channels"].items():
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(channel["address"]))
        if match := re.fullmatch(pattern, subject):
            found[name] = match.groupdict()
    return found


def messages(channel: str) -> list[dict]:
    """Return the messages of a channel."""
    return [resolved(message["$ref"]) for message in asyncapi()["channels"][channel]["messages"].values()]


def resolved(reference: str) -> object:
    """Return the target of a `$ref` of asyncapi.yaml. Raises KeyError or FileNotFoundError if it does not exist."""
    file, _, pointer = reference.partition("#")
    value = orjson.loads((FOLDER / file).read_bytes()) if file else asyncapi()
    for name in pointer.split("/")[1:]:
        value = value[name]
    return value


@cache
def asyncapi() -> dict:
    return yaml.safe_load((FOLDER / "asyncapi.yaml").read_text())


@cache
def validator(kind: str) -> Draft202012Validator:
    """Return the validator of a type. It checks times only if jsonschema's extras are installed."""
    schema = orjson.loads((FOLDER / f"{kind}.schema.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def _kind(event: object) -> str:
    """Return the event's type without its minor version."""
    kind = event.get("type") if isinstance(event, dict) else None
    return re.sub(r"(\.v\d+)\.\d+$", r"\1", kind) if isinstance(kind, str) else ""


def _at(event: dict, location: str, default: str) -> object:
    """Return the event's value at an AsyncAPI runtime expression, or the default if there is none."""
    value = event
    for name in location.removeprefix("$message.payload#/").split("/"):
        if isinstance(value, dict) and name not in value:
            return default
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value
