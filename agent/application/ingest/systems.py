"""Which systems have uploads in a bucket."""

from collections.abc import AsyncGenerator

from agent.domain import naming
from agent.domain.errors import NamingError
from agent.ports import ObjectStore

PREFIX = "systems/"


async def systems_in(store: ObjectStore) -> list[str]:
    """Return the ids of the systems that have any object, in the order of their keys.

    One short listing for each, and one more. A folder that cannot be a system's is passed over. Raises StoreError.
    """
    found: list[str] = []
    start = PREFIX
    while key := await _first_key(store, start):
        folder, slash, _ = key.removeprefix(PREFIX).partition("/")
        if not slash:
            start = key
            continue
        # What is in the folder begins with "folder/", and "0" is the character after "/".
        start = f"{PREFIX}{folder}0"
        try:
            found.append(naming.check_system_id(folder))
        except NamingError:
            continue
    return found


async def _first_key(store: ObjectStore, start: str) -> str:
    """Return the first key under the prefix after `start`, empty where there is none."""
    listing = store.list(PREFIX, start_after=start)
    try:
        async for item in listing:
            return item.key
    finally:
        if isinstance(listing, AsyncGenerator):
            await listing.aclose()
    return ""
