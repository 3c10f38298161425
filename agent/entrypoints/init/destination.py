"""Where memories go, as settings: from an address on the command line, or from the answers of a dialogue."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from agent.domain.errors import SettingsError
from agent.settings.endpoints import (
    check_bucket,
    check_cloud_endpoint,
    directory_of,
    is_akosha_address,
    is_directory,
    is_loopback,
    without_credentials,
)

R2_HOST = "r2.cloudflarestorage.com"
ADDRESSES = (
    "a directory (/mnt/nas/memories or file:///mnt/nas/memories), s3://BUCKET for AWS, https://ENDPOINT with --bucket, "
    "or an Akosha server (akosha+http://localhost:8682/mcp)"
)

_R2_ACCOUNT = re.compile(r"[0-9a-f]{32}")


class Kind(StrEnum):
    """What receives the memories."""

    DIRECTORY = "directory"
    BUCKET = "bucket"
    AKOSHA = "akosha"


@dataclass(frozen=True, slots=True)
class Destination:
    """A place for memories. `settings`: the values of the keys that name it; the others of `KEYS` must not be set."""

    kind: Kind
    settings: Mapping[str, str]

    @property
    def unencrypted_host(self) -> str:
        """The other machine to which memories would be sent unencrypted; "" if there is none."""
        parts = urlsplit(self.settings.get("http_endpoint" if self.kind is Kind.AKOSHA else "cloud_endpoint", ""))
        host = parts.hostname or ""
        return host if parts.scheme == "http" and not is_loopback(host) else ""


KEYS = ("cloud_endpoint", "cloud_bucket", "cloud_region", "force_method")
"""The settings that decide where memories go, whatever the kind."""


def from_address(address: str, bucket: str, region: str, cwd: Path, home: Path) -> Destination:
    """Return the destination of `--to ADDRESS --bucket BUCKET --region REGION`.

    Raises SettingsError, whose message does not repeat user and password of a URL.
    """
    address = address.strip()
    shown = without_credentials(address)
    if address.startswith("akosha+"):
        return akosha(address.removeprefix("akosha+"))
    if address.startswith("s3://"):
        parts = urlsplit(address)
        if not parts.netloc:
            raise SettingsError(f"--to {shown} has no bucket", hint="s3://BUCKET")
        if parts.path.strip("/") or (bucket and bucket != parts.netloc):
            raise SettingsError(f"--to {shown} must name a bucket only", hint="s3://BUCKET")
        return bucket_at("", parts.netloc, region)
    if is_directory(address) or address.startswith(("/", "~", ".")):
        if bucket or region:
            raise SettingsError(
                "--bucket and --region belong to an S3 store, not to a directory",
                hint="name the whole directory in --to",
            )
        return directory(address, cwd, home)
    if address.startswith(("https://", "http://")):
        if not bucket and is_akosha_address(address):
            return akosha(address)
        try:
            check_cloud_endpoint(address, plaintext=True)
        except ValueError as error:
            raise SettingsError(f"--to {shown} {error}") from None
        return bucket_at(address, bucket, region)
    raise SettingsError(
        f"--to {shown} is not an address",
        hint="begin with https:// for a store or a server, with s3:// for a bucket of AWS, or with / for a directory",
    )


def directory(written: str, cwd: Path, home: Path) -> Destination:
    """Return the destination of a directory. Raises SettingsError if its parent does not exist."""
    if is_directory(written):
        try:
            path = directory_of(written)
        except ValueError as error:
            raise SettingsError(f"{without_credentials(written)} {error}") from None
    elif "://" in written:
        raise SettingsError(
            f"{without_credentials(written)} is the URL of a store or a server, not a directory",
            hint="a directory begins with /, ~ or file:///",
        )
    else:
        path = Path(written)
        path = home.joinpath(*path.parts[1:]) if path.parts[:1] == ("~",) else cwd / path
    if ".." in path.parts:
        path = path.parent.resolve() / path.name if path.name != ".." else path.resolve()
    if path.parent.exists() and not path.parent.is_dir():
        raise SettingsError(f"{path.parent} is a file, not a directory", hint="choose another directory")
    if not path.parent.is_dir():
        raise SettingsError(
            f"{path.parent} does not exist", hint="mount the disk, or create the directory, then try again"
        )
    if path.exists() and not path.is_dir():
        raise SettingsError(f"{path} is not a directory", hint="choose another name")
    return Destination(Kind.DIRECTORY, {"cloud_endpoint": path.as_uri()})


def bucket_at(endpoint: str, bucket: str, region: str = "") -> Destination:
    """Return the destination of a bucket; without an endpoint, of AWS. A bucket at the end of the URL is used.

    `endpoint` is a checked URL. Raises SettingsError.
    """
    parts = urlsplit(endpoint)
    path = parts.path.strip("/")
    if path:
        endpoint = f"{parts.scheme}://{parts.netloc}"
        if bucket and bucket != path:
            raise SettingsError(
                f"the URL ends with /{path}, but the bucket is {bucket}", hint="give the URL without it"
            )
        bucket = path
    if not bucket:
        raise SettingsError(f"the bucket at {endpoint} has no name", hint="--bucket BUCKET")
    try:
        check_bucket(bucket)
    except ValueError as error:
        raise SettingsError(f"the bucket {without_credentials(bucket)} {error}") from None
    given = {"cloud_endpoint": endpoint, "cloud_bucket": bucket, "cloud_region": region}
    return Destination(Kind.BUCKET, {key: value for key, value in given.items() if value})


def r2_endpoint(account: str) -> str:
    """Return the endpoint of Cloudflare R2: `account` is the account ID, or already the endpoint. Raises ValueError."""
    if account.startswith("https://"):
        return check_cloud_endpoint(account)
    if not _R2_ACCOUNT.fullmatch(account):
        raise ValueError("is not an account ID (32 characters, 0-9 and a-f), nor a URL that begins with https://")
    return f"https://{account}.{R2_HOST}"


def akosha(url: str) -> Destination:
    """Return the destination of an Akosha server without any storage."""
    return Destination(Kind.AKOSHA, {"http_endpoint": url, "force_method": "http"})
