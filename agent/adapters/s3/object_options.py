"""Options of stored objects: encryption and storage class, if the settings request them.

R2 and B2 refuse unknown headers, so nothing is sent without a setting. A copy does not inherit from its source: each
operation that creates an object sends the options.
"""

from dataclasses import dataclass

import structlog

KMS = "aws:kms"

CREATING = frozenset({"put_object", "copy_object", "create_multipart_upload"})
"""The operations that have options. Parts inherit the options of their upload."""

_SSE, _KEY, _CLASS = "akosha_cloud_sse", "akosha_cloud_sse_kms_key_id", "akosha_cloud_storage_class"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectOptions:
    """Encryption (`AES256`, or `aws:kms` with `kms_key_id`) and storage class. Empty: the default of the bucket."""

    encryption: str = ""
    kms_key_id: str = ""
    storage_class: str = ""

    def parameters(self, operation: str) -> dict[str, str]:
        """Return the options as parameters of an operation of botocore's S3 client."""
        if operation not in CREATING:
            return {}
        options = {
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "StorageClass": self.storage_class,
        }
        return {name: value for name, value in options.items() if value}

    @property
    def by_kms(self) -> bool:
        """Whether objects are encrypted with a KMS key."""
        return self.encryption == KMS

    @property
    def settings(self) -> str:
        """The names of the settings in use, for a message; empty if there are none."""
        settings = ((_SSE, self.encryption), (_KEY, self.kms_key_id), (_CLASS, self.storage_class))
        return " and ".join(name for name, value in settings if value)

    def settings_named_in(self, message: str) -> str:
        """Return the names of the settings that a store's error message refers to; all in use if it is unclear."""
        words = message.lower()
        if self.storage_class and ("storage class" in words or "storageclass" in words or "storage-class" in words):
            return _CLASS
        if self.encryption and any(word in words for word in ("encrypt", "sse", "kms")):
            return f"{_SSE} and {_KEY}" if self.kms_key_id else _SSE
        return self.settings


class EncryptionCheck:
    """Checks that the store confirms the requested encryption. Stores that do not support it may ignore it."""

    def __init__(self, object_options: ObjectOptions) -> None:
        self._object_options = object_options
        self._warned = False

    def check(self, operation: str, encryption: str, address: object) -> None:
        """Log, once, that the response to an operation that creates an object does not confirm the encryption."""
        requested = self._object_options.encryption
        if self._warned or not requested or operation not in CREATING or encryption == requested:
            return
        self._warned = True
        log.warning(
            "encryption_unconfirmed",
            store=str(address),
            reason=f"requested {requested}, the response has {encryption or 'no encryption'}",
            hint=f"{_SSE} seems to have no effect there",
        )
