"""The agent's settings: one frozen, flat pydantic model. A field's name is its key without `akosha_`.

`Settings(...)` uses its arguments and the defaults, and reads nothing; `load` fills it from all sources. The same rules
apply to every source. Fields, including defaults, are validated in order, so a rule about several fields is checked at
the last of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from agent.domain.routing import DEFAULT_HTTP_ENDPOINT, HTTP, plan_route
from agent.settings import endpoints
from agent.settings.validators import (
    AUTO_REGION,
    KMS,
    Bucket,
    Bus,
    CloudEndpoint,
    Directory,
    EarlierFieldError,
    Hosts,
    HttpEndpoint,
    Integer,
    Line,
    LogFormat,
    LogLevel,
    Method,
    NatsUrl,
    NkeySeed,
    Number,
    OptionalFile,
    Password,
    Region,
    Sse,
    StorageClass,
    SystemId,
    Token,
)
from agent.settings.webhooks import Webhooks

APP = "akosha-agent"
WEEK = 7 * 24 * 3600.0
MAX_KEPT = 100_000

SECRET = frozenset(
    {"http_token", "agent_http_token", "agent_nats_password", "agent_nats_token", "agent_nats_nkey_seed"}
)
"""Keys whose values are never shown."""

S3_KEYS = ("cloud_access_key_id", "cloud_secret_access_key", "cloud_session_token")
"""The keys of the S3 credentials in `credentials.yaml`. They are no settings: the S3 client reads them itself."""

ADDRESSES = frozenset({"cloud_endpoint", "http_endpoint", "agent_nats_url"})
"""Keys whose values may contain credentials, which are never shown."""

PROJECT_KEYS = frozenset({"agent_log_level", "chunk_size_mb", "max_retries", "retry_backoff_seconds"})
"""The only keys that ./settings files can set, besides Session-Buddy's log_level and enable_debug_mode.

These files may be part of a cloned repository, which must not decide where memories are sent, which are kept, or who
can read them. Keys that are not listed here are ignored, so that new settings are safe by default.
"""

# The ways to log in to NATS, by key. A password is only used with its user.
_LOGINS = (
    "agent_nats_user",
    "agent_nats_token",
    "agent_nats_credentials_file",
    "agent_nats_nkey_seed",
    "agent_nats_nkey_file",
)


class Settings(BaseModel):
    """All settings. Raises pydantic's ValidationError, which `load` turns into a SettingsError with the sources."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        str_strip_whitespace=True,
        validate_default=True,  # rules about several fields depend on it
        title="akosha-agent",
    )

    cloud_bucket: Bucket = Field(
        default="", description="Bucket to upload to. Empty: no cloud uploads, unless the endpoint is file://."
    )
    cloud_endpoint: CloudEndpoint = Field(
        default="",
        description="URL of the S3 store, or file:///dir for a directory. Empty: the URL of the AWS configuration "
        "(AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, ~/.aws/config), else the provider's default.",
    )
    cloud_region: Region = Field(
        default=AUTO_REGION, description="Region of the bucket. auto suits Cloudflare R2 and most other stores."
    )
    system_id: SystemId = Field(
        default="", description="Name of this machine in the bucket. Empty: its host name at the first start."
    )
    upload_on_session_end: bool = Field(default=True, description="Sync when a session ends.")
    enable_fallback: bool = Field(
        default=True, description="Push to the Akosha server when the upload to the cloud fails."
    )
    force_method: Method = Field(
        default="auto", description="Use this method only. auto: the cloud if it is configured, else http."
    )
    upload_timeout_seconds: Integer = Field(
        default=300,
        ge=1,
        le=86_400,
        description="Seconds without progress after which an upload fails, whatever its size.",
    )
    # The bounds of these two keep the last retry's time within what a date can hold.
    max_retries: Integer = Field(
        default=3, ge=0, le=20, description="Retries after a first attempt that failed for a transient reason."
    )
    retry_backoff_seconds: Number = Field(
        default=2.0, gt=0, le=3600, description="Delay before the first retry; it doubles with each retry."
    )
    enable_compression: bool = Field(default=True, description="Compress uploads with gzip.")
    enable_deduplication: bool = Field(
        default=True, description="Do not upload what is already in the bucket (SHA-256)."
    )
    chunk_size_mb: Integer = Field(default=5, ge=1, le=100, description="Size of an upload's parts, in MiB.")
    sync_enabled: bool = Field(default=True, description="Master switch. false: watch and report, sync nothing.")
    http_endpoint: HttpEndpoint = Field(
        default=DEFAULT_HTTP_ENDPOINT, description="URL of the Akosha server (MCP over HTTP)."
    )
    http_token: Token = Field(default=SecretStr(""), description="Bearer token for the Akosha server.")
    http_missing_embedding: Literal["wait", "zero"] = Field(
        default="wait", description="Memories without an embedding: wait for it, or send zeros in its place."
    )
    ingestion_markers: bool = Field(
        default=False,
        description="Write what Akosha's own IngestionWorker reads: additional objects in the bucket, and all new "
        "memories in memories.json, uncompressed.",
    )
    cloud_sse: Sse = Field(
        default="", description="Server-side encryption to request: AES256 or aws:kms. Empty: the store's default."
    )
    cloud_sse_kms_key_id: Line = Field(default="", description="KMS key for aws:kms. Empty: the provider's own key.")
    cloud_storage_class: StorageClass = Field(
        default="", description="Storage class of uploaded objects (STANDARD_IA, ...). Empty: the store's default."
    )

    agent_data_dir: Directory = Field(
        default_factory=lambda: Path.home() / ".claude" / "data",
        description="Directory of Session-Buddy's databases.",
        json_schema_extra={"shown_default": "Session-Buddy's own data_dir, else ~/.claude/data"},
    )
    agent_state_dir: Directory = Field(
        default_factory=lambda: platformdirs.user_state_path(APP, appauthor=False),
        description="Directory of the agent's own files: ledger, spool, lock, staged copies.",
        json_schema_extra={"shown_default": "~/.local/state/akosha-agent on Linux"},
    )
    agent_upload_on_change: bool = Field(
        default=True, description="Sync when a database changes, not only when a session ends."
    )
    agent_quiet_seconds: Number = Field(
        default=2.0, ge=0, le=WEEK, description="Seconds without a change before a sync starts."
    )
    agent_deadline_seconds: Number = Field(
        default=30.0, gt=0, le=WEEK, description="Maximum wait for that quiet period while changes continue."
    )
    agent_min_interval_seconds: Number = Field(
        default=300.0, ge=0, le=WEEK, description="Minimum seconds between two syncs that file changes start."
    )
    agent_rescan_seconds: Number = Field(
        default=60.0,
        gt=0,
        le=WEEK,
        description="Seconds between two scans of all databases for missed changes.",
    )
    agent_mirror: bool = Field(
        default=True,
        description="Keep a copy of each database's main file in the state directory, so that a sync copies, "
        "verifies and sends only what changed. false: none is kept, and each sync reads and sends whole files.",
    )
    agent_max_upload_kib_per_s: Integer = Field(
        default=0, ge=0, le=2**30, description="Maximum rate of uploads and pushes, in KiB per second. 0: no limit."
    )
    agent_allow_plaintext: Hosts = Field(
        default="",
        description="Hosts to which http:// is permitted, for a store or an Akosha server on a network that you "
        "trust: a list, or names separated by commas; true: all hosts. Memories and the Akosha token are then "
        "sent unencrypted.",
    )

    agent_nats_url: NatsUrl = Field(
        default="", repr=False, description="URL of a NATS server; several are separated by commas."
    )
    agent_bus: Bus = Field(
        default="auto",
        description="Event bus: memory (in this process), nats (NATS only) or auto (NATS if its URL is set, and this "
        "process while NATS is unreachable).",
    )
    agent_nats_user: Line = Field(default="", description="User name on the NATS server.")
    agent_nats_password: Password = Field(default=SecretStr(""), description="Password of that user.")
    agent_nats_token: Password = Field(
        default=SecretStr(""), description="Token for the NATS server, instead of user and password."
    )
    agent_nats_credentials_file: OptionalFile = Field(
        default=None, description="NATS credentials file (.creds: a JWT and a seed) to log in with."
    )
    agent_nats_nkey_seed: NkeySeed = Field(
        default=SecretStr(""), description="Seed of a NATS user's NKey (SU...) to log in with."
    )
    agent_nats_nkey_file: OptionalFile = Field(
        default=None, description="File that contains such a seed, to log in with."
    )
    agent_nats_ca_file: OptionalFile = Field(
        default=None, description="CA certificates (PEM) to trust instead of the system's."
    )
    agent_nats_certificate_file: OptionalFile = Field(
        default=None, description="Client certificate chain (PEM) for the NATS server."
    )
    agent_nats_key_file: OptionalFile = Field(default=None, description="Private key (PEM) of that certificate.")
    agent_nats_tls_first: bool = Field(
        default=False, description="Start the TLS handshake before the server's greeting."
    )
    agent_nats_allow_plaintext: bool = Field(
        default=False,
        description="Allow a password or token over unencrypted nats:// or ws:// to another machine.",
    )
    agent_remote_control: bool = Field(
        default=False, description="Allow others on NATS to request the status and a sync."
    )

    agent_prune: bool = Field(
        default=True,
        description="After an upload, delete uploads of this system that the next four settings do not keep.",
    )
    agent_keep_last: Integer = Field(
        default=10, ge=0, le=MAX_KEPT, description="Number of most recent uploads to keep."
    )
    agent_keep_daily: Integer = Field(
        default=7, ge=0, le=MAX_KEPT, description="Number of days (with uploads) of which the last upload is kept."
    )
    agent_keep_weekly: Integer = Field(
        default=4, ge=0, le=MAX_KEPT, description="Number of weeks (with uploads) of which the last upload is kept."
    )
    agent_keep_monthly: Integer = Field(
        default=12, ge=0, le=MAX_KEPT, description="Number of months (with uploads) of which the last upload is kept."
    )
    agent_verify_hours: Number = Field(
        default=24.0,
        ge=0,
        le=8760,
        description="Hours between two checks that the newest upload in the bucket is complete. 0: never.",
    )
    agent_deep_verify_mb: Integer = Field(
        default=500,
        ge=0,
        le=MAX_KEPT,
        description="Maximum megabytes to download once a week for a deep verification of one kept upload. Needs "
        "`akosha_agent_verify_hours` above 0. 0: never.",
    )

    agent_webhooks: Webhooks = Field(
        default=(),
        description="URLs that get events: a list of mappings with url and events, and if needed secret, "
        "overdue_hours and format; as JSON in the variable and for `config set`.",
    )

    agent_http_port: Integer = Field(
        default=0,
        ge=0,
        le=65_535,
        description="Port on 127.0.0.1 for the control API, in addition to its Unix socket. 0: none.",
    )
    agent_http_token: Token = Field(
        default=SecretStr(""),
        description="Bearer token that is required for changes over that port. Empty: a generated one, in "
        "`http-token` in the state directory.",
    )
    agent_log_level: LogLevel = Field(default="INFO", description="Minimum log level.")
    agent_log_format: LogFormat = Field(
        default="auto",
        description="Format of log lines. auto: on a terminal console, and sentences of `run`; elsewhere json.",
    )
    agent_log_file: OptionalFile = Field(
        default=None, description="File that `run` and `react` log to instead of standard error. Empty: none."
    )
    agent_log_file_mb: Integer = Field(
        default=10, ge=1, le=1024, description="Size at which that file is rotated, in MiB; five old files are kept."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_http_endpoint(cls, data: object) -> object:
        """Without a bucket, a cloud endpoint that ends in /mcp is the default of http_endpoint."""
        if isinstance(data, dict) and not data.get("http_endpoint") and not data.get("cloud_bucket"):
            endpoint = data.get("cloud_endpoint")
            if isinstance(endpoint, str) and endpoints.is_akosha_address(endpoint.strip()):
                return {**data, "http_endpoint": endpoint}
        return data

    @field_validator("cloud_endpoint")
    @classmethod
    def _without_bucket(cls, value: str, info: ValidationInfo) -> str:
        bucket = info.data.get("cloud_bucket")
        return value if bucket is None else endpoints.without_bucket(value, bucket)

    @field_validator("force_method")
    @classmethod
    def _check_forced_cloud(cls, value: str, info: ValidationInfo) -> str:
        bucket, endpoint = info.data.get("cloud_bucket"), info.data.get("cloud_endpoint")
        if value == "cloud" and bucket == "" and endpoint is not None and not endpoints.is_directory(endpoint):
            raise ValueError("cloud needs akosha_cloud_bucket, or akosha_cloud_endpoint set to file:///dir")
        return value

    @field_validator("cloud_sse_kms_key_id")
    @classmethod
    def _check_kms_key(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("cloud_sse") not in (None, KMS):
            raise ValueError(f"a key needs akosha_cloud_sse: {KMS}")
        return value

    @field_validator("agent_bus")
    @classmethod
    def _check_bus(cls, value: str, info: ValidationInfo) -> str:
        if value == "nats" and info.data.get("agent_nats_url") == "":
            raise ValueError("nats needs akosha_agent_nats_url")
        return value

    @field_validator(*_LOGINS)
    @classmethod
    def _check_one_login(cls, value: object, info: ValidationInfo) -> object:
        other = next(_logins(info.data), None) if _text(value) else None
        if other is not None:
            raise ValueError(f"only one way to log in is allowed, but {other} is set, too")
        return value

    @field_validator("agent_nats_password")
    @classmethod
    def _check_password(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        user = info.data.get("agent_nats_user")
        if _text(value) and user == "":
            raise ValueError("needs akosha_agent_nats_user")
        if user and not _text(value):
            raise EarlierFieldError("agent_nats_user", "needs akosha_agent_nats_password")
        return value

    @field_validator("agent_nats_key_file")
    @classmethod
    def _check_key_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "agent_nats_certificate_file" not in info.data:  # invalid itself
            return value
        certificate = info.data["agent_nats_certificate_file"]
        if value is not None and certificate is None:
            raise ValueError("needs akosha_agent_nats_certificate_file")
        if value is None and certificate is not None:
            raise EarlierFieldError("agent_nats_certificate_file", "needs akosha_agent_nats_key_file")
        return value

    @field_validator("agent_allow_plaintext")
    @classmethod
    def _check_unencrypted(cls, value: str, info: ValidationInfo) -> str:
        for key in ("cloud_endpoint", "http_endpoint"):
            try:
                endpoints.check_plaintext(info.data.get(key, ""), value)
            except ValueError as error:
                raise EarlierFieldError(key, str(error)) from None
        return value

    @field_validator("agent_webhooks")
    @classmethod
    def _check_encrypted(cls, value: Webhooks, info: ValidationInfo) -> Webhooks:
        if (allowed := info.data.get("agent_allow_plaintext")) is not None:
            for number, webhook in enumerate(value, 1):
                try:
                    endpoints.check_plaintext(webhook.url.get_secret_value(), allowed)
                except ValueError as error:
                    raise ValueError(f"webhook {number}: url {error}") from None
        return value

    @field_validator("agent_nats_allow_plaintext")
    @classmethod
    def _check_plaintext(cls, value: bool, info: ValidationInfo) -> bool:
        exposed = None if value else _exposed(info.data)
        if exposed is not None:
            raise EarlierFieldError(
                exposed,
                "a password or token would be unencrypted to another machine; use tls:// or wss:// in "
                "akosha_agent_nats_url, or set akosha_agent_nats_allow_plaintext: true",
            )
        return value

    @field_serializer("agent_nats_url", when_used="json")
    def _mask_nats_url(self, value: str) -> str:
        return endpoints.without_credentials(value)

    @property
    def directory(self) -> Path | None:
        """The directory of a file:// cloud endpoint."""
        return endpoints.directory_of(self.cloud_endpoint) if endpoints.is_directory(self.cloud_endpoint) else None

    @property
    def cloud_configured(self) -> bool:
        """Whether the cloud method has a bucket or a directory."""
        return bool(self.cloud_bucket) or self.directory is not None

    @property
    def target_chosen(self) -> bool:
        """Whether a setting says where memories go. If none does, they go to an Akosha server on this machine."""
        return self.cloud_configured or self.force_method == HTTP or self.http_endpoint != DEFAULT_HTTP_ENDPOINT

    @property
    def route(self) -> tuple[str, ...]:
        """The methods to try, in order."""
        return plan_route(
            force_method=self.force_method,
            cloud_configured=self.cloud_configured,
            enable_fallback=self.enable_fallback,
        )

    @property
    def over_nats(self) -> bool:
        """Whether events are published over NATS."""
        return bool(self.agent_nats_url) and self.agent_bus != "memory"


def _text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value or "")


def _logins(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the configured ways to log in, among the fields validated so far."""
    if any(map(endpoints.has_user_info, endpoints.nats_servers(fields.get("agent_nats_url", "")))):
        yield "a user or token in akosha_agent_nats_url"
    yield from (f"akosha_{key}" for key in _LOGINS if _text(fields.get(key)))


def _exposed(fields: Mapping[str, Any]) -> str | None:
    """Return the key of a secret that would be sent unencrypted to another machine. NKeys and JWTs are not sent."""
    servers = endpoints.nats_servers(fields.get("agent_nats_url", ""))
    in_plaintext = [server for server in servers if endpoints.is_plaintext(server)]
    if any(map(endpoints.has_user_info, in_plaintext)):
        return "agent_nats_url"
    secrets = (key for key in ("agent_nats_password", "agent_nats_token") if _text(fields.get(key)))
    return next(secrets, None) if in_plaintext else None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, the source of each key's value, and warnings for the user, which the caller logs.

    `files`: the names of the files that were read, highest precedence first.
    """

    settings: Settings
    origins: dict[str, str]
    warnings: tuple[str, ...]
    files: tuple[str, ...] = ()


FIELDS: dict[str, FieldInfo] = Settings.model_fields
"""The keys, in the order of the table."""

TEXTS = frozenset(name for name, field in FIELDS.items() if field.annotation in (str, SecretStr, Path | None))
"""Keys for which an empty text is a value (for a path: none). For other keys it means that they are not set."""

PATHS = frozenset(name for name, field in FIELDS.items() if field.annotation in (Path, Path | None))
