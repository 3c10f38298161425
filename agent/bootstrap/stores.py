"""Builds the targets, the cloud target's store, and its ownership."""

from typing import TYPE_CHECKING

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.state_directory import belongs_to
from agent.application.sync.ownership import Ownership
from agent.domain.delivery_state import Target
from agent.domain.identity import Identity, Machine
from agent.domain.routing import CLOUD, HTTP
from agent.ports import Clock, Ledger, ObjectStore, RateLimiter
from agent.settings import Settings
from agent.settings.endpoints import directory_of, is_directory

if TYPE_CHECKING:
    from agent.adapters.s3 import ObjectOptions

MEBIBYTE = 2**20


def targets_of(settings: Settings, system_id: str) -> dict[str, Target]:
    """Return the targets of all available methods, by method: that of the cloud only if it is configured."""
    targets = {HTTP: Target(HTTP, settings.http_endpoint, "", system_id)}
    if settings.cloud_configured:
        cloud = Target(CLOUD, settings.cloud_endpoint, settings.cloud_bucket, system_id)
        return {CLOUD: cloud, **targets}
    return targets


def location_of(method: str, endpoint: str, bucket: str, region: str) -> str:
    """Return the address of a target for people: the location that its store reports, or the Akosha server's URL."""
    if method != CLOUD:
        return endpoint
    if is_directory(endpoint):
        return (directory_of(endpoint) / bucket).as_uri()
    from agent.adapters.s3.bucket_address import BucketAddress  # noqa: PLC0415 - as in `object_store`

    return str(BucketAddress(bucket, endpoint, region))


def object_store(settings: Settings, rate_limiter: RateLimiter | None = None) -> ObjectStore:
    """Return the store of the bucket or directory. With a rate limiter, its puts are limited."""
    if settings.directory is not None:
        return DirectoryStore(settings.directory / settings.cloud_bucket, rate_limiter=rate_limiter)
    from agent.adapters.s3 import S3Store  # noqa: PLC0415 - loaded only for a bucket, `status` of a directory does not need it

    return S3Store(
        bucket=settings.cloud_bucket,
        endpoint=settings.cloud_endpoint,
        region=settings.cloud_region,
        object_options=object_options(settings),
        rate_limiter=rate_limiter,
    )


def object_options(settings: Settings) -> "ObjectOptions":
    """Return the encryption and storage class of objects in the bucket."""
    from agent.adapters.s3 import ObjectOptions  # noqa: PLC0415 - as above

    return ObjectOptions(
        encryption=settings.cloud_sse,
        kms_key_id=settings.cloud_sse_kms_key_id,
        storage_class=settings.cloud_storage_class,
    )


def ownership_of(
    settings: Settings,
    identity: Identity,
    machine: Machine,
    store: ObjectStore,
    ledger: Ledger | None,
    clock: Clock,
    *,
    keeps_warning: bool = True,
) -> Ownership:
    """Return the ownership of this agent's uploads in a store. Without `keeps_warning`, the ledger is only read."""
    return Ownership(
        store=store,
        target=targets_of(settings, identity.system_id)[CLOUD],
        identity=identity,
        machine=machine,
        ledger=ledger,
        clock=clock,
        has_state=belongs_to,
        keeps_warning=keeps_warning,
    )
