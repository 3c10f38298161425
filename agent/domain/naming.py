"""Names that outlive a process: system IDs, upload IDs, object keys, subjects, event IDs.

Akosha accepts system IDs of `[A-Za-z0-9_-]{1,100}`, upload IDs that may also contain dots, and plain file names of
`[A-Za-z0-9_.-]+` without `..`. Every component of a key or subject is validated here, so that input from outside cannot
address anything beyond its prefix.
"""

import hashlib
import re
from datetime import UTC, datetime, timedelta

from agent.domain.databases import SIDECAR_SUFFIXES
from agent.domain.errors import NamingError

MANIFEST_NAME = "manifest.json"
MEMORIES_NAME = "memories.json"
GZIPPED_MEMORIES_NAME = f"{MEMORIES_NAME}.gz"
OWNER_NAME = "owner.json"
SYSTEMS_PREFIX = "systems/"
"""Prefix of the objects of all systems."""

MAX_GENERATED_ID = 84
"""Maximum length of a generated system ID: Akosha accepts upload IDs of 100 characters, including the time."""

SUBJECT_PREFIX = "akosha"
STREAM_SUBJECTS = tuple(f"{SUBJECT_PREFIX}.{kind}.>" for kind in ("session", "sync", "ingest", "archive"))
"""Subjects that the stream stores."""

EVENT_MAX_AGE = timedelta(days=7)
"""How long a stream that the agent creates keeps an event."""

UNSTORED_SUBJECTS = tuple(f"{SUBJECT_PREFIX}.{kind}.>" for kind in ("progress", "agent"))
"""Subjects that the stream must not store: progress, and requests, which it would answer instead of the agent."""

_SYSTEM_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_UPLOAD_ID = re.compile(r"([0-9]{8}_[0-9]{6})_([A-Za-z0-9_-]{1,100})")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_METHOD = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_STAMP = "%Y%m%d_%H%M%S"

MAX_CLOCK_SKEW = timedelta(minutes=5)
"""How far an ID may be ahead of the store's clock, since clocks differ slightly."""

LAST_YEAR = 9998
"""Last year of valid IDs. IDs of the year 9999, our own included, are ignored: later IDs would soon run out."""

MAX_COMPLETION_DELAY = timedelta(minutes=10)
"""Maximum time between an upload's ID and its manifest for which the time in the ID is trusted.

An interrupted upload goes on under its ID with the databases as they are then: its content may be so much newer.
"""


def sanitise_system_id(text: str) -> str:
    """Return `text` as a system ID: other characters become `-`, truncated to 84. Raises NamingError if it is empty."""
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:MAX_GENERATED_ID].rstrip("-")
    if not cleaned:
        raise NamingError(
            f"{text!r} cannot be made into a system ID", hint="set akosha_system_id to letters, digits, - or _"
        )
    return cleaned


def check_system_id(text: str) -> str:
    """Return `text` if it is a system ID, else raise NamingError."""
    if not is_system_id(text):
        raise NamingError(f"{text!r} is not a system ID", hint="1 to 100 letters, digits, - or _")
    return text


def is_system_id(text: str) -> bool:
    """Return whether `text` is a system ID."""
    return _SYSTEM_ID.fullmatch(text) is not None


def session_system(subject: str) -> str:
    """Return the system ID in the subject of a SessionEnded. Raises NamingError for any other subject."""
    prefix, _, rest = subject.partition(".session.")
    system, _, kind = rest.rpartition(".")
    if prefix != SUBJECT_PREFIX or kind != "ended":
        raise NamingError(f"{subject!r} is not the subject of a session's end")
    return check_system_id(system)


def check_method(text: str) -> str:
    """Return `text` if it can name a method in a subject, else raise NamingError."""
    if not _METHOD.fullmatch(text):
        raise NamingError(f"{text!r} is not a method's name", hint="lower-case letters, digits, - or _")
    return text


def upload_id(at: datetime, system_id: str) -> str:
    """Return `YYYYMMDD_HHMMSS_{system_id}` of the aware time `at`, in UTC."""
    return f"{at.astimezone(UTC):{_STAMP}}_{check_system_id(system_id)}"


def is_upload_id(text: str, system_id: str) -> bool:
    """Return whether `text` is an upload ID of this system."""
    try:
        return text == upload_id(upload_time(text), system_id)
    except NamingError:
        return False


def upload_time(upload: str) -> datetime:
    """Return the time in an upload ID (UTC, whole seconds). Raises NamingError."""
    match = _UPLOAD_ID.fullmatch(upload)
    try:
        if match:
            return datetime.fromisoformat(match[1].replace("_", "T")).replace(tzinfo=UTC)
    except ValueError:
        pass
    raise NamingError(f"{upload!r} is not an upload ID", hint="YYYYMMDD_HHMMSS_systemid")


def next_upload_id(now: datetime, newest: str | None, system_id: str) -> str:
    """Return an ID later than `newest`, the newest known ID, even if the clock was set back: max(now, newest + 1 s)."""
    at = now.astimezone(UTC).replace(microsecond=0)
    if newest is not None:
        try:
            at = max(at, upload_time(newest) + timedelta(seconds=1))
        except OverflowError as error:
            raise NamingError(f"no upload ID can follow {newest}", hint="delete that upload") from error
    return upload_id(at, system_id)


def object_name(file_name: str) -> str:
    """Return a file's object name, which stores and Akosha's schema accept: its own if plain, else a unique one.

    A named graph may have any name; eight digits of its SHA-256 make the object name unique.
    """
    plain = _PLAIN_NAME.fullmatch(file_name) and file_name.strip(".") and ".." not in file_name
    if plain and len(file_name) <= 200:  # noqa: PLR2004
        return file_name
    stem, ending, sidecar = file_name.rpartition(".duckdb")
    if not ending or (sidecar and sidecar not in SIDECAR_SUFFIXES):
        stem, ending, sidecar = file_name, "", ""
    stemmed = re.sub(r"[^A-Za-z0-9_.-]+|\.{2,}", "_", stem)[:160]
    return f"{stemmed}-{hashlib.sha256(stem.encode(errors='surrogatepass')).hexdigest()[:8]}{ending}{sidecar}"


def uploads_prefix(system_id: str) -> str:
    """Return the prefix of all uploads of a system, with a trailing slash."""
    return f"{SYSTEMS_PREFIX}{check_system_id(system_id)}/uploads/"


def owner_key(system_id: str) -> str:
    """Return the key of a system's owner.json."""
    return f"{SYSTEMS_PREFIX}{check_system_id(system_id)}/{OWNER_NAME}"


def object_key(system_id: str, upload: str, name: str) -> str:
    """Return the key of one object of an upload. Raises NamingError for a name that could leave the upload's prefix."""
    upload_time(upload)
    if not _PLAIN_NAME.fullmatch(name) or not name.strip("."):
        raise NamingError(f"{name!r} is not a plain object name")
    return f"{uploads_prefix(system_id)}{upload}/{name}"


def upload_of(key: str) -> str:
    """Return the ID of the upload that a key belongs to. Raises NamingError if it belongs to none."""
    pieces = key.split("/")
    if len(pieces) < 5 or pieces[0] != "systems" or pieces[2] != "uploads":  # noqa: PLR2004 - systems/S/uploads/U/name
        raise NamingError(f"{key!r} is not in an upload")
    upload_time(pieces[3])
    return pieces[3]


def manifest_key(system_id: str, upload: str) -> str:
    """Return the key of an upload's manifest."""
    return object_key(system_id, upload, MANIFEST_NAME)


def memories_key(system_id: str, upload: str, *, gzipped: bool) -> str:
    """Return the key of an upload's memories: memories.json, or memories.json.gz."""
    return object_key(system_id, upload, GZIPPED_MEMORIES_NAME if gzipped else MEMORIES_NAME)


def ingest_subject(system_id: str, outcome: str) -> str:
    return f"{SUBJECT_PREFIX}.ingest.{check_system_id(system_id)}.{check_method(outcome)}"


def archive_subject(system_id: str, outcome: str) -> str:
    return f"{SUBJECT_PREFIX}.archive.{check_system_id(system_id)}.{check_method(outcome)}"


def session_subject(system_id: str) -> str:
    return f"{SUBJECT_PREFIX}.session.{check_system_id(system_id)}.ended"


def request_subject(system_id: str, method: str) -> str:
    return f"{SUBJECT_PREFIX}.sync.{check_system_id(system_id)}.requested.{check_method(method)}"


def result_subject(system_id: str, outcome: str) -> str:
    return f"{SUBJECT_PREFIX}.sync.{check_system_id(system_id)}.{check_method(outcome)}"


def results_pattern(system_id: str, outcome: str) -> str:
    """Return the pattern of results, without requests; `*` for either argument matches all."""
    system = system_id if system_id == "*" else check_system_id(system_id)
    return f"{SUBJECT_PREFIX}.sync.{system}.{outcome if outcome == '*' else check_method(outcome)}"


def progress_subject(system_id: str) -> str:
    return f"{SUBJECT_PREFIX}.progress.{check_system_id(system_id)}"


def progress_pattern() -> str:
    """Return the pattern of progress events of all systems, which no stream stores."""
    return f"{SUBJECT_PREFIX}.progress.*"


def control_subject(system_id: str, question: str) -> str:
    """Return the subject on which an agent answers one kind of request."""
    return f"{SUBJECT_PREFIX}.agent.{check_system_id(system_id)}.{check_method(question)}"


def patterns_meet(one: str, other: str) -> bool:
    """Return whether a subject exists that matches both patterns.

    >>> patterns_meet("akosha.>", "akosha.progress.*"), patterns_meet("akosha.sync.>", "akosha.progress.*")
    (True, False)
    """
    left, right = one.split("."), other.split(".")
    for mine, theirs in zip(left, right, strict=False):
        if ">" in (mine, theirs):
            return True
        if mine != theirs and "*" not in (mine, theirs):
            return False
    return len(left) == len(right)


def subject_matches(pattern: str, subject: str) -> bool:
    """Return whether a subject matches a NATS pattern (`*`: one token, `>`: one or more at the end)."""
    wanted, given = pattern.split("."), subject.split(".")
    for at, piece in enumerate(wanted):
        if piece == ">":
            return len(given) > at
        if at >= len(given) or piece not in ("*", given[at]):
            return False
    return len(wanted) == len(given)


def is_in_future(upload: str, now: datetime) -> bool:
    """Return whether the time in an upload ID is ahead of `now` by more than `MAX_CLOCK_SKEW`. Raises NamingError."""
    return upload_time(upload) - now > MAX_CLOCK_SKEW


def needs_manifest(upload: str, modified: datetime | None) -> bool:
    """Return whether the manifest must be read to determine when an upload was made. Raises NamingError.

    `modified` is the time of the manifest's object; if it is unknown, only the ID's time can be used.
    """
    return modified is not None and not -MAX_CLOCK_SKEW <= modified - upload_time(upload) <= MAX_COMPLETION_DELAY


def made_at(upload: str, modified: datetime | None, uploaded_at: datetime | None = None) -> datetime:
    """Return when an upload was made: the time in its ID if the object's time agrees, else the earliest known time.

    Ids increase from upload to upload whatever the clock does: after a clock was ahead once, each ID is one second
    after the one before. So the ID tells which upload is the newest, but not always when it was made. `uploaded_at`,
    from the manifest, is the agent's time, and too late if its clock was ahead. `modified`, of the manifest's object,
    is the store's time, and too late in a copy of the bucket.

    Raises NamingError.
    """
    id_time = upload_time(upload)
    if not needs_manifest(upload, modified):
        return id_time
    return min(at for at in (modified, uploaded_at or id_time) if at is not None)
