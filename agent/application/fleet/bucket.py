"""What a bucket or directory has of each system: its newest upload and its owner.json.

Three requests per system that has uploaded within the last two days: a listing of the folders of its newest uploads,
the manifest of the newest one, and owner.json. Any other system costs at most `MOST_LISTED / 1000` listings and
`2 * MOST_TRIED` manifests for each of `WINDOWS`. Uploads are not verified.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta

from agent.application.archive.catalog import impossible_values
from agent.application.sync.bucket_uploads import BucketUploads, NotAManifest
from agent.application.sync.ownership import read_owner
from agent.domain import naming
from agent.domain.errors import AkoshaError, StoreError
from agent.domain.manifest import Manifest
from agent.domain.naming import LAST_YEAR, SYSTEMS_PREFIX, is_in_future, is_system_id, is_upload_id, upload_time
from agent.domain.plain_text import printable, problem_list, shorten
from agent.ports import Clock, ObjectStore
from agent.ports.concurrency import gather_all

SYSTEMS_AT_ONCE = 16
MOST_SYSTEMS = 10_000
"""Systems that are read; others are only counted."""

SYSTEM_SECONDS = 30.0
"""Time limit for one system, and for listing all of them."""

WINDOWS: tuple[timedelta | None, ...] = (timedelta(days=2), timedelta(days=60), None)
"""Ages up to which uploads are listed, one after the other until some are found; None: all."""

MOST_LISTED = 10_000
MOST_TRIED = 3
"""Folders of a system that are listed; and, in each window, manifests that are read until one is complete: as many of
uploads whose ID is ahead of the clock, and of others. A clock that was ahead leaves its system with such IDs.
"""

MOST_NAMED = 5
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestUpload:
    """The newest complete upload of a system, by its manifest. `incomplete`: databases that it lacks, with reasons."""

    upload_id: str
    uploaded_at: datetime
    stored_bytes: int
    agent_version: str
    incomplete: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Manifest) -> "NewestUpload":
        return cls(
            upload_id=manifest.upload_id,
            uploaded_at=manifest.uploaded_at,
            stored_bytes=manifest.stored_bytes,
            agent_version=manifest.agent_version,
            incomplete=manifest.incomplete,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketFacts:
    """What the bucket has of one system. `problems`: what could not be read, and why.

    `host` and `claimed_at` are from owner.json: the name of the machine, and when it began to use the system ID.
    """

    newest: NewestUpload | None = None
    host: str = ""
    claimed_at: datetime | None = None
    problems: tuple[str, ...] = ()


class FleetBucket:
    """Reads the facts of all systems in a store. `check` raises StoreError if the store does not exist."""

    def __init__(self, store: ObjectStore, clock: Clock, check: Callable[[], Awaitable[None]] | None = None) -> None:
        self._store, self._clock, self._check = store, clock, check

    @property
    def location(self) -> str:
        return self._store.location

    async def read(self) -> tuple[dict[str, BucketFacts], tuple[str, ...]]:
        """Return the facts by system ID, and sentences about what was left out. Raises StoreError."""
        systems, notes = await self._systems()
        return await self.read_systems(systems), notes

    async def read_systems(self, systems: Collection[str]) -> dict[str, BucketFacts]:
        """Return the facts of these systems, read concurrently. Errors are problems of their system."""
        slots = asyncio.Semaphore(SYSTEMS_AT_ONCE)

        async def read(system_id: str) -> BucketFacts:
            async with slots:
                return await self.read_system(system_id)

        facts = await gather_all([read(system_id) for system_id in systems], "fleet-system")
        return dict(zip(systems, facts, strict=True))

    async def read_system(self, system_id: str) -> BucketFacts:
        """Return the facts of one system. Errors are problems of that system."""
        newest: NewestUpload | None = None
        host, claimed_at, problems = "", None, list[str]()
        try:
            async with asyncio.timeout(SYSTEM_SECONDS):
                try:
                    newest = await self._newest(system_id, problems)
                except AkoshaError as error:
                    problems.append(str(error))
                try:
                    if owner := await read_owner(self._store, system_id):
                        host, claimed_at = owner.host, owner.claimed_at
                except AkoshaError as error:
                    problems.append(str(error))
        except TimeoutError:
            problems.append(f"{self.location} did not answer within {SYSTEM_SECONDS:g} s")
        return BucketFacts(newest=newest, host=host, claimed_at=claimed_at, problems=tuple(problems))

    async def _systems(self) -> tuple[list[str], tuple[str, ...]]:
        systems: list[str] = []
        others: list[str] = []
        left = 0
        try:
            async with asyncio.timeout(SYSTEM_SECONDS):
                async for name in self._store.folders(SYSTEMS_PREFIX):
                    if not is_system_id(name):
                        others.append(name)
                    elif len(systems) < MOST_SYSTEMS:
                        systems.append(name)
                    else:
                        left += 1
        except TimeoutError as error:
            text = f"{self.location} did not answer within {SYSTEM_SECONDS:g} s"
            raise StoreError(text, transient=True) from error
        if not systems and not await self._store.is_available():
            hint = "check the network, akosha_cloud_endpoint and akosha_cloud_bucket"
            if self.location.startswith("file:"):
                hint = "mount its disk, or correct akosha_cloud_endpoint and akosha_cloud_bucket"
            raise StoreError(f"{self.location} cannot be reached, or does not exist", hint=hint, transient=True)
        if not systems and self._check is not None:
            await self._check()
        return systems, left_out("folders", others, left)

    async def _newest(self, system_id: str, problems: list[str]) -> NewestUpload | None:
        """Return the newest complete upload. Add a sentence to `problems` for a newer one that cannot be read."""
        uploads = BucketUploads(self._store, system_id)
        tried: set[str] = set()
        for window in WINDOWS:
            ids = [upload for upload in await self._ids(system_id, window) if upload not in tried]
            now = self._clock.now()
            ahead = [upload for upload in ids if is_in_future(upload, now)]
            for upload in (*ahead[:MOST_TRIED], *ids[len(ahead) :][:MOST_TRIED]):
                tried.add(upload)
                try:
                    manifest = await uploads.manifest(upload)
                except NotAManifest as error:
                    problems.append(error.message)
                    continue
                if manifest is None:  # it has not ended, or never will
                    continue
                if impossible := impossible_values(manifest):
                    problems.append(f"{upload}: {problem_list(impossible)}")
                    continue
                return NewestUpload.of(manifest)
        return None

    async def _ids(self, system_id: str, window: timedelta | None) -> list[str]:
        """Return the IDs of uploads that are not older than `window`, newest first."""
        prefix = naming.uploads_prefix(system_id)
        start = f"{self._clock.now() - window:%Y%m%d_}" if window else ""
        found: list[str] = []
        listed = 0
        async with aclosing(self._store.folders(prefix, start=start)) as names:
            async for name in names:
                listed += 1
                if listed > MOST_LISTED:
                    raise StoreError(f"{prefix} has more than {MOST_LISTED:,} folders", hint="akosha-agent prune")
                if is_upload_id(name, system_id) and upload_time(name).year <= LAST_YEAR:
                    found.append(name)
        return sorted(found, reverse=True)


def left_out(what: str, names: list[str], systems: int) -> tuple[str, ...]:
    """Return sentences about names that are not system IDs, and about the number of systems that were not read."""
    notes = []
    if names:
        shown = ", ".join(printable(shorten(name, _LONGEST_NAME)) for name in names[:MOST_NAMED])
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        notes.append(f"{what} that name no system were ignored: {shown}{more}")
    if systems:
        notes.append(f"{systems:,} more systems were not read: at most {MOST_SYSTEMS:,} are")
    return tuple(notes)
