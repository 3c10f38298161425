"""Reading of the document of `GET /v1/status`; an agent of another version may have more fields."""

from functools import cache

from pydantic import TypeAdapter, ValidationError

from agent.entrypoints.control_client.endpoint import NoAnswer
from agent.entrypoints.status_view import StatusDocument


def told(document: bytes) -> StatusDocument:
    """Raises NoAnswer for what is no status."""
    try:
        return _adapter().validate_json(document)
    except ValidationError as error:
        raise NoAnswer(f"the agent's status is not understood: {error.error_count()} errors") from error


@cache
def _adapter() -> TypeAdapter[StatusDocument]:
    return TypeAdapter(StatusDocument)
