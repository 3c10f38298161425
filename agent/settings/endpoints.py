"""Validates bucket names and URLs, and removes credentials from URLs.

A check returns its argument, or raises ValueError with the rule. The message never contains the argument, which may
include a password.
"""

import os
import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from agent.domain.plain_text import MASK
from agent.domain.upload_parts import LONGEST_NAME_BYTES

BUCKETS = (
    "3 to 63 lower-case letters, digits, dots and hyphens, with a letter or digit at both ends, without two dots in a "
    "row, and not an IP address"
)
HTTP = "https://HOST, or http:// on this machine (localhost, 127.0.0.0/8, ::1)"
CLOUD = f"{HTTP}, or file:///DIRECTORY"
NATS = "nats://, tls://, ws:// or wss://HOST[:PORT], or several of these separated by commas"

ALL_HOSTS = "true"
"""The value of akosha_agent_allow_plaintext that permits every host."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_LONGEST_LABEL, _LONGEST_HOST = 63, 253
# URL parsers drop or reinterpret these characters, each in its own way, so they are rejected.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_PROVIDERS = re.compile(
    r"s3[.-]?[a-z0-9.-]*\.amazonaws\.com(\.cn)?|[0-9a-f]{32}(\.[a-z]+)?\.r2\.cloudflarestorage\.com"
    r"|s3\.[a-z0-9-]+\.backblazeb2\.com|s3\.([a-z0-9-]+\.)?wasabisys\.com|[a-z0-9]+\.digitaloceanspaces\.com"
    r"|s3\.[a-z0-9-]+\.scw\.cloud"
)
"""Hosts of storage providers, without a bucket as prefix."""
_LONGEST_PATH_BYTES = 4095
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_bucket(name: str) -> str:
    """Check a bucket name by the rules of S3 and compatible stores (empty: no bucket)."""
    if name and (not _BUCKET.fullmatch(name) or ".." in name or _ipv4(name)):
        raise ValueError(f"must be {BUCKETS}")
    return name


def check_cloud_endpoint(url: str, *, plaintext: bool = False) -> str:
    """Check the URL of a store or a directory (empty: the provider's default). `plaintext` permits http:// anywhere."""
    if url and is_directory(url):
        directory_of(url)
    elif url:
        _check_http(url, CLOUD, plaintext=plaintext)
    return url


def without_bucket(url: str, bucket: str) -> str:
    """Return a checked cloud URL without the bucket at its end, which is part of the URLs in R2's dashboard.

    Raises ValueError for any other path, and if the host is that of a known provider prefixed with the bucket: requests
    would contain the bucket twice. A URL that ends in `/mcp` is returned unchanged, since it may be an Akosha server's.
    """
    if not url or is_directory(url):
        return url
    parts = urlsplit(url)
    path = parts.path.strip("/")
    plain = f"{parts.scheme}://{parts.netloc}"
    if path and path == bucket:
        return plain
    if path and not is_akosha_address(url):
        raise ValueError(f"must not have the path /{path}; set the bucket in akosha_cloud_bucket")
    rest = parts.netloc.removeprefix(f"{bucket}.") if bucket else parts.netloc
    if rest != parts.netloc and _PROVIDERS.fullmatch(rest.lower()):
        raise ValueError(f"must not contain the bucket, which akosha_cloud_bucket names; use {parts.scheme}://{rest}")
    return url


def check_http_endpoint(url: str, *, plaintext: bool = False) -> str:
    """Check the URL of an Akosha server. `plaintext` permits http:// anywhere."""
    _check_http(url, HTTP, plaintext=plaintext)
    return url


def check_webhook_url(url: str) -> None:
    """Check the URL of a webhook, which may have a user, a password and a query."""
    parts = _split(url, HTTP)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"must be {HTTP}")
    if "#" in url:
        raise ValueError("must not contain #")
    _check_host(parts, HTTP)


def check_plaintext(url: str, allowed: str) -> None:
    """Check a URL against `akosha_agent_allow_plaintext`: http:// only to this machine and to the allowed hosts."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if parts.scheme != "http" or is_loopback(host) or allowed == ALL_HOSTS or host in allowed.split(","):
        return
    scheme = CLOUD if parts.path.strip("/") == "" else HTTP
    raise ValueError(
        f"would be unencrypted to another machine; must be {scheme}; on a network that you trust, set "
        f"akosha_agent_allow_plaintext: {host}"
    )


def check_hosts(text: str) -> str:
    """Check hosts that are separated by commas, or `true`; return them in lower case, without blanks."""
    hosts = [host.strip().lower() for host in text.split(",")] if text.strip() else []
    for host in hosts:
        if not _HOST.fullmatch(host) and not (":" in host and _ipv6(host)):
            raise ValueError("must be true, or names or addresses of hosts, without port, separated by commas")
    return ",".join(hosts)


def check_nats_url(urls: str) -> str:
    """Check one or more NATS URLs, separated by commas (empty: none)."""
    for url in urls.split(",") if urls else ():
        parts = _split(url.strip(), NATS)
        if parts.scheme not in ("nats", "tls", "ws", "wss"):
            raise ValueError(f"must be {NATS}")
        _check_host(parts, NATS)
        _check_user_info(parts)
    return urls


def nats_servers(urls: str) -> tuple[str, ...]:
    """Split checked NATS URLs; schemes become lower case."""
    return tuple(urlsplit(url.strip()).geturl() for url in urls.split(",")) if urls else ()


def has_user_info(url: str) -> bool:
    """Return whether a NATS URL contains a user or a token."""
    return urlsplit(url).username is not None


def is_plaintext(url: str) -> bool:
    """Return whether a connection to this NATS URL may be unencrypted and to another machine."""
    parts = urlsplit(url)
    return parts.scheme in ("nats", "ws") and not is_loopback(parts.hostname or "")


def is_directory(url: str) -> bool:
    """Return whether a URL is that of a local directory."""
    return url[:5].lower() == "file:"


def directory_of(url: str) -> Path:
    """Return the directory of a `file:///dir` URL, percent-decoded. Raises ValueError if it is invalid.

    The root directory is rejected, because it is the result of `file:///${DIR}` with an empty variable.
    """
    _, _, rest = url.partition(":")
    host, slash, path = rest.removeprefix("//").partition("/")
    decoded = unquote(slash + path)
    if not rest.startswith("//") or host.lower() not in ("", "localhost") or not decoded.strip("/"):
        raise ValueError("must be file:///DIRECTORY, with three slashes and an absolute path")
    if _CONTROL.search(decoded):
        raise ValueError("must not contain control characters")
    directory = Path("/", decoded.lstrip("/"))
    if is_too_long(directory):
        raise ValueError("must not be longer than a path can be")
    return directory


def is_too_long(path: Path) -> bool:
    """Return whether the operating system refuses a path because of its length, or that of a name in it."""
    encoded = os.fsencode(path)
    return len(encoded) > _LONGEST_PATH_BYTES or any(len(name) > LONGEST_NAME_BYTES for name in encoded.split(b"/"))


def is_akosha_address(url: str) -> bool:
    """Return whether a cloud endpoint is an Akosha server's URL: http(s), ending in `/mcp`."""
    try:
        parts = urlsplit(check_cloud_endpoint(url, plaintext=True))
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.path.rstrip("/").endswith("/mcp")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, without resolving names."""
    if host.lower() == "localhost":
        return True
    try:
        return IPv4Address(host).is_loopback if ":" not in host else IPv6Address(host) == IPv6Address("::1")
    except AddressValueError:
        return False


def without_credentials(url: str) -> str:
    """Return a URL without user, password, query and fragment, for people and logs. Accepts any text."""
    if url[:8].lower() == "file:///":
        return url
    # A password may contain commas and slashes: everything between the scheme and the last @ is masked.
    head, at, tail = url.rpartition("@")
    scheme = re.match(r"[a-zA-Z]{2,6}://", head)
    return (scheme[0] if scheme else "") + (MASK if at else "") + at + re.sub(r"(?s)([?#]).+", rf"\1{MASK}", tail)


def _check_http(url: str, allowed: str, *, plaintext: bool) -> None:
    parts = _split(url, allowed)
    if "://" not in url:
        raise ValueError("has no scheme: it must begin with https:// (http:// only for a network that you trust)")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"must be {allowed}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "must not contain a user or password: write it without them (keys and tokens are settings of their own)"
        )
    if parts.query or parts.fragment:
        raise ValueError("must not contain ? or #")
    _check_host(parts, allowed)
    if parts.scheme == "http" and not plaintext and not is_loopback(parts.hostname or ""):
        raise ValueError(f"would be unencrypted to another machine; must be {allowed}")


def _split(url: str, allowed: str) -> SplitResult:
    if _AMBIGUOUS.search(url):
        raise ValueError("must not contain blanks, control characters or backslashes")
    try:
        return urlsplit(url)
    except ValueError:
        raise ValueError(f"must be {allowed}") from None


def _check_host(parts: SplitResult, allowed: str) -> None:
    host = parts.hostname or ""
    if not _HOST.fullmatch(host) and not (":" in host and _ipv6(host)):
        raise ValueError(f"has no valid host name; must be {allowed}")
    if ":" not in host and (len(host) > _LONGEST_HOST or max(map(len, host.split("."))) > _LONGEST_LABEL):
        most = f"at most {_LONGEST_LABEL} characters between dots, {_LONGEST_HOST} in all"
        raise ValueError(f"has a host name that is too long: {most}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("must have a port from 1 to 65535")


def _check_user_info(parts: SplitResult) -> None:
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("must have the characters / ? # in a user, password or token written as %2F %3F %23")
    if parts.username is None:
        return
    # nats://${TOKEN}@HOST with an empty variable has no login.
    if not parts.username or parts.password == "" or _CONTROL.search(unquote(parts.netloc)):
        raise ValueError("must have a non-empty TOKEN or USER:PASSWORD before the @")


def _ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True


def _ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True
