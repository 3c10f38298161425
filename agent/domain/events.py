"""The events, one frozen dataclass each. `type` is the CloudEvents type; the codec is `adapters/wire.py`.

Event IDs are derived, never generated when an event is sent: an event that is sent again after a crash has the same
ID, so that consumers can drop duplicates. A request's ID contains the method that it is sent to; a result's ID derives
from the upload and the agent.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from agent.domain import naming
from agent.domain.plain_text import printable, shorten

LONGEST_TEXT = 200
MOST_NAMED = 10
"""How many characters of each text, and how many entries of a list, an abridged result keeps. With any characters (one
may take 8 bytes) the result fits into an event.
"""

NO_CHANGE = "nothing has changed since the last sync"
ALREADY_DELIVERED = "the contents have already been delivered"
NO_NEW_MEMORY = "no memory is new"
CHANGES_LOST = "removed before their last changes were uploaded"
"""How `SyncSkipped.why` begins if the target has everything; and what it contains if some changes are lost."""

CAUSED_BY_BYTES = 16 * 1024
"""Maximum size of the IDs in `caused_by`, in bytes of JSON: about 400 UUIDs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(ABC):
    """Base class of events: an ID (unique per source), an aware time, and the system that the event is about."""

    type: ClassVar[str]

    id: str
    time: datetime
    system_id: str

    @property
    @abstractmethod
    def subject(self) -> str:
        """The subject that the event is published on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded(Event):
    """A coding assistant's session has ended; the agent syncs its memories. Sent by Session-Buddy and the hook.

    `sender` is the CloudEvents source of the program that sent it: a URI reference, or "" for an agent's own,
    `urn:akosha-agent:SYSTEM`. The ID is unique per source.
    """

    type: ClassVar[str] = "akosha.session.ended.v1"

    session_id: str = ""
    reason: str = ""
    sender: str = ""

    @property
    def subject(self) -> str:
        return naming.session_subject(self.system_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncAsked(Event):
    """A program on this machine asks the running agent for a sync. Passed through the spool, never over a bus.

    `id` becomes the request's ID, so that a client can wait for the result. `method` is auto, cloud or http.
    `take_over`: this agent replaces the owner of its system ID in the cloud target. `new_target`: the disk or bucket
    was replaced on purpose.
    """

    type: ClassVar[str] = "akosha.sync.asked.v1"

    reason: str = "manual"
    method: str = "auto"
    enable_fallback: bool = True
    upload_reflections: bool = True
    upload_knowledge_graph: bool = True
    take_over: bool = False
    new_target: bool = False

    @property
    def subject(self) -> str:
        return f"{naming.SUBJECT_PREFIX}.asked.{naming.check_system_id(self.system_id)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodError:
    """Why one method of the route did not deliver. Control characters and bytes that are not Unicode are escaped."""

    method: str
    error: str

    def __post_init__(self) -> None:
        # A request that comes back from the bus must equal the one that was sent, or the agent does not recognize it.
        object.__setattr__(self, "error", printable(self.error))


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequested(Event):
    """Sync what the target lacks. `route` is the routing slip: the methods still to try, the current one first.

    Every trigger publishes this event. `reason` names the trigger (manual, session_end, file_change, startup, retry,
    remote). `errors` are those of the methods that failed before. `caused_by` are the IDs of the session ends that the
    request answers. The fields `upload_*`, `take_over` and `new_target` are copied from the SyncAsked, if
    there is one.
    """

    type: ClassVar[str] = "akosha.sync.requested.v1"

    request_id: str
    agent_id: str
    reason: str
    route: tuple[str, ...]
    errors: tuple[MethodError, ...] = ()
    upload_reflections: bool = True
    upload_knowledge_graph: bool = True
    caused_by: tuple[str, ...] = ()
    take_over: bool = False
    new_target: bool = False

    @property
    def subject(self) -> str:
        return naming.request_subject(self.system_id, self.route[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult(Event):
    """The result of a request.

    `files_uploaded` are the keys of all objects of the upload, whether sent, copied or carried over;
    `bytes_transferred` counts the bytes that the successful attempt sent, not those that earlier attempts left in the
    target. `error` is null, or the error with its hint. `caused_by` are the IDs of the session
    ends that the result answers, empty if the request has another reason.
    """

    request_id: str
    method: str
    success: bool
    files_uploaded: tuple[str, ...] = ()
    bytes_transferred: int = 0
    duration_seconds: float = 0.0
    upload_id: str | None = None
    error: str | None = None
    triggered_by: str
    caused_by: tuple[str, ...] = ()

    def abridged(self) -> Self:
        """Return the result without its long fields: the manifest has the files, `status` the rest.

        `caused_by` is kept: `limit_caused_by` bounds its size.
        """
        return replace(self, files_uploaded=(), error=shorten(self.error, LONGEST_TEXT) if self.error else self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSucceeded(SyncResult):
    """A target has received a complete upload, or the memories that it lacked.

    `incomplete` maps databases that stay owed, and memories that the target did not accept, to the reason. `memories`
    counts those that the target has now and lacked before. `errors` are those of the methods that were tried before.
    `repairs` is the upload before, if it was damaged and its databases were therefore sent again; else "".
    `unreadable` are databases that it has as they are, although DuckDB cannot read them. `database_bytes` is the size,
    before compression, of all databases that the upload has or whose memories are sent; 0 if unknown.
    """

    type: ClassVar[str] = "akosha.sync.succeeded.v1"

    location: str = ""
    manifest_key: str = ""
    incomplete: dict[str, str]
    memories: int = 0
    errors: tuple[MethodError, ...] = ()
    repairs: str = ""
    unreadable: tuple[str, ...] = ()
    database_bytes: int = 0

    def abridged(self) -> Self:
        first = sorted(self.incomplete)[:MOST_NAMED]
        incomplete = {shorten(name, LONGEST_TEXT): shorten(self.incomplete[name], LONGEST_TEXT) for name in first}
        return replace(
            self,
            files_uploaded=(),
            incomplete=incomplete,
            location=shorten(self.location, LONGEST_TEXT),
            errors=_abridged(self.errors),
            unreadable=tuple(shorten(name, LONGEST_TEXT) for name in self.unreadable[:MOST_NAMED]),
        )

    @property
    def subject(self) -> str:
        return naming.result_subject(self.system_id, "succeeded")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSkipped(SyncResult):
    """Nothing was delivered; `why` is the reason, for people."""

    type: ClassVar[str] = "akosha.sync.skipped.v1"

    why: str

    @property
    def found_nothing_to_send(self) -> bool:
        """Whether the target has everything. For any other reason, such as disabled syncs, a skip is no success."""
        return self.why.startswith((NO_CHANGE, ALREADY_DELIVERED, NO_NEW_MEMORY)) and CHANGES_LOST not in self.why

    def abridged(self) -> Self:
        return replace(self, why=shorten(self.why, LONGEST_TEXT))

    @property
    def subject(self) -> str:
        return naming.result_subject(self.system_id, "skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFailed(SyncResult):
    """No method of the route delivered. The databases stay owed, and the agent tries again at `retry_at`.

    `retry_at` is null if a retry cannot succeed before a file or a setting changes.
    """

    type: ClassVar[str] = "akosha.sync.failed.v1"

    errors: tuple[MethodError, ...]
    retry_at: datetime | None = None

    def abridged(self) -> Self:
        return replace(
            self, files_uploaded=(), error=shorten(self.error or "", LONGEST_TEXT), errors=_abridged(self.errors)
        )

    @property
    def subject(self) -> str:
        return naming.result_subject(self.system_id, "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgress(Event):
    """Progress of a running sync, in uncompressed bytes of the files that are sent. Not persisted; may be lost.

    `kept_bytes` are those of `done_bytes` that an earlier attempt had sent.
    """

    type: ClassVar[str] = "akosha.sync.progress.v1"

    request_id: str
    method: str
    phase: str
    done_bytes: int
    total_bytes: int
    kept_bytes: int = 0

    @property
    def subject(self) -> str:
        return naming.progress_subject(self.system_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestCompleted(Event):
    """An upload's memories are in Akosha: `stored` by this ingest, or already `known` there.

    `kept_back` counts the memories that were not stored, by reason.
    `source` is `memories` if they were read from the upload's memories.json, `databases` if from its databases.
    """

    type: ClassVar[str] = "akosha.ingest.completed.v1"

    upload_id: str
    source: str
    stored: int
    known: int
    kept_back: dict[str, int]
    duration_seconds: float = 0.0

    @property
    def subject(self) -> str:
        return naming.ingest_subject(self.system_id, "completed")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestFailed(Event):
    """An upload's memories are not all in Akosha. `retry_at` is null if only a newer upload is tried again."""

    type: ClassVar[str] = "akosha.ingest.failed.v1"

    upload_id: str
    error: str
    retry_at: datetime | None = None

    @property
    def subject(self) -> str:
        return naming.ingest_subject(self.system_id, "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadVerified(Event):
    """An upload was verified. `deep`: its objects were downloaded and checked, and its databases read completely.

    `whole`: the upload is complete and undamaged; otherwise `problems` maps its objects' names to what is wrong.
    """

    type: ClassVar[str] = "akosha.archive.verified.v1"

    upload_id: str
    whole: bool
    deep: bool
    objects: int
    problems: dict[str, str]
    duration_seconds: float = 0.0

    @property
    def subject(self) -> str:
        return naming.archive_subject(self.system_id, "verified")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadsPruned(Event):
    """Uploads of this system were deleted as the retention settings say. `kept` counts the remaining uploads.

    `leftovers` counts objects of uploads that were never completed, and unfinished multipart uploads. `error` is null,
    or the reason why some of them could not be deleted. `held`: the newest upload is damaged, so nothing was deleted.
    """

    type: ClassVar[str] = "akosha.archive.pruned.v1"

    upload_ids: tuple[str, ...]
    kept: int
    objects: int
    bytes_freed: int
    leftovers: int
    error: str | None = None
    duration_seconds: float = 0.0
    held: bool = False

    @property
    def subject(self) -> str:
        return naming.archive_subject(self.system_id, "pruned")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOverdue(Event):
    """The target of `method` has lacked the changes of some databases for `hours`, and got none of them since.

    Sent once, if a webhook gets it; DeliveryRecovered follows. `databases` names at most ten of them, `since` is the
    time since which the first of them waits, and `error` the last error of the target ("" if it has none).
    """

    type: ClassVar[str] = "akosha.archive.overdue.v1"

    method: str
    hours: float
    databases: tuple[str, ...]
    since: datetime
    error: str = ""

    @property
    def subject(self) -> str:
        return naming.archive_subject(self.system_id, "overdue")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecovered(Event):
    """No database waits as long as `hours` any more, after a DeliveryOverdue with the same `hours` and `since`.

    `removed` names at most ten databases whose files were removed before the target got their changes. It
    got those of all others.
    """

    type: ClassVar[str] = "akosha.archive.recovered.v1"

    method: str
    hours: float
    since: datetime
    removed: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        return naming.archive_subject(self.system_id, "recovered")


ALL: tuple[type[Event], ...] = (
    SessionEnded, SyncAsked, SyncRequested, SyncSucceeded, SyncSkipped, SyncFailed, SyncProgress,
    IngestCompleted, IngestFailed, UploadVerified, UploadsPruned, DeliveryOverdue, DeliveryRecovered,
)  # fmt: skip


def request_event_id(request_id: str, method: str) -> str:
    """Return the event ID of a request to one method: a forwarded request is a new event, a repeated one is not."""
    return f"{request_id}.{method}"


def upload_event_id(upload_id: str, agent_id: str) -> str:
    """Return the event ID of an upload's result.

    It contains the agent ID because two agents of one system may start uploads in the same second.
    """
    return f"{upload_id}.{agent_id[:8]}.succeeded"


def ingest_event_id(upload_id: str, agent_id: str, outcome: str) -> str:
    """Return the event ID of an ingester's event about an upload; `agent_id` is the ingester's."""
    return f"{upload_id}.{agent_id[:8]}.ingest.{outcome}"


def limit_caused_by(ids: Iterable[str]) -> tuple[str, ...]:
    """Return the first of the IDs, each once, up to the number that fits into `caused_by` of one event.

    The others belong to further results: an event must fit into 64 KiB.
    """
    taken: dict[str, None] = {}
    left = CAUSED_BY_BYTES
    for event_id in ids:
        if event_id not in taken:
            left -= caused_by_bytes(event_id)
            if left < 0:
                break
            taken[event_id] = None
    return tuple(taken)


def caused_by_bytes(event_id: str) -> int:
    """Return the maximum number of bytes that an ID takes in `caused_by`: as JSON, with a comma."""
    return len(json.dumps(event_id)) + 1


def is_for_single_sync(event: Event) -> bool:
    """Return whether a single sync handles a spool note with this event.

    It ignores a SyncAsked: the process that wrote the note waits for the result.
    """
    return isinstance(event, SessionEnded | UploadVerified | UploadsPruned)


def archive_event_id(about: str, agent_id: str, outcome: str, at: datetime) -> str:
    """Return the event ID of an agent's event about an upload or a system, which differs for each `at`."""
    return f"{about}.{agent_id[:8]}.{outcome}.{at:%Y%m%dT%H%M%S.%f}"


def outcome_event_id(request_id: str, outcome: str) -> str:
    """Return the event ID of a result without an upload, derived from the request."""
    return f"{request_id}.{outcome}"


def _abridged(errors: tuple[MethodError, ...]) -> tuple[MethodError, ...]:
    return tuple(replace(error, error=shorten(error.error, LONGEST_TEXT)) for error in errors[:MOST_NAMED])
