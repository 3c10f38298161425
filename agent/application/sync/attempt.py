"""One attempt at a request: what is asked, what was seen, what came of copying it, and what a manifest says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.domain.databases import Survey, is_asked
from agent.domain.delivery_state import Problem, TargetRecord, pending, problems
from agent.domain.events import SyncRequested
from agent.domain.manifest import Rows
from agent.domain.routing import URGENT
from agent.ports import Reporter, Snapshot

NO_DATABASES = (
    "there are no databases in the data directory yet (start a session with Session-Buddy, or set "
    "akosha_agent_data_dir to where its databases are)"
)
NOT_ASKED = "it was not asked for"


@dataclass(slots=True)
class Attempt:
    """`same` are copies of what the target has already, `changed` of what it lacks; `problems` could not be copied.

    `abandoned` is the upload that had begun for other bytes: its id is not used again.
    """

    request: SyncRequested
    report: Reporter
    started: float
    survey: Survey = field(default_factory=dict)
    same: dict[str, Snapshot] = field(default_factory=dict)
    changed: dict[str, Snapshot] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    abandoned: str | None = None

    @property
    def urgent(self) -> bool:
        """Whether a person or a session's end stands behind the request."""
        return self.request.reason in URGENT

    @property
    def asked(self) -> Survey:
        """What was seen of the databases that the request asks for."""
        reflections, graphs = self.request.upload_reflections, self.request.upload_knowledge_graph
        return {
            name: seen
            for name, seen in self.survey.items()
            if is_asked(name, reflections=reflections, knowledge_graph=graphs)
        }

    @property
    def digests(self) -> dict[str, str]:
        """File name -> SHA-256, over all that is about to be uploaded."""
        return {file.name: file.sha256 for snapshot in self.changed.values() for file in snapshot.files}

    def carried(self, record: TargetRecord) -> set[str]:
        """Return the databases of which the target has another state than the present one, and will have."""
        current = {*self.changed, *self.same}
        return {
            name
            for name, known in record.databases.items()
            if name not in current and known.fingerprint != self.survey.get(name)
        }

    def rows(self, record: TargetRecord) -> dict[str, Rows]:
        """Return the rows that the upload will have, as far as they were counted."""
        kept = {name: known.rows for name, known in record.databases.items() if known.rows and name not in self.changed}
        return kept | {name: snapshot.rows for name, snapshot in self.changed.items() if snapshot.verified}

    def incomplete(self, record: TargetRecord) -> dict[str, str]:
        """Name what stays owed: what could not be copied, now or before, and what is not asked for."""
        missed = pending(record, self.survey) - {*self.changed, *self.same}
        waiting = {**_reasons(record, self.survey), **{name: p.reason for name, p in self.problems.items()}}
        return {name: waiting.get(name, NOT_ASKED) for name in sorted(missed)}

    def why_nothing(self, record: TargetRecord) -> str:
        """Return why there is nothing to deliver, in words."""
        if not self.survey:
            return NO_DATABASES
        waiting = _reasons(record, self.survey)
        if waiting:
            return "; ".join(f"{name} waits: {reason}" for name, reason in sorted(waiting.items()))
        return "nothing has changed since the last upload"


def _reasons(record: TargetRecord, survey: Survey) -> Mapping[str, str]:
    return {name: problem.reason for name, problem in problems(record, survey).items()}
