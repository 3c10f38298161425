"""What the status tool tells: the documented fields, every setting, and how everything stands."""

from agent.domain.errors import AkoshaError
from agent.domain.routing import CLOUD, HTTP
from agent.entrypoints.results import hint_of
from agent.entrypoints.status_view import gather_status
from agent.settings import Loaded, settings_table

NO_SETTINGS: dict[str, object] = {
    "cloud_configured": None,
    "system_id": None,
    "should_use_cloud": None,
    "should_use_http": None,
    "force_method": None,
    "enable_fallback": None,
    "upload_on_session_end": None,
    "configuration": {},
}
"""The documented fields where no settings can be had."""


async def glance(loaded: Loaded) -> dict[str, object]:
    """Return all of it. Where the state directory cannot be used, that is in it, and the rest of it all the same."""
    settings = loaded.settings
    document: dict[str, object] = {
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
        return document | {"success": False, "error": str(error), "hint": hint_of(error)}
    warnings = [*loaded.warnings, *map(str, status.warnings)]
    return document | status.to_dict() | {"warnings": warnings}


def configuration(loaded: Loaded) -> dict[str, object]:
    """Return every setting by its key as in a file: flags and numbers as such, secrets and credentials masked."""
    shown: dict[str, object] = {}
    for row in settings_table(loaded):
        value = getattr(loaded.settings, row.key.removeprefix("akosha_"))
        shown[row.key] = value if isinstance(value, (bool, int, float)) else row.value
    return shown
