"""What a push has come to, database by database, and how that is told."""

from dataclasses import dataclass, field

from agent.application.memories.push import NO_EMBEDDING, Pushed
from agent.application.sync.attempt import Attempt
from agent.domain.delivery_state import Problem, TargetRecord

EMBEDDING_CURE = (
    "give Session-Buddy an embedding server; or, to have zeros sent, set akosha_http_missing_embedding to zero"
)


@dataclass(slots=True)
class PushOutcome:
    """What a request has brought so far, in all its attempts. `bytes_before`: what the sink had sent before the first.

    `memories`: how many the target has now that it lacked.
    """

    request_id: str
    bytes_before: int
    memories: int = 0

    def add(self, count: int) -> None:
        """So many more have arrived."""
        self.memories += count


@dataclass(slots=True)
class Work:
    """One attempt at pushing, database by database."""

    attempt: Attempt
    brought: PushOutcome
    pushed: dict[str, Pushed] = field(default_factory=dict)

    @property
    def kept_back(self) -> dict[str, str]:
        """Database -> how many of its memories the target did not take, and why."""
        return {name: kept_back(pushed) for name, pushed in self.pushed.items() if pushed.kept_back}

    @property
    def problems(self) -> dict[str, Problem]:
        """The same as what stands in the way of these databases, until they change."""
        waits = any(NO_EMBEDDING in pushed.waiting for pushed in self.pushed.values())
        cure = EMBEDDING_CURE if waits else "akosha-agent memories --failed lists them"
        return {name: Problem(why, self.attempt.survey[name], 1, None, cure) for name, why in self.kept_back.items()}

    def was_for_nothing(self, record: TargetRecord, *, ever: int) -> bool:
        """Say of a work that brought nothing whether it was to; `ever`: how many memories the target has in all.

        What has been waiting all along, beside others that were delivered, is no news: it is told, it holds up nothing.
        """
        before = (record.databases.get(name) for name in self.kept_back)
        return (
            any(pushed.newly_held for pushed in self.pushed.values())
            or any(known and known.problem for known in before)
            or not ever
        )

    @property
    def why_nothing(self) -> str:
        told = "; ".join(f"{name}: {why}" for name, why in sorted(self.kept_back.items()))
        return f"no memory is new{f' ({told})' if told else ''}"


def kept_back(pushed: Pushed) -> str:
    """Return how many memories a target did not take, and why, in words; empty where it took all."""
    told = [f"{count:,} wait: {why}" for why, count in sorted(pushed.waiting.items())]
    return "; ".join(told + [f"{count:,} were refused: {why}" for why, count in sorted(pushed.refused.items())])
