"""What a method is, and the two that are here: each asks for one sync, which a process of its own does."""

import logging
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict, cast, runtime_checkable

from agent.api import reach
from agent.api.config import AkoshaSyncConfig
from agent.api.process import answer_to
from agent.api.request import Request
from agent.domain.errors import AkoshaError, CloudUploadError, HTTPSyncError, SettingsError, SyncError
from agent.entrypoints.formatting import hint_of_text

SyncMethodType = Literal["auto", "cloud", "http"]

_log = logging.getLogger("agent.api")


class SyncResult(TypedDict):
    """The result of a sync that succeeded; where nothing had changed, `files_uploaded` is empty and `upload_id` None.

    `bytes_transferred` is what really went over the wire. The http method's `upload_id` is the id of its request.
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
    """Ids of the session ends that it answers."""
    request_id: NotRequired[str]
    outcome: NotRequired[str]
    """`succeeded`, or `skipped`; then `why`."""
    why: NotRequired[str]
    hint: NotRequired[str | None]
    location: NotRequired[str]
    incomplete: NotRequired[dict[str, str]]
    """What stays owed, with the reason."""
    memories: NotRequired[int]
    """How many the target has now and lacked before."""
    errors: NotRequired[list[dict[str, str]]]
    """`method` and `error` of each method that failed before this one delivered."""


@runtime_checkable
class SyncMethod(Protocol):
    """A way to sync. A user's own stands in `HybridAkoshaSync.methods` beside ours."""

    async def sync(
        self, upload_reflections: bool = True, upload_knowledge_graph: bool = True, **kwargs: Any
    ) -> SyncResult | dict[str, Any]:
        """Deliver, and return the result. Raises (or returns `success: False`) where it cannot."""
        ...

    def is_available(self) -> bool:
        """Say within 1 s whether an attempt makes sense: False only for a definite no.

        Called in a thread. No answer in time means that nobody knows: the method is tried.
        """
        ...

    def get_method_name(self) -> str:
        """`cloud`, `http`, or a name of its own."""
        ...


class _OwnMethod:
    """What the two have in common. Directories: those of the agent's own settings, unless they are given."""

    name: str
    error: type[SyncError]
    unavailable = ""
    """Why the last `is_available` said no."""

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
        **kwargs: Any,  # noqa: ARG002 - what other methods may want to know
    ) -> SyncResult:
        """Sync what the target lacks, retries included. Raises `CloudUploadError`, or `HTTPSyncError`.

        A process of its own does it; or the agent that runs on this machine, with its own settings. Cancelled, it
        returns when that process has cleaned up and ended. Other arguments are taken, and mean nothing here.
        """
        try:
            result = await answer_to(self._request(upload_reflections, upload_knowledge_graph))
        except AkoshaError as error:
            raise self.error(error.message, self.name, error, hint=error.hint, transient=error.transient) from error
        if not result["success"]:
            told = result["errors"][-1]["error"] if result["errors"] else result["error"]
            hint = hint_of_text(told)
            message = told.removesuffix(f" ({hint})") if hint else told
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


class CloudSyncMethod(_OwnMethod):
    """The databases, into a bucket or a directory. Raises ValueError for a config that is not valid, or has neither."""

    name = "cloud"
    error = CloudUploadError

    def __init__(
        self, config: AkoshaSyncConfig, *, data_dir: Path | str | None = None, state_dir: Path | str | None = None
    ) -> None:
        super().__init__(config, data_dir=data_dir, state_dir=state_dir)
        wrong = config.validate()
        if not wrong and not config.cloud_configured:
            wrong = ["there is no cloud to sync to: set akosha_cloud_bucket, or akosha_cloud_endpoint to file:///dir"]
        if wrong:
            raise ValueError("\n".join(wrong))

    def is_available(self) -> bool:
        """Say within 1 s whether the store's host may be reached, or the directory is there and ours to write.

        False only for a definite no; True where nothing is known in time.
        """
        return reach.answered(self._may_be_reached)

    def _may_be_reached(self) -> bool:
        try:
            settings = self._request().load().settings
        except SettingsError as error:
            _log.warning("cloud: %s", error)
            self.unavailable = str(error)
            return False
        if settings.directory is not None:
            self.unavailable = reach.not_writable(settings.directory / settings.cloud_bucket)
        else:
            self.unavailable = reach.no_connection(settings.cloud_endpoint, settings.cloud_region)
        return not self.unavailable


class HttpSyncMethod(_OwnMethod):
    """The memories, to an Akosha server: that of `akosha_http_endpoint`, which is no field but a setting of the agent.

    Where that is not set and there is no bucket, a `cloud_endpoint` that ends in `/mcp` is its address.
    """

    name = "http"
    error = HTTPSyncError

    def __init__(
        self, config: AkoshaSyncConfig, *, data_dir: Path | str | None = None, state_dir: Path | str | None = None
    ) -> None:
        import agent.settings  # noqa: F401, PLC0415 - here, and not within the second that `is_available` has

        super().__init__(config, data_dir=data_dir, state_dir=state_dir)

    def is_available(self) -> bool:
        """Say within 1 s whether `/health` on the server's origin answers with 200.

        False only for a definite no (also another answer than 200); True where nothing is known in time.
        """
        return reach.answered(self._is_healthy)

    def _is_healthy(self) -> bool:
        try:
            endpoint = self._request().load().settings.http_endpoint
        except SettingsError as error:
            _log.warning("http: %s", error)
            self.unavailable = str(error)
            return False
        self.unavailable = reach.no_health(endpoint)
        return not self.unavailable
