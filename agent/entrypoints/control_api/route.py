"""The table of what can be asked. The server serves it, and the OpenAPI document is made from it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from aiohttp import web

from agent.entrypoints.control_api.problems import PROBLEM_TYPE

JSON = "application/json"
CLOUD_EVENT = "application/cloudevents+json"

Schema = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer: what it means, its content type, and the schema of its body (none: text)."""

    description: str
    content_type: str = JSON
    schema: Schema = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a route: in its query, a header, or the end of its path."""

    name: str
    place: str
    description: str
    schema: Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What can be asked, how, and what the answers may be.

    A path that ends in a `{name}` is that of all with something in its place that has no slash.
    GET is asked without a body, and also as HEAD. POST changes something: `takes` are the content types of its body,
    which `body` describes.
    """

    method: str
    path: str
    name: str
    summary: str
    answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    told: Mapping[HTTPStatus, Answer]
    parameters: tuple[Parameter, ...] = ()
    takes: tuple[str, ...] = ()
    body: Schema = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether it changes the agent's state."""
        return self.method == "POST"


def problem(description: str) -> Answer:
    """Return the answer where something is wrong."""
    return Answer(description=description, content_type=PROBLEM_TYPE, schema={"$ref": "#/components/schemas/Problem"})
