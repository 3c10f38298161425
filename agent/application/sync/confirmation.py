"""Confirms that a store has what it answered to have stored: an upload is a success only when its objects can be seen.

A store, a cache or a proxy may answer 200 to a PUT and keep nothing, or other bytes. One listing shows all objects of
an upload; an object that the listing lacks, or shows otherwise, is asked for by HEAD for a while: a listing may lag.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.domain.errors import NoSuchObject, StoreError
from agent.ports import Clock, ObjectStore, StoredObject, is_changed

CONFIRM_SECONDS = 10.0
"""How long an object may take to appear before it counts as lost."""

ASK_AGAIN_SECONDS = 0.5

_COPIED = "is the state directory of this agent in use a second time, on a copy of this machine?"
_HINT = "the upload is tried again; if this repeats, check the store and any proxy or cache in front of it"


class Confirmation:
    """Looks for objects in one store. `moved` is called at every answer of the store."""

    def __init__(self, store: ObjectStore, clock: Clock, moved: Callable[[], None]) -> None:
        self._store, self._clock, self._moved = store, clock, moved

    async def objects(
        self, prefix: str, placed: Iterable[StoredObject], *, absent: str = ""
    ) -> dict[str, StoredObject]:
        """Return the objects under `prefix` as the store has them, by key, once each of `placed` is confirmed.

        Raises StoreError (transient) for one that is lost, or is not what was put, and where there is an object under
        the key `absent`: somebody else has put it there meanwhile.
        """
        listed: dict[str, StoredObject] = {}
        async for item in self._store.list(prefix):
            listed[item.key] = item
            self._moved()
        if absent in listed:
            raise StoreError(
                f"another agent has put {absent!r} into {self._store.location} meanwhile", hint=_COPIED, transient=True
            )
        confirmed = {}
        for put in placed:
            found = listed.get(put.key)
            if found is None or _difference(put, found):
                found = await self.object(put)
            confirmed[put.key] = replace(found, etag=found.etag or put.etag)
        return confirmed

    async def object(self, placed: StoredObject) -> StoredObject:
        """Return one object as a HEAD shows it. Raises StoreError (transient) where it is lost or not what was put."""
        started = self._clock.monotonic()
        while True:
            try:
                found = await self._store.head(placed.key)
            except NoSuchObject:
                wrong = "it is not there"
            else:
                wrong = _difference(placed, found)
                if not wrong:
                    return found
            self._moved()
            if self._clock.monotonic() - started >= CONFIRM_SECONDS:
                raise StoreError(
                    f"{self._store.location} answered that it has stored {placed.key!r}, but {wrong}",
                    hint=_HINT,
                    transient=True,
                )
            await self._clock.sleep(ASK_AGAIN_SECONDS)


def _difference(placed: StoredObject, found: StoredObject) -> str:
    """Return how an object differs from what was put, "" where it does not.

    ETags of another length are of another form, which some stores use in listings: they show nothing.
    """
    if found.size != placed.size:
        return f"it has {found.size} bytes, not {placed.size}"
    if len(found.etag) == len(placed.etag) and is_changed(placed.etag, found.etag):
        return f"its ETag is {found.etag}, not {placed.etag}"
    return ""
