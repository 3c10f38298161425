"""When a client is to be replaced: what it holds of credentials or certificates is refused, or may be out of date."""

import json
import ssl

from agent.adapters.s3.client import Client
from agent.adapters.s3.credential_sources import SourceTimeout, fingerprint
from agent.ports.concurrency import off_loop

REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
    | {"InvalidToken", "InvalidTokenId", "InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure"}
    | {"InvalidSecurity", "NotSignedUp", "RequestExpired"}
)
"""Refusals of the key or token itself."""

_DOUBTFUL = frozenset({400, 401, 403})
_BARE = frozenset({"", "400", "401", "403", "Bad Request", "BadRequest", "Forbidden"})
"""Codes of a refusal without a body, as HEAD has it: an expired token, or a permission that is missing."""

STALE_SECONDS = 60.0
"""A client younger than this is not replaced for a refusal without a body: its credentials have just been read."""


def concerns_credentials(error: Exception) -> bool:
    """Say whether the key or token was refused, or there is none."""
    from botocore import exceptions as boto  # noqa: PLC0415 - loaded by the client long before

    if isinstance(error, boto.ClientError):
        return str(error.response.get("Error", {}).get("Code", "")) in REFUSED
    if isinstance(error, RuntimeError) and "refreshed credentials are still expired" in str(error):
        return True
    return isinstance(
        error,
        boto.NoCredentialsError
        | boto.PartialCredentialsError
        | boto.NoAuthTokenError
        | boto.CredentialRetrievalError
        | boto.MetadataRetrievalError
        | boto.TokenRetrievalError
        | boto.RefreshWithMFAUnsupportedError
        | boto.SSOError
        | SourceTimeout
        | json.JSONDecodeError,
    )


async def is_to_be_replaced(client: Client, error: Exception) -> bool:
    """Say whether the next call needs a new client.

    A permission that is missing is not mended by another client: a refusal that says so counts only where the files of
    the AWS chain have changed since the client was built.
    """
    from botocore import exceptions as boto  # noqa: PLC0415 - as above

    if concerns_credentials(error) or _is_local(error):
        return True
    if not isinstance(error, boto.ClientError):
        return False
    refusal = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status not in _DOUBTFUL:
        return False
    if str(refusal.get("Code", "")) in _BARE and client.age_seconds > STALE_SECONDS:
        return True
    return await off_loop(fingerprint, name="s3-credential-files") != client.files


def _is_local(error: Exception) -> bool:
    """Say whether a certificate was not trusted, or a file of ours (a CA, a token) could not be read."""
    import aiohttp  # noqa: PLC0415 - as above
    from botocore import exceptions as boto  # noqa: PLC0415

    if isinstance(error, boto.SSLError | ssl.SSLError | aiohttp.ClientSSLError):
        return True
    inner: object = error
    for _ in range(3):
        if isinstance(inner, FileNotFoundError | PermissionError | IsADirectoryError):
            return True
        inner = getattr(inner, "kwargs", {}).get("error") or getattr(inner, "__cause__", None)
    return False
