"""What a call does, and what it returns: a dict, whatever happens. Errors are results."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import structlog

from agent.domain.errors import AkoshaError, SettingsError
from agent.domain.routing import AUTO
from agent.entrypoints.documents import ResultDocument
from agent.entrypoints.mcp.notifications import ProgressNotifications, Tell
from agent.entrypoints.mcp.restore_points import NO_POINTS, points
from agent.entrypoints.mcp.status import NO_SETTINGS, glance
from agent.entrypoints.mcp.tools import METHODS
from agent.entrypoints.results import hint_of, sentence
from agent.entrypoints.sync_client import SyncClient
from agent.settings import Loaded

_log = structlog.get_logger()

Loading = Callable[[], Loaded]
"""Reads the settings as they are now, in a thread. Raises SettingsError."""

Given = Mapping[str, object]
"""The arguments of a call, as the client sent them."""


async def sync(loading: Loading, given: Given, tell: Tell | None) -> dict[str, object]:
    """Sync, and return the documented result, of a failure too. With `tell`, tell of the progress."""
    method = given.get("method", AUTO)
    shown = method if isinstance(method, str) and method in METHODS else AUTO
    try:
        return await _sync(loading, given, tell)
    except AkoshaError as error:
        return ResultDocument.refused(error, method=shown).to_dict()
    except Exception as error:  # noqa: BLE001 - promised: it never raises; what is no AkoshaError is logged in full
        return ResultDocument.refused(_ours(error), method=shown).to_dict()


async def status(loading: Loading) -> dict[str, object]:
    """Return how it is set up and how it stands, with success: false where one of the two cannot be had."""
    try:
        return await glance(await asyncio.to_thread(loading))
    except AkoshaError as error:
        return NO_SETTINGS | _told(error)
    except Exception as error:  # noqa: BLE001 - as above
        return NO_SETTINGS | _told(_ours(error))


async def restore_points(loading: Loading) -> dict[str, object]:
    """Return the newest uploads of this machine, with success: false where the bucket cannot be looked into."""
    try:
        return await points((await asyncio.to_thread(loading)).settings)
    except AkoshaError as error:
        return NO_POINTS | _told(error)
    except Exception as error:  # noqa: BLE001 - as above
        return NO_POINTS | _told(_ours(error))


async def _sync(loading: Loading, given: Given, tell: Tell | None) -> dict[str, object]:
    method, enable_fallback = _arguments(given)
    telling = ProgressNotifications(tell or _untold)
    await telling.begin("looking for what has changed")
    try:
        loaded = await asyncio.to_thread(loading)
        asking = await SyncClient.prepare(loaded.settings, method=method, enable_fallback=enable_fallback)
        async with telling.open(asking.trouble) if tell else nullcontext():
            result = await asking.result(hear=telling.hear, waits=telling.waits)
    except AkoshaError as error:
        await telling.end(str(error))
        raise
    await telling.end(sentence(result))
    return ResultDocument.of(result).to_dict()


async def _untold(*_: object) -> None:
    """For a client that has not asked for progress."""


def _arguments(given: Given) -> tuple[str, bool]:
    """Return method and enable_fallback. Raises SettingsError for what is neither."""
    if unknown := sorted(set(given) - {"method", "enable_fallback"}):
        raise SettingsError(
            f"there is no parameter {', '.join(unknown)}", hint="the parameters are method and enable_fallback"
        )
    method, enable_fallback = given.get("method", AUTO), given.get("enable_fallback", True)
    if not isinstance(method, str) or method not in METHODS:
        raise SettingsError(f"there is no method {method!r:.100}", hint=f"method is one of {', '.join(METHODS)}")
    if not isinstance(enable_fallback, bool):
        raise SettingsError(f"enable_fallback is {enable_fallback!r:.100}", hint="enable_fallback is true or false")
    return method, enable_fallback


def _ours(error: Exception) -> AkoshaError:
    """Return what is said of a fault of ours; its text, which may hold anything, goes to the log alone."""
    _log.error("call_failed", exc_info=error)
    return AkoshaError(
        f"the call failed for a reason of its own: {type(error).__name__}",
        hint="its traceback is in the log of akosha-agent mcp (standard error)",
    )


def _told(error: AkoshaError) -> dict[str, object]:
    return {"success": False, "error": str(error), "hint": hint_of(error)}
