"""The tools as the client sees them: names, parameters, results, and when an assistant should use them."""

from typing import Any

from agent.domain.routing import AUTO, CLOUD, HTTP

SYNC = "sync_to_akosha"
STATUS = "akosha_sync_status"
RESTORE_POINTS = "akosha_restore_points"
MOST_POINTS = 100
METHODS = (AUTO, CLOUD, HTTP)

INSTRUCTIONS = (
    "Gets the memories that Session-Buddy keeps on this machine to Akosha. Changes are synced by themselves where "
    f"`akosha-agent run` is running; call {SYNC} when the user wants it done now, {STATUS} to see what is pending, "
    f"what stands in the way, and how it is set up, and {RESTORE_POINTS} to see what could be restored. None of them "
    "takes or gives the memories themselves."
)

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_FLAG = {"type": "boolean"}
_FLAG_OR_NULL = {"type": ["boolean", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_TEXTS = {"type": "array", "items": _TEXT}

_SYNC_RESULT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "method": _TEXT | {"description": "How it was delivered: cloud or http; auto where it came to no attempt."},
        "success": _FLAG | {"description": "True also where there was nothing to deliver (outcome: skipped)."},
        "files_uploaded": _TEXTS | {"description": "Keys in the bucket, or nothing where it went to a server."},
        "bytes_transferred": _COUNT | {"description": "What went over the wire."},
        "duration_seconds": {"type": "number", "minimum": 0},
        "upload_id": _TEXT_OR_NULL | {"description": "YYYYMMDD_HHMMSS_system; null where there was no upload."},
        "error": _TEXT_OR_NULL,
        "triggered_by": _TEXT,
        "caused_by": _TEXTS | {"description": "Ids of the session ends that it answers."},
        "hint": _TEXT_OR_NULL | {"description": "The setting or command that mends the error."},
        "outcome": {"type": "string", "enum": ["succeeded", "skipped", "failed"]},
        "request_id": _TEXT_OR_NULL,
        "why": _TEXT | {"description": "Of a skipped one: why there was nothing to do."},
        "location": _TEXT | {"description": "Where it is now."},
        "incomplete": {
            "type": "object",
            "additionalProperties": _TEXT,
            "description": "What has not been delivered yet, and why. It is tried again by itself.",
        },
        "memories": _COUNT | {"description": "How many memories the target has now and lacked before."},
        "errors": {
            "type": "array",
            "items": {"type": "object", "properties": {"method": _TEXT, "error": _TEXT}},
            "description": "Why methods failed: all of a failed one; of a success, those tried before.",
        },
        "retry_at": _TEXT_OR_NULL | {"description": "When a running agent tries again by itself."},
    },
    "required": [
        "method",
        "success",
        "files_uploaded",
        "bytes_transferred",
        "duration_seconds",
        "upload_id",
        "error",
        "triggered_by",
        "hint",
        "outcome",
    ],
}

_STATUS_RESULT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "cloud_configured": _FLAG_OR_NULL | {"description": "Whether a bucket, or a directory, is set."},
        "system_id": _TEXT_OR_NULL | {"description": "This machine's name in the bucket and in Akosha."},
        "should_use_cloud": _FLAG_OR_NULL,
        "should_use_http": _FLAG_OR_NULL,
        "force_method": {"type": ["string", "null"], "enum": [*METHODS, None]},
        "enable_fallback": _FLAG_OR_NULL,
        "upload_on_session_end": _FLAG_OR_NULL,
        "configuration": {
            "type": "object",
            "description": "Every setting by its key, secrets masked. Empty where a setting is wrong.",
        },
        "success": _FLAG
        | {"description": "False where the settings or the state directory cannot be used: see error."},
        "error": _TEXT_OR_NULL,
        "hint": _TEXT_OR_NULL,
        "warnings": _TEXTS
        | {"description": "Settings without effect, an agent that does not answer, and lasting conditions."},
        "running": {
            "type": ["object", "null"],
            "description": "Which process holds the state directory: pid, command.",
        },
        "pending": _TEXTS | {"description": "Databases that a target lacks."},
        "targets": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Each target: its databases, the newest upload, last success, next try, last error.",
        },
        "bus": {"type": ["object", "null"]},
        "results_waiting": _COUNT,
        "problem": _TEXT | {"description": "Why the databases cannot be looked at."},
    },
    "required": [
        "cloud_configured",
        "system_id",
        "should_use_cloud",
        "should_use_http",
        "force_method",
        "enable_fallback",
        "upload_on_session_end",
        "configuration",
        "success",
        "error",
        "hint",
    ],
}

_COUNT_OR_NULL = {"type": ["integer", "null"], "minimum": 0}

_POINTS_RESULT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "success": _FLAG | {"description": "False where the bucket cannot be looked into: see error."},
        "error": _TEXT_OR_NULL,
        "hint": _TEXT_OR_NULL,
        "system_id": _TEXT_OR_NULL,
        "location": _TEXT_OR_NULL | {"description": "The bucket, or the directory in its place."},
        "total": _COUNT | {"description": "How many there are; the newest of them are listed."},
        "restore_points": {
            "type": "array",
            "description": "The newest first. null: not known without looking closer (akosha-agent uploads show ID).",
            "items": {
                "type": "object",
                "properties": {
                    "upload_id": _TEXT,
                    "time": _TEXT,
                    "stored_bytes": _COUNT,
                    "raw_bytes": _COUNT_OR_NULL,
                    "rows": _COUNT_OR_NULL,
                    "databases": {"type": ["array", "null"], "items": _TEXT},
                    "problems": {
                        "type": "object",
                        "additionalProperties": _TEXT,
                        "description": "What of it is damaged, and how; empty where nothing is seen to be.",
                    },
                },
                "required": ["upload_id", "time", "stored_bytes", "raw_bytes", "rows", "databases", "problems"],
            },
        },
    },
    "required": ["success", "error", "hint", "system_id", "location", "total", "restore_points"],
}

TOOLS: list[dict[str, Any]] = [
    {
        "name": SYNC,
        "title": "Sync memories to Akosha",
        "description": (
            "Get every memory that Session-Buddy has committed on this machine to Akosha now, and return when it is "
            "there. Use it when the user asks to sync, back up or upload memories. Calling it again does no harm: "
            "what has arrived is not sent again (outcome: skipped). It never fails as a call: look at success, and "
            "where it is false tell the user error and hint. It takes from a second to minutes, and tells its progress."
        ),
        "inputSchema": {
            "type": "object",
            "properties": {
                "method": {
                    "type": "string",
                    "enum": list(METHODS),
                    "default": AUTO,
                    "description": "auto follows the settings (the cloud where it is set up, else http); cloud uploads "
                    "to the bucket, http sends to the Akosha server.",
                },
                "enable_fallback": {
                    "type": "boolean",
                    "default": True,
                    "description": "Where the cloud fails, send to the Akosha server. False: fail instead.",
                },
            },
            "additionalProperties": False,
        },
        "outputSchema": _SYNC_RESULT,
        "annotations": {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": True, "openWorldHint": True},
    },
    {
        "name": STATUS,
        "title": "Status of syncing to Akosha",
        "description": (
            "Show how syncing memories to Akosha is set up and how it stands: whether an agent runs, what is pending, "
            "the last upload, the last error and the next try, and every setting (secrets masked). It changes nothing "
            "and asks nobody over the network. Use it before changing settings, or when a sync has failed."
        ),
        "inputSchema": {"type": "object", "properties": {}, "additionalProperties": False},
        "outputSchema": _STATUS_RESULT,
        "annotations": {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": True, "openWorldHint": False},
    },
    {
        "name": RESTORE_POINTS,
        "title": "Restore points of the memories",
        "description": (
            "List the uploads of this machine's memories that could be restored, the newest first "
            f"({MOST_POINTS} at most): when each was made, how large it is, how many rows it has, and whether it looks "
            "damaged. It asks the bucket and changes nothing. Use it when the user wants to know what is backed up, or "
            "wants something back; restoring itself is a command for the user: akosha-agent restore ID --to DIR."
        ),
        "inputSchema": {"type": "object", "properties": {}, "additionalProperties": False},
        "outputSchema": _POINTS_RESULT,
        "annotations": {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": True, "openWorldHint": True},
    },
]
