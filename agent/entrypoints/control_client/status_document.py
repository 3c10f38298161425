"""The document of `GET /v1/status` as a View; an agent of another version may say more."""

from functools import cache

from pydantic import BaseModel, TypeAdapter, ValidationError

from agent.application.monitoring.status import Status
from agent.entrypoints.control_client.endpoint import NoAnswer
from agent.entrypoints.status_view import StatusSources, StatusView


class _Around(BaseModel):
    """What of the document is not the Status itself."""

    running: dict[str, object] | None
    problem: str
    sync_enabled: bool
    data_dir: str
    state_dir: str


def told(document: bytes) -> StatusView:
    """Return what an agent says of itself. Raises NoAnswer for what does not say it."""
    try:
        around = _Around.model_validate_json(document)
        status = _validator().validate_json(document)
    except ValidationError as error:
        raise NoAnswer(f"what the agent says of itself is not understood: {error.error_count()} errors") from error
    return StatusView(
        status,
        around.running,
        around.problem,
        StatusSources(around.sync_enabled, around.data_dir, around.state_dir),
    )


@cache
def _validator() -> TypeAdapter[Status]:
    return TypeAdapter(Status)
