"""The settings of what is delivered, where to and how: the documented ones, and those of the Akosha server."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_validator, model_validator

from agent.domain.routing import plan_route
from agent.settings import endpoints
from agent.settings.validators import (
    AUTO_REGION,
    DEFAULT_HTTP_ENDPOINT,
    KMS,
    Bucket,
    CloudEndpoint,
    HttpEndpoint,
    Line,
    Method,
    Region,
    Seconds,
    Sse,
    StorageClass,
    SystemId,
    Token,
    Whole,
)


class Delivery(BaseModel):
    """A part of the tree, with the rules among its own keys and what follows from them."""

    cloud_bucket: Bucket = Field(
        default="", description="Bucket to upload to; empty: no cloud, unless the endpoint is file://."
    )
    cloud_endpoint: CloudEndpoint = Field(
        default="",
        description="Address of the S3 store, or file:///dir for a directory; empty: that of the AWS configuration "
        "(AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, ~/.aws/config), else the provider's default.",
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
    http_missing_embedding: Literal["wait", "zero"] = Field(
        default="wait", description="Memories without an embedding: wait for it, or send zeros in its place."
    )
    ingestion_markers: bool = Field(
        default=False, description="Write the extra objects that Akosha's own IngestionWorker looks for in the bucket."
    )
    cloud_sse: Sse = Field(
        default="", description="Server-side encryption to ask the store for: AES256 or aws:kms; empty: its default."
    )
    cloud_sse_kms_key_id: Line = Field(default="", description="The KMS key for aws:kms; empty: the provider's own.")
    cloud_storage_class: StorageClass = Field(
        default="", description="Storage class of what is uploaded (STANDARD_IA, ...); empty: the store's default."
    )

    @model_validator(mode="before")
    @classmethod
    def _lend_akosha_address(cls, data: object) -> object:
        """With no bucket, a cloud endpoint that ends in /mcp is Akosha's address, where that has not been given."""
        if isinstance(data, dict) and not data.get("http_endpoint") and not data.get("cloud_bucket"):
            lent = data.get("cloud_endpoint")
            if isinstance(lent, str) and endpoints.is_akosha_address(lent.strip()):
                return {**data, "http_endpoint": lent}
        return data

    @field_validator("cloud_endpoint")
    @classmethod
    def _names_the_bucket_once(cls, value: str, info: ValidationInfo) -> str:
        bucket = info.data.get("cloud_bucket")
        return value if bucket is None else endpoints.without_bucket(value, bucket)

    @field_validator("force_method")
    @classmethod
    def _forced_cloud_exists(cls, value: str, info: ValidationInfo) -> str:
        bucket, endpoint = info.data.get("cloud_bucket"), info.data.get("cloud_endpoint")
        if value == "cloud" and bucket == "" and endpoint is not None and not endpoints.is_directory(endpoint):
            raise ValueError(
                "cloud is allowed only with an akosha_cloud_bucket, or a file:///dir akosha_cloud_endpoint"
            )
        return value

    @field_validator("cloud_sse_kms_key_id")
    @classmethod
    def _a_key_has_its_use(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("cloud_sse") not in (None, KMS):
            raise ValueError(f"a key is allowed only with akosha_cloud_sse: {KMS}")
        return value

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
