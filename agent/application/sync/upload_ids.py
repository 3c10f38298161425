"""Chooses the id of the next upload, and warns where ids in the bucket are ahead of the clock.

Ids order uploads, so the next one comes after the newest upload of this system: one whose manifest can be read and is
ours. An object that another program puts under an id far ahead must neither stop uploads nor make all later ids follow
it. Ids under which anything is stored are not used again.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import structlog

from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.bucket_uploads import BucketUploads, NotAManifest
from agent.domain import naming
from agent.domain.status_warning import StatusWarning
from agent.domain.upload_times import is_ahead
from agent.ports import Clock, Ledger

FOREIGN = "foreign_uploads"
AHEAD = "upload_id_ahead"

LAST_YEAR = 9998
"""Nothing can follow an id of the year 9999 for long: such an id is ignored, also one of ours."""

MOST_NAMED = 3

_FOREIGN_HINT = "find out which program writes there, and delete those objects"
_AHEAD_HINT = "set the clock of this machine; until it catches up, keeping and --at go by the times of the objects"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class UploadIds:
    """The ids of one system's uploads in one store; `location` names it in warnings."""

    uploads: BucketUploads
    system_id: str
    location: str
    ledger: Ledger
    clock: Clock

    async def next(self, newest: str | None, abandoned: str | None) -> str:
        """Return an id later than `newest`, the newest upload that the ledger knows, and than any other in the bucket.

        The id of an `abandoned` upload is not used again. Raises StoreError, StateError, and NamingError where nothing
        can come after the newest.
        """
        begun, whole = await self.uploads.ids_after(newest)
        found = await self._newest_of_ours(whole)
        known = [upload for upload in (newest, found, abandoned) if upload]
        last = max(known, key=naming.upload_time, default=None)
        now, taken = self.clock.now(), {*begun}
        chosen = naming.next_upload_id(now, last, self.system_id)
        while chosen in taken:
            chosen = naming.next_upload_id(now, chosen, self.system_id)
        await self._warn_of_foreign([upload for upload in begun if upload > chosen and is_ahead(upload, now)])
        return chosen

    async def compare_with_clock(self, upload: str, stored_at: datetime | None) -> None:
        """Keep a warning while the id of a new upload is ahead of the store's clock, which dated its objects.

        Where a store does not date them, this machine's clock stands in.
        """
        if not is_ahead(upload, stored_at or self.clock.now()):
            await clear_warning(self.ledger, AHEAD)
            return
        message = (
            f"the id of the newest upload, {upload}, is ahead of the clock of {self.location}:"
            " this machine's clock is ahead, or was once"
        )
        if await set_warning(self.ledger, StatusWarning(code=AHEAD, message=message, hint=_AHEAD_HINT), self.clock):
            _log.warning("upload_id_ahead", upload_id=upload, location=self.location, hint=_AHEAD_HINT)

    async def _newest_of_ours(self, whole: Collection[str]) -> str | None:
        for upload in sorted(whole, reverse=True):
            if naming.upload_time(upload).year > LAST_YEAR:
                continue
            try:
                manifest = await self.uploads.manifest(upload)
            except NotAManifest as error:
                _log.warning("manifest_unreadable", upload_id=upload, error=str(error))
                continue
            if manifest is not None:
                return upload
        return None

    async def _warn_of_foreign(self, ids: Collection[str]) -> None:
        if not ids:
            await clear_warning(self.ledger, FOREIGN)
            return
        named = ", ".join(sorted(ids)[:MOST_NAMED])
        more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
        message = f"{self.location} has objects under ids ahead of the clock that are no uploads of ours: {named}{more}"
        if await set_warning(self.ledger, StatusWarning(code=FOREIGN, message=message, hint=_FOREIGN_HINT), self.clock):
            _log.warning("foreign_uploads", location=self.location, names=sorted(ids)[:MOST_NAMED], hint=_FOREIGN_HINT)
