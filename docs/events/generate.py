#!/usr/bin/env python3
"""Makes the documents in this folder out of the event classes: a JSON Schema per event type, and asyncapi.yaml.

    python docs/events/generate.py            writes them
    python docs/events/generate.py --check    exits with 1 and names those that differ

What a class, the codec or the names of subjects say is taken from there; only prose is added here.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

# The patterns themselves, private as they are: a second copy of them could differ.
from agent.adapters.wire import _ENVELOPE, _RFC3339, _URI_REFERENCE, MAX_EVENT_BYTES, CloudEventsCodec
from agent.domain import events
from agent.domain.events import Event
from agent.domain.naming import _METHOD, _SYSTEM_ID

HERE = Path(__file__).resolve().parent
MADE = "Made by docs/events/generate.py from agent/domain/events.py: change the class and run `make events`."
ENDING = ".schema.json"
ASYNCAPI = "asyncapi.yaml"
STREAM = "AKOSHA_SYNC"

PUBLISHED: tuple[type[Event], ...] = tuple(cls for cls in events.ALL if cls is not events.SyncAsked)
"""SyncAsked never leaves the machine."""

SYSTEM, METHOD = "SYSTEM", "a-method"
"""What stands for a system and a method where a class is asked for its subject."""

ENVELOPE = {
    "specversion": "The version of CloudEvents.",
    "id": "Unique per source. It is derived, not drawn at sending: an event that is sent again has the id it had.",
    "source": "Who sent it: the agent of the system that the event is about.",
    "type": "The kind of event. A minor version behind it (`.1`, `.2`) only adds fields.",
    "subject": "The NATS subject that the event belongs to.",
    "time": "When it happened, with an offset; the agent writes UTC.",
    "datacontenttype": "What data is.",
    "data": "The event's own fields. Fields that are not named here are to be passed over: later versions add some.",
}
MSG_ID = (
    "{system_id}.{event id}, or any text that is the event's own. Within its window the stream keeps an event once, "
    "however often it is sent."
)
FOREIGN_SOURCE = "Who sent it: any URI reference. subject and data.system_id say whose session it was."
OPTIONAL = ("subject", "datacontenttype")
"""Attributes that decode does without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """To whom the agent sends an event, from whom it receives it, and the stream that keeps it."""

    send: str | None = None
    receive: str | None = None
    stream: str | None = STREAM


RESULT = Traffic(send="To whoever wants to know, out of the agent's outbox: until the stream has confirmed it.")
INGEST = Traffic(send="By the Akosha side (`akosha-agent react`), to whoever wants to know.")
ARCHIVE = Traffic(send="To whoever wants to know, out of the agent's outbox.")
TRAFFIC: Mapping[type[Event], Traffic] = {
    events.SessionEnded: Traffic(
        receive="From Session-Buddy, or a coding assistant's hook. The agent syncs at once what its target lacks, and "
        "publishes a result that has the event's id in data.caused_by."
    ),
    events.SyncRequested: Traffic(
        send="To itself: to the method that the subject names.",
        receive="From itself alone: a request that bears another's agent_id is refused.",
    ),
    events.SyncSucceeded: RESULT,
    events.SyncSkipped: RESULT,
    events.SyncFailed: RESULT,
    events.IngestCompleted: INGEST,
    events.IngestFailed: INGEST,
    events.UploadVerified: ARCHIVE,
    events.UploadsPruned: ARCHIVE,
    events.SyncProgress: Traffic(send="To whoever watches, up to four times a second.", stream=None),
}


class _Dialect(GenerateJsonSchema):
    """Pydantic's JSON Schema, with what the codec demands of a time beyond it, and no titles that repeat names."""

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> dict[str, Any]:
        return super().datetime_schema(schema) | {"pattern": f"^{_RFC3339.pattern}$"}

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - the base class's signature
        return False


def subject_of(cls: type[Event], *, system: str, method: str) -> str:
    """Return the subject of a class's events, with these texts for the system and the method."""
    known = {"system_id": SYSTEM, "route": (METHOD,)}
    values: dict[str, Any] = {f.name: known.get(f.name) for f in fields(cls)}
    return cls(**values).subject.replace(SYSTEM, system).replace(METHOD, method)


def schema_of(cls: type[Event]) -> dict[str, Any]:
    """Return the JSON Schema of one event type: the whole envelope, requiring exactly what decode demands."""
    made = TypeAdapter(cls).json_schema(schema_generator=_Dialect)
    own = made["properties"]
    sample = events.SessionEnded(id="-", time=datetime.fromtimestamp(0, UTC), system_id=SYSTEM)
    written = json.loads(CloudEventsCodec().encode(sample))
    foreign = cls is events.SessionEnded
    where = "subject" if foreign else "source"
    own["system_id"] |= {"pattern": f"^{_SYSTEM_ID.pattern}$", "description": f"The system in {where}; left out, that."}
    if "route" in own:
        # The first method is a token of the subject; decode looks at no other.
        own["route"] |= {"minItems": 1, "prefixItems": [{"type": "string", "pattern": f"^{_METHOD.pattern}$"}]}
    envelope: dict[str, dict[str, Any]] = {
        "specversion": {"const": written["specversion"]},
        "id": own.pop("id") | {"minLength": 1},
        "source": _matching(written["source"]),
        "type": _matching(cls.type, r"(\.\d+)?"),
        "subject": _matching(subject_of(cls, system=SYSTEM, method=METHOD)),
        "time": own.pop("time"),
        "datacontenttype": _matching(written["datacontenttype"], "( *;.*)?"),
        "data": {
            "type": "object",
            "properties": {name: inner for name, inner in own.items() if name not in _ENVELOPE},
            "required": [name for name in made["required"] if name in own and name != "system_id"],
        },
    }
    texts = ENVELOPE
    if foreign:
        envelope["source"] = {"type": "string", "minLength": 1, "pattern": f"^{_URI_REFERENCE.pattern}$"}
        texts = ENVELOPE | {"source": FOREIGN_SOURCE}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": MADE,
        "title": cls.__name__,
        "description": _doc(cls),
        "type": "object",
        "properties": {name: envelope[name] | {"description": text} for name, text in texts.items()},
        "required": [name for name in ENVELOPE if name not in OPTIONAL],
    } | ({"$defs": made["$defs"]} if "$defs" in made else {})


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI document: where events flow, who sends and receives them, and what is kept."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:akosha-agent",
        "info": {
            "title": "Events of the Akosha agent",
            "version": "1.0.0",
            "description": (
                f"CloudEvents 1.0 in structured JSON mode over NATS, at most {MAX_EVENT_BYTES // 1024} KiB each, "
                "delivered at least once and in order per subject. Drop a result whose source and id you know: "
                "it is sent again, with the id it had, until the stream has confirmed it. A channel's x-stream is the "
                "JetStream stream that keeps its events (limits retention: the oldest are discarded); what flows "
                "where there is none is kept nowhere. Operations are told from the agent's side."
            ),
            "license": {"name": "BSD-3-Clause"},
        },
        "defaultContentType": "application/cloudevents+json",
        "servers": {
            "nats": {
                "host": "{address}",
                "protocol": "nats",
                "description": "Any NATS server with JetStream; the agent's setting is akosha_agent_nats_url.",
                "variables": {"address": {"default": "localhost:4222", "description": "Host and port."}},
            }
        },
        "channels": {_name(cls): _channel(cls) for cls in PUBLISHED},
        "operations": {
            f"{action}{cls.__name__}": {
                "action": action,
                "channel": {"$ref": f"#/channels/{_name(cls)}"},
                "summary": summary,
                "messages": [{"$ref": f"#/channels/{_name(cls)}/messages/{_name(cls)}"}],
            }
            for cls in PUBLISHED
            for action, summary in (("send", TRAFFIC[cls].send), ("receive", TRAFFIC[cls].receive))
            if summary
        },
        "components": {
            "schemas": {
                "headers": {"type": "object", "properties": {"Nats-Msg-Id": {"type": "string", "description": MSG_ID}}}
            },
            "messages": {_name(cls): _message(cls) for cls in PUBLISHED},
            "parameters": {
                "system": {
                    "description": f"The system that the event is about: {_SYSTEM_ID.pattern}",
                    "location": "$message.payload#/data/system_id",
                },
                "method": {
                    "description": f"The method whose turn it is, such as cloud or http: {_METHOD.pattern}",
                    "location": "$message.payload#/data/route/0",
                },
            },
        },
    }


def documents() -> dict[str, str]:
    """Return every document: its file's name and its text."""
    texts = {cls.type + ENDING: json.dumps(schema_of(cls), indent=2, ensure_ascii=False) + "\n" for cls in PUBLISHED}
    body = yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=120)
    return texts | {ASYNCAPI: f"# {MADE}\n{body}"}


def main(arguments: Sequence[str] | None = None, folder: Path = HERE) -> int:
    """Write the documents to `folder`, and away with schemas of types that are gone; or say which of them differ."""
    parser = argparse.ArgumentParser(description="Make the documents of the events.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 and name what differs")
    check = parser.parse_args(arguments).check
    wanted: dict[str, str | None] = {path.name: None for path in folder.glob(f"*{ENDING}")} | documents()
    found = {name: (folder / name).read_text("utf-8") if (folder / name).exists() else None for name in wanted}
    differing = sorted(name for name in wanted if wanted[name] != found[name])
    for name in differing:
        text = wanted[name]
        if check:
            sys.stdout.write(f"{name} differs: run `make events`\n")
        elif text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text, "utf-8")
    return 1 if check and differing else 0


def _channel(cls: type[Event]) -> dict[str, Any]:
    address, stream = subject_of(cls, system="{system}", method="{method}"), TRAFFIC[cls].stream
    named = [name for name in ("system", "method") if f"{{{name}}}" in address]
    return {
        "address": address,
        "description": f"Kept in the stream {stream}." if stream else "Not kept: who does not listen misses it.",
        "servers": [{"$ref": "#/servers/nats"}],
        "parameters": {name: {"$ref": f"#/components/parameters/{name}"} for name in named},
        "messages": {_name(cls): {"$ref": f"#/components/messages/{_name(cls)}"}},
    } | ({"x-stream": stream} if stream else {})


def _message(cls: type[Event]) -> dict[str, Any]:
    message: dict[str, Any] = {"name": cls.type, "title": cls.__name__, "summary": _doc(cls).partition("\n")[0]}
    if TRAFFIC[cls].stream:
        message["headers"] = {"$ref": "#/components/schemas/headers"}
    if any(f.name == "request_id" for f in fields(cls)):
        text = "The request that the event belongs to; its results and its progress have the same."
        message["correlationId"] = {"description": text, "location": "$message.payload#/data/request_id"}
    # Plain, and so read as AsyncAPI's own dialect, which is older: not all parsers take a schemaFormat of 2020-12.
    return message | {"payload": {"$ref": f"./{cls.type}{ENDING}"}}


def _matching(sample: str, ending: str = "") -> dict[str, str]:
    """Return the schema of a text like `sample`, whatever the system and the method in it."""
    pattern = sample.replace(".", r"\.").replace(SYSTEM, _SYSTEM_ID.pattern).replace(METHOD, _METHOD.pattern)
    return {"type": "string", "pattern": f"^{pattern}{ending}$"}


def _doc(cls: type[Event]) -> str:
    """Return what a class and those between it and Event say of themselves, a paragraph a line."""
    told = [inspect.cleandoc(c.__doc__ or "") for c in cls.__mro__ if issubclass(c, Event) and c is not Event]
    return "\n\n".join(" ".join(part.split("\n")) for part in "\n\n".join(told).split("\n\n"))


def _name(cls: type[Event]) -> str:
    return cls.__name__[0].lower() + cls.__name__[1:]


if __name__ == "__main__":
    sys.exit(main())
