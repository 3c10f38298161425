"""The address of a bucket: endpoint, region and addressing style, derived from the settings."""

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent.adapters.tcp_probe import Proxy, proxy_for

AUTO = "auto"
_DEFAULT_REGION = "us-east-1"
_AWS_HOST = re.compile(r"(?:^|\.)amazonaws\.com(?:\.cn)?$")
_REGION_IN_HOST = re.compile(r"(?:^|\.)s3[.-](?:dualstack\.|fips\.)?([a-z]{2}[a-z0-9-]*-[a-z0-9-]+)\.")


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """A bucket. An empty `endpoint` is AWS. The region `auto` is derived from the endpoint, else from the AWS chain."""

    bucket: str
    endpoint: str
    region: str

    def __str__(self) -> str:
        return f"s3://{self.bucket} at {self.authority}"

    @property
    def host(self) -> str:
        """Host name or address, without the port and without credentials that are part of the endpoint."""
        return urlsplit(self.endpoint).hostname or f"s3.{self._aws_region}.amazonaws.com"

    @property
    def authority(self) -> str:
        """The host, with the port if the endpoint has one; used in messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = urlsplit(self.endpoint).port
        return f"{host}:{port}" if port else host

    @property
    def signing_region(self) -> str | None:
        """The region for request signatures; None uses the AWS chain's.

        R2 accepts only `auto`. Services with a region in their host name require that region. Others use AWS's default.
        """
        if self.region and self.region != AUTO:
            return self.region
        if not self.endpoint:
            return None
        if match := _REGION_IN_HOST.search(self.host):
            return match[1]
        return AUTO if self.host.endswith(".r2.cloudflarestorage.com") else _DEFAULT_REGION

    @property
    def addressing_style(self) -> str:
        """On AWS the host name contains the bucket, elsewhere the path does.

        R2, B2 and MinIO support buckets in the path, and IP addresses require it.
        """
        return "auto" if _AWS_HOST.search(self.host) else "path"

    @property
    def tcp_address(self) -> tuple[str, int]:
        """Host and port to connect to: the endpoint's, or those of its proxy."""
        proxy = self.proxy
        if proxy is not None:
            return proxy.host, proxy.port
        return self.host, urlsplit(self.endpoint).port or (80 if self._scheme == "http" else 443)

    @property
    def proxy(self) -> Proxy | None:
        """The endpoint's proxy from the environment or the system settings."""
        return proxy_for(self.host, self._scheme)

    @property
    def uses_tls(self) -> bool:
        """Whether any connection uses TLS: to the endpoint, or to its proxy."""
        proxy = self.proxy
        return self._scheme == "https" or (proxy is not None and proxy.scheme == "https")

    @property
    def _scheme(self) -> str:
        return urlsplit(self.endpoint).scheme or "https"

    @property
    def _aws_region(self) -> str:
        if self.region and self.region != AUTO:
            return self.region
        return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _DEFAULT_REGION
