"""The one settings tree: frozen, flat, valid once built. A field's name is its key without `akosha_`.

`Settings(...)` takes what it is given and defaults, and reads nothing; `load` fills it from all sources. Whatever the
source, a value meets the same rules here.
"""

from contextvars import ContextVar
from pathlib import Path

import platformdirs
from pydantic import Field, SecretStr, ValidationInfo, field_serializer, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from agent.domain.route import plan_route
from agent.settings import endpoints
from agent.settings.kinds import (
    AUTO_REGION,
    DEFAULT_HTTP_ENDPOINT,
    Bucket,
    Bus,
    CloudEndpoint,
    Folder,
    HttpEndpoint,
    LogFormat,
    LogLevel,
    Method,
    NatsUrl,
    Region,
    Seconds,
    SystemId,
    Token,
    Whole,
)

PREFIX = "akosha_"
APP = "akosha-agent"
WEEK = 7 * 24 * 3600.0

SECRET = frozenset({"http_token"})
"""Keys whose values are never shown."""

ADDRESSES = frozenset({"cloud_endpoint", "http_endpoint", "agent_nats_url"})
"""Keys whose values may have credentials in them; those are not shown."""

REDIRECTING = frozenset(
    {
        "cloud_bucket",
        "cloud_endpoint",
        "http_endpoint",
        "http_token",
        "agent_data_dir",
        "agent_state_dir",
        "agent_nats_url",
    }
)
"""Keys that decide where memories come from and go to, staging and requests included."""

SOURCES: ContextVar[tuple[PydanticBaseSettingsSource, ...]] = ContextVar("settings_sources", default=())
"""Where a `Settings()` built now takes its values from, the highest first, besides its arguments."""


class Settings(BaseSettings):
    """Everything a user can set. Raises pydantic's ValidationError; `load` makes that a SettingsError with sources."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True, title="akosha-agent"
    )

    cloud_bucket: Bucket = Field(
        default="", description="Bucket to upload to; empty: no cloud, unless the endpoint is file://."
    )
    cloud_endpoint: CloudEndpoint = Field(
        default="",
        description="Address of the S3 store, or file:///dir for a directory; empty: the provider's default.",
    )
    cloud_region: Region = Field(
        default=AUTO_REGION, description="Region of the bucket; auto suits Cloudflare R2 and most others."
    )
    system_id: SystemId = Field(
        default="", description="Name of this machine in the bucket; empty: its host name at the first start."
    )
    upload_on_session_end: bool = Field(default=True, description="Sync as soon as a session ends.")
    enable_fallback: bool = Field(default=True, description="Where the cloud fails, send to the Akosha server.")
    force_method: Method = Field(
        default="auto", description="The only method to use; auto: the cloud where it is set up, else http."
    )
    upload_timeout_seconds: Whole = Field(
        default=300, ge=1, le=86_400, description="Longest time an upload may stand still, whatever its size."
    )
    # The bounds of these two keep the last retry's time within what a date can hold.
    max_retries: Whole = Field(
        default=3, ge=0, le=20, description="Retries after a first attempt that failed for a passing reason."
    )
    retry_backoff_seconds: Seconds = Field(
        default=2.0, gt=0, le=3600, description="Wait before the first retry; it doubles with each one."
    )
    enable_compression: bool = Field(default=True, description="Compress with gzip on the way up.")
    enable_deduplication: bool = Field(default=True, description="Send nothing that is already there (SHA-256).")
    chunk_size_mb: Whole = Field(default=5, ge=1, le=100, description="Size of an upload's parts, in MiB.")
    sync_enabled: bool = Field(default=True, description="The master switch; false: watch and report, sync nothing.")
    http_endpoint: HttpEndpoint = Field(
        default=DEFAULT_HTTP_ENDPOINT, description="Address of the Akosha server (MCP over HTTP)."
    )
    http_token: Token = Field(default=SecretStr(""), description="Bearer token for the Akosha server.")
    agent_data_dir: Folder = Field(
        default_factory=lambda: Path.home() / ".claude" / "data",
        description="Directory of Session-Buddy's databases.",
        json_schema_extra={"shown_default": "~/.claude/data"},
    )
    agent_state_dir: Folder = Field(
        default_factory=lambda: platformdirs.user_state_path(APP, appauthor=False),
        description="Directory of the agent's own: ledger, spool, lock, staged copies.",
        json_schema_extra={"shown_default": "the platform's state directory"},
    )
    agent_nats_url: NatsUrl = Field(
        default="", repr=False, description="Address of a NATS server; several with commas."
    )
    agent_bus: Bus = Field(
        default="auto",
        description="Where events flow: in this process or over NATS; auto: NATS where its address is set.",
    )
    agent_upload_on_change: bool = Field(
        default=True, description="Sync when a database changes, not only at session ends."
    )
    agent_quiet_seconds: Seconds = Field(
        default=2.0, ge=0, le=WEEK, description="Time without a change before a sync starts."
    )
    agent_deadline_seconds: Seconds = Field(
        default=30.0, gt=0, le=WEEK, description="Longest wait for that quiet while changes go on."
    )
    agent_min_interval_seconds: Seconds = Field(
        default=300.0, ge=0, le=WEEK, description="Least time between two syncs that file changes start."
    )
    agent_rescan_seconds: Seconds = Field(
        default=60.0,
        gt=0,
        le=WEEK,
        description="Time between two looks at all databases, for changes that went unnoticed.",
    )
    agent_log_level: LogLevel = Field(default="INFO", description="Least level of what is logged.")
    agent_log_format: LogFormat = Field(
        default="auto", description="Form of log lines; auto: console on a terminal, else json."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the names are pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, *SOURCES.get())

    @model_validator(mode="before")
    @classmethod
    def _lend_akosha_address(cls, data: object) -> object:
        """With no bucket, a cloud endpoint that ends in /mcp is Akosha's address, where that has not been given."""
        if isinstance(data, dict) and not data.get("http_endpoint") and not data.get("cloud_bucket"):
            lent = data.get("cloud_endpoint")
            if isinstance(lent, str) and endpoints.is_akosha_address(lent.strip()):
                return {**data, "http_endpoint": lent}
        return data

    @field_validator("force_method")
    @classmethod
    def _forced_cloud_exists(cls, value: str, info: ValidationInfo) -> str:
        bucket, endpoint = info.data.get("cloud_bucket"), info.data.get("cloud_endpoint")
        if value == "cloud" and bucket == "" and endpoint is not None and not endpoints.is_directory(endpoint):
            raise ValueError(
                "cloud is allowed only with an akosha_cloud_bucket, or a file:///dir akosha_cloud_endpoint"
            )
        return value

    @field_validator("agent_bus")
    @classmethod
    def _bus_has_address(cls, value: str, info: ValidationInfo) -> str:
        if value == "nats" and info.data.get("agent_nats_url") == "":
            raise ValueError("nats is allowed only with an akosha_agent_nats_url")
        return value

    @field_serializer("agent_nats_url", when_used="json")
    def _nats_url_shown(self, value: str) -> str:
        return endpoints.without_credentials(value)

    @property
    def directory(self) -> Path | None:
        """The directory that the cloud method delivers to, where the endpoint is file://."""
        return endpoints.directory_of(self.cloud_endpoint) if endpoints.is_directory(self.cloud_endpoint) else None

    @property
    def cloud_configured(self) -> bool:
        """Whether the cloud method has somewhere to deliver to: a bucket, or a directory."""
        return bool(self.cloud_bucket) or self.directory is not None

    @property
    def route(self) -> tuple[str, ...]:
        """The methods to try, in order."""
        return plan_route(
            force_method=self.force_method,
            cloud_configured=self.cloud_configured,
            enable_fallback=self.enable_fallback,
        )


FIELDS: dict[str, FieldInfo] = Settings.model_fields
"""The keys, in the order of the table."""

TEXTS = frozenset(name for name, field in FIELDS.items() if field.annotation in (str, SecretStr))
"""Keys for which an empty text is a value; for the others it means: not set."""

PATHS = frozenset(name for name, field in FIELDS.items() if field.annotation is Path)
