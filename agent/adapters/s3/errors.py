"""Translates errors of botocore and aiohttp into StoreErrors.

A message begins with the problem and ends with the store's error code and the operation. Messages do not quote a
server's own text, which stays in the exception's cause.
"""

import json
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.credential_sources import SourceTimeout
from agent.adapters.s3.local_faults import PROXY_AUTHENTICATION, local_fault, proxy_refusal, reason_of
from agent.adapters.s3.object_options import CREATING, ObjectOptions
from agent.adapters.s3.responses import InvalidResponse, ResponseInfo
from agent.domain.errors import NoSuchObject, NotPermitted, StoreError

PERMISSIONS = {
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "upload_part_copy": "s3:GetObject and s3:PutObject",
    "copy_object": "s3:GetObject and s3:PutObject",
    "head_object": "s3:GetObject (and s3:ListBucket, to distinguish missing from forbidden)",
    "get_object": "s3:GetObject (and s3:ListBucket, to distinguish missing from forbidden)",
    "list_objects_v2": "s3:ListBucket",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_parts": "s3:ListMultipartUploadParts",
}

_CHAIN = "akosha-agent's credentials.yaml, ~/.aws/credentials, or another part of the AWS credential chain"
CREDENTIALS = f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, {_CHAIN}"

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
_HINTS = {
    "NoSuchBucket": "create the bucket, or set akosha_cloud_bucket, akosha_cloud_endpoint and akosha_cloud_region",
    "InvalidBucketName": "set akosha_cloud_bucket to a bucket's name",
    "InvalidAccessKeyId": f"correct {CREDENTIALS}, or akosha_cloud_endpoint",
    "SignatureDoesNotMatch": f"correct AWS_SECRET_ACCESS_KEY, {_CHAIN}",
    "ExpiredToken": f"the credentials have expired: renew {CREDENTIALS}, with AWS_SESSION_TOKEN",
    "TokenRefreshRequired": f"the credentials have expired: renew {CREDENTIALS}, with AWS_SESSION_TOKEN",
    "InvalidToken": f"check AWS_SESSION_TOKEN: it must belong to {CREDENTIALS}",
    "RequestTimeTooSkewed": "set this machine's clock: it differs from the store's by more than 15 minutes",
    "EntityTooSmall": "raise akosha_chunk_size_mb to 5 or more",
    "EntityTooLarge": "raise akosha_chunk_size_mb",
    "QuotaExceeded": "make room in the bucket, or raise its quota",
    "XMinioStorageFull": "make room on the store's disks",
    "InvalidStorageClass": "set akosha_cloud_storage_class to a class that this store has, or leave it empty",
    "InvalidObjectState": "restore the object from the store's archive, and set akosha_cloud_storage_class to a class "
    "that can be read immediately",
}
_PROBLEMS = {
    "NoSuchBucket": "bucket {bucket} does not exist at {host}",
    "InvalidBucketName": "{host} does not accept the bucket name {bucket}",
    "InvalidAccessKeyId": "unknown access key at {host}",
    "SignatureDoesNotMatch": "wrong secret key for {host}",
    "ExpiredToken": "expired token: the credentials for {host} are no longer valid",
    "TokenRefreshRequired": "expired token: the credentials for {host} are no longer valid",
    "InvalidToken": "wrong token: {host} does not accept the session token",
    "RequestTimeTooSkewed": "this machine's clock and the clock of {host} differ by more than 15 minutes",
    "EntityTooSmall": "{host} does not accept parts this small",
    "EntityTooLarge": "{host} does not accept objects this large",
    "QuotaExceeded": "the quota of bucket {bucket} at {host} is used up",
    "XMinioStorageFull": "the disks of {host} are full",
    "InvalidStorageClass": "{host} has no such storage class",
    "InvalidObjectState": "an object in {address} is archived and cannot be read",
}
"""The problem per error code. `_HINTS` has the hint for each."""

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
    "list_parts": "list the parts of unfinished uploads to",
}
_REGION_NAME = re.compile(r"[a-z0-9-]{1,40}", re.IGNORECASE)
_KMS = "KMS."
_KMS_PERMISSIONS = "kms:GenerateDataKey and kms:Decrypt on the KMS key"
_RESEND = "the data was damaged in transit"
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
    """Return the StoreError for an exception of a call, None if it is unknown.

    `answered` means that a response had arrived: a ValueError then concerns the response, not the parameters.
    """
    import aiohttp  # noqa: PLC0415 - the client has loaded it
    from botocore import exceptions as boto  # noqa: PLC0415

    if isinstance(error, boto.ClientError):
        return _refusal(error.response, address, operation, key, object_options)
    if isinstance(error, boto.PartialCredentialsError):
        missing, source = str(error.kwargs["cred_var"]), error.kwargs["provider"]
        if source == "env":
            return StoreError(f"{missing} is missing: {address.authority} needs it", hint=f"set {missing}")
        return StoreError(
            f"{missing} is missing in the AWS configuration ({source}): {address.authority} needs it",
            hint=f"add it in ~/.aws, or set {CREDENTIALS}",
        )
    if isinstance(error, boto.NoCredentialsError | boto.NoAuthTokenError):
        return StoreError(
            f"there are no credentials for {address.authority}",
            hint=f"akosha-agent config set cloud_access_key_id - cloud_secret_access_key -; or set {CREDENTIALS}",
        )
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
            f"no credentials for {address.authority}: the output of credential_process or a cache under ~/.aws is not "
            "JSON",
            hint="run the credential_process manually",
        )
    if isinstance(error, SourceTimeout):
        return StoreError(
            f"no credentials for {address.authority}: {error}",
            hint="run it manually to see why it does not finish; the next attempt starts it again",
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


def invalid_response(
    error: BaseException, address: BucketAddress, operation: str, key: str, info: ResponseInfo
) -> StoreError | None:
    """Return the StoreError for an InvalidResponse; None for other errors."""
    if not isinstance(error, InvalidResponse):
        return None
    status = "" if f"status {info.status}" in error.problem else f" ({info})"
    text = f"{address.authority} answered with {error.problem}{status}, {operation_text(operation, key)}"
    failure = StoreError(text, hint=error.hint, transient=True)
    failure.unexpected = f"{error.problem} for {operation}"
    return failure


def refused_keys(refusals: Sequence[Mapping[str, Any]], address: BucketAddress, operation: str) -> StoreError:
    """Return the StoreError for keys that a successful batch response lists as refused.

    It names the most serious refusal: a missing permission, else a permanent error, else the first one.
    """
    codes = [str(refusal.get("Code") or "refused") for refusal in refusals]
    denied, transient = [code in _DENIED for code in codes], [code in _TRANSIENT for code in codes]
    at = denied.index(True) if any(denied) else transient.index(False) if not all(transient) else 0
    what = f"{refusals[at].get('Key')!r} and {len(codes) - 1} more in {address}"
    text = f"{address.authority} did not delete {what}: {codes[at]}"
    if denied[at]:
        return NotPermitted(text, hint=f"allow {PERMISSIONS[operation]} on bucket {address.bucket}")
    return StoreError(text, hint="" if transient[at] else "the store refuses to delete them", transient=transient[at])


def code_of(error: StoreError) -> str:
    """Return the store's error code (`NoSuchUpload`, `501`); empty if there was no response."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def status_of(error: StoreError) -> int:
    """Return the HTTP status of a refusal; 0 if there was no response."""
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
    detail = (code or "refused") + (f", status {status}" if str(status) != code else "")
    detail = f"{detail}, {operation_text(operation, key)}"
    if status == PROXY_AUTHENTICATION and (fault := proxy_refusal(address, status)) is not None:
        return fault
    if code in _HINTS:
        problem = _PROBLEMS[code].format(bucket=address.bucket, host=address.authority, address=address)
        return StoreError(f"{problem}: {detail}", hint=_HINTS[code])
    if code in _REGION:
        region = response["Error"].get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region")
        region = region if _REGION_NAME.fullmatch(str(region)) else None  # a hint quotes nothing else of a server
        return StoreError(
            f"bucket {address.bucket} is not in this region of {address.authority}: {detail}",
            hint=f"set akosha_cloud_region to {region or 'the region of the bucket'}",
        )
    message = str(response.get("Error", {}).get("Message", ""))
    if code in _DENIED:
        allow = f"allow {PERMISSIONS[operation]} on bucket {address.bucket}"
        if "kms:" in message:  # the message names the missing permission
            allow = f"allow {_KMS_PERMISSIONS}{_of_settings(object_options)}"
        elif object_options.by_kms:
            allow = f"{allow}, and {_KMS_PERMISSIONS}{_of_settings(object_options)}"
        action = _ACTIONS.get(operation, operation)
        return NotPermitted(f"no permission to {action} {address}: {detail}", hint=allow)
    if code in _DAMAGED:
        return StoreError(f"the data arrived damaged in {address}: {detail}", hint=_RESEND, transient=True)
    transient = code.removeprefix(_KMS) in _TRANSIENT or status >= _SERVER_FAULT or status == _TOO_MANY
    if status == _NOT_IMPLEMENTED:  # permanent, although it is a 5xx status
        transient = False
    if code.startswith(_KMS) and not transient:
        hint = f"check the KMS key{_of_settings(object_options)}: it must exist, be enabled, and be usable from here"
        return StoreError(f"the KMS key cannot be used in {address}: {detail}", hint=hint)
    if (
        operation in CREATING
        and object_options.settings
        and not transient
        and status in (_BAD_REQUEST, _NOT_IMPLEMENTED)
    ):
        return StoreError(
            f"{address.authority} refuses the object: {detail}",
            hint=f"the store may not support {object_options.settings_named_in(message)}: change it, or leave it empty",
        )
    if transient:
        problem = "reports a server error" if status >= _SERVER_FAULT else "asks for a retry"
        return StoreError(f"{address.authority} {problem}: {detail}", transient=True)
    return StoreError(
        f"{address.authority} refuses {operation}: {detail}", hint=f"the store does not support {operation}"
    )


def operation_text(operation: str, key: str) -> str:
    """Return the operation and its key, for the end of a message."""
    return f"{operation} of {key!r}" if key else operation


def _of_settings(object_options: ObjectOptions) -> str:
    return f" of {object_options.settings_named_in('kms')}" if object_options.by_kms else ""


def _tls_failure(error: BaseException, doing: str, address: BucketAddress) -> StoreError:
    text = str(error).upper()
    if "CERTIFICATE" in text:
        return StoreError(
            f"the certificate of {address.authority} is not trusted, {doing}",
            hint="set AWS_CA_BUNDLE to the certificate file of the CA that signed it, or correct akosha_cloud_endpoint",
        )
    if "WRONG_VERSION_NUMBER" in text or "RECORD LAYER FAILURE" in text:
        return StoreError(f"{address.authority} does not use TLS, {doing}", hint="check akosha_cloud_endpoint")
    return StoreError(
        f"the TLS connection to {address.authority} failed, {doing}",
        hint=f"is {address.authority} reachable?",
        transient=True,
    )


def _network_fault(error: BaseException, address: BucketAddress) -> str:
    """Return a short description: the system's error message if there is one, else the type of the error."""
    import aiohttp  # noqa: PLC0415 - as above
    from botocore import exceptions as boto  # noqa: PLC0415

    if isinstance(error, aiohttp.ConnectionTimeoutError | boto.ConnectTimeoutError):
        return f"the connection to {address.authority} timed out"
    if isinstance(error, TimeoutError | boto.ReadTimeoutError):
        return f"{address.authority} did not answer in time"
    reason = reason_of(error)
    if isinstance(error, boto.EndpointConnectionError):
        return f"no connection to {address.authority}: {reason}"
    return f"the connection to {address.authority} failed: {reason}"
