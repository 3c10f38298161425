"""Faults of this machine: its files, its proxy, its AWS configuration.

botocore and aiohttp report them like network faults. The messages here name the file, variable or key that fixes them.
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
"""Keys of ~/.aws/config that select a variant of AWS's own endpoints, and the corresponding variables."""

_TRUE = ("true", "1")


def local_fault(error: BaseException, address: BucketAddress) -> StoreError | None:
    """Return the StoreError for a fault of this machine; None for other errors."""
    from botocore import exceptions as boto  # noqa: PLC0415 - the client has loaded it

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
            f"the AWS configuration does not fit {address.authority}: {type(error).__name__}",
            hint=f"check {', '.join(_VARIANTS)} and the other keys for S3 in ~/.aws/config, and the corresponding AWS_ "
            "variables",
        )
    if isinstance(error, OSError) and error.filename:
        return _file_fault(error)
    return None


def proxy_refusal(address: BucketAddress, status: int) -> StoreError | None:
    """Return the StoreError for an error status from the proxy; None if there is no proxy."""
    proxy = address.proxy
    if proxy is None:
        return None
    if status == PROXY_AUTHENTICATION:
        problem = "requires a user and a password"
        hint = f"add them to {proxy.variable}: http://USER:PASSWORD@{proxy}"
    else:
        problem, hint = "refuses the request", f"correct {proxy.variable}, or add {address.host} to NO_PROXY"
    return StoreError(f"the proxy {proxy} {problem}: status {status}", hint=hint)


def check_proxy(address: BucketAddress) -> None:
    """Raise StoreError if the client does not support the proxy's scheme."""
    proxy = address.proxy
    if proxy is not None and proxy.scheme not in _PROXY_SCHEMES:
        raise StoreError(
            f"the proxy {proxy} is not supported: it is a {proxy.scheme} proxy",
            hint=f"set {proxy.variable} to an http:// or https:// proxy, or add {address.host} to NO_PROXY",
        )


def check_ca_bundle(verify: str | bool | None, configured: str | None) -> None:
    """Raise StoreError if the client's CA bundle cannot be used. Blocks.

    `verify` is the store's argument; `configured` is `ca_bundle` of the AWS configuration.
    """
    # In botocore's order of precedence.
    candidates = [
        (verify if isinstance(verify, str) else None, "the CA file"),
        (os.environ.get("AWS_CA_BUNDLE"), "AWS_CA_BUNDLE"),
        (configured, "ca_bundle in ~/.aws/config"),
        (os.environ.get("REQUESTS_CA_BUNDLE"), "REQUESTS_CA_BUNDLE"),
    ]
    path, name = next(((path, name) for path, name in candidates if path), ("", ""))
    if not path or verify is False:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if os.path.isdir(path):  # noqa: PTH112 - as botocore does
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise StoreError(f"the CA bundle {path} has no usable certificate", hint=f"correct {name}") from error
    except OSError as error:
        raise StoreError(f"the CA bundle {path} cannot be read: {reason_of(error)}", hint=f"correct {name}") from error


def check_variants(address: BucketAddress, profile: Mapping[str, Any]) -> None:
    """Raise StoreError if an endpoint is set, and the AWS profile selects a variant of AWS's own endpoints."""
    if not address.endpoint or not (variants := [*_configured_variants(profile)]):
        return
    raise StoreError(
        f"{address.authority} does not support these options of the AWS configuration: {', '.join(variants)}",
        hint="remove them, or set AWS_PROFILE to a profile without them",
    )


def _configured_variants(profile: Mapping[str, Any]) -> Iterator[str]:
    s3 = profile.get("s3")
    for key, variable in _VARIANTS.items():
        if variable and os.environ.get(variable, "").lower() in _TRUE:
            yield variable
        elif any(str(part.get(key, "")).lower() in _TRUE for part in (profile, s3) if isinstance(part, Mapping)):
            yield f"{key} in ~/.aws/config"


def reason_of(error: BaseException) -> str:
    """Return the reason of an error: the system's error message if there is one, else the type of the error."""
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
    name = "AWS_WEB_IDENTITY_TOKEN_FILE" if path == token else "its path in ~/.aws/config or in an AWS_ variable"
    what = "the web identity token" if path == token else "the file"
    return StoreError(f"{what} {path} cannot be read: {reason_of(error)}", hint=f"correct {name}")
