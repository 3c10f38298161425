"""JSON document of a sync's result, as `sync --json`, the control API, the MCP tool and `agent.api` return it.

The schemas of OpenAPI and of the MCP tool are derived from the model; tests compare the MCP guide and `agent.api`
with it.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from agent.domain.errors import AkoshaError
from agent.domain.events import MethodError, SyncFailed, SyncResult, SyncSkipped, SyncSucceeded
from agent.domain.routing import MANUAL
from agent.entrypoints.formatting import SEE_STATUS, hint_of, hint_of_text


class MethodErrorDocument(BaseModel):
    """Why one method failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    error: str


class ResultDocument(BaseModel):
    """Result of a sync. The fields after `hint` are present only for some outcomes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="The method that delivered: cloud or http; auto if no method was tried.")
    success: bool = Field(description="Also true if there was nothing to deliver (outcome: skipped).")
    files_uploaded: list[str] = Field(description="Keys in the bucket; empty for a sync by http.")
    bytes_transferred: int = Field(ge=0, description="Bytes that the successful attempt sent over the network.")
    duration_seconds: float = Field(ge=0)
    upload_id: str | None = Field(
        description="Of an upload YYYYMMDD_HHMMSS_system, of a push the ID of its request; null if nothing was sent."
    )
    error: str | None
    triggered_by: str
    caused_by: list[str] = Field(description="Ids of the SessionEnded events that this result answers.")
    request_id: str | None = Field(description="Null if the sync was refused before it was requested.")
    outcome: Literal["succeeded", "skipped", "failed"]
    hint: str | None = Field(description="The setting or command that fixes the error.")
    location: str = Field(default="", description="Location of the upload.")
    incomplete: dict[str, str] = Field(
        default_factory=dict, description="What has not been delivered yet, with the reason. It is retried."
    )
    memories: int = Field(default=0, ge=0, description="Number of memories that the target has now and lacked before.")
    repairs: str = Field(
        default="", description="The upload before this one, if it was damaged and its databases were sent again."
    )
    unreadable: list[str] = Field(
        default_factory=list, description="Databases that were uploaded as they are, although DuckDB cannot read them."
    )
    why: str = Field(default="", description="If skipped: why there was nothing to deliver.")
    errors: list[MethodErrorDocument] = Field(
        default_factory=list, description="Errors of the methods that failed, also before another one succeeded."
    )
    retry_at: str | None = Field(
        default=None,
        description="Time of the next automatic attempt, if an agent is running.",
        json_schema_extra={"format": "date-time"},
    )

    @classmethod
    def of(cls, result: SyncResult) -> Self:
        fields: dict[str, Any] = {
            "method": result.method,
            "success": result.success,
            "files_uploaded": list(result.files_uploaded),
            "bytes_transferred": result.bytes_transferred,
            "duration_seconds": result.duration_seconds,
            "upload_id": result.upload_id,
            "error": result.error,
            "triggered_by": result.triggered_by,
            "caused_by": list(result.caused_by),
            "request_id": result.request_id,
            "outcome": result.type.split(".")[2],
            "hint": None,
        }
        if isinstance(result, SyncSucceeded):
            fields |= {
                "location": result.location,
                "incomplete": dict(result.incomplete),
                "memories": result.memories,
                "repairs": result.repairs,
                "unreadable": list(result.unreadable),
                "errors": _errors(result.errors),
            }
        elif isinstance(result, SyncSkipped):
            fields["why"] = result.why
        elif isinstance(result, SyncFailed):
            hints = dict.fromkeys(filter(None, (hint_of_text(e.error) for e in result.errors)))
            fields |= {
                "hint": "; ".join(hints) or SEE_STATUS,
                "errors": _errors(result.errors),
                "retry_at": result.retry_at.isoformat() if result.retry_at else None,
            }
        # Not validated: a path may contain bytes that are not Unicode, which pydantic refuses.
        return cls.model_construct(**fields)

    @classmethod
    def refused(cls, error: AkoshaError, *, method: str) -> Self:
        """Return the result for an error that was raised before the sync was requested."""
        return cls.model_construct(
            method=method,
            success=False,
            files_uploaded=[],
            bytes_transferred=0,
            duration_seconds=0.0,
            upload_id=None,
            error=str(error),
            triggered_by=MANUAL,
            caused_by=[],
            request_id=None,
            outcome="failed",
            hint=hint_of(error),
            errors=[MethodErrorDocument.model_construct(method=method, error=str(error))],
            retry_at=None,
        )

    def to_dict(self) -> dict[str, object]:
        """Return the document, without fields that do not apply to its outcome."""
        return self.model_dump(exclude_unset=True)


def _errors(errors: Sequence[MethodError]) -> list[MethodErrorDocument]:
    return [MethodErrorDocument.model_construct(method=e.method, error=e.error) for e in errors]
