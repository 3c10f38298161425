"""Upload to S3, from the database to the manifest, compared with `rclone copyto` of the compressed file."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.adapters.s3 import S3Store
from agent.domain.manifest import Manifest
from tests.bench import peers, pipeline
from tests.bench.stages import timed
from tests.support.servers.s3 import S3Server, aws_environment, running_rclone

BUCKET = "bench"


class Uploaders:
    """The agent and rclone, which upload the same database to the same server. Call `prepare` first."""

    def __init__(self, server: S3Server, bucket: Path, data_dir: Path, packed: Path, folder: Path) -> None:
        self._bucket, self._data_dir, self._packed, self._folder = bucket, data_dir, packed, folder
        self._endpoint = server.endpoint
        self._store = S3Store(bucket=BUCKET, endpoint=server.endpoint, region="auto")
        self._round = 0
        self._sent: Manifest | None = None

    async def prepare(self, small: Path) -> None:
        """Make a small upload, so that the S3 client exists: a running agent creates it only once."""
        await pipeline.upload(small, self._folder / "small", self._store)
        await self.clean()

    async def agent(self) -> None:
        """Snapshot, hash, compress, upload."""
        self._round += 1
        self._sent = await pipeline.upload(self._data_dir, self._folder / str(self._round), self._store)

    async def rclone(self) -> None:
        """Upload the compressed file, with rclone's default settings."""
        await asyncio.to_thread(peers.rclone_copyto, self._endpoint, self._packed, f"{BUCKET}/packed.gz")

    async def times(self) -> dict[str, float]:
        """Return the seconds of each in one round. Raises RuntimeError if the upload is not complete."""
        times = {}
        for name, stage in {"rclone": self.rclone, "agent": self.agent}.items():
            times[name] = await timed(stage)
            if self._sent is not None:
                await asyncio.to_thread(pipeline.check, self._bucket, self._sent, self._data_dir)
                self._sent = None
            await self.clean()
        return times

    async def clean(self) -> None:
        """Delete the objects, through the server, because it caches its listing; and the staged files."""
        await self._store.delete([item.key async for item in self._store.list("")])
        for path in self._folder.iterdir():
            shutil.rmtree(path)

    async def aclose(self) -> None:
        await self._store.aclose()


@asynccontextmanager
async def uploaders(data_dir: Path, packed: Path, small: Path, folder: Path) -> AsyncIterator[Uploaders]:
    """Run `rclone serve s3` on loopback; yield prepared uploaders for it."""
    served, scratch = folder / "served", folder / "scratch"
    (served / BUCKET).mkdir(parents=True)
    scratch.mkdir()
    os.environ |= aws_environment()
    with running_rclone(served) as server:
        both = Uploaders(server, served / BUCKET, data_dir, packed, scratch)
        try:
            await both.prepare(small)
            yield both
        finally:
            await both.aclose()
