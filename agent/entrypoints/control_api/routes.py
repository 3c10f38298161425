"""Every route of the control API, with its answers."""

from collections.abc import Mapping
from http import HTTPStatus

from agent.entrypoints.control_api.handlers import Handlers, Wish
from agent.entrypoints.control_api.route import CLOUD_EVENT, JSON, Answer, Parameter, Route, Schema, problem
from agent.entrypoints.control_api.sse import EVENT_STREAM

_OK, _ACCEPTED, _BUSY = HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.SERVICE_UNAVAILABLE
_POSITION = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}

ALWAYS = {
    HTTPStatus.BAD_REQUEST: problem("It is not understood; `detail` says what."),
    HTTPStatus.FORBIDDEN: problem("Over the port: Host or Origin is not this agent's."),
    HTTPStatus.INTERNAL_SERVER_ERROR: problem("The agent met an error; its log says which."),
    _BUSY: problem("The agent cannot answer now: its state is out of reach, or too many ask."),
}
_CHANGE = ALWAYS | {
    HTTPStatus.UNAUTHORIZED: problem("Over the port: the token is not there, or another."),
    HTTPStatus.REQUEST_TIMEOUT: problem("The body did not come in time."),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: problem("The body is larger than 64 KiB."),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: problem("Content-Type is another, or the body is compressed."),
}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_WELL = _object(status={"const": "ok"})
_UNWELL = _object(
    status={"enum": ["stuck", "starting"]}, trouble={"type": "object", "additionalProperties": {"type": "string"}}
)


def _health(told: str) -> Mapping[HTTPStatus, Answer]:
    """`stuck`, or a problem where there are too many connections."""
    unwell = Answer(description="Not so: `trouble` says what is stuck, and why.", schema=_UNWELL)
    return ALWAYS | {_OK: Answer(description=told, schema=_WELL), _BUSY: unwell}


def routes(answers: Handlers) -> tuple[Route, ...]:
    """Return all routes but that of the document about them."""
    return (
        Route(
            method="GET",
            path="/v1/status",
            name="getStatus",
            summary="How everything stands: the document of `akosha-agent status --json`.",
            answer=answers.status,
            told=ALWAYS | {_OK: Answer(description="The status.", schema={"$ref": "#/components/schemas/Status"})},
        ),
        Route(
            method="POST",
            path="/v1/sync",
            name="askForSync",
            summary="Ask for a sync now. Its result comes as an event with the same request_id.",
            answer=answers.sync,
            takes=(JSON,),
            body=Wish.model_json_schema(),
            told=_CHANGE
            | {
                _ACCEPTED: Answer(
                    description="It is asked for; also where the same id was before.",
                    schema=_object(request_id={"type": "string"}, accepted={"const": True}),
                ),
                HTTPStatus.CONFLICT: problem("It was refused; `detail` says why."),
            },
        ),
        Route(
            method="GET",
            path="/v1/sync/{request_id}",
            name="getResult",
            summary="What became of a request, whoever asked.",
            answer=answers.result,
            parameters=(
                Parameter(name="request_id", place="path", description="The request's id.", schema={"type": "string"}),
            ),
            told=ALWAYS
            | {
                _OK: Answer(description="Its result.", schema={"$ref": "#/components/schemas/Result"}),
                HTTPStatus.NOT_FOUND: problem("It has none: it is still at work, or nobody knows it."),
            },
        ),
        Route(
            method="POST",
            path="/v1/events",
            name="tellEvent",
            summary="Tell the agent of a session's end, or ask for a sync, as one structured CloudEvent.",
            answer=answers.take,
            takes=(CLOUD_EVENT, JSON),
            body={"$ref": "#/components/schemas/TakenEvent"},
            told=_CHANGE
            | {
                _ACCEPTED: Answer(
                    description="The event is taken; `new` is false where one of its id was before.",
                    schema=_object(id={"type": "string"}, new={"type": "boolean"}),
                )
            },
        ),
        Route(
            method="GET",
            path="/v1/events",
            name="followEvents",
            summary="What happens, as it happens: server-sent events. `id` is the place in the history, `event` the "
            "CloudEvents type, `data` the CloudEvent. Without a place to begin after, the first line is the present "
            "one's `id`. Progress has no `id` and is not repeated. A comment comes every 15 s.",
            answer=answers.events,
            parameters=(
                Parameter(
                    name="after",
                    place="query",
                    description="First what came after this place in the history; 0: all of it. None: from now on.",
                    schema=_POSITION,
                ),
                Parameter(
                    name="Last-Event-ID",
                    place="header",
                    description="The same, as a reader sends it that comes back; it counts more than `after`.",
                    schema=_POSITION,
                ),
            ),
            told=ALWAYS | {_OK: Answer(description="Events, for ever.", content_type=EVENT_STREAM)},
        ),
        Route(
            method="GET",
            path="/metrics",
            name="getMetrics",
            summary="Metrics for Prometheus.",
            answer=answers.metrics,
            told=ALWAYS
            | {_OK: Answer(description="The metrics, in Prometheus's text format.", content_type="text/plain")},
        ),
        Route(
            method="GET",
            path="/healthz",
            name="getHealth",
            summary="Whether nothing is stuck.",
            answer=answers.health,
            told=_health("All is well."),
        ),
        Route(
            method="GET",
            path="/readyz",
            name="getReadiness",
            summary="Whether the agent watches and hears requests, and nothing is stuck.",
            answer=answers.ready,
            told=_health("It is ready."),
        ),
    )
