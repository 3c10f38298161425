"""The events that flow, one frozen dataclass each. `type` is the CloudEvents type; the codec is `adapters/wire.py`.

Ids are derived, never drawn at sending: an event that is sent again after a crash carries the id it had, so that
consumers can drop what they know. A request's id names its place on the route; a result's derives from its upload and
who made it.
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
"""How many characters of each text, and how many of a list, an abridged result keeps: whatever they are (one may take
8 bytes), that fits into an event.
"""

CAUSED_BY_BYTES = 16 * 1024
"""How many bytes of JSON the ids in `caused_by` take at most: 400 UUIDs, say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(ABC):
    """What all events have: an id (unique per source), an aware time, and the system they are about."""

    type: ClassVar[str]

    id: str
    time: datetime
    system_id: str

    @property
    @abstractmethod
    def subject(self) -> str:
        """Where on the bus the event belongs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded(Event):
    """A coding assistant's session is over; its memories should be safe now. Sent by Session-Buddy and the hook.

    `sender` is the CloudEvents source of the program that sent it: a URI reference, or "" for an agent's own,
    `urn:akosha-agent:SYSTEM`. The id is unique per source.
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
    """Somebody on this machine asks the running agent for a sync. Stays on the machine: it comes through the spool.

    `id` becomes the request's id, so a client can wait for the result. `method` is auto, cloud or http.
    `take_over`: this agent takes the place of the owner of its system id in the cloud target. `new_target`: the disk or
    bucket was replaced on purpose.
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
    """Why one method of the route did not deliver. Control characters and bytes that are no Unicode become escapes."""

    method: str
    error: str

    def __post_init__(self) -> None:
        # It travels on the request, which must come back as it went: else the agent would not know its own.
        object.__setattr__(self, "error", printable(self.error))


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequested(Event):
    """Sync what the target lacks. `route` is the routing slip: the methods still to try, the first one's turn now.

    Every trigger publishes this same event; they differ in `reason` alone (manual, session_end, file_change, startup,
    retry, remote). `errors` are those of the methods that the request has been forwarded from. `caused_by` are the ids
    of the session ends that the request answers. `take_over` and `new_target` are those of the ask.
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

    `files_uploaded` are keys (sent, copied and carried alike: what a reader finds), `bytes_transferred` what really
    went over the wire. `error` is null, or the text with its cure. `caused_by` are the ids of the session ends that the
    result answers, empty where the request has another reason.
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
        """Return the result without what makes it long: the manifest names the files, `status` the rest.

        `caused_by` stays: it is bounded by `caused_by_one`.
        """
        return replace(self, files_uploaded=(), error=shorten(self.error, LONGEST_TEXT) if self.error else self.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSucceeded(SyncResult):
    """A target has received a whole upload, or the memories that it lacked.

    `incomplete` names databases that stay owed, and memories that it did not take, with the reason. `memories` counts
    those it has now and lacked before. `errors` says why the methods before it on the route did not deliver.
    """

    type: ClassVar[str] = "akosha.sync.succeeded.v1"

    location: str = ""
    manifest_key: str = ""
    incomplete: dict[str, str]
    memories: int = 0
    errors: tuple[MethodError, ...] = ()

    def abridged(self) -> Self:
        first = sorted(self.incomplete)[:MOST_NAMED]
        incomplete = {shorten(name, LONGEST_TEXT): shorten(self.incomplete[name], LONGEST_TEXT) for name in first}
        errors = _abridged(self.errors)
        return replace(
            self, files_uploaded=(), incomplete=incomplete, location=shorten(self.location, LONGEST_TEXT), errors=errors
        )

    @property
    def subject(self) -> str:
        return naming.result_subject(self.system_id, "succeeded")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSkipped(SyncResult):
    """There was nothing to deliver; `why` says so in words."""

    type: ClassVar[str] = "akosha.sync.skipped.v1"

    why: str

    def abridged(self) -> Self:
        return replace(self, why=shorten(self.why, LONGEST_TEXT))

    @property
    def subject(self) -> str:
        return naming.result_subject(self.system_id, "skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncFailed(SyncResult):
    """No method of the route delivered. The databases stay owed and are tried again by themselves at `retry_at`.

    `retry_at` is null where trying again makes no sense before a file or a setting changes.
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
    """How far a running sync is, in raw bytes of the files that travel. Not persisted; losing one loses nothing."""

    type: ClassVar[str] = "akosha.sync.progress.v1"

    request_id: str
    method: str
    phase: str
    done_bytes: int
    total_bytes: int

    @property
    def subject(self) -> str:
        return naming.progress_subject(self.system_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestCompleted(Event):
    """An upload's memories are in Akosha. `stored` now, `known` there before; `kept_back`: how many are not, by reason.

    `source` is `memories` where the upload's memories.json was taken, `databases` where its databases were read.
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
    """An upload's memories are not all in Akosha. `retry_at` null: not tried again before a newer upload."""

    type: ClassVar[str] = "akosha.ingest.failed.v1"

    upload_id: str
    error: str
    retry_at: datetime | None = None

    @property
    def subject(self) -> str:
        return naming.ingest_subject(self.system_id, "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadVerified(Event):
    """Somebody has looked whether an upload is whole. `deep`: its bytes were downloaded, checked and read through.

    `problems` says of each object (by its name in the upload) what is wrong with it; empty where it is `whole`.
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
    """Uploads of this system were deleted, as the rules of keeping say. `kept`: how many there are still.

    `leftovers` counts objects of uploads that never came to be whole, and unfinished multipart uploads. `error` is
    null, or why not all of it could be deleted.
    """

    type: ClassVar[str] = "akosha.archive.pruned.v1"

    upload_ids: tuple[str, ...]
    kept: int
    objects: int
    bytes_freed: int
    leftovers: int
    error: str | None = None
    duration_seconds: float = 0.0

    @property
    def subject(self) -> str:
        return naming.archive_subject(self.system_id, "pruned")


ALL: tuple[type[Event], ...] = (
    SessionEnded, SyncAsked, SyncRequested, SyncSucceeded, SyncSkipped, SyncFailed, SyncProgress,
    IngestCompleted, IngestFailed, UploadVerified, UploadsPruned,
)  # fmt: skip


def request_event_id(request_id: str, method: str) -> str:
    """The id of a request on its way to one method: forwarding gives a new event, repeating does not."""
    return f"{request_id}.{method}"


def upload_event_id(upload_id: str, agent_id: str) -> str:
    """The id of the result about an upload. Agents of one system may make uploads of one second: whose it is
    belongs to the id.
    """
    return f"{upload_id}.{agent_id[:8]}.succeeded"


def ingest_event_id(upload_id: str, agent_id: str, outcome: str) -> str:
    """The id of an ingester's event about an upload; `agent_id` is the ingester's."""
    return f"{upload_id}.{agent_id[:8]}.ingest.{outcome}"


def caused_by_one(ids: Iterable[str]) -> tuple[str, ...]:
    """Return as many of the ids, from the first on, as one event takes in `caused_by`; each id once.

    The rest belongs to a further result: an event must fit into 64 KiB.
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
    """Return how many bytes an id takes in `caused_by` at most: as JSON, with a comma."""
    return len(json.dumps(event_id)) + 1


def is_for_single_sync(event: Event) -> bool:
    """Return whether a single sync takes a note with this event from the spool.

    It leaves a SyncAsked to the process that left the note and waits for the result.
    """
    return isinstance(event, SessionEnded | UploadVerified | UploadsPruned)


def archive_event_id(about: str, agent_id: str, outcome: str, at: datetime) -> str:
    """The id of an agent's event about an upload, or about all of a system: another one at each time."""
    return f"{about}.{agent_id[:8]}.{outcome}.{at:%Y%m%dT%H%M%S.%f}"


def outcome_event_id(request_id: str, outcome: str) -> str:
    """The id of a result without an upload: of its request."""
    return f"{request_id}.{outcome}"


def _abridged(errors: tuple[MethodError, ...]) -> tuple[MethodError, ...]:
    return tuple(replace(error, error=shorten(error.error, LONGEST_TEXT)) for error in errors[:MOST_NAMED])
