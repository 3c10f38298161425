"""What `doctor` looks with: adapters, from the settings. Nothing is changed, made or locked but the probe object."""

import json
import os
import secrets
import shlex
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from agent.adapters import host_facts
from agent.adapters.akosha import AkoshaSink
from agent.adapters.directory_store import DirectoryStore
from agent.adapters.duckdb import database_facts as databases
from agent.adapters.duckdb.database_facts import DatabaseFacts
from agent.adapters.host_facts import PROC, Folder, Inotify
from agent.adapters.s3 import S3Store
from agent.adapters.server_date import server_date
from agent.adapters.sqlite_ledger import file as ledger
from agent.adapters.sqlite_ledger.file import LedgerFacts
from agent.adapters.state_directory import Holder
from agent.adapters.unix_http import AgentHealth, agent_health
from agent.adapters.watcher.scan import file_system, silent
from agent.application.status_warnings import warnings_in
from agent.application.sync.bus_recovery import BUS
from agent.application.sync.delivery_probe import Kept
from agent.bootstrap.doctor_bus import ServerInfo, examine_servers
from agent.bootstrap.home import Home
from agent.bootstrap.methods import MEBIBYTE, at_rest
from agent.domain.errors import NotPermitted, StoreError
from agent.domain.identity import Identity
from agent.domain.naming import (
    check_system_id,
    sanitise_system_id,
    uploads_prefix,
)
from agent.domain.routing import HTTP
from agent.domain.status_warning import StatusWarning
from agent.ports import MemoryCounts, ObjectStore
from agent.ports.concurrency import off_loop
from agent.settings import Settings
from agent.settings.endpoints import is_loopback

T = TypeVar("T")

PROBE_NAME = ".probe"
PATIENCE_SECONDS = 4.0
"""For a single step of a look: what is slower is told by the step's own error, before the whole check is cut off."""

CONNECT_SECONDS = 10.0
"""For a connection, its name's look-up included: as long as the agent itself takes."""

LOST = timedelta(days=1)
"""Parts of an upload that began longer ago than this are nobody's: no upload takes a day."""

NOBODY = "0" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryInfo:
    """A directory, where that really is, and the file system it lies on ("" where that is not told).

    `is_polled`: that file system tells of no change.
    """

    folder: Folder
    real: Path
    file_system: str
    is_polled: bool


@dataclass(frozen=True, slots=True)
class CredentialInfo:
    """Credentials: which part of the AWS chain has them, and the end of the key's id, "" where that is not shown."""

    source: str
    end: str


@dataclass(frozen=True, slots=True)
class Probed:
    """The probe object was put and read back. `same`: it came back as it was; `kept`: why it could not be deleted.

    Not `made`: the directory will be made by the first upload, and nothing was put there.
    """

    same: bool = True
    kept: NotPermitted | None = None
    made: bool = True


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Unfinished uploads: those that a killed process left, and those that may still be at work."""

    lost: int
    young: int


@dataclass(frozen=True, slots=True)
class ReaderInfo:
    """The Akosha server, and its version ("" where it tells none)."""

    place: str
    version: str


@dataclass(frozen=True, slots=True)
class Given:
    """What was given to the Akosha server, and when it said last that it has it (None: it has not been asked yet)."""

    standing: MemoryCounts = field(default_factory=MemoryCounts)
    confirmed_at: datetime | None = None


class DoctorContext:
    """Looks at what the agent of these settings works with. Every failure is an AkoshaError."""

    def __init__(self, settings: Settings, *, proc: Path = PROC) -> None:
        self.settings = settings
        self.home = Home.of(settings)
        self._proc = proc
        self._store: ObjectStore | None = None

    async def aclose(self) -> None:
        """Close connections. Idempotent."""
        store, self._store = self._store, None
        if store is not None:
            await store.aclose()

    # This machine. A mount that hangs holds a thread that nobody waits for.

    async def spot(self, path: Path) -> DirectoryInfo:
        """Look at a directory. Raises OSError."""

        def look() -> DirectoryInfo:
            kind = file_system(path)
            return DirectoryInfo(
                folder=host_facts.folder(path), real=path.resolve(), file_system=kind, is_polled=silent(kind)
            )

        return await aside(look)

    async def inotify(self) -> Inotify | None:
        """Return the kernel's limits and their use; None where there is no inotify."""
        return await aside(lambda: host_facts.inotify(self._proc))

    async def databases(self) -> list[DatabaseFacts]:
        """Look at the databases. Raises SnapshotError."""
        return await aside(lambda: databases.examine(self.settings.agent_data_dir))

    async def holders(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Return which processes of this user have one of these files open, as far as that is told."""
        found = await aside(lambda: host_facts.holders(paths, self._proc))
        return tuple(sorted({name for names in found.values() for name in names}))

    async def ledger(self) -> LedgerFacts | None:
        """Check the ledger; None where there is none. Raises StateError."""
        path = self.home.state.ledger_file
        return await aside(lambda: ledger.examine(path) if path.exists() else None)

    async def warnings(self) -> tuple[StatusWarning, ...]:
        """Return the lasting conditions that the spool shows and the ledger keeps. Raises StateError."""
        found = await self.home.unattended()
        if not await self.home.has_ledger():
            return found
        ledger = await self.home.read_ledger()
        try:
            return (*found, *warnings_in(await ledger.notes()))
        finally:
            await ledger.aclose()

    async def bus_in_use(self) -> str:
        """Return what the running agent says of its bus; "" where none runs, or it says nothing. Raises StateError."""
        if await self.holder() is None or not await self.home.has_ledger():
            return ""
        ledger = await self.home.read_ledger()
        try:
            return (await ledger.notes()).get(BUS, "")
        finally:
            await ledger.aclose()

    async def holder(self) -> Holder | None:
        """Return who holds the state directory. Raises StateError."""
        return await aside(self.home.holder)

    async def is_stopped(self, holder: Holder) -> bool:
        """Say whether the holder's process is stopped (SIGSTOP); False where that cannot be known."""
        return await aside(lambda: self.home.is_stopped(holder.pid))

    async def health(self) -> AgentHealth | None:
        """Return how the running agent says that it is; None where it has no control socket. Raises OSError."""
        path = self.home.state.path.absolute()
        return await aside(lambda: agent_health(path, PATIENCE_SECONDS))

    async def engine(self) -> str:
        """Return the version of our engine, "" where it is not installed. It is not imported."""
        try:
            return metadata.version("duckdb")
        except metadata.PackageNotFoundError:
            return ""

    # The bucket.

    async def credentials(self) -> CredentialInfo | None:
        """Return where the AWS chain has credentials; None where it has none. Raises StoreError."""
        store = self._bucket()
        assert isinstance(store, S3Store)
        found = await store.credentials()
        return None if found is None else CredentialInfo(found.source, found.key_end)

    async def probe(self) -> Probed:
        """Put a small object, read, list and delete it. Raises StoreError for the first that fails, but deleting.

        Its key is none that Akosha's scan, or ours, takes for an upload's: they lie below `uploads/`. Nothing is put
        where another machine owns the system id, or the directory's disk is not mounted (NotOwner).
        """
        store = self._bucket()
        if not await store.is_available():
            raise StoreError(f"{store.location} cannot be reached", hint=_reach(self.settings), transient=True)
        async with self.home.ownership(await self.identity(), store) as ownership:
            key = f"systems/{await ownership.system_id()}/{PROBE_NAME}"
        if await aside(self._is_to_be_made):
            return Probed(made=False)
        sent = f"akosha-agent doctor was here: {secrets.token_hex(16)}\n".encode()
        await store.put(key, _pieces(sent), metadata={}, part_bytes=5 * MEBIBYTE, progress=lambda _: None)
        async with aclosing(store.get(key)) as pieces:
            came = b"".join([piece async for piece in pieces])
        async for _item in store.list(key):
            break
        try:
            await store.delete([key])
        except NotPermitted as error:
            return Probed(came == sent, error)
        return Probed(came == sent)

    async def leftovers(self) -> Leftovers:
        """Count what uploads that came to no end have left behind. Raises NotPermitted, StoreError."""
        store, prefix = self._bucket(), await self._prefix()
        if isinstance(store, DirectoryStore):
            return Leftovers(await store.left_behind(prefix), 0)
        assert isinstance(store, S3Store)
        found = await store.unfinished(prefix)
        lost = sum(self.home.clock.now() - upload.begun > LOST for upload in found)
        return Leftovers(lost, len(found) - lost)

    # Time.

    async def bucket_ahead(self) -> float | None:
        """Return how many seconds the store's clock is ahead of ours, None where it is not told. Raises StoreError."""
        store = self._bucket()
        assert isinstance(store, S3Store)
        return self._ahead(await store.server_date(await self._prefix()))

    async def akosha_ahead(self) -> float | None:
        """Return how many seconds Akosha's clock is ahead of ours, None where it is not told. Raises SinkError."""
        parts = urlsplit(self.settings.http_endpoint)
        url = f"{parts.scheme}://{parts.netloc}/health"
        proxied = not is_loopback(parts.hostname or "")
        return self._ahead(await server_date(url, proxied=proxied, seconds=PATIENCE_SECONDS))

    # Bus and Akosha.

    async def nats(self) -> list[ServerInfo]:
        """Look at each of the NATS servers. Raises SettingsError for files that are of no use."""
        return await examine_servers(self.settings, await self.identity(), seconds=PATIENCE_SECONDS)

    async def akosha(self) -> ReaderInfo:
        """Have the Akosha server say who it is and what it offers. Raises SinkError."""
        sink = AkoshaSink(
            endpoint=self.settings.http_endpoint,
            token=self.settings.http_token.get_secret_value(),
            timeout_seconds=CONNECT_SECONDS,
        )
        try:
            healthy = await sink.is_available()
            await sink.connect()
            return ReaderInfo(sink.location, sink.health_version if healthy else "")
        finally:
            await sink.aclose()

    async def given_to_akosha(self) -> Given:
        """Return what the ledger knows of it; nothing where there is no ledger. Raises StateError, NamingError."""
        if not await self.home.has_ledger():
            return Given()
        target = self.home.targets(await self.identity())[HTTP]
        ledger = await self.home.read_ledger()
        try:
            kept = Kept.noted(await ledger.notes(), target)
            return Given(await ledger.memories().counts(target), kept.answered if kept else None)
        finally:
            await ledger.aclose()

    async def identity(self) -> Identity:
        """Return who this agent is; before its first start, who it would be, with the agent id that none has.

        Raises NamingError.
        """
        agent_id, system_id, file = NOBODY, "", self.home.state.path / "identity.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(await aside(file.read_bytes))
            agent_id, system_id = str(kept["agent_id"]), check_system_id(str(kept["system_id"]))
        if self.settings.system_id:
            system_id = sanitise_system_id(self.settings.system_id)
        return Identity(
            agent_id=agent_id,
            system_id=system_id or sanitise_system_id(socket.gethostname()),
            is_default=not self.settings.system_id,
        )

    async def _prefix(self) -> str:
        return uploads_prefix((await self.identity()).system_id)

    def _bucket(self) -> ObjectStore:
        if self._store is None:
            s = self.settings
            if s.directory is not None:
                self._store = DirectoryStore(s.directory / s.cloud_bucket)
            else:
                self._store = S3Store(
                    bucket=s.cloud_bucket,
                    endpoint=s.cloud_endpoint,
                    region=s.cloud_region,
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=PATIENCE_SECONDS,
                    at_rest=at_rest(s),
                )
        return self._store

    def _is_to_be_made(self) -> bool:
        """Say whether the directory is not there yet, and can be made."""
        s = self.settings
        root = None if s.directory is None else s.directory / s.cloud_bucket
        return root is not None and not root.exists() and os.access(root.parent, os.W_OK | os.X_OK)

    def _ahead(self, date: str) -> float | None:
        try:
            told = parsedate_to_datetime(date)
        except ValueError:
            return None
        told = told if told.tzinfo else told.replace(tzinfo=UTC)
        return (told - self.home.clock.now()).total_seconds()


async def aside(work: Callable[[], T]) -> T:
    """Do what blocks on a thread that nobody has to wait for: whatever hangs there keeps no process from ending."""
    return await off_loop(work, name="doctor")


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _reach(settings: Settings) -> str:
    if settings.directory is not None:
        made = settings.directory / settings.cloud_bucket
        return f"mount it, or make the directory: mkdir -p {shlex.quote(str(made))}; or set akosha_cloud_endpoint"
    return "check the network, akosha_cloud_endpoint, and HTTPS_PROXY where there is a proxy"
