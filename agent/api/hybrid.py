"""Tries methods in order; the first that delivers ends the sync."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from agent.api.config import AUTO, AkoshaSyncConfig
from agent.api.methods import CloudSyncMethod, HttpSyncMethod, SyncMethod, SyncResult
from agent.api.reachability import within
from agent.domain.errors import CloudUploadError, HTTPSyncError, HybridSyncError, SyncError

UNREACHABLE = "it cannot be reached"
"""The default reason of an unavailable method."""

_ERRORS: Mapping[str, type[SyncError]] = {"cloud": CloudUploadError, "http": HTTPSyncError}

_log = logging.getLogger("agent.api")


class HybridAkoshaSync:
    """Syncs with the first method that succeeds: cloud, if it is configured, then http.

    Callers may change `methods`, for example insert a method of their own. Directories default to those of the agent's
    settings. Raises ValueError if the cloud is configured and the config is invalid.
    """

    def __init__(
        self, config: AkoshaSyncConfig, *, data_dir: Path | str | None = None, state_dir: Path | str | None = None
    ) -> None:
        self.config = config
        self.methods: list[SyncMethod] = []
        if config.cloud_configured:
            self.methods.append(CloudSyncMethod(config, data_dir=data_dir, state_dir=state_dir))
        self.methods.append(HttpSyncMethod(config, data_dir=data_dir, state_dir=state_dir))

    async def sync_memories(
        self, force_method: str = AUTO, upload_reflections: bool = True, upload_knowledge_graph: bool = True
    ) -> SyncResult:
        """Sync now and return the result of the method that delivered.

        If `force_method`, here or in the config, is not auto, only that method is tried. With auto, unavailable methods
        are skipped; without `enable_fallback`, only the first method is tried.

        Raises:
            HybridSyncError: With auto, no method has delivered; contains the error of each.
            CloudUploadError, HTTPSyncError: The error of a forced method.
            ValueError: No method has the forced name.
        """
        methods = {method.get_method_name(): method for method in reversed(self.methods)}  # the first of each name
        forced = force_method if force_method != AUTO else self.config.force_method
        if forced != AUTO:
            method = methods.get(forced) or _missing(forced, methods)
            return await _sync(method, upload_reflections, upload_knowledge_graph)
        errors: list[dict[str, str]] = []
        causes: list[Exception] = []
        for method in self.methods if self.config.enable_fallback else self.methods[:1]:
            name = method.get_method_name()
            try:
                if not await asyncio.to_thread(within, method.is_available):
                    reason = getattr(method, "unavailable", "") or UNREACHABLE
                    raise SyncError(f"not available: {reason}", name, transient=True)
                return await _sync(method, upload_reflections, upload_knowledge_graph)
            except Exception as error:  # noqa: BLE001 - a caller's method may raise anything; the error below has it
                _log.warning("%s failed: %s", name, error)
                errors.append({"method": name, "error": str(error) or type(error).__name__})
                causes.append(error)
        message = "; ".join(f"{error['method']}: {error['error']}" for error in errors)
        cause = ExceptionGroup("each method's error", causes) if causes else None
        raise HybridSyncError(message or "there is no sync method", AUTO, errors) from cause


async def _sync(method: SyncMethod, upload_reflections: bool, upload_knowledge_graph: bool) -> SyncResult:
    """Sync by one method. If it returns a failure, raise it."""
    result = await method.sync(upload_reflections=upload_reflections, upload_knowledge_graph=upload_knowledge_graph)
    if not result.get("success", True):
        name = method.get_method_name()
        raise _ERRORS.get(name, SyncError)(str(result.get("error") or "failed"), name)
    return cast("SyncResult", result)


def _missing(name: str, methods: Mapping[str, SyncMethod]) -> SyncMethod:
    if name == "cloud":
        raise CloudUploadError(
            "no bucket is configured",
            name,
            hint="set akosha_cloud_bucket, or akosha_cloud_endpoint to file:///a/directory",
        )
    raise ValueError(f"unknown method {name!r}; known methods: {', '.join([AUTO, *sorted(methods)])}")
