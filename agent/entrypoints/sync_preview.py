"""`sync --dry-run`: what a sync would send, from the ledger and the files' stats. The target is not contacted."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from agent.application.status_warnings import warnings_in
from agent.bootstrap.home import Home
from agent.bootstrap.stores import location_of
from agent.domain import naming
from agent.domain.databases import NO_DATABASES
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import SettingsError
from agent.domain.routing import AUTO, CLOUD, CLOUD_HINT, plan_route
from agent.domain.status_warning import StatusWarning
from agent.domain.sync_preview import DatabasePreview, DatabaseStep, FilePreview, FileStep, preview
from agent.entrypoints.formatting import columns, human_bytes
from agent.entrypoints.sync_client import ENABLE_SYNC, SYNC_DISABLED
from agent.entrypoints.text_lines import Line, Style
from agent.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPreview:
    """What a sync would do. `resumes` is the unfinished upload that it would continue, "" if there is none."""

    method: str
    location: str
    system_id: str
    databases: tuple[DatabasePreview, ...]
    resumes: str = ""
    known: bool = True
    warnings: tuple[StatusWarning, ...] = ()

    @property
    def most_bytes(self) -> int | None:
        """An estimate of the bytes that would be sent at most; None for rows, whose number is unknown."""
        return sum(database.most_bytes for database in self.databases) if self.method == CLOUD else None

    def to_dict(self) -> Mapping[str, object]:
        """Return the JSON document."""
        return asdict(self) | {"most_bytes": self.most_bytes}


async def preview_of(settings: Settings, *, method: str, enable_fallback: bool) -> SyncPreview:
    """Return what a sync by the first method of the route would do. Only reads the ledger and the files' stats.

    Raises SettingsError if sync is disabled or no target is set, SnapshotError if the data directory cannot be read,
    StateError.
    """
    if not settings.sync_enabled:
        raise SettingsError(SYNC_DISABLED, hint=ENABLE_SYNC)
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    route = (
        settings.route
        if method == AUTO
        else plan_route(
            force_method=method, cloud_configured=settings.cloud_configured, enable_fallback=enable_fallback
        )
    )
    target = home.targets(identity).get(route[0])
    if target is None:
        raise SettingsError(f"no target is set for {route[0]}", hint=CLOUD_HINT)
    record, warnings = TargetRecord(target), tuple[StatusWarning, ...]()
    if await home.has_ledger():
        ledger = await home.read_ledger()
        try:
            record, warnings = await ledger.record(target), warnings_in(await ledger.notes())
        finally:
            await ledger.aclose()
    databases = preview(
        record,
        await home.taker().survey(),
        upload_id=naming.upload_id(home.clock.now(), identity.system_id),
        mirror=settings.agent_mirror,
        compression=settings.enable_compression,
        deduplicate=settings.enable_deduplication,
    )
    return SyncPreview(
        method=target.method,
        location=location_of(target.method, target.endpoint, target.bucket, settings.cloud_region),
        system_id=identity.system_id,
        databases=databases,
        resumes=record.intent.upload_id if record.intent and target.method == CLOUD else "",
        known=record.known,
        warnings=warnings,
    )


def preview_lines(found: SyncPreview) -> Iterator[Line]:
    """Return the text of `sync --dry-run`."""
    yield Line(f"a sync would go to {found.location} as {found.system_id}; nothing was sent, the target was not asked")
    for warning in found.warnings:
        yield Line(f"warning: {warning}", Style.WARNING)
    yield Line("")
    if not found.databases:
        yield Line(NO_DATABASES)
        return
    width = max(len(database.name) for database in found.databases) + 2
    for database in found.databases:
        first, *others = _database(found.method, database)
        yield Line(f"{database.name:<{width}}{first}", indent=width)
        yield from (Line(" " * width + text, indent=width) for text in others)
        if database.problem:
            yield Line(" " * width + f"could not be copied before: {database.problem}", Style.WARNING, indent=width)
    if found.method != CLOUD or all(database.step is not DatabaseStep.SEND for database in found.databases):
        return
    if found.resumes:
        yield Line(f"{'upload':<{width}}{found.resumes}, which was interrupted, is resumed", indent=width)
    rows = "new and changed rows, in memories.json; their number is known when they are compared"
    yield Line(f"{'memories':<{width}}{rows}", indent=width)
    yield Line("")
    yield Line(f"about {human_bytes(found.most_bytes or 0)} of files, or less: a file with the same bytes is not sent")
    if not found.known:
        yield Line("the ledger does not know yet what the target has; files that it has already are not sent")


def _database(method: str, database: DatabasePreview) -> list[str]:
    if database.step is DatabaseStep.UNCHANGED:
        return ["nothing has changed"]
    if database.step is DatabaseStep.REMOVED:
        return ["removed from this machine, kept in the target"]
    if method != CLOUD:
        size = human_bytes(sum(file.size for file in database.files))
        return [f"changed ({size}): its new and changed memories; their number is known when they are compared"]
    return columns([(file.name, _file(file)) for file in database.files])


def _file(file: FilePreview) -> str:
    whole = f"whole, about {human_bytes(file.whole_bytes)}"
    if file.step is FileStep.UNCHANGED:
        return "unchanged: the store copies it"
    if file.step is FileStep.PATCH:
        return f"a patch of at most {human_bytes(file.patch_bytes or 0)} if that pays, else {whole}"
    return whole
