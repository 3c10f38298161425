"""The routes of the control API, and the OpenAPI document derived from them and their models."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agent import __version__
from agent.domain.events import ALL, Event, SessionEnded, SyncAsked
from agent.entrypoints.control_api.problems import PROBLEM_TYPE, ProblemDocument
from agent.entrypoints.control_api.sse import EVENT_STREAM
from agent.entrypoints.result_document import ResultDocument
from agent.entrypoints.status_document import StatusDocument

JSON = "application/json"
CLOUD_EVENT = "application/cloudevents+json"

Schema = Mapping[str, object]

_REF = "#/components/schemas/{model}"
_ENVELOPE = ("id", "time", "sender")
"""Fields of an event class that are attributes of the CloudEvent; the others are its data."""

_AGENT_SOURCE = "urn:akosha-agent:"
_TEXT: Schema = {"type": "string"}
_POSITION: Schema = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_RECEIVED_EVENT: Schema = {"oneOf": [{"$ref": _REF.format(model=cls.__name__)} for cls in (SessionEnded, SyncAsked)]}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SyncOrder(_Model):
    """Options of a sync. A repeated `id` has no effect."""

    id: str = Field(
        default="", pattern=r"^[A-Za-z0-9._:-]{0,128}$", description="Id of the request; generated if empty."
    )
    method: str = Field(default="auto", pattern="^(auto|cloud|http)$", description="auto follows the settings.")
    enable_fallback: bool = Field(default=True, description="Whether to try the next method if one fails.")
    upload_reflections: bool = True
    upload_knowledge_graph: bool = True


class SyncAccepted(_Model):
    """The sync is requested."""

    request_id: str
    accepted: Literal[True]


class EventAccepted(_Model):
    """The event is accepted."""

    id: str
    new: bool = Field(description="False if an event with this id was accepted before.")


class Healthy(_Model):
    """Nothing is stuck."""

    status: Literal["ok"]


class Unhealthy(_Model):
    """Something is stuck, or the agent is still starting."""

    status: Literal["stuck", "starting"]
    trouble: dict[str, str] = Field(description="Stuck components, with the reason.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response: its meaning, and its body as a model or schema."""

    description: str
    body: type | Schema = ProblemDocument
    content_type: str = JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route. `handler` is the name of a method of `ControlApp`; `parameters` are OpenAPI's.

    GET is also served as HEAD. POST needs the token over the port.
    """

    method: str
    path: str
    handler: str
    operation_id: str
    summary: str
    responses: Mapping[HTTPStatus, Response]
    parameters: tuple[Mapping[str, object], ...] = ()
    request_body: type | Schema | None = None
    content_types: tuple[str, ...] = ()

    @property
    def query_parameters(self) -> tuple[str, ...]:
        """Names of the query parameters."""
        return tuple(str(parameter["name"]) for parameter in self.parameters if parameter["in"] == "query")


_PROBLEMS = {
    HTTPStatus.BAD_REQUEST: Response(description="The request is malformed; see `detail`."),
    HTTPStatus.FORBIDDEN: Response(description="Over the port: Host or Origin is not this agent's."),
    HTTPStatus.INTERNAL_SERVER_ERROR: Response(description="An internal error; see the agent's log."),
    HTTPStatus.SERVICE_UNAVAILABLE: Response(
        description="The ledger or the bus is unavailable, or there are too many connections or event readers."
    ),
}
_CHANGE_PROBLEMS = _PROBLEMS | {
    HTTPStatus.UNAUTHORIZED: Response(description="Over the port: the token is missing or wrong."),
    HTTPStatus.REQUEST_TIMEOUT: Response(description="The body was not received in time."),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Response(description="The body is larger than 64 KiB."),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: Response(
        description="The Content-Type is not supported, or the body is compressed."
    ),
}
_HEALTH_RESPONSES = _PROBLEMS | {
    HTTPStatus.OK: Response(description="Nothing is stuck.", body=Healthy),
    HTTPStatus.SERVICE_UNAVAILABLE: Response(
        description="Something is stuck, or the agent is starting.", body=Unhealthy
    ),
}

ROUTES = (
    Route(
        method="GET",
        path="/v1/status",
        handler="status",
        operation_id="getStatus",
        summary="The document of `akosha-agent status --json`.",
        responses=_PROBLEMS | {HTTPStatus.OK: Response(description="The status.", body=StatusDocument)},
    ),
    Route(
        method="POST",
        path="/v1/sync",
        handler="sync",
        operation_id="requestSync",
        summary="Request a sync now. Its result is an event with the same request_id.",
        request_body=SyncOrder,
        content_types=(JSON,),
        responses=_CHANGE_PROBLEMS
        | {
            HTTPStatus.ACCEPTED: Response(description="Requested, now or before with the same id.", body=SyncAccepted),
            HTTPStatus.CONFLICT: Response(description="Refused; see `detail`."),
        },
    ),
    Route(
        method="GET",
        path="/v1/sync/{request_id}",
        handler="result",
        operation_id="getResult",
        summary="The result of a sync request from any source.",
        parameters=({"name": "request_id", "in": "path", "required": True, "description": "Id.", "schema": _TEXT},),
        responses=_PROBLEMS
        | {
            HTTPStatus.OK: Response(description="The result.", body=ResultDocument),
            HTTPStatus.NOT_FOUND: Response(description="No result: the request is in progress, or unknown."),
        },
    ),
    Route(
        method="POST",
        path="/v1/events",
        handler="receive_event",
        operation_id="sendEvent",
        summary="Report the end of a session, or request a sync, as one structured CloudEvent.",
        request_body=_RECEIVED_EVENT,
        content_types=(CLOUD_EVENT, JSON),
        responses=_CHANGE_PROBLEMS
        | {HTTPStatus.ACCEPTED: Response(description="The event is accepted.", body=EventAccepted)},
    ),
    Route(
        method="GET",
        path="/v1/events",
        handler="events",
        operation_id="followEvents",
        summary="Events as they happen, as server-sent events. `id` is the position in the history, `event` the "
        "CloudEvents type, `data` the CloudEvent. Without a start position, the stream begins with the `id` of the "
        "current position. Progress events have no `id` and are not repeated. A comment is sent every 15 s.",
        parameters=(
            {
                "name": "after",
                "in": "query",
                "description": "Begin after this position in the history; 0 sends all of it. Default: new events only.",
                "schema": _POSITION,
            },
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "Like `after`, sent by a reader that reconnects; takes precedence over `after`.",
                "schema": _POSITION,
            },
        ),
        responses=_PROBLEMS
        | {HTTPStatus.OK: Response(description="An endless stream.", body=_TEXT, content_type=EVENT_STREAM)},
    ),
    Route(
        method="GET",
        path="/metrics",
        handler="metrics",
        operation_id="getMetrics",
        summary="Metrics for Prometheus.",
        responses=_PROBLEMS
        | {HTTPStatus.OK: Response(description="Prometheus text format.", body=_TEXT, content_type="text/plain")},
    ),
    Route(
        method="GET",
        path="/healthz",
        handler="health",
        operation_id="getHealth",
        summary="Whether nothing is stuck.",
        responses=_HEALTH_RESPONSES,
    ),
    Route(
        method="GET",
        path="/readyz",
        handler="readiness",
        operation_id="getReadiness",
        summary="Whether the agent watches, accepts requests, and nothing is stuck.",
        responses=_HEALTH_RESPONSES,
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler="openapi",
        operation_id="getOpenApi",
        summary="This document.",
        responses=_PROBLEMS | {HTTPStatus.OK: Response(description="This document.", body={"type": "object"})},
    ),
)


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
            "directory, and over a loopback port if akosha_agent_http_port is set.",
            "license": {"name": "BSD-3-Clause"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Only for the port, not for the socket."}
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
    if route.request_body is not None:
        schema = _reference(route.request_body, components)
        operation["security"] = [{"token": []}, {}]
        operation["requestBody"] = {"content": {kind: {"schema": schema} for kind in route.content_types}}
    return operation


def _content_type(response: Response) -> str:
    return PROBLEM_TYPE if response.body is ProblemDocument else response.content_type


def _reference(body: type | Schema, components: dict[str, Schema]) -> Schema:
    """Return a schema unchanged; for a model, add it to the components and return a reference to it."""
    if not isinstance(body, type):
        return body
    _add(components, body.__name__, _schema_of(body, components))
    return {"$ref": _REF.format(model=body.__name__)}


def _schema_of(cls: type, components: dict[str, Schema]) -> dict[str, object]:
    """Return pydantic's schema of a class; add the classes it refers to to the components."""
    schema: dict[str, object] = TypeAdapter(cls).json_schema(ref_template=_REF, mode="serialization")
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
            "subject": _TEXT,
            "time": fields["time"],
            "datacontenttype": _TEXT,
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
