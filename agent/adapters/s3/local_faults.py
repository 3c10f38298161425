"""Faults of this machine on the way to a store: its files, its proxy, its AWS configuration. Their texts name them.

botocore and aiohttp raise them like faults of the network, where only the file, the variable or the key mends them.
"""

import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from agent.adapters.s3.bucket_address import BucketAddress
from agent.domain.errors import StoreError

PROXY_AUTHENTICATION = 407

_PROXY_SCHEMES = ("http", "https")
_VARIANTS = {
    "use_accelerate_endpoint": "",
    "use_dualstack_endpoint": "AWS_USE_DUALSTACK_ENDPOINT",
    "use_fips_endpoint": "AWS_USE_FIPS_ENDPOINT",
}
"""Keys of ~/.aws/config that ask for another form of AWS's own addresses, and the variables that do."""

_TRUE = ("true", "1")


def local_fault(error: BaseException, address: BucketAddress) -> StoreError | None:
    """Return the StoreError for a fault of this machine; None for any other."""
    from botocore import exceptions as boto  # noqa: PLC0415 - loaded by the client, as in `errors`

    if isinstance(error, boto.ProxyConnectionError):
        return _proxy_fault(error, address)
    if isinstance(
        error,
        boto.EndpointProviderError
        | boto.BaseEndpointResolverError
        | boto.UnsupportedS3ConfigurationError
        | boto.InvalidEndpointConfigurationError
        | boto.InvalidS3AddressingStyleError
        | boto.InvalidS3UsEast1RegionalEndpointConfigError
        | boto.InvalidRetryConfigurationError
        | boto.InvalidProxiesConfigError
        | boto.InvalidChecksumConfigError,
    ) and not isinstance(error, boto.NoRegionError):
        return StoreError(
            f"the AWS configuration does not go with {address.authority}: {type(error).__name__}",
            hint=f"check {', '.join(_VARIANTS)} and the other keys for S3 in ~/.aws/config, and AWS_ variables like "
            "them",
        )
    if isinstance(error, OSError) and error.filename:
        return _file_fault(error)
    return None


def proxy_refusal(address: BucketAddress, status: int) -> StoreError | None:
    """Return the StoreError for a proxy that answers itself; None where there is no proxy."""
    proxy = address.proxy
    if proxy is None:
        return None
    if status == PROXY_AUTHENTICATION:
        why, cure = "wants a user and a password", f"write them into {proxy.variable}: http://USER:PASSWORD@{proxy}"
    else:
        why, cure = "refuses", f"correct {proxy.variable}, or name {address.host} in NO_PROXY"
    return StoreError(f"the proxy {proxy} {why}: status {status}", hint=cure)


def check_proxy(address: BucketAddress) -> None:
    """Raise StoreError where the proxy's scheme is one that the client would misunderstand."""
    proxy = address.proxy
    if proxy is not None and proxy.scheme not in _PROXY_SCHEMES:
        raise StoreError(
            f"the proxy {proxy} is not supported: it is a {proxy.scheme} proxy",
            hint=f"set {proxy.variable} to an http:// or https:// proxy, or name {address.host} in NO_PROXY",
        )


def check_ca_bundle(verify: str | bool | None, configured: str | None) -> None:
    """Raise StoreError where the file of certificates that would be trusted cannot be used. Blocks.

    `verify`: what the store was made with; `configured`: the `ca_bundle` of the AWS configuration.
    """
    # The order of the client: an argument, REQUESTS_CA_BUNDLE in place of a plain True, the configuration.
    named = [
        (verify if isinstance(verify, str) else None, "the file of authorities"),
        (os.environ.get("AWS_CA_BUNDLE"), "AWS_CA_BUNDLE"),
        (configured, "ca_bundle in ~/.aws/config"),
        (os.environ.get("REQUESTS_CA_BUNDLE"), "REQUESTS_CA_BUNDLE"),
    ]
    path, name = next(((path, name) for path, name in named if path), ("", ""))
    if not path or verify is False:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if os.path.isdir(path):  # noqa: PTH112 - as botocore takes it
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise StoreError(f"the CA bundle {path} has no usable certificate", hint=f"correct {name}") from error
    except OSError as error:
        raise StoreError(f"the CA bundle {path} cannot be read: {reason_of(error)}", hint=f"correct {name}") from error


def check_variants(address: BucketAddress, profile: Mapping[str, Any]) -> None:
    """Raise StoreError where the AWS profile asks for a variant of AWS's own addresses, and there is an endpoint."""
    if not address.endpoint or not (asked := [*_asked(profile)]):
        return
    raise StoreError(
        f"{address.authority} does not have what the AWS configuration asks for: {', '.join(asked)}",
        hint="take it out, or set AWS_PROFILE to a profile without it",
    )


def _asked(profile: Mapping[str, Any]) -> Iterator[str]:
    s3 = profile.get("s3")
    for key, variable in _VARIANTS.items():
        if variable and os.environ.get(variable, "").lower() in _TRUE:
            yield variable
        elif any(str(part.get(key, "")).lower() in _TRUE for part in (profile, s3) if isinstance(part, Mapping)):
            yield f"{key} in ~/.aws/config"


def reason_of(error: BaseException) -> str:
    """Say in a few words why: the system's where there are any, else the kind of the error."""
    inner: object = error
    for _ in range(3):
        if isinstance(inner, OSError) and inner.strerror and inner.errno:
            return inner.strerror
        inner = getattr(inner, "kwargs", {}).get("error") or getattr(inner, "os_error", None)
    return type(error).__name__


def _proxy_fault(error: BaseException, address: BucketAddress) -> StoreError:
    cause = getattr(error, "kwargs", {}).get("error")
    status = getattr(cause, "status", 0)
    if status and (refusal := proxy_refusal(address, int(status))) is not None:
        return refusal
    proxy = address.proxy
    return StoreError(
        f"no connection to the proxy {proxy or ''}: {reason_of(error)}",
        hint=f"check {proxy.variable if proxy else 'HTTPS_PROXY and HTTP_PROXY'}",
        transient=True,
    )


def _file_fault(error: OSError) -> StoreError:
    path = os.fsdecode(error.filename)
    token = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    name = "AWS_WEB_IDENTITY_TOKEN_FILE" if path == token else "what names it: ~/.aws/config or an AWS_ variable"
    what = "the web identity token" if path == token else "the file"
    return StoreError(f"{what} {path} cannot be read: {reason_of(error)}", hint=f"correct {name}")
