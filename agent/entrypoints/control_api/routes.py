"""The routes of the control API: paths, access, parameters, and the models of their bodies."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.domain.events import SessionEnded, SyncAsked
from agent.entrypoints.control_api.problems import ProblemDocument
from agent.entrypoints.control_api.sse import EVENT_STREAM
from agent.entrypoints.page.documents import OUTCOMES, HistoryPage, Plots, Uploads
from agent.entrypoints.result_document import ResultDocument
from agent.entrypoints.status_document import StatusDocument

JSON = "application/json"
CLOUD_EVENT = "application/cloudevents+json"

Schema = Mapping[str, object]

REF = "#/components/schemas/{model}"

MOST_ENTRIES = 200
"""The largest `limit` of a history."""

TEXT: Schema = {"type": "string"}
_POSITION: Schema = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_RECEIVED_EVENT: Schema = {"oneOf": [{"$ref": REF.format(model=cls.__name__)} for cls in (SessionEnded, SyncAsked)]}


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


class PageAddress(_Model):
    """The address of the page, with a token that is valid once."""

    url: str = Field(description="http://ADDRESS:PORT/#token=TOKEN")
    expires_at: str = Field(description="When the token ends.", json_schema_extra={"format": "date-time"})


class PageToken(_Model):
    """The token in the address of the page."""

    token: str


class ProofRequest(_Model):
    """A session of the page, named without its secret, and a number that was not used before."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$", description="The first 16 hexadecimal digits of the session's SHA-256.")
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$", description="Random.")


class Proof(_Model):
    """The proof that this server knows the session's SHA-256."""

    proof: str = Field(
        description="HMAC-SHA256 of `akosha-agent page HOST NONCE` in hexadecimal digits. The key is the session's "
        "SHA-256 (32 bytes), HOST the value of the header `Host`."
    )


class PageSession(_Model):
    """A session of the page."""

    session: str = Field(description="The bearer token of all further requests.")
    expires_at: str = Field(
        description="When the session ends if it is not used.", json_schema_extra={"format": "date-time"}
    )


class VerificationAccepted(_Model):
    """The verification is requested."""

    accepted: Literal[True]


class Healthy(_Model):
    """Nothing is stuck."""

    status: Literal["ok"]


class Unhealthy(_Model):
    """Something is stuck, or the agent is still starting."""

    status: Literal["stuck", "starting"]
    trouble: dict[str, str] = Field(description="Stuck components, with the reason.")


class Access(Enum):
    """Who may use a route over TCP. Over the Unix socket, processes of this user may use all of them."""

    PAGE = auto()
    """Everybody, over the port of the page only."""
    READ = auto()
    """Over the port of the settings, without a token; over the port of the page, with a session."""
    TOKEN = auto()
    """Over the port of the settings, with its token; over the port of the page, with a session."""
    SOCKET = auto()
    """Nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response: its meaning, and its body as a model or schema."""

    description: str
    body: type | Schema = ProblemDocument
    content_type: str = JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route. `handler` names a method of `ControlApp`, or one of an attribute of it; `parameters` are OpenAPI's.

    GET is also served as HEAD.
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
    access: Access = Access.READ

    @property
    def query_parameters(self) -> tuple[str, ...]:
        """Names of the query parameters."""
        return tuple(str(parameter["name"]) for parameter in self.parameters if parameter["in"] == "query")


_PROBLEMS = {
    HTTPStatus.BAD_REQUEST: Response(description="The request is malformed; see `detail`."),
    HTTPStatus.UNAUTHORIZED: Response(description="Over a port: the token or session is missing or not valid."),
    HTTPStatus.FORBIDDEN: Response(
        description="Over a port: Host or Origin is not this agent's, or another user uses a session of the page."
    ),
    HTTPStatus.INTERNAL_SERVER_ERROR: Response(description="An internal error; see the agent's log."),
    HTTPStatus.SERVICE_UNAVAILABLE: Response(
        description="The ledger or the bus is unavailable, or there are too many connections or event readers."
    ),
}
_CHANGE_PROBLEMS = _PROBLEMS | {
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
        access=Access.TOKEN,
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
        parameters=({"name": "request_id", "in": "path", "required": True, "description": "Id.", "schema": TEXT},),
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
        access=Access.TOKEN,
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
        | {HTTPStatus.OK: Response(description="An endless stream.", body=TEXT, content_type=EVENT_STREAM)},
    ),
    Route(
        method="GET",
        path="/v1/history",
        handler="page.history",
        operation_id="getHistory",
        access=Access.TOKEN,
        summary="Results of syncs, verifications, prunes and ingestions as sentences, newest first.",
        parameters=(
            {
                "name": "before",
                "in": "query",
                "description": "Only results before this position in the history: `next` of the answer before.",
                "schema": _POSITION,
            },
            {
                "name": "limit",
                "in": "query",
                "description": "Maximum number of results.",
                "schema": {"type": "integer", "minimum": 1, "maximum": MOST_ENTRIES, "default": 100},
            },
            {
                "name": "outcome",
                "in": "query",
                "description": "Only results of this outcome.",
                "schema": {"type": "string", "enum": list(OUTCOMES)},
            },
        ),
        responses=_PROBLEMS | {HTTPStatus.OK: Response(description="The results.", body=HistoryPage)},
    ),
    Route(
        method="GET",
        path="/v1/plots",
        handler="page.plots",
        operation_id="getPlots",
        access=Access.TOKEN,
        summary="What the syncs of the last 30 days sent, and how long they took.",
        responses=_PROBLEMS | {HTTPStatus.OK: Response(description="The results.", body=Plots)},
    ),
    Route(
        method="GET",
        path="/v1/uploads",
        handler="page.uploads",
        operation_id="getUploads",
        access=Access.TOKEN,
        summary="The newest uploads in the bucket, which is read now.",
        responses=_PROBLEMS | {HTTPStatus.OK: Response(description="The uploads, or an error.", body=Uploads)},
    ),
    Route(
        method="POST",
        path="/v1/verify",
        handler="page.verify",
        operation_id="requestVerification",
        access=Access.TOKEN,
        summary="Verify the newest upload now, or as soon as no sync is running and the bucket can be reached. The "
        "result is an event akosha.archive.verified.v1.",
        responses=_PROBLEMS
        | {
            HTTPStatus.ACCEPTED: Response(description="Requested.", body=VerificationAccepted),
            HTTPStatus.CONFLICT: Response(description="There is nothing to verify; see `detail`."),
        },
    ),
    Route(
        method="POST",
        path="/v1/page",
        handler="page.open",
        operation_id="openPage",
        access=Access.SOCKET,
        summary="Serve the page, and return its address with a one-time token, as `akosha-agent open` does. Refused "
        "over a port.",
        responses=_PROBLEMS | {HTTPStatus.OK: Response(description="The address.", body=PageAddress)},
    ),
    Route(
        method="POST",
        path="/v1/page/session",
        handler="page.start_session",
        operation_id="startPageSession",
        access=Access.PAGE,
        summary="Exchange the one-time token in the page's address for a session. On Linux, only processes of this "
        "user can.",
        request_body=PageToken,
        content_types=(JSON,),
        responses=_CHANGE_PROBLEMS | {HTTPStatus.OK: Response(description="The session.", body=PageSession)},
    ),
    Route(
        method="POST",
        path="/v1/page/proof",
        handler="page.prove",
        operation_id="proveServer",
        access=Access.PAGE,
        summary="Prove that this server knows a session, before the session is sent to it. On Linux, only to processes "
        "of this user.",
        request_body=ProofRequest,
        content_types=(JSON,),
        responses=_CHANGE_PROBLEMS | {HTTPStatus.OK: Response(description="The proof.", body=Proof)},
    ),
    Route(
        method="GET",
        path="/metrics",
        handler="metrics",
        operation_id="getMetrics",
        summary="Metrics for Prometheus.",
        responses=_PROBLEMS
        | {HTTPStatus.OK: Response(description="Prometheus text format.", body=TEXT, content_type="text/plain")},
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
