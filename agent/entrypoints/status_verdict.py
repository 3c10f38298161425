"""The verdict on the memories in one sentence: whether all of them are safe, or what is wrong or unknown.

The rows of `ROWS` are tried in order, so that the most severe condition is reported. `SAFE` remains if none applies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from agent.application.archive.catalog import MISSING
from agent.application.archive.deep_schedule import DeepSchedule
from agent.application.archive.target_check import CHECK_FAILED
from agent.application.monitoring.status import STATE_DISK_FULL, DatabaseStatus, Status, TargetStatus
from agent.application.sync.bucket_uploads import FOREIGN
from agent.application.sync.lost_databases import DATABASE_LOST
from agent.application.sync.ownership import NOT_MOUNTED, WARNING as NOT_OURS
from agent.application.sync.unreadable_copies import COPY_UNREADABLE
from agent.domain.databases import KNOWLEDGE_GRAPH, NO_DATABASES, REFLECTIONS
from agent.domain.delivery_state import State
from agent.domain.memories import EMBEDDING_HINT, NO_EMBEDDING
from agent.domain.naming import MANIFEST_NAME
from agent.domain.plain_text import problem_list
from agent.domain.routing import CLOUD, HTTP
from agent.entrypoints.formatting import age, duration, error_message, human_bytes, is_ahead, percent, phase_name, waits


class Severity(StrEnum):
    """How bad the condition is, the worst first."""

    DAMAGED = "damaged"
    FAILING = "failing"
    OWED = "owed"
    UNKNOWN = "unknown"
    SAFE = "safe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The worst condition, and a sentence about it."""

    severity: Severity
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the verdict is about.

    `agent_runs`: an agent runs and watches the databases. `unresponsive` is a sentence about an agent that does not
    answer, else "". `problem` is the reason if no databases can be found.
    """

    status: Status
    agent_runs: bool
    unresponsive: str
    problem: str
    sync_enabled: bool
    now: datetime

    @property
    def first(self) -> TargetStatus | None:
        """The target that is to have everything."""
        return self.status.targets[0] if self.status.targets else None

    @property
    def newest_upload(self) -> str | None:
        """The newest upload to the bucket or directory."""
        return next((one.newest_upload_id for one in self.status.targets if one.method == CLOUD), None)

    @property
    def done(self) -> str:
        """What the first target makes of a memory."""
        return "sent to Akosha" if self._is_akosha else "uploaded"

    @property
    def everything(self) -> str:
        """That nothing is pending."""
        return "Everything has been sent to Akosha" if self._is_akosha else "Everything is uploaded"

    @property
    def failing(self) -> str:
        """That nothing can be delivered."""
        return "Memories cannot be sent to Akosha" if self._is_akosha else "Uploads fail"

    @property
    def _is_akosha(self) -> bool:
        return self.first is not None and self.first.method == HTTP

    @property
    def databases(self) -> Sequence[DatabaseStatus]:
        return self.first.databases if self.first else ()


DAMAGE_CODES = frozenset({DATABASE_LOST, COPY_UNREADABLE})
FAILURE_CODES = frozenset({NOT_OURS, NOT_MOUNTED, CHECK_FAILED, STATE_DISK_FULL})
FAILURE_PREFIXES = ("credentials_refused_", "unexpected_error_")
"""Beginnings of codes that end with a method."""

HARMLESS_CODES = frozenset(
    {
        "agent_stopped",  # these two have a row of their own
        "agent_silent",
        "notes_waiting",  # an agent is not running, which has a row
        "upload_id_ahead",  # the memories are uploaded; retention and restore use the times of the objects
        "upload_damaged",  # of the newest upload, damage has a row of its own
        "deep_verify_limited",
        "verification_waits",
        "control_port_unavailable",
        "ledger_replaced",
        "bus_unexpected_error",
        "stream_unavailable",
        "webhook_failing",
    }
)
UNKNOWN_CODES = frozenset(
    {
        FOREIGN,  # another program writes uploads of this system
        "pruning_held",  # the newest upload was damaged when an upload was to be deleted
    }
)
"""Codes of status warnings, by what they say about the memories. A code in none of them makes the verdict unknown."""

LONG_PENDING = timedelta(minutes=10)
"""Changes that have waited longer are shown with their age: twice the default of akosha_agent_min_interval_seconds."""


def verdict_of(facts: Facts) -> Verdict:
    """Return the verdict of the first row that applies."""
    for severity, describe in ROWS:
        if text := describe(facts):
            return Verdict(severity=severity, text=text)
    text = f"All memories are safe: {_last_upload(facts)}"
    if removed := [one.name for one in facts.databases if one.removed]:
        text += f"; no longer on this machine: {_named(removed)}"
    return Verdict(severity=Severity.SAFE, text=text)


def _newest_upload_damaged(facts: Facts) -> str:
    last, newest = facts.status.verified, facts.newest_upload
    if newest and (damage := DeepSchedule.from_notes(facts.status.notes).damaged.get(newest)):
        return f"The upload {newest} is damaged: {damage}"
    if last is None or last.whole or last.upload_id != newest:
        return ""
    if last.problems.get(MANIFEST_NAME) == MISSING:
        return f"The newest upload, {newest}, is missing: akosha-agent sync uploads its databases again"
    return f"The upload {last.upload_id} is damaged: {problem_list(last.problems)}"


def _stored_damage(facts: Facts) -> str:
    return _warning(facts, lambda code: code in DAMAGE_CODES, "Memories are damaged")


def _target_refuses(facts: Facts) -> str:
    method = facts.first.method if facts.first else ""  # credentials of a fallback that is not needed do no harm
    codes = FAILURE_CODES | {prefix + method for prefix in FAILURE_PREFIXES}
    text = _warning(facts, lambda code: code in codes, facts.failing)
    # If the last attempt failed for this reason, its error is a shorter sentence.
    is_last_error = facts.first and facts.first.error and text.endswith(error_message(facts.first.error))
    return "" if is_last_error else text


def _databases_unreadable(facts: Facts) -> str:
    unreadable = facts.problem and facts.problem != NO_DATABASES
    return f"The databases cannot be read: {facts.problem}" if unreadable else ""


def _agent_unhealthy(facts: Facts) -> str:
    found = facts.status.unhealthy
    return f"The agent is not working: {problem_list(found)}" if found else ""


def _no_target(facts: Facts) -> str:
    return "" if facts.first else "Nothing is backed up: no target is set"


def _target_fails(facts: Facts) -> str:
    first = facts.first
    if first is None or not first.error:
        return ""
    failing = facts.failing if first.method in (CLOUD, HTTP) else f"Syncs by {first.method} fail"
    return f"{failing}: {error_message(first.error)}"


def _database_refused(facts: Facts) -> str:
    found = {one.name: error_message(one.problem) for one in facts.databases if one.problem}
    return f"Not everything can be {facts.done}: {problem_list(found)}" if found else ""


def _memories_refused(facts: Facts) -> str:
    first = facts.first
    if first is None or first.method != HTTP or not first.memories.refused:
        return ""
    return f"Akosha refused {_counted(sum(first.memories.refused.values()))}"


def _uploading(facts: Facts) -> str:
    activity = facts.status.activity
    if activity is None:
        return ""
    what = [_named(facts.status.pending)] if facts.status.pending else []
    what += [] if activity.fraction is None else [percent(activity.fraction)]
    return ": ".join([phase_name(activity.phase).capitalize(), *([", ".join(what)] if what else [])])


def _pending(facts: Facts) -> str:
    lacking = facts.status.pending
    if not lacking:
        return ""
    text = f"Not {facts.done} yet: {_named([_with_age(facts, name) for name in lacking])}"
    if not facts.sync_enabled:
        return f"{text}; sync is disabled"
    if facts.unresponsive:
        return f"{text}; {facts.unresponsive}"
    if not facts.agent_runs:
        return f"{text}; no agent is running"
    upcoming = facts.status.next_sync
    if upcoming is None or upcoming.at is None:
        return text
    seconds = (upcoming.at - facts.now).total_seconds()
    return f"{text}; the next sync is {f'in {duration(seconds)}' if seconds >= 1 else 'due now'}"


def _memories_waiting(facts: Facts) -> str:
    first = facts.first
    if first is None or first.method != HTTP or not first.memories.waiting:
        return ""
    waiting = first.memories.waiting
    count = sum(waiting.values())
    hint = f" ({EMBEDDING_HINT})" if NO_EMBEDDING in waiting else ""
    return f"{_counted(count)} {waits(count)}: {', '.join(sorted(waiting))}{hint}"


def _agent_unresponsive(facts: Facts) -> str:
    return f"Unknown: {facts.unresponsive}" if facts.unresponsive else ""


def _no_databases(facts: Facts) -> str:
    if not facts.problem:
        return ""
    removed = [one.name for one in facts.databases if one.removed]
    return _removed_text(facts, removed) if removed else "There is nothing to back up yet"


def _removed_while_owed(facts: Facts) -> str:
    done = (State.CLEAN, State.DELIVERED)
    found = [one.name for one in facts.databases if one.removed and one.state not in done]
    text = f"Removed before their last changes were {facts.done}: {_named(found)}"
    return f"{text} (akosha-agent sync ends this warning)" if found else ""


def _removed(facts: Facts) -> str:
    """Session-Buddy keeps these two. Changes after the last upload, if there were any, are lost, so this is not `safe`.
    A graph with a name of its own may have been deleted on purpose.
    """
    found = [one.name for one in facts.databases if one.removed and one.name in (REFLECTIONS, KNOWLEDGE_GRAPH)]
    return _removed_text(facts, found) if found else ""


def _clock_wrong(facts: Facts) -> str:
    last = facts.first.last_success if facts.first else None
    wrong = last is not None and is_ahead(last, facts.now)
    return f"The clock of this machine is or was wrong: {_last_upload(facts)}" if wrong else ""


def _disabled(facts: Facts) -> str:
    if facts.sync_enabled:
        return ""
    return f"Sync is disabled, so later changes are not {facts.done}: {_last_upload(facts)}"


def _no_agent(facts: Facts) -> str:
    if facts.agent_runs:
        return ""
    return f"{facts.everything}, but no agent is running: {_last_upload(facts)}"


def _never(facts: Facts) -> str:
    return "" if facts.first and facts.first.last_success else f"Nothing has been {facts.done} yet"


def _kept_by_akosha(facts: Facts) -> str:
    first = facts.first
    if first is None or first.method != HTTP:
        return ""
    return (
        f"{_counted(first.memories.delivered)} were delivered to Akosha; whether it still has them is unknown: "
        f"{_last_upload(facts)}"
    )


def _unknown_warning(facts: Facts) -> str:
    def is_unknown(code: str) -> bool:
        return code not in HARMLESS_CODES and not code.startswith(FAILURE_PREFIXES)

    return _warning(facts, is_unknown, f"{facts.everything}, but")


ROWS: Sequence[tuple[Severity, Callable[[Facts], str]]] = (
    (Severity.DAMAGED, _newest_upload_damaged),
    (Severity.DAMAGED, _stored_damage),
    (Severity.FAILING, _no_target),
    (Severity.FAILING, _target_refuses),
    (Severity.FAILING, _databases_unreadable),
    (Severity.FAILING, _agent_unhealthy),
    (Severity.FAILING, _target_fails),
    (Severity.FAILING, _database_refused),
    (Severity.FAILING, _memories_refused),
    (Severity.OWED, _uploading),
    (Severity.OWED, _pending),
    (Severity.OWED, _memories_waiting),
    (Severity.UNKNOWN, _agent_unresponsive),
    (Severity.UNKNOWN, _removed_while_owed),
    (Severity.UNKNOWN, _no_databases),
    (Severity.UNKNOWN, _never),
    (Severity.UNKNOWN, _removed),
    (Severity.UNKNOWN, _clock_wrong),
    (Severity.UNKNOWN, _disabled),
    (Severity.UNKNOWN, _unknown_warning),
    (Severity.UNKNOWN, _no_agent),
    (Severity.UNKNOWN, _kept_by_akosha),
)
"""The conditions, the worst first. Each returns a sentence, or "" if it does not apply."""


def _warning(facts: Facts, wanted: Callable[[str], bool], introduction: str) -> str:
    found = next((one for one in facts.status.warnings if wanted(one.code)), None)
    return f"{introduction}: {found.message}" if found else ""


def _last_upload(facts: Facts) -> str:
    first = facts.first
    if first is None or first.last_success is None:
        return f"nothing has been {facts.done} yet"
    what = "push" if first.method == HTTP else "upload"
    size = "" if first.last_bytes is None else f", {human_bytes(first.last_bytes)}"
    return f"last {what} {age(first.last_success, facts.now)}{size}"


def _removed_text(facts: Facts, names: Sequence[str]) -> str:
    text = f"No longer on this machine: {_named(names)}"
    upload = facts.first and facts.first.newest_upload_id
    if not upload:
        return f"{text}; the memories were delivered before"
    return f"{text}; the upload {upload} has the last state (akosha-agent restore --to DIR gets it back)"


def _with_age(facts: Facts, name: str) -> str:
    """Return the name of a pending database, with the age of its last change if that has waited for long."""
    changed = next((one.changed_at for one in facts.databases if one.name == name), None)
    if changed is None or facts.now - changed < LONG_PENDING:
        return name
    return f"{name} (changed {age(changed, facts.now)})"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names)


def _counted(count: int) -> str:
    return f"{count:,} {'memory' if count == 1 else 'memories'}"
