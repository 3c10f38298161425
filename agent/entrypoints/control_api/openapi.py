"""The OpenAPI document, made from the routes that are served and from the classes that flow through them."""

import re
from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter

from agent import __version__
from agent.application.monitoring.status import Status
from agent.domain.events import ALL, Event, SessionEnded, SyncAsked
from agent.entrypoints.control_api.route import Answer, Route, Schema

_REF = "#/components/schemas/{model}"
_OUTSIDE = ("id", "time", "sender")
"""Fields of an event's class that stand in the envelope; the others are its data."""

SOURCE = "urn:akosha-agent:"
_TAKEN = (SessionEnded, SyncAsked)

_PROBLEM = {
    "type": "object",
    "description": "What is wrong, and what mends it (RFC 9457).",
    "properties": {
        "title": {"type": "string"},
        "detail": {"type": "string"},
        "hint": {"type": "string", "description": "The command or setting that mends it; empty where there is none."},
        "status": {"type": "integer"},
    },
    "required": ["title", "detail", "hint", "status"],
    "additionalProperties": False,
}


_RESULT = {
    "type": "object",
    "description": "What became of a request: the documented fields of a result, and the agent's own.",
    "properties": {
        "method": {"type": "string"},
        "success": {"type": "boolean"},
        "files_uploaded": {"type": "array", "items": {"type": "string"}, "description": "Keys."},
        "bytes_transferred": {"type": "integer"},
        "duration_seconds": {"type": "number"},
        "upload_id": {"type": ["string", "null"]},
        "error": {"type": ["string", "null"]},
        "triggered_by": {"type": "string"},
        "caused_by": {"type": "array", "items": {"type": "string"}, "description": "Ids of the session ends answered."},
        "request_id": {"type": "string"},
        "outcome": {"enum": ["succeeded", "skipped", "failed"]},
        "hint": {"type": ["string", "null"], "description": "What mends it."},
        "location": {"type": "string"},
        "incomplete": {"type": "object", "additionalProperties": {"type": "string"}},
        "memories": {"type": "integer"},
        "why": {"type": "string", "description": "Of one that was skipped."},
        "errors": {
            "type": "array",
            "items": {"type": "object", "properties": {"method": {"type": "string"}, "error": {"type": "string"}}},
        },
        "retry_at": {"type": ["string", "null"], "format": "date-time"},
    },
    "required": ["method", "success", "files_uploaded", "bytes_transferred", "duration_seconds", "upload_id", "error",
                 "triggered_by", "caused_by", "request_id", "outcome", "hint"],
    "additionalProperties": False,
}  # fmt: skip


def document(routes: Sequence[Route]) -> dict[str, object]:
    """Return the document."""
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        place = paths.setdefault(route.path, {})
        place[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "akosha-agent",
            "version": __version__,
            "description": "The control API of a running agent: over the Unix socket control.sock in its state "
            "directory, and over a loopback port where akosha_agent_http_port is set.",
            "license": {"name": "BSD-3-Clause"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Over the port; the socket needs none."}
            },
        },
    }


def _operation(route: Route) -> dict[str, object]:
    operation: dict[str, object] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {str(status.value): _response(told) for status, told in sorted(route.told.items())},
    }
    if route.parameters:
        operation["parameters"] = [
            {"name": one.name, "in": one.place, "description": one.description, "schema": one.schema}
            | ({"required": True} if one.place == "path" else {})
            for one in route.parameters
        ]
    if route.changes:
        operation["security"] = [{"token": []}, {}]
        operation["requestBody"] = {"content": {kind: {"schema": route.body} for kind in route.takes}}
    return operation


def _response(told: Answer) -> dict[str, object]:
    return {"description": told.description, "content": {told.content_type: {"schema": told.schema}}}


def _schemas() -> dict[str, Schema]:
    schemas: dict[str, Schema] = {"Problem": _PROBLEM, "Result": _RESULT}
    for cls in ALL:
        _add(schemas, cls.__name__, _enveloped(cls, _made(cls, schemas)))
    status = _made(Status, schemas)
    more = {
        "running": {"type": ["object", "null"], "description": "Who holds the state directory."},
        "problem": {"type": "string", "description": "Why the databases cannot be seen; empty where they can."},
        "sync_enabled": {"type": "boolean"},
        "data_dir": {"type": "string"},
        "state_dir": {"type": "string"},
    }
    properties = {**_part(status, "properties"), **more}
    _add(schemas, "Status", {**status, "properties": properties, "required": sorted(properties)})
    _add(schemas, "TakenEvent", {"oneOf": [{"$ref": _REF.format(model=cls.__name__)} for cls in _TAKEN]})
    return schemas


def _made(cls: type, schemas: dict[str, Schema]) -> dict[str, object]:
    """Return pydantic's schema of a class; those it refers to are put among the others."""
    made: dict[str, object] = TypeAdapter(cls).json_schema(ref_template=_REF)
    for name, inner in _part(made, "$defs").items():
        assert isinstance(inner, dict)
        _add(schemas, name, inner)
    return {name: inner for name, inner in made.items() if name != "$defs"}


def _enveloped(cls: type[Event], made: Schema) -> Schema:
    """Return the schema of a structured CloudEvent: id and time outside, the event's own fields in data."""
    own = _part(made, "properties")
    required = made.get("required")
    assert isinstance(required, list)
    return {
        "type": "object",
        "description": made.get("description", ""),
        "properties": {
            "specversion": {"type": "string", "pattern": r"^1\.[0-9]+$"},
            "id": own["id"],
            "source": {"type": "string", "minLength": 1}
            if cls is SessionEnded
            else {"type": "string", "pattern": f"^{re.escape(SOURCE)}"},
            "type": {"type": "string", "pattern": rf"^{re.escape(cls.type)}(\.[0-9]+)?$"},
            "subject": {"type": "string"},
            "time": own["time"],
            "datacontenttype": {"type": "string"},
            "data": {
                "type": "object",
                "properties": {name: inner for name, inner in own.items() if name not in _OUTSIDE},
                "required": [name for name in required if name not in (*_OUTSIDE, "system_id")],
            },
        },
        "required": ["specversion", "id", "source", "type", "time", "data"],
    }


def _part(schema: Schema, name: str) -> Mapping[str, object]:
    part = schema.get(name, {})
    assert isinstance(part, dict)
    return part


def _add(schemas: dict[str, Schema], name: str, schema: Schema) -> None:
    assert schemas.get(name, schema) == schema, f"two schemas of the name {name}"
    schemas[name] = schema
