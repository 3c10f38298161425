"""When an upload was made, for keeping, `--at` and listings.

The time in an upload's id grows from upload to upload, whatever the clock does. After a clock that was ahead once it
stays ahead: each id is a second after the one before. So the id says which upload is the newest, and not when it was
made. That is the earlier of two times: `uploaded_at` of the manifest, by the agent's clock, and the time of the
manifest's object, by the store's clock. A clock that was ahead makes the first too late; a copy of the bucket makes the
second too late.

A manifest need not be read where its object came soon after the time in the id: then all three agree.
"""

from datetime import datetime, timedelta

from agent.domain.naming import upload_time

AHEAD = timedelta(minutes=5)
"""How far ahead of the store's clock an id may be: clocks differ a little."""

LATE = timedelta(hours=1)
"""How long after the time in its id an upload may have become whole for that time to be believed."""


def is_ahead(upload: str, now: datetime) -> bool:
    """Return whether the time in an id is ahead of a clock. Raises NamingError."""
    return upload_time(upload) - now > AHEAD


def needs_manifest(upload: str, modified: datetime | None) -> bool:
    """Return whether the manifest has to be read for the time at which an upload was made. Raises NamingError.

    `modified` is the time of the manifest's object; where it is unknown, the id is all there is to go by.
    """
    return modified is not None and not upload_time(upload) - AHEAD <= modified <= upload_time(upload) + LATE


def made_at(upload: str, modified: datetime | None, uploaded_at: datetime | None = None) -> datetime:
    """Return the time at which an upload was made: that in its id where the object agrees, else the earlier known one.

    Raises NamingError.
    """
    begun = upload_time(upload)
    if not needs_manifest(upload, modified):
        return begun
    return min(at for at in (modified, uploaded_at or begun) if at is not None)
