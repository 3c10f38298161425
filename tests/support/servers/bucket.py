"""A bucket on a real S3 server, accessed without the agent."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.support.servers.s3 import S3Server


@dataclass(frozen=True)
class Bucket:
    """A new bucket on `server`."""

    server: S3Server
    name: str = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "name", self.server.new_bucket())

    @property
    def all_keys(self) -> list[str]:
        """The keys, sorted; at most 1000, one page of a listing."""
        listing = self.server._ask("GET", f"/{self.name}?list-type=2").decode()
        assert "<IsTruncated>true" not in listing
        return sorted(re.findall(r"<Key>([^<]+)</Key>", listing))

    @property
    def keys(self) -> list[str]:
        """The keys except those of owner.json, sorted."""
        return [key for key in self.all_keys if not key.endswith("/owner.json")]

    def object(self, key: str) -> bytes:
        return self.server._ask("GET", self._path(key))

    def put(self, key: str, data: bytes) -> None:
        """Give an object other bytes, and keep its metadata."""
        self.server.replace(self._path(key), data)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.server._ask("DELETE", self._path(key))

    def delete_bucket(self) -> None:
        """Delete the bucket, which is empty."""
        self.server._ask("DELETE", f"/{self.name}")

    def _path(self, key: str) -> str:
        return f"/{self.name}/{quote(key)}"

    @property
    def manifests(self) -> list[dict]:
        """The manifests in the bucket, oldest first."""
        return [json.loads(self.object(key)) for key in self.keys if key.endswith("/manifest.json")]

    @property
    def pending_uploads(self) -> int:
        """Number of multipart uploads that are neither completed nor aborted."""
        return self.server.pending_uploads(self.name)
