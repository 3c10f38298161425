"""The JSON documents of the page's routes. OpenAPI derives their schemas from these classes.

Times are ISO 8601 in UTC, sizes in bytes. Texts contain no control characters, except line feeds in `detail`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Outcome = Literal["succeeded", "failed", "skipped", "other"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryItem:
    """A result in the history. `title` is a sentence, `detail` further ones, a line each; `hint` is the fix, or empty.

    `outcome` is `failed` also for an upload that was found damaged and a prune that did not delete everything, `other`
    for verifications, prunes and ingestions without a problem. `bytes` were sent; by a prune, they were freed.
    `retry_at` is the time of the next attempt after a failure, null if there is none.
    """

    position: int
    time: str
    type: str
    outcome: Outcome
    title: str
    detail: str
    hint: str
    method: str
    bytes: int
    duration_seconds: float
    upload_id: str | None
    request_id: str | None
    retry_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPage:
    """Results, newest first. `next`: the value of `before` for older ones; null if there are none."""

    entries: list[HistoryItem]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPoint:
    """A sync that succeeded or failed. `bytes` were sent; the databases have `database_bytes`, 0 if unknown."""

    time: str
    success: bool
    bytes: int
    duration_seconds: float
    database_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plots:
    """Results since a time, oldest first: those of 30 days, and 400 at most."""

    results: list[PlotPoint]
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadDatabase:
    """A database in an upload; `bytes` is the size of its files before compression."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadItem:
    """An upload. `databases` is empty, `memories` null and `kind` `unknown` if its manifest cannot be read.

    `memories` counts the rows of the databases; it is null if they were not counted. `kind` is `patches` if a database
    consists of a base and patches, else `whole`. `problems` maps damaged objects to the damage that a listing shows.
    """

    upload_id: str
    time: str
    databases: list[UploadDatabase]
    stored_bytes: int
    memories: int | None
    kind: Literal["whole", "patches", "unknown"]
    problems: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """The newest uploads in the bucket, 100 at most of `total`. If it cannot be read, `error` has the reason and the
    cure.
    """

    uploads: list[UploadItem]
    total: int
    error: str
