"""What a store tells about itself. Nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent.adapters.s3.answers import uploads_in
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of
from agent.adapters.s3.multipart import NONE_TO_LIST
from agent.domain.errors import StoreError


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload in parts that was neither completed nor aborted."""

    key: str
    begun: datetime


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
        found = await connection.ask(uploads_in, "list_multipart_uploads", Prefix=prefix)
    except StoreError as error:
        if code_of(error) in NONE_TO_LIST:
            return []
        raise
    begun = [(entry.key, entry.begun) for entry in found if entry.key.startswith(prefix)]
    return [Unfinished(key, since) for key, since in begun if since is not None]
