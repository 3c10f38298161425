"""What the tool for restore points tells: the newest uploads of this machine, as the bucket has them."""

from agent.bootstrap.archive import archive_of
from agent.bootstrap.home import Home
from agent.entrypoints.cli.uploads import check_mounted, system_of, upload_document
from agent.entrypoints.mcp.tools import MOST_POINTS
from agent.settings import Settings

NO_POINTS: dict[str, object] = {"system_id": None, "location": None, "total": 0, "restore_points": []}
"""The fields where the bucket cannot be looked into."""

_SHOWN = ("upload_id", "time", "stored_bytes", "raw_bytes", "rows", "databases", "problems")


async def points(settings: Settings) -> dict[str, object]:
    """Return them. Raises SettingsError where there is no bucket, NotOwner, StoreError, StateError."""
    system_id = await system_of(Home.of(settings), None)
    async with archive_of(settings, system_id) as archive:
        listing = await archive.listing(manifests=MOST_POINTS)
        if not listing.uploads:
            await check_mounted(settings, archive, None)
    shown = [upload_document(listed) for listed in listing.uploads[:MOST_POINTS]]
    return {
        "success": True,
        "error": None,
        "hint": None,
        "system_id": system_id,
        "location": archive.store.location,
        "total": len(listing.uploads),
        "restore_points": [{name: document[name] for name in _SHOWN} for document in shown],
    }
