"""The uploads in the bucket, as the page shows them."""

from collections import Counter
from datetime import UTC

from agent.application.archive.catalog import CatalogEntry
from agent.bootstrap.archive import open_archive
from agent.domain.errors import AkoshaError
from agent.domain.manifest import Manifest
from agent.domain.plain_text import printable
from agent.entrypoints.archive import check_mounted
from agent.entrypoints.page.documents import UploadDatabase, UploadItem, Uploads
from agent.settings import Settings

MOST_UPLOADS = 100


async def read_uploads(settings: Settings, system_id: str) -> Uploads:
    """Return the newest uploads in the bucket; an error is in the document."""
    try:
        async with open_archive(settings, system_id) as archive:
            listing = await archive.listing(manifests=MOST_UPLOADS)
            if not listing.uploads:
                await check_mounted(settings, archive, None)
    except AkoshaError as error:
        return Uploads(uploads=[], total=0, error=str(error))
    newest = [_item(entry) for entry in listing.uploads[:MOST_UPLOADS]]
    return Uploads(uploads=newest, total=len(listing.uploads), error="")


def _item(entry: CatalogEntry) -> UploadItem:
    manifest = entry.manifest
    return UploadItem(
        upload_id=entry.upload_id,
        time=entry.at.astimezone(UTC).isoformat(),
        databases=_databases(manifest) if manifest else [],
        stored_bytes=entry.stored_bytes,
        memories=entry.rows,
        kind="unknown" if manifest is None else "patches" if any(part.layers for part in manifest.parts) else "whole",
        problems={printable(name): printable(problem) for name, problem in entry.problems.items()},
    )


def _databases(manifest: Manifest) -> list[UploadDatabase]:
    sizes = Counter[str]()
    for part in manifest.parts:
        sizes[part.database] += part.raw_size
    return [UploadDatabase(name=printable(name), bytes=size) for name, size in sorted(sizes.items())]
