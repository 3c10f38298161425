"""Options of objects in the store: encryption and storage class, where a setting asks for them.

R2 and B2 refuse headers that they do not know, so there are none where nothing is set. A copy does not inherit from its
source: each operation that makes an object sets the options itself.
"""

from dataclasses import dataclass

import structlog

KMS = "aws:kms"

CREATING = frozenset({"put_object", "copy_object", "create_multipart_upload"})
"""The operations that take options. Parts have those of their upload."""

_SSE, _KEY, _CLASS = "akosha_cloud_sse", "akosha_cloud_sse_kms_key_id", "akosha_cloud_storage_class"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOptions:
    """`encryption`: `AES256`, `aws:kms`; `kms_key_id` is for the latter. Empty: the store's or the bucket's own."""

    encryption: str = ""
    kms_key_id: str = ""
    storage_class: str = ""

    def asked(self, operation: str) -> dict[str, str]:
        """Return the parameters of an operation of botocore's S3 client that say so."""
        if operation not in CREATING:
            return {}
        said = {
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "StorageClass": self.storage_class,
        }
        return {name: value for name, value in said.items() if value}

    @property
    def by_kms(self) -> bool:
        """Whether a key of the provider's key service is used."""
        return self.encryption == KMS

    @property
    def settings(self) -> str:
        """The names of the settings that ask for something, for a text; empty where none does."""
        said = ((_SSE, self.encryption), (_KEY, self.kms_key_id), (_CLASS, self.storage_class))
        return " and ".join(name for name, value in said if value)

    def blamed(self, said: str) -> str:
        """Return the names of the settings that a refusal of something `said` in the store's own words is about."""
        words = said.lower()
        if self.storage_class and ("storage class" in words or "storageclass" in words or "storage-class" in words):
            return _CLASS
        if self.encryption and any(word in words for word in ("encrypt", "sse", "kms")):
            return f"{_SSE} and {_KEY}" if self.kms_key_id else _SSE
        return self.settings


class EncryptionCheck:
    """Checks that the store confirms the encryption it was asked for: one that does not know it may ignore it."""

    def __init__(self, object_options: ObjectOptions) -> None:
        self._object_options = object_options
        self._warned = False

    def check(self, operation: str, encryption: str, address: object) -> None:
        """Log once that the response to an operation that makes an object did not confirm the encryption."""
        wanted = self._object_options.encryption
        if self._warned or not wanted or operation not in CREATING or encryption == wanted:
            return
        self._warned = True
        log.warning(
            "encryption_unconfirmed",
            store=str(address),
            reason=f"asked for {wanted}, it answers {encryption or 'nothing about it'}",
            hint=f"{_SSE} has no effect there, as it seems",
        )
