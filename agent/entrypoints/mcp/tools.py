"""The tools: their definitions, with schemas derived from the models of their results, and their implementation."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import structlog
from pydantic import BaseModel, Field, TypeAdapter

from agent.bootstrap.archive import open_archive
from agent.domain.errors import AkoshaError, SettingsError
from agent.domain.routing import AUTO, CLOUD, HTTP
from agent.entrypoints.archive import check_mounted, system_of, upload_document
from agent.entrypoints.formatting import hint_of, sync_summary
from agent.entrypoints.mcp.progress import ProgressReporter, ReportProgress
from agent.entrypoints.result_document import ResultDocument
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_view import gather_status
from agent.entrypoints.sync_client import SyncClient
from agent.settings import Loaded, Settings, settings_table

SYNC, STATUS, RESTORE_POINTS = TOOL_NAMES = ("sync_to_akosha", "akosha_sync_status", "akosha_restore_points")
MAX_RESTORE_POINTS = 100
METHODS = (AUTO, CLOUD, HTTP)

_log = structlog.get_logger()


class ToolResult(BaseModel):
    """Fields of all results. The sync tool's result has its own model, which includes them."""

    success: bool
    error: str | None
    hint: str | None

    @classmethod
    def failed(cls, failure: AkoshaError, /, **fields: object) -> dict[str, object]:
        """Return the result of a failure; fields that are not given are null."""
        known = dict.fromkeys(name for name, field in cls.model_fields.items() if field.is_required())
        return known | fields | {"success": False, "error": str(failure), "hint": hint_of(failure)}


class StatusResult(ToolResult):
    """The configuration (null if the settings cannot be read), next to the fields of the status document."""

    success: bool = Field(description="False if the settings or the state directory cannot be used: see error.")
    cloud_configured: bool | None = Field(description="Whether a bucket or a directory is set.")
    system_id: str | None = Field(description="This machine's name in the bucket and in Akosha.")
    should_use_cloud: bool | None
    should_use_http: bool | None
    force_method: str | None = Field(json_schema_extra={"enum": [*METHODS, None]})
    enable_fallback: bool | None
    upload_on_session_end: bool | None
    configuration: dict[str, Any] = Field(
        description="Every setting by its key, secrets masked. Empty if a setting is invalid."
    )
    warnings: list[str] = Field(
        default_factory=list,
        description="Settings without effect, an agent that does not respond, and persistent problems.",
    )


class RestorePoint(BaseModel):
    """An upload. Null fields are unknown until more of it is read (akosha-agent uploads show ID)."""

    upload_id: str
    time: str
    stored_bytes: int = Field(ge=0)
    raw_bytes: int | None
    rows: int | None
    databases: list[str] | None
    problems: dict[str, str] = Field(
        description="Damaged objects, with the damage; empty if a listing of the bucket shows none."
    )


class RestorePointsResult(ToolResult):
    """The newest uploads of this machine."""

    success: bool = Field(description="False if the bucket cannot be read: see error.")
    system_id: str | None
    location: str | None = Field(description="The bucket or directory.")
    total: int = Field(ge=0, description="Number of uploads, of which the newest are listed.")
    restore_points: list[RestorePoint] = Field(description="Newest first.")


def tool_definitions() -> list[dict[str, object]]:
    """Return the tools as listed by `tools/list`."""
    return [
        {
            "name": SYNC,
            "title": "Sync memories to Akosha",
            "description": (
                "Upload every memory that Session-Buddy has committed on this machine now, to the bucket, directory or "
                "Akosha server of the settings, and return when the upload is complete. Use it when the user asks to "
                "sync, back up or upload memories. It is safe to call again: delivered data is not sent again "
                "(outcome: skipped). The call itself never fails: check success, and if it is false, show the user "
                "error and hint. It takes from a second to minutes, and reports its progress."
            ),
            "inputSchema": {
                "type": "object",
                "properties": {
                    "method": {
                        "type": "string",
                        "enum": list(METHODS),
                        "default": AUTO,
                        "description": "auto follows the settings (the cloud if it is set up, else http); cloud "
                        "uploads to the bucket, http sends to the Akosha server.",
                    },
                    "enable_fallback": {
                        "type": "boolean",
                        "default": True,
                        "description": "Whether to send to the Akosha server if the cloud fails.",
                    },
                },
                "additionalProperties": False,
            },
            "outputSchema": ResultDocument.model_json_schema(),
            "annotations": _annotations(read_only=False, open_world=True),
        },
        {
            "name": STATUS,
            "title": "Status of syncing to Akosha",
            "description": (
                "Show the configuration and status of syncing memories to Akosha: whether an agent is running, what is "
                "pending, the last upload, the last error, the next attempt, and every setting (secrets masked). It "
                "changes nothing and uses no network. Use it before changing settings, or when a sync has failed."
            ),
            "inputSchema": {"type": "object", "properties": {}, "additionalProperties": False},
            "outputSchema": _status_schema(),
            "annotations": _annotations(read_only=True, open_world=False),
        },
        {
            "name": RESTORE_POINTS,
            "title": "Restore points of the memories",
            "description": (
                "List the uploads of this machine's memories that can be restored, newest first "
                f"({MAX_RESTORE_POINTS} at most): time, size, number of rows, and damage that a listing shows. "
                "It reads the bucket and changes nothing. Use it when the user wants to know what is backed up, or "
                "wants to restore something. The user restores with the command akosha-agent restore ID --to DIR."
            ),
            "inputSchema": {"type": "object", "properties": {}, "additionalProperties": False},
            "outputSchema": RestorePointsResult.model_json_schema(),
            "annotations": _annotations(read_only=True, open_world=True),
        },
    ]


def _annotations(*, read_only: bool, open_world: bool) -> dict[str, bool]:
    return {
        "readOnlyHint": read_only,
        "destructiveHint": False,
        "idempotentHint": True,
        "openWorldHint": open_world,
    }


def _status_schema() -> dict[str, object]:
    """Return the schema of StatusResult, with the fields of the status document as optional ones."""
    schema, status = StatusResult.model_json_schema(), TypeAdapter(StatusDocument).json_schema(mode="serialization")
    return schema | {"properties": status["properties"] | schema["properties"], "$defs": status["$defs"]}


async def call_tool(
    name: str, arguments: Mapping[str, object], load: Callable[[], Loaded], report: ReportProgress | None = None
) -> dict[str, object]:
    """Call a tool and return its result; an error is returned as a result. `report` gets the progress of a sync."""
    try:
        if name == SYNC:
            return await _sync(arguments, load, report or _no_report)
        loaded = await asyncio.to_thread(load)
        return await _status(loaded) if name == STATUS else await _restore_points(loaded.settings)
    except AkoshaError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - every error becomes a result
        # Only the log gets the text, which may contain anything.
        _log.exception("call_failed", tool=name)
        failure = AkoshaError(
            f"the call failed because of a bug in akosha-agent: {type(error).__name__}",
            hint="see the traceback in the log of akosha-agent mcp (standard error)",
        )
    if name == SYNC:
        method = arguments.get("method")
        return ResultDocument.refused(
            failure, method=method if isinstance(method, str) and method in METHODS else AUTO
        ).to_dict()
    if name == STATUS:
        return StatusResult.failed(failure, configuration={})
    return RestorePointsResult.failed(failure, total=0, restore_points=[])


async def _no_report(*_: object) -> None:
    """For a client that has not requested progress."""


async def _sync(
    arguments: Mapping[str, object], load: Callable[[], Loaded], report: ReportProgress
) -> dict[str, object]:
    method, enable_fallback = _sync_arguments(arguments)
    reporter = ProgressReporter(report)
    await reporter.begin("looking for changes")
    try:
        loaded = await asyncio.to_thread(load)
        client = await SyncClient.prepare(loaded.settings, method=method, enable_fallback=enable_fallback)
        async with nullcontext() if report is _no_report else reporter.running(client.wait_reason):
            result = await client.result(on_progress=reporter.on_progress, on_wait=reporter.on_wait)
    except AkoshaError as error:
        await reporter.finish(str(error))
        raise
    await reporter.finish(sync_summary(result))
    return ResultDocument.of(result).to_dict()


def _sync_arguments(arguments: Mapping[str, object]) -> tuple[str, bool]:
    """Return method and enable_fallback. Raises SettingsError for invalid arguments."""
    if unknown := sorted(set(arguments) - {"method", "enable_fallback"}):
        raise SettingsError(
            f"unknown parameter {', '.join(unknown)}", hint="the parameters are method and enable_fallback"
        )
    method, enable_fallback = arguments.get("method", AUTO), arguments.get("enable_fallback", True)
    if not isinstance(method, str) or method not in METHODS:
        raise SettingsError(f"unknown method {method!r:.100}", hint=f"method is one of {', '.join(METHODS)}")
    if not isinstance(enable_fallback, bool):
        raise SettingsError(
            f"enable_fallback is {enable_fallback!r:.100}", hint="enable_fallback must be true or false"
        )
    return method, enable_fallback


async def _status(loaded: Loaded) -> dict[str, object]:
    """Return configuration and status, or configuration and error if the state directory cannot be used."""
    settings = loaded.settings
    setup: dict[str, object] = {
        "cloud_configured": settings.cloud_configured,
        "system_id": settings.system_id or None,
        "should_use_cloud": CLOUD in settings.route,
        "should_use_http": HTTP in settings.route,
        "force_method": settings.force_method,
        "enable_fallback": settings.enable_fallback,
        "upload_on_session_end": settings.upload_on_session_end,
        "configuration": configuration(loaded),
        "success": True,
        "error": None,
        "hint": None,
        "warnings": list(loaded.warnings),
        "sync_enabled": settings.sync_enabled,
        "data_dir": str(settings.agent_data_dir),
        "state_dir": str(settings.agent_state_dir),
    }
    try:
        status = await gather_status(settings)
    except AkoshaError as error:
        return StatusResult.failed(error, **setup)
    return setup | status.to_dict() | {"warnings": [*loaded.warnings, *map(str, status.warnings)]}


def configuration(loaded: Loaded) -> dict[str, object]:
    """Return every setting by its key: booleans and numbers as such, secrets and credentials masked."""
    values: dict[str, object] = {}
    for row in settings_table(loaded):
        value = getattr(loaded.settings, row.key.removeprefix("akosha_"))
        values[row.key] = value if isinstance(value, (bool, int, float)) else row.value
    return values


async def _restore_points(settings: Settings) -> dict[str, object]:
    """Return the newest uploads. Raises SettingsError if no bucket is set, NotOwner, StoreError, StateError."""
    system_id = await system_of(settings, None)
    async with open_archive(settings, system_id) as archive:
        listing = await archive.listing(manifests=MAX_RESTORE_POINTS)
        if not listing.uploads:
            await check_mounted(settings, archive, None)
    uploads = [upload_document(entry) for entry in listing.uploads[:MAX_RESTORE_POINTS]]
    return {
        "success": True,
        "error": None,
        "hint": None,
        "system_id": system_id,
        "location": archive.store.location,
        "total": len(listing.uploads),
        "restore_points": [{name: upload[name] for name in RestorePoint.model_fields} for upload in uploads],
    }
