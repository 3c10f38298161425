"""The documents in docs/events, held against what is seen on the wire.

check(message.data)
"""

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
    """Assert that the bytes are an event as its schema says, and its subject that of its type's channel, and right."""
    assert len(raw) <= MAX_EVENT_BYTES, f"{len(raw)} bytes"
    event = orjson.loads(raw)
    wrong = complaints(event)
    assert not wrong, f"{wrong}: {event}"
    subject = event.get("subject", "")
    places = channels(subject)
    assert len(places) == 1, f"{subject!r} belongs to {places}"
    [(channel, tokens)] = places.items()
    names = [message["name"] for message in messages(channel)]
    assert names == [_kind(event)], f"{subject!r} is for {names}"
    if names != [SessionEnded.type]:  # which others send, too
        assert event["source"].endswith(f":{tokens['system']}"), f"{subject!r} is not of {event['source']}"
    for parameter, token in tokens.items():
        location = asyncapi()["components"]["parameters"][parameter]["location"]
        assert _at(event, location, token) == token, f"{subject!r} is not where {location} belongs"


def complaints(event: object) -> list[str]:
    """Return what the schema of the event's type says against it."""
    kind = _kind(event)
    if not (FOLDER / f"{kind}.schema.json").exists():
        return [f"no schema for {kind!r}"]
    return [f"{error.json_path}: {error.message}" for error in validator(kind).iter_errors(event)]


def channels(subject: str) -> dict[str, dict[str, str]]:
    """Return the channels that a subject belongs to, each with its parameters as they stand in it."""
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
    """Return what a `$ref` of asyncapi.yaml stands for; KeyError or FileNotFoundError where that is nothing."""
    file, _, pointer = reference.partition("#")
    place = orjson.loads((FOLDER / file).read_bytes()) if file else asyncapi()
    for piece in pointer.split("/")[1:]:
        place = place[piece]
    return place


@cache
def asyncapi() -> dict:
    return yaml.safe_load((FOLDER / "asyncapi.yaml").read_text())


@cache
def validator(kind: str) -> Draft202012Validator:
    """Return the validator of a type. Times are held to the calendar only where jsonschema's extras are installed."""
    schema = orjson.loads((FOLDER / f"{kind}.schema.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def _kind(event: object) -> str:
    """Return the event's type without its minor version."""
    kind = event.get("type") if isinstance(event, dict) else None
    return re.sub(r"(\.v\d+)\.\d+$", r"\1", kind) if isinstance(kind, str) else ""


def _at(event: dict, location: str, default: str) -> object:
    """Return what an AsyncAPI runtime expression finds in the event, or the default where there is nothing."""
    place = event
    for piece in location.removeprefix("$message.payload#/").split("/"):
        if isinstance(place, dict) and piece not in place:
            return default
        place = place[int(piece)] if isinstance(place, list) else place[piece]
    return place
