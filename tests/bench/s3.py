"""To S3: the agent's whole way from a database to an upload, against `rclone copyto` of the file already gzip'ed."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.adapters.s3 import S3Store
from agent.domain.manifest import Manifest
from tests.bench import pipeline
from tests.bench.stages import timed
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY, S3Server, aws_environment, running_rclone

BUCKET = "bench"
_RCLONE = str(Path(sys.executable).with_name("rclone"))


class Rivals:
    """Both, sending the same database to the same server. `prepare` first."""

    def __init__(self, server: S3Server, bucket: Path, data_dir: Path, packed: Path, folder: Path) -> None:
        self._bucket, self._data_dir, self._packed, self._folder = bucket, data_dir, packed, folder
        self._endpoint = server.endpoint
        self._store = S3Store(bucket=BUCKET, endpoint=server.endpoint, region="auto")
        self._round = 0
        self._sent: Manifest | None = None

    async def prepare(self, small: Path) -> None:
        """Upload something small, so that the client is there: the agent makes it once, rclone's start is quick."""
        await pipeline.upload(small, self._folder / "small", self._store)
        await self.clean()

    async def agent(self) -> None:
        """Snapshot, hash, compress, upload."""
        self._round += 1
        self._sent = await pipeline.upload(self._data_dir, self._folder / str(self._round), self._store)

    async def rclone(self) -> None:
        """Upload what is already compressed, with the settings that rclone has by itself."""
        remote = f":s3,provider=Other,force_path_style=true,endpoint='{self._endpoint}':{BUCKET}/packed.gz"
        keys = ["--s3-access-key-id", ACCESS_KEY, "--s3-secret-access-key", SECRET_KEY]
        process = await asyncio.create_subprocess_exec(
            _RCLONE, "copyto", str(self._packed), remote, *keys, env={**os.environ, "RCLONE_CONFIG": os.devnull}
        )
        if code := await process.wait():
            raise subprocess.CalledProcessError(code, "rclone copyto")

    async def times(self) -> dict[str, float]:
        """Return the seconds that each took in one round. Raises RuntimeError where not all arrived."""
        found = {}
        for name, stage in {"rclone": self.rclone, "agent": self.agent}.items():
            found[name] = await timed(stage)
            if self._sent is not None:
                await asyncio.to_thread(pipeline.check, self._bucket, self._sent, self._data_dir)
                self._sent = None
            await self.clean()
        return found

    async def clean(self) -> None:
        """Remove what has arrived, by asking the server, which remembers what it has; and what was staged."""
        await self._store.delete([found.key async for found in self._store.list("")])
        for path in self._folder.iterdir():
            shutil.rmtree(path)

    async def aclose(self) -> None:
        await self._store.aclose()


@asynccontextmanager
async def rivals(data_dir: Path, packed: Path, small: Path, folder: Path) -> AsyncIterator[Rivals]:
    """Run `rclone serve s3` on loopback, and both against it."""
    served, scratch = folder / "served", folder / "scratch"
    (served / BUCKET).mkdir(parents=True)
    scratch.mkdir()
    os.environ |= aws_environment()
    with running_rclone(served) as server:
        both = Rivals(server, served / BUCKET, data_dir, packed, scratch)
        try:
            await both.prepare(small)
            yield both
        finally:
            await both.aclose()
