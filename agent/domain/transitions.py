"""The effect of each ledger entry on a target's record: functions from a record to the next one.

Every state changes by `delivery_state.next_state`, so a transition that is not in its table raises StateError.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from agent.domain.databases import Fingerprint
from agent.domain.delivery_state import DatabaseRecord, Intent, Problem, State, TargetRecord, Transition, next_state
from agent.domain.errors import StateError
from agent.domain.manifest import Manifest
from agent.domain.naming import upload_time

_UNKNOWN = Fingerprint(files=())
"""A fingerprint that no file has: a problem with it counts as one of earlier files."""


def mark_owed(record: TargetRecord, databases: Collection[str]) -> TargetRecord:
    """Mark databases as changed. A database that the record does not have becomes owed."""
    return _with(record, (_transition(_entry(record, name), Transition.CHANGED) for name in databases))


def mark_unchanged(record: TargetRecord, fingerprints: Mapping[str, Fingerprint]) -> TargetRecord:
    """Record that databases still have the delivered bytes. Raises StateError if nothing of one was delivered."""
    return _with(record, (_unchanged(_entry(record, name), seen) for name, seen in fingerprints.items()))


def record_problems(record: TargetRecord, problems: Mapping[str, Problem]) -> TargetRecord:
    """Record that databases could not be copied: they become owed, and their delivered parts stay recorded."""
    owed = mark_owed(record, problems)
    return _with(owed, (replace(_entry(owed, name), problem=problem) for name, problem in problems.items()))


def retry_now(record: TargetRecord, databases: Collection[str]) -> TargetRecord:
    """Mark databases as owed and clear their problems, so that they are tried at once."""
    owed = mark_owed(record, databases)
    return _with(owed, (replace(_entry(owed, name), problem=None) for name in databases))


def forget(record: TargetRecord, databases: Collection[str]) -> TargetRecord:
    """Record that the target lost databases: they become owed, and no part of them can be reused or carried over."""
    owed = retry_now(record, databases)
    gone = (replace(_entry(owed, name), parts=(), rows={}, fingerprint=None, delivered_by="") for name in databases)
    return _with(owed, gone)


def begin(record: TargetRecord, intent: Intent) -> TargetRecord:
    """Record that an upload starts or resumes, perhaps with other bytes or more databases.

    Raises StateError while another one is in progress.
    """
    before = record.intent
    if before is not None and (before.upload_id != intent.upload_id or not {*before.databases} <= {*intent.databases}):
        raise StateError(f"upload {intent.upload_id} cannot start: {before.upload_id} is not finished")
    entries = [_entry(record, name) for name in intent.databases]
    to_stage = [e for e in entries if record.intent is None or e.state is not State.INTENT]
    staged = _with(record, [_transition(entry, Transition.STAGED) for entry in to_stage])
    return replace(staged, intent=intent, known=True)


def abandon(record: TargetRecord) -> TargetRecord:
    """Record that the upload in progress, if any, will not be finished."""
    return replace(_halted(record), intent=None)


def count_attempt(
    record: TargetRecord, request_id: str, *, attempts: int, retry_at: datetime, error: str
) -> TargetRecord:
    """Record that an attempt failed and another follows; an upload in progress stays in progress."""
    retrying = _with(record, [_transition(entry, Transition.RETRY) for entry in _in_progress(record)])
    return replace(retrying, attempts=attempts, attempt_request=request_id, retry_at=retry_at, error=error)


def give_up(record: TargetRecord, *, error: str, failures: int, retry_at: datetime | None) -> TargetRecord:
    """Record that the request failed at this target; the next one counts its attempts from 0.

    The databases of an upload in progress become owed again. The intent is kept: if the next request finds the same
    bytes, it resumes under the same upload ID, and does not send again what is already in the bucket.
    """
    owed = _halted(record)
    return replace(owed, attempts=0, attempt_request="", failures=failures, retry_at=retry_at, error=error)


def deliver(
    record: TargetRecord,
    manifest: Manifest,
    fingerprints: Mapping[str, Fingerprint],
    problems: Mapping[str, Problem],
    *,
    result_id: str,
    at: datetime,
) -> TargetRecord:
    """Record that the upload in progress is complete. For copied or carried databases, only the keys change."""
    intent = _intent_of(record, manifest)
    entries: list[DatabaseRecord] = []
    for name in _databases(manifest):
        entry = replace(_entry(record, name), parts=manifest.of(name))
        if name in intent.databases:
            entry = _delivered(entry, manifest, fingerprints.get(name), result_id)
        entries.append(entry)
    done = replace(settle(_with(record, entries)), intent=None)
    return record_problems(_succeeded(done, manifest, at), problems)


def deliver_memories(
    record: TargetRecord,
    fingerprints: Mapping[str, Fingerprint],
    problems: Mapping[str, Problem],
    *,
    result_id: str,
    at: datetime,
) -> TargetRecord:
    """Record that the target has the memories of the intent's databases. Such a target has no parts."""
    intent = record.intent
    if intent is None:
        raise StateError(f"no delivery was started at {record.target.id}")
    missing = sorted({*intent.databases} - {*fingerprints})
    if missing:
        raise StateError(f"the fingerprint of {', '.join(missing)} is missing")
    entries = [
        replace(
            _transition(_entry(record, name), Transition.COMMITTED),
            parts=(),
            rows={},
            problem=None,
            delivered_by=result_id,
        )
        for name in intent.databases
    ]
    seen = [replace(entry, fingerprint=fingerprints[entry.database]) for entry in entries]
    done = replace(settle(_with(record, seen)), intent=None, last_success=at)
    return record_problems(done, problems)


def adopt(record: TargetRecord, manifest: Manifest, *, result_id: str) -> TargetRecord:
    """Record a manifest in the bucket as delivered.

    The target was unknown, or the manifest is that of the upload in progress.

    The files' fingerprints at that time are unknown, so every file is compared again; databases that were only carried
    over, or are incomplete in the upload, become owed.
    """
    if record.intent is not None:
        _intent_of(record, manifest)
    entries: list[DatabaseRecord] = []
    incomplete: dict[str, Problem] = {}
    for name in _databases(manifest):
        parts = manifest.of(name)
        entry = _transition(_entry(record, name), Transition.CHANGED)
        if any(part.origin == "carried" for part in parts):
            if entry.state is State.INTENT:
                entry = _transition(entry, Transition.ABANDONED)
            entries.append(replace(entry, parts=parts, rows=_rows(manifest, entry), fingerprint=None))
            continue
        if entry.state is State.OWED:
            entry = _transition(entry, Transition.STAGED)
        entries.append(_delivered(replace(entry, parts=parts), manifest, None, result_id))
        if reason := manifest.incomplete.get(name):
            incomplete[name] = Problem(reason, _UNKNOWN, failures=1, retry_at=None, incomplete=True)
    done = replace(_with(record, entries), intent=None, known=True)
    return record_problems(_succeeded(_halted(done), manifest, manifest.uploaded_at), incomplete)


def settle(record: TargetRecord) -> TargetRecord:
    """Clear the pending retry, the failures and the last error."""
    return replace(reset(record), error="")


def reset(record: TargetRecord) -> TargetRecord:
    """Clear the pending retry and the failures, so that the target is tried now; the last error is kept."""
    return replace(record, attempts=0, attempt_request="", failures=0, retry_at=None)


def confirm(record: TargetRecord, result_id: str) -> TargetRecord:
    """Record that a bus has the result: its databases become clean, unless they changed since."""
    reported = (
        entry
        for entry in record.databases.values()
        if entry.state is State.DELIVERED and entry.delivered_by == result_id
    )
    return _with(record, [_transition(entry, Transition.CONFIRMED) for entry in reported])


def _in_progress(record: TargetRecord) -> list[DatabaseRecord]:
    return [entry for entry in record.databases.values() if entry.state is State.INTENT]


def _halted(record: TargetRecord) -> TargetRecord:
    return _with(record, [_transition(entry, Transition.ABANDONED) for entry in _in_progress(record)])


def _entry(record: TargetRecord, name: str) -> DatabaseRecord:
    return record.databases.get(name) or DatabaseRecord(name, State.OWED)


def _transition(entry: DatabaseRecord, transition: Transition) -> DatabaseRecord:
    return replace(entry, state=next_state(entry.state, transition))


def _with(record: TargetRecord, entries: Iterable[DatabaseRecord]) -> TargetRecord:
    return replace(record, databases={**record.databases, **{entry.database: entry for entry in entries}})


def _unchanged(entry: DatabaseRecord, seen: Fingerprint) -> DatabaseRecord:
    if not (entry.parts or entry.delivered_by):
        raise StateError(f"{entry.database} cannot be unchanged: nothing of it was delivered")
    if entry.state not in (State.CLEAN, State.DELIVERED):
        entry = _transition(entry, Transition.UNCHANGED)
    return replace(entry, fingerprint=seen, problem=None)


def _delivered(entry: DatabaseRecord, manifest: Manifest, seen: Fingerprint | None, result_id: str) -> DatabaseRecord:
    moved = _transition(entry, Transition.COMMITTED)
    return replace(moved, fingerprint=seen, rows=_rows(manifest, entry), problem=None, delivered_by=result_id)


def _intent_of(record: TargetRecord, manifest: Manifest) -> Intent:
    """Return the intent of the upload in progress. Raises StateError if the manifest does not match it."""
    intent = record.intent
    if intent is None or intent.upload_id != manifest.upload_id:
        raise StateError(f"{manifest.upload_id} is not the upload in progress at {record.target.id}")
    missing = sorted({*intent.databases} - {*_databases(manifest)})
    if missing:
        raise StateError(f"the manifest of {manifest.upload_id} lacks {', '.join(missing)}")
    return intent


def _databases(manifest: Manifest) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.database for part in manifest.parts))


def _rows(manifest: Manifest, entry: DatabaseRecord) -> Mapping[str, int]:
    return dict(manifest.rows.get(entry.database, {}))


def _succeeded(record: TargetRecord, manifest: Manifest, at: datetime) -> TargetRecord:
    known = [upload for upload in (record.newest_upload_id, manifest.upload_id) if upload]
    return replace(record, newest_upload_id=max(known, key=upload_time), last_success=at)
