"""The OpenAPI document, derived from the routes and their models."""

import re

from pydantic import TypeAdapter

from agent import __version__
from agent.domain.events import ALL, Event, SessionEnded
from agent.entrypoints.control_api.problems import PROBLEM_TYPE, ProblemDocument
from agent.entrypoints.control_api.routes import REF, ROUTES, TEXT, Access, Response, Route, Schema

_ENVELOPE = ("id", "time", "sender")
"""Fields of an event class that are attributes of the CloudEvent; the others are its data."""

_AGENT_SOURCE = "urn:akosha-agent:"


def openapi_document() -> dict[str, object]:
    """Return the OpenAPI document of all routes."""
    components: dict[str, Schema] = {}
    for cls in ALL:
        _add(components, cls.__name__, _cloud_event_schema(cls, _schema_of(cls, components)))
    paths: dict[str, dict[str, object]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "akosha-agent",
            "version": __version__,
            "description": "The control API of a running agent: over the Unix socket control.sock in its state "
            "directory, over a loopback port while the page is open, and over the port akosha_agent_http_port.",
            "license": {"name": "BSD-3-Clause"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A port: its token. The page's address: a session. The socket: nothing.",
                }
            },
        },
    }


def _operation(route: Route, components: dict[str, Schema]) -> dict[str, object]:
    operation: dict[str, object] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "responses": {
            str(status.value): {
                "description": response.description,
                "content": {_content_type(response): {"schema": _reference(response.body, components)}},
            }
            for status, response in sorted(route.responses.items())
        },
    }
    if route.parameters:
        operation["parameters"] = list(route.parameters)
    if route.access is Access.TOKEN:
        operation["security"] = [{"token": []}, {}]
    if route.request_body is not None:
        schema = _reference(route.request_body, components)
        operation["requestBody"] = {"content": {kind: {"schema": schema} for kind in route.content_types}}
    return operation


def _content_type(response: Response) -> str:
    return PROBLEM_TYPE if response.body is ProblemDocument else response.content_type


def _reference(body: type | Schema, components: dict[str, Schema]) -> Schema:
    """Return a schema unchanged; for a model, add it to the components and return a reference to it."""
    if not isinstance(body, type):
        return body
    _add(components, body.__name__, _schema_of(body, components))
    return {"$ref": REF.format(model=body.__name__)}


def _schema_of(cls: type, components: dict[str, Schema]) -> dict[str, object]:
    """Return pydantic's schema of a class; add the classes it refers to to the components."""
    schema: dict[str, object] = TypeAdapter(cls).json_schema(ref_template=REF, mode="serialization")
    for name, inner in _mapping(schema.pop("$defs", {})).items():
        _add(components, name, _mapping(inner))
    return schema


def _cloud_event_schema(cls: type[Event], schema: Schema) -> Schema:
    """Return the schema of a structured CloudEvent: ID and time are attributes, all other fields are in `data`."""
    fields, required = _mapping(schema["properties"]), schema["required"]
    assert isinstance(required, list)
    source = {"minLength": 1} if cls is SessionEnded else {"pattern": f"^{re.escape(_AGENT_SOURCE)}"}
    return {
        "type": "object",
        "description": schema.get("description", ""),
        "properties": {
            "specversion": {"type": "string", "pattern": r"^1\.[0-9]+$"},
            "id": fields["id"],
            "source": {"type": "string", **source},
            "type": {"type": "string", "pattern": rf"^{re.escape(cls.type)}(\.[0-9]+)?$"},
            "subject": TEXT,
            "time": fields["time"],
            "datacontenttype": TEXT,
            "data": {
                "type": "object",
                "properties": {name: field for name, field in fields.items() if name not in _ENVELOPE},
                "required": [name for name in required if name not in (*_ENVELOPE, "system_id")],
            },
        },
        "required": ["specversion", "id", "source", "type", "time", "data"],
    }


def _mapping(value: object) -> Schema:
    assert isinstance(value, dict)
    return value


def _add(components: dict[str, Schema], name: str, schema: Schema) -> None:
    assert components.get(name, schema) == schema, f"two schemas have the name {name}"
    components[name] = schema
