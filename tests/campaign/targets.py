"""What the agent of a campaign delivers to, read without the agent: a directory, an S3 server, Akosha, or both."""

import shutil
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.client import IncompleteRead
from pathlib import Path
from typing import Literal

from tests.support.files import files_in
from tests.support.servers.akosha import Row
from tests.support.servers.akosha_process import AkoshaProcess
from tests.support.servers.bucket import Bucket
from tests.support.servers.faulty_proxy import FaultyProxy
from tests.support.servers.s3 import SECRET_KEY, Authority, Rclone, aws_environment, running_moto
from tests.support.servers.threaded_proxy import running_faulty_proxy

Kind = Literal["directory", "s3", "rclone", "rclone-tls", "akosha", "fallback"]

TOKEN = "canary-of-the-akosha-server"


class Target(ABC):
    """`keys` are those of the objects, without owner.json. A target has objects or memories.

    `proxy`: the agent reaches the server through it. `server`: a server that a fault may kill; its data survives.
    """

    settings: Mapping[str, object]
    environ: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()
    proxy: FaultyProxy | None = None
    server: Rclone | AkoshaProcess | None = None

    @property
    def keys(self) -> list[str]:
        return []

    @property
    def unfinished_multiparts(self) -> int:
        return 0

    @property
    def memories(self) -> list[Row]:
        return []

    def fetch(self, key: str) -> bytes:
        raise FileNotFoundError(key)

    def put(self, key: str, data: bytes) -> None:
        """Give an object other bytes. Its metadata stays as it is."""
        raise FileNotFoundError(key)

    def sharing(self, key: str) -> list[str]:
        """Return the keys of the objects that `put` of this key changes: links of one file in a directory."""
        return [key]

    def delete(self, keys: Iterable[str]) -> None:
        raise FileNotFoundError([*keys])

    def empty(self) -> None:
        """Delete everything, owner.json included."""
        raise FileNotFoundError


class DirectoryTarget(Target):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.settings = {"cloud_endpoint": folder.as_uri()}

    @property
    def keys(self) -> list[str]:
        paths = files_in(self._folder / "systems")
        return sorted(str(path.relative_to(self._folder)) for path in paths if path.name != "owner.json")

    def fetch(self, key: str) -> bytes:
        return (self._folder / key).read_bytes()

    def put(self, key: str, data: bytes) -> None:
        (self._folder / key).write_bytes(data)

    def sharing(self, key: str) -> list[str]:
        return [other for other in self.keys if (self._folder / other).samefile(self._folder / key)]

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            (self._folder / key).unlink(missing_ok=True)

    def empty(self) -> None:
        for path in self._folder.iterdir():
            shutil.rmtree(path)


class S3Target(Target):
    secrets = (SECRET_KEY,)

    def __init__(self, bucket: Bucket, *, proxy: FaultyProxy | None = None, server: Rclone | None = None) -> None:
        self._bucket, self.proxy, self.server = bucket, proxy, server
        endpoint = proxy.url if proxy else bucket.server.endpoint
        self.settings = {"cloud_endpoint": endpoint, "cloud_bucket": bucket.name}
        self.environ = aws_environment()

    @property
    def keys(self) -> list[str]:
        return self._bucket.keys

    @property
    def unfinished_multiparts(self) -> int:
        return self._bucket.pending_uploads

    def fetch(self, key: str) -> bytes:
        try:
            return self._bucket.object(key)
        except IncompleteRead:  # the object was replaced or deleted while it was read
            return self._bucket.object(key)

    def put(self, key: str, data: bytes) -> None:
        self._bucket.put(key, data)

    def delete(self, keys: Iterable[str]) -> None:
        self._bucket.delete(keys)

    def empty(self) -> None:
        self._bucket.delete(self._bucket.all_keys)


class AkoshaTarget(Target):
    secrets = (TOKEN,)

    def __init__(self, server: AkoshaProcess) -> None:
        self.server = server
        self.settings = {"cloud_endpoint": None, **_settings_for(server)}

    @property
    def memories(self) -> list[Row]:
        return self.server.rows()


class FallbackTarget(S3Target):
    """A bucket, and Akosha for as long as the agent cannot upload to it."""

    secrets = (SECRET_KEY, TOKEN)

    def __init__(self, bucket: Bucket, server: Rclone, akosha: AkoshaProcess) -> None:
        super().__init__(bucket, server=server)
        self.settings = {**self.settings, **_settings_for(akosha)}
        self._akosha = akosha

    @property
    def memories(self) -> list[Row]:
        return self._akosha.rows()


def _settings_for(akosha: AkoshaProcess) -> Mapping[str, object]:
    return {"http_endpoint": akosha.url, "http_token": TOKEN, "http_missing_embedding": "zero"}


@contextmanager
def _directory(folder: Path) -> Iterator[Target]:
    yield DirectoryTarget(folder)


@contextmanager
def _moto(folder: Path) -> Iterator[Target]:
    folder.mkdir()
    with running_moto(Authority(folder)) as (server, _), running_faulty_proxy(server.endpoint) as proxy:
        yield S3Target(Bucket(server), proxy=proxy)


@contextmanager
def _rclone(folder: Path) -> Iterator[Target]:
    folder.mkdir()
    with Rclone(folder) as rclone:
        yield S3Target(Bucket(rclone.server), server=rclone)


@contextmanager
def _rclone_tls(folder: Path) -> Iterator[Target]:
    (folder / "data").mkdir(parents=True)
    with Rclone(folder / "data", Authority(folder)) as rclone:
        yield S3Target(Bucket(rclone.server), server=rclone)


@contextmanager
def _akosha(folder: Path) -> Iterator[Target]:
    with AkoshaProcess(folder, token=TOKEN) as akosha:
        yield AkoshaTarget(akosha)


@contextmanager
def _fallback(folder: Path) -> Iterator[Target]:
    (folder / "rclone").mkdir(parents=True)
    with Rclone(folder / "rclone") as rclone, AkoshaProcess(folder / "akosha", token=TOKEN) as akosha:
        yield FallbackTarget(Bucket(rclone.server), rclone, akosha)


OPENED: Mapping[Kind, Callable[[Path], AbstractContextManager[Target]]] = {
    "directory": _directory,
    "s3": _moto,
    "rclone": _rclone,
    "rclone-tls": _rclone_tls,
    "akosha": _akosha,
    "fallback": _fallback,
}
"""Kind -> a function that starts the target, in a folder; s3 is moto behind a FaultyProxy."""
