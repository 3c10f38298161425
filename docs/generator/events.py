"""The events: what docs/events/generate.py says about each class, as a page."""

from collections.abc import Iterator
from typing import Any

from docs.events.generate import ASYNCAPI, ENDING, PUBLISHED, TRAFFIC, schema_of, subject_of
from docs.generator.markdown import code, fields, page, table

FOLDER = "../events"
INTRODUCTION = f"""\
[Events](../events/README.md) explains how to receive events and how to report the end of a session. Each type has a
JSON Schema; [{ASYNCAPI}]({FOLDER}/{ASYNCAPI}) is the AsyncAPI 3.0 document of all types.

Every event is a CloudEvent with these attributes."""


def text() -> str:
    """Return the page."""
    overview = [
        (f"[`{cls.type}`](#{_anchor(cls.type)})", code(_subject(cls)), "yes" if TRAFFIC[cls].stream else "no")
        for cls in PUBLISHED
    ]
    blocks = [INTRODUCTION, _attributes(), "## Types", table(("type", "subject", "kept in the stream"), overview)]
    definitions: dict[str, Any] = {}
    for cls in PUBLISHED:
        schema = schema_of(cls)
        definitions |= schema.get("$defs", {})
        blocks += _event(cls, schema)
    for name, schema in definitions.items():
        blocks += [f"## {name}", schema["description"], fields(schema)]
    return page("Event types", "agent/domain/events.py", *blocks)


def _event(cls: type[Any], schema: dict[str, Any]) -> Iterator[str]:
    yield f"## {cls.type}"
    yield schema["description"]
    traffic = TRAFFIC[cls]
    lines = [f"- Subject: `{_subject(cls)}`"]
    lines += [f"- Sent: {traffic.send}"] if traffic.send else []
    lines += [f"- Received: {traffic.receive}"] if traffic.receive else []
    lines.append(f"- Schema: [{cls.type}{ENDING}]({FOLDER}/{cls.type}{ENDING})")
    yield "\n".join(lines)
    yield "Fields of `data`:"
    yield fields(schema["properties"]["data"])


def _attributes() -> str:
    schema = schema_of(PUBLISHED[1])
    rows = [(code(name), attribute["description"]) for name, attribute in schema["properties"].items()]
    return table(("attribute", "meaning"), rows)


def _subject(cls: type[Any]) -> str:
    return subject_of(cls, system="{system}", method="{method}")


def _anchor(heading: str) -> str:
    return heading.replace(".", "")
