"""The protocol of a method, and the methods cloud and http, which sync in a child process."""

import logging
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict, cast, runtime_checkable

from agent.api import reachability
from agent.api.config import AkoshaSyncConfig
from agent.api.process import Request, run_sync
from agent.domain.errors import AkoshaError, CloudUploadError, HTTPSyncError, SettingsError, SyncError
from agent.entrypoints.formatting import hint_of_text

SyncMethodType = Literal["auto", "cloud", "http"]

_log = logging.getLogger("agent.api")


class SyncResult(TypedDict):
    """The result of a successful sync. If nothing had changed, `files_uploaded` is empty and `upload_id` is None.

    `bytes_transferred` counts the bytes that the successful attempt sent over the network. The http method's
    `upload_id` is the ID of its request.
    """

    method: str
    success: bool
    files_uploaded: list[str]
    bytes_transferred: int
    duration_seconds: float
    upload_id: str | None
    error: str | None
    triggered_by: str

    caused_by: NotRequired[list[str]]
    """Ids of the session ends that this result answers."""
    request_id: NotRequired[str]
    outcome: NotRequired[str]
    """`succeeded`, or `skipped` with the reason in `why`."""
    why: NotRequired[str]
    hint: NotRequired[str | None]
    location: NotRequired[str]
    incomplete: NotRequired[dict[str, str]]
    """What has not been delivered yet, with the reason."""
    memories: NotRequired[int]
    """Number of memories that the target has now and lacked before."""
    repairs: NotRequired[str]
    """The upload before this one, if it was damaged and its databases were sent again; else ""."""
    unreadable: NotRequired[list[str]]
    """Databases that were uploaded as they are, although DuckDB cannot read them."""
    errors: NotRequired[list[dict[str, str]]]
    """`method` and `error` of each method that failed before this one delivered."""


@runtime_checkable
class SyncMethod(Protocol):
    """A sync method. Callers may add their own to `HybridAkoshaSync.methods`."""

    async def sync(
        self, upload_reflections: bool = True, upload_knowledge_graph: bool = True, **kwargs: Any
    ) -> SyncResult | dict[str, Any]:
        """Sync and return the result. On failure, raise, or return `success: False`."""
        ...

    def is_available(self) -> bool:
        """Return within 1 s whether to try this method: False only if it is certain to fail.

        Called in a thread. If it does not return in time, the method is tried.
        """
        ...

    def get_method_name(self) -> str:
        """Return `cloud`, `http`, or another name."""
        ...


class _ChildProcessMethod:
    """Base of the two methods. Directories default to those of the agent's settings."""

    name: str
    error: type[SyncError]
    unavailable = ""
    """Why the last `is_available` returned False."""

    def __init__(
        self, config: AkoshaSyncConfig, *, data_dir: Path | str | None = None, state_dir: Path | str | None = None
    ) -> None:
        self.config = config
        self._data_dir = None if data_dir is None else str(data_dir)
        self._state_dir = None if state_dir is None else str(state_dir)

    def get_method_name(self) -> str:
        return self.name

    async def sync(
        self,
        upload_reflections: bool = True,
        upload_knowledge_graph: bool = True,
        **kwargs: Any,  # noqa: ARG002 - the protocol's
    ) -> SyncResult:
        """Sync what the target lacks, with retries. Raises `CloudUploadError` or `HTTPSyncError`.

        A child process does the sync, or the agent running on this machine, with its own settings. When cancelled, this
        returns once the child has cleaned up and exited. Other arguments are ignored.
        """
        try:
            result = await run_sync(self._request(upload_reflections, upload_knowledge_graph))
        except AkoshaError as error:
            raise self.error(error.message, self.name, error, hint=error.hint, transient=error.transient) from error
        if not result["success"]:
            text = result["errors"][-1]["error"] if result["errors"] else result["error"]
            hint = hint_of_text(text)
            message = text.removesuffix(f" ({hint})") if hint else text
            raise self.error(message, self.name, hint=hint, transient=result["retry_at"] is not None)
        return cast("SyncResult", result)

    def _request(self, upload_reflections: bool = True, upload_knowledge_graph: bool = True) -> Request:
        return Request(
            config=self.config,
            method=self.name,
            upload_reflections=upload_reflections,
            upload_knowledge_graph=upload_knowledge_graph,
            data_dir=self._data_dir,
            state_dir=self._state_dir,
        )


class CloudSyncMethod(_ChildProcessMethod):
    """Uploads the databases to a bucket or a directory.

    Raises ValueError if the config is invalid or has neither.
    """

    name = "cloud"
    error = CloudUploadError

    def __init__(
        self, config: AkoshaSyncConfig, *, data_dir: Path | str | None = None, state_dir: Path | str | None = None
    ) -> None:
        super().__init__(config, data_dir=data_dir, state_dir=state_dir)
        errors = config.validate()
        if not errors and not config.cloud_configured:
            errors = ["no bucket is configured: set akosha_cloud_bucket, or akosha_cloud_endpoint to file:///dir"]
        if errors:
            raise ValueError("\n".join(errors))

    def is_available(self) -> bool:
        """Return within 1 s whether the store's host accepts connections, or the directory exists and is writable.

        False only if it certainly does not; True if there is no answer in time.
        """
        return reachability.within(self._is_reachable)

    def _is_reachable(self) -> bool:
        try:
            settings = self._request().load().settings
        except SettingsError as error:
            _log.warning("cloud: %s", error)
            self.unavailable = str(error)
            return False
        if settings.directory is not None:
            self.unavailable = reachability.not_writable(settings.directory / settings.cloud_bucket)
        else:
            self.unavailable = reachability.connection_refusal(settings.cloud_endpoint, settings.cloud_region)
        return not self.unavailable


class HttpSyncMethod(_ChildProcessMethod):
    """Pushes the memories to the Akosha server at `akosha_http_endpoint`, which is read from the agent's settings.

    If that is not set and there is no bucket, a `cloud_endpoint` that ends in `/mcp` is the address.
    """

    name = "http"
    error = HTTPSyncError

    def __init__(
        self, config: AkoshaSyncConfig, *, data_dir: Path | str | None = None, state_dir: Path | str | None = None
    ) -> None:
        import agent.settings  # noqa: F401, PLC0415 - imported here, because `is_available` has only one second

        super().__init__(config, data_dir=data_dir, state_dir=state_dir)

    def is_available(self) -> bool:
        """Return within 1 s whether `/health` at the server's origin responds with 200.

        False only if it certainly does not (any other status counts); True if there is no answer in time.
        """
        return reachability.within(self._is_healthy)

    def _is_healthy(self) -> bool:
        try:
            endpoint = self._request().load().settings.http_endpoint
        except SettingsError as error:
            _log.warning("http: %s", error)
            self.unavailable = str(error)
            return False
        self.unavailable = reachability.health_failure(endpoint)
        return not self.unavailable
