"""What a store, and the AWS chain, tell about themselves. Nothing is written, and no secret leaves this room."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent.adapters.s3_store.connection import Connection
from agent.adapters.s3_store.errors import code_of, translate
from agent.adapters.s3_store.multipart import NONE_TO_LIST
from agent.adapters.s3_store.place import Place
from agent.domain.errors import StoreError

SHOWN = 4
SHORTEST = 16
"""Of a key id the last four characters are shown, if it has as many as AWS gives it; others may be anything."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Which part of the AWS chain has credentials, and the end of the key's id ("" where it is too short to show)."""

    source: str
    key_end: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload in parts that was neither completed nor aborted."""

    key: str
    begun: datetime


async def credentials(place: Place) -> Credentials | None:
    """Return what the AWS chain finds, None where that is nothing. Blocks at times: not on the agent's own loop.

    Raises StoreError.
    """
    import aioboto3  # noqa: PLC0415 - 0.5 s and 40 MB

    try:
        found = await aioboto3.Session().get_credentials()
        if found is None:
            return None
        frozen = await found.get_frozen_credentials()
    except Exception as error:
        if (translated := translate(error, place, "looking for credentials", "")) is None:
            raise
        raise translated from error
    key = str(frozen.access_key or "")
    return Credentials(str(found.method), key[-SHOWN:] if len(key) >= SHORTEST else "")


async def server_date(connection: Connection, prefix: str) -> str:
    """Return the Date header of an answer, also of a refusal; "" where it has none. Raises StoreError."""
    try:
        answer: Mapping[str, Any] = await connection.call("list_objects_v2", Prefix=prefix, MaxKeys=1)
    except StoreError as error:
        refusal = getattr(error.__cause__, "response", None)
        if not isinstance(refusal, dict):
            raise
        answer = refusal
    return str(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))


async def unfinished(connection: Connection, prefix: str) -> list[Unfinished]:
    """Return the uploads in parts under `prefix` that are not finished; of many, the first thousand.

    None at all where the store does not tell. Raises NotPermitted, StoreError.
    """
    try:
        answer = await connection.call("list_multipart_uploads", Prefix=prefix)
    except StoreError as error:
        if code_of(error) in NONE_TO_LIST:
            return []
        raise
    found = [Unfinished(str(item["Key"]), item["Initiated"]) for item in answer.get("Uploads", ())]
    return [upload for upload in found if upload.key.startswith(prefix)]
