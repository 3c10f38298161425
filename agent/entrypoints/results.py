"""JSON document of a sync's result: `sync --json`, the control API, the MCP tool and `agent.api` return it.

Its schemas in OpenAPI and in the MCP tool are derived from the model; tests compare README and `agent.api` with it.
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
    """Result of a sync. The fields after `hint` are present only for the outcomes that have them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field(description="How it was delivered: cloud or http; auto where no method was tried.")
    success: bool = Field(description="True also where there was nothing to deliver (outcome: skipped).")
    files_uploaded: list[str] = Field(description="Keys in the bucket; empty where it went to a server.")
    bytes_transferred: int = Field(ge=0, description="Bytes sent over the network.")
    duration_seconds: float = Field(ge=0)
    upload_id: str | None = Field(description="YYYYMMDD_HHMMSS_system; null where there was no upload.")
    error: str | None
    triggered_by: str
    caused_by: list[str] = Field(description="Ids of the session ends that it answers.")
    request_id: str | None = Field(description="Null where the sync was refused before there was a request.")
    outcome: Literal["succeeded", "skipped", "failed"]
    hint: str | None = Field(description="The setting or command that fixes the error.")
    location: str = Field(default="", description="Where the upload is.")
    incomplete: dict[str, str] = Field(
        default_factory=dict, description="What has not been delivered yet, and why. It is retried automatically."
    )
    memories: int = Field(default=0, ge=0, description="How many memories the target has now and lacked before.")
    why: str = Field(default="", description="Of a skipped one: why there was nothing to do.")
    errors: list[MethodErrorDocument] = Field(
        default_factory=list, description="Why methods failed: of a success, those that were tried before."
    )
    retry_at: str | None = Field(
        default=None,
        description="When a running agent tries again by itself.",
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
        # Not validated: a path in it may hold bytes that are no Unicode, which pydantic refuses.
        return cls.model_construct(**fields)

    @classmethod
    def refused(cls, error: AkoshaError, *, method: str) -> Self:
        """Return the result for an error that was raised before there was a request."""
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
        """Return the document, without the fields that its outcome does not have."""
        return self.model_dump(exclude_unset=True)


def _errors(errors: Sequence[MethodError]) -> list[MethodErrorDocument]:
    return [MethodErrorDocument.model_construct(method=e.method, error=e.error) for e in errors]
