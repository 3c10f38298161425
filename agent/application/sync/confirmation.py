"""Confirms that a store has what it accepted, before an upload counts as complete."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.domain.errors import NoSuchObject, StoreError
from agent.ports import Clock, ObjectStore, StoredObject, is_changed

CONFIRM_SECONDS = 10.0
"""How long an object may take to appear before it counts as lost."""

POLL_SECONDS = 0.5

_COPIED = "is a copy of this machine running an agent with the same state directory?"
_HINT = "the upload is tried again; if this repeats, check the store and any proxy or cache in front of it"


class ChangedObjectError(StoreError):
    """The store has other bytes for an object than it accepted. The object's metadata may be right."""


class Confirmation:
    """Confirms that a store has the objects that it accepted. `progress` is called at every answer of the store.

    A store, a cache or a proxy may answer 200 to a PUT and store nothing, or other bytes. One listing shows all objects
    of an upload. An object that is missing there, or differs, is polled by HEAD, because a listing may lag.
    """

    def __init__(self, store: ObjectStore, clock: Clock, progress: Callable[[], None]) -> None:
        self._store, self._clock, self._progress = store, clock, progress

    async def objects(
        self, prefix: str, placed: Iterable[StoredObject], *, absent: str = ""
    ) -> dict[str, StoredObject]:
        """Confirm each of `placed` and return them by key, as the store shows them.

        Raises StoreError (transient) if an object under `prefix` is lost or differs from what was put, or if an object
        with the key `absent` exists: another agent has put it there.
        """
        listed: dict[str, StoredObject] = {}
        async for item in self._store.list(prefix):
            listed[item.key] = item
            self._progress()
        if absent in listed:
            raise StoreError(
                f"another agent has put {absent!r} into {self._store.location} during this upload",
                hint=_COPIED,
                transient=True,
            )
        confirmed = {}
        for put in placed:
            found = listed.get(put.key)
            if found is None or difference(put, found):
                found = await self.object(put)
            confirmed[put.key] = replace(found, etag=found.etag or put.etag)
        return confirmed

    async def object(self, placed: StoredObject) -> StoredObject:
        """Return the object as HEAD shows it.

        Raises StoreError (transient) if it is lost, ChangedObjectError (transient) if it differs from `placed`.
        """
        started = self._clock.monotonic()
        while True:
            error: type[StoreError] = ChangedObjectError
            try:
                found = await self._store.head(placed.key)
            except NoSuchObject:
                problem, error = "it is missing", StoreError
            else:
                problem = difference(placed, found)
                if not problem:
                    return found
            self._progress()
            if self._clock.monotonic() - started >= CONFIRM_SECONDS:
                raise error(
                    f"{self._store.location} accepted {placed.key!r}, but {problem}", hint=_HINT, transient=True
                )
            await self._clock.sleep(POLL_SECONDS)


def difference(placed: StoredObject, found: StoredObject) -> str:
    """Return how an object differs from what was put, "" if it does not.

    ETags of different lengths are not compared: some stores use another form of ETag in listings.
    """
    if found.size != placed.size:
        return f"it has {found.size} bytes, not {placed.size}"
    if len(found.etag) == len(placed.etag) and is_changed(placed.etag, found.etag):
        return f"its ETag is {found.etag}, not {placed.etag}"
    return ""
