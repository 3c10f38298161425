"""What botocore and aiohttp raise, in the project's words: the only place where their errors become StoreErrors.

A text begins with what is wrong, and ends with the store's code and the operation. Texts are made of codes, keys and
places; what a server says in its own words stays in the cause.
"""

import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from agent.adapters.s3.answers import OddAnswer, ResponseInfo
from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.credential_sources import SourceTimeout
from agent.adapters.s3.local_faults import PROXY_AUTHENTICATION, local_fault, proxy_refusal, reason_of
from agent.adapters.s3.object_options import CREATING, ObjectOptions
from agent.domain.errors import NoSuchObject, NotPermitted, StoreError

PERMISSIONS = {
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "upload_part_copy": "s3:GetObject and s3:PutObject",
    "copy_object": "s3:GetObject and s3:PutObject",
    "head_object": "s3:GetObject (and s3:ListBucket, which tells missing from forbidden)",
    "get_object": "s3:GetObject (and s3:ListBucket, which tells missing from forbidden)",
    "list_objects_v2": "s3:ListBucket",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
}

CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another part of the AWS credential chain"

_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_DENIED = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "UnauthorizedAccess"})
_REGION = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "301",
        "307",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraint",
    }
)
_TRANSIENT = frozenset(
    {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException"}
    | {"TooManyRequests", "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded"}
    | {"OperationAborted", "PriorRequestNotComplete", "NoSuchUpload", "InvalidPart"}
)
_DAMAGED = frozenset({"BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"})
_CURES = {
    "NoSuchBucket": "create the bucket, or set akosha_cloud_bucket, akosha_cloud_endpoint and akosha_cloud_region",
    "InvalidBucketName": "set akosha_cloud_bucket to a bucket's name",
    "InvalidAccessKeyId": f"the store does not know this key: check {CREDENTIALS}, and akosha_cloud_endpoint",
    "SignatureDoesNotMatch": f"the secret does not belong to the key: check {CREDENTIALS}",
    "ExpiredToken": f"the credentials have expired: renew {CREDENTIALS}, with AWS_SESSION_TOKEN",
    "TokenRefreshRequired": f"the credentials have expired: renew {CREDENTIALS}, with AWS_SESSION_TOKEN",
    "InvalidToken": f"check AWS_SESSION_TOKEN: it belongs to one pair of {CREDENTIALS}",
    "RequestTimeTooSkewed": "set this machine's clock: it differs from the store's by more than 15 minutes",
    "EntityTooSmall": "raise akosha_chunk_size_mb to 5 or more",
    "EntityTooLarge": "raise akosha_chunk_size_mb",
    "QuotaExceeded": "make room in the bucket, or raise its quota",
    "XMinioStorageFull": "make room on the store's disks",
    "InvalidStorageClass": "set akosha_cloud_storage_class to a class that this store has, or leave it empty",
    "InvalidObjectState": "it lies in an archive: have the store bring it back, and set akosha_cloud_storage_class to "
    "a class that can be read at once",
}
_WRONG = {
    "NoSuchBucket": "bucket {bucket} does not exist at {host}",
    "InvalidBucketName": "{host} takes no bucket of the name {bucket}",
    "InvalidAccessKeyId": "wrong key: {host} does not know the access key",
    "SignatureDoesNotMatch": "wrong key: the secret key is not the one that {host} has for the access key",
    "ExpiredToken": "expired token: the credentials for {host} are no longer valid",
    "TokenRefreshRequired": "expired token: the credentials for {host} are no longer valid",
    "InvalidToken": "wrong token: {host} does not take the session token",
    "RequestTimeTooSkewed": "this machine's clock and the one of {host} differ by more than 15 minutes",
    "EntityTooSmall": "{host} takes no parts this small",
    "EntityTooLarge": "{host} takes no objects this large",
    "QuotaExceeded": "the quota of bucket {bucket} at {host} is used up",
    "XMinioStorageFull": "the disks of {host} are full",
    "InvalidStorageClass": "{host} has no such storage class",
    "InvalidObjectState": "an object in {place} is archived and cannot be read",
}
"""What a code says is wrong; its cure is in `_CURES`."""

_ACTIONS = {
    "put_object": "write to",
    "create_multipart_upload": "write to",
    "upload_part": "write to",
    "complete_multipart_upload": "write to",
    "upload_part_copy": "copy within",
    "copy_object": "copy within",
    "head_object": "read from",
    "get_object": "read from",
    "list_objects_v2": "list",
    "delete_object": "delete from",
    "delete_objects": "delete from",
    "abort_multipart_upload": "abort uploads to",
    "list_multipart_uploads": "list unfinished uploads to",
}
_KMS = "KMS."
_KMS_PERMISSIONS = "kms:GenerateDataKey and kms:Decrypt on the KMS key"
_RESEND = "it was damaged on its way"
_BAD_REQUEST, _NOT_IMPLEMENTED = 400, 501
_PLAIN = ObjectOptions()
_TOO_MANY, _SERVER_FAULT = 429, 500


def translate(
    error: BaseException,
    address: BucketAddress,
    operation: str,
    key: str,
    object_options: ObjectOptions = _PLAIN,
    *,
    answered: bool = False,
) -> StoreError | None:
    """Return the StoreError for what a call raised; None for what is not known.

    `answered`: the store had answered by then, so that a ValueError is about the answer.
    """
    import aiohttp  # noqa: PLC0415 - loaded by the client long before anything of it can be raised
    from botocore import exceptions as boto  # noqa: PLC0415

    if isinstance(error, boto.ClientError):
        return _refusal(error.response, address, operation, key, object_options)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.NoAuthTokenError):
        return StoreError(f"there are no credentials for {address.authority}", hint=f"set {CREDENTIALS}")
    if (fault := local_fault(error, address)) is not None:
        return fault
    if isinstance(
        error,
        boto.CredentialRetrievalError
        | boto.TokenRetrievalError
        | boto.SSOError
        | boto.ProfileNotFound
        | boto.ConfigParseError
        | boto.ConfigNotFound
        | boto.InvalidConfigError,
    ):
        return StoreError(
            f"the AWS configuration yields no credentials for {address.authority} ({type(error).__name__})",
            hint=f"check AWS_PROFILE and ~/.aws, or set {CREDENTIALS}",
        )
    doing = operation_text(operation, key)
    if isinstance(error, boto.SSLError | ssl.SSLError | aiohttp.ClientSSLError):
        return _tls_failure(error, doing, address)
    if isinstance(error, json.JSONDecodeError) and not answered:
        return StoreError(
            f"no credentials for {address.authority}: what credential_process or a cache under ~/.aws gave is no JSON",
            hint="run the credential_process by hand",
        )
    if isinstance(error, SourceTimeout):
        return StoreError(
            f"no credentials for {address.authority}: {error}",
            hint="run it by hand to see what it waits for; the next attempt starts it again",
            transient=True,
        )
    if isinstance(error, boto.ParamValidationError | boto.NoRegionError | boto.InvalidRegionError) or (
        isinstance(error, ValueError) and not isinstance(error, UnicodeDecodeError) and not answered
    ):
        return StoreError(
            f"{address.authority} is not a usable address: {type(error).__name__}, {doing}",
            hint="check akosha_cloud_bucket, akosha_cloud_endpoint and akosha_cloud_region",
        )
    if isinstance(error, boto.BotoCoreError | aiohttp.ClientError | OSError | TimeoutError):
        return StoreError(
            f"{_network_fault(error, address)}, {doing}", hint=f"is {address.authority} reachable?", transient=True
        )
    return None


def odd_answer(
    error: BaseException, address: BucketAddress, operation: str, key: str, note: ResponseInfo
) -> StoreError | None:
    """Return the StoreError for an answer that is none of S3's; None for other errors."""
    if not isinstance(error, OddAnswer):
        return None
    status = "" if f"status {note.status}" in error.what else f" ({note})"
    text = f"{address.authority} answered with {error.what}{status}, {operation_text(operation, key)}"
    failure = StoreError(text, hint=error.cure, transient=True)
    failure.unexpected = f"{error.what} for {operation}"
    return failure


def refused_keys(refusals: Sequence[Mapping[str, Any]], address: BucketAddress, operation: str) -> StoreError:
    """Return the StoreError for keys that a store refused in an answer that is none: the worst of them speaks."""
    codes = [str(refusal.get("Code") or "refused") for refusal in refusals]
    denied, passing = [code in _DENIED for code in codes], [code in _TRANSIENT for code in codes]
    at = denied.index(True) if any(denied) else passing.index(False) if not all(passing) else 0
    what = f"{refusals[at].get('Key')!r} and {len(codes) - 1} more in {address}"
    text = f"{address.authority} did not delete {what}: {codes[at]}"
    if denied[at]:
        return NotPermitted(text, hint=f"allow {PERMISSIONS[operation]} on bucket {address.bucket}")
    return StoreError(text, hint="" if passing[at] else "the store does not delete them", transient=passing[at])


def code_of(error: StoreError) -> str:
    """Return the store's own code for a refusal (`NoSuchUpload`, `501`); empty where it did not answer."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def status_of(error: StoreError) -> int:
    """Return the HTTP status of a refusal; 0 where the store did not answer."""
    response = getattr(error.__cause__, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


def _refusal(
    response: Mapping[str, Any], address: BucketAddress, operation: str, key: str, object_options: ObjectOptions
) -> StoreError:
    code = str(response.get("Error", {}).get("Code", ""))
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    if code in _MISSING and operation in ("head_object", "get_object", "copy_object", "upload_part_copy"):
        return NoSuchObject(f"there is no {key!r} in {address}")
    answer = (code or "refused") + (f", status {status}" if str(status) != code else "")
    answer = f"{answer}, {operation_text(operation, key)}"
    if status == PROXY_AUTHENTICATION and (fault := proxy_refusal(address, status)) is not None:
        return fault
    if code in _CURES:
        wrong = _WRONG[code].format(bucket=address.bucket, host=address.authority, address=address)
        return StoreError(f"{wrong}: {answer}", hint=_CURES[code])
    if code in _REGION:
        wanted = response["Error"].get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region")
        return StoreError(
            f"bucket {address.bucket} is not in this region of {address.authority}: {answer}",
            hint=f"set akosha_cloud_region to {wanted or 'the region of the bucket'}",
        )
    said = str(response.get("Error", {}).get("Message", ""))
    if code in _DENIED:
        allow = f"allow {PERMISSIONS[operation]} on bucket {address.bucket}"
        if "kms:" in said:  # the text names what is missing
            allow = f"allow {_KMS_PERMISSIONS}{_of_settings(object_options)}"
        elif object_options.by_kms:
            allow = f"{allow}, and {_KMS_PERMISSIONS}{_of_settings(object_options)}"
        action = _ACTIONS.get(operation, operation)
        return NotPermitted(f"no permission to {action} {address}: {answer}", hint=allow)
    if code in _DAMAGED:
        return StoreError(f"what was sent arrived damaged in {address}: {answer}", hint=_RESEND, transient=True)
    transient = code.removeprefix(_KMS) in _TRANSIENT or status >= _SERVER_FAULT or status == _TOO_MANY
    if status == _NOT_IMPLEMENTED:  # it never will be
        transient = False
    if code.startswith(_KMS) and not transient:
        cure = f"check the KMS key{_of_settings(object_options)}: it must exist, be enabled, and be usable from here"
        return StoreError(f"the KMS key cannot be used in {address}: {answer}", hint=cure)
    if (
        operation in CREATING
        and object_options.settings
        and not transient
        and status in (_BAD_REQUEST, _NOT_IMPLEMENTED)
    ):
        return StoreError(
            f"{address.authority} refuses the object: {answer}",
            hint=f"the store may not offer what {object_options.blamed(said)} asks for: change it, or leave it empty",
        )
    if transient:
        trouble = "is in trouble" if status >= _SERVER_FAULT else "asks for another try"
        return StoreError(f"{address.authority} {trouble}: {answer}", transient=True)
    return StoreError(f"{address.authority} refuses {operation}: {answer}", hint=f"the store does not take {operation}")


def operation_text(operation: str, key: str) -> str:
    """Say what was being done, for the end of a text."""
    return f"{operation} of {key!r}" if key else operation


def _of_settings(object_options: ObjectOptions) -> str:
    return f" of {object_options.blamed('kms')}" if object_options.by_kms else ""


def _tls_failure(error: BaseException, doing: str, address: BucketAddress) -> StoreError:
    text = str(error).upper()
    if "CERTIFICATE" in text:
        return StoreError(
            f"the certificate of {address.authority} cannot be trusted, {doing}",
            hint="set AWS_CA_BUNDLE to the file of the authority that signed it, or correct akosha_cloud_endpoint",
        )
    if "WRONG_VERSION_NUMBER" in text or "RECORD LAYER FAILURE" in text:
        return StoreError(f"{address.authority} does not speak TLS, {doing}", hint="check akosha_cloud_endpoint")
    return StoreError(
        f"the TLS connection to {address.authority} broke, {doing}",
        hint=f"is {address.authority} reachable?",
        transient=True,
    )


def _network_fault(error: BaseException, address: BucketAddress) -> str:
    """Say what broke in a few words: the system's where there are any, else the kind of the error."""
    import aiohttp  # noqa: PLC0415 - as above
    from botocore import exceptions as boto  # noqa: PLC0415

    if isinstance(error, aiohttp.ConnectionTimeoutError | boto.ConnectTimeoutError):
        return f"no connection to {address.authority} in time"
    if isinstance(error, TimeoutError | boto.ReadTimeoutError):
        return f"no answer in time from {address.authority}"
    reason = reason_of(error)
    if isinstance(error, boto.EndpointConnectionError):
        return f"no connection to {address.authority}: {reason}"
    return f"the connection to {address.authority} broke: {reason}"
