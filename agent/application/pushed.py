"""What a push has come to, database by database, and how that is told."""

from dataclasses import dataclass, field

from agent.application.attempt import Attempt
from agent.application.memory_push import NO_EMBEDDING, Pushed

EMBEDDING_CURE = (
    "give Session-Buddy an embedding server; or, to have zeros sent, set akosha_http_missing_embedding to zero"
)


@dataclass(slots=True)
class Work:
    """One attempt at pushing, per database and in all. `bytes_before`: what the sink had sent before it."""

    attempt: Attempt
    bytes_before: int
    pushed: dict[str, Pushed] = field(default_factory=dict)

    @property
    def delivered(self) -> int:
        """How many memories the target has now that it lacked."""
        return sum(pushed.delivered for pushed in self.pushed.values())

    @property
    def kept_back(self) -> dict[str, str]:
        """Database -> how many of its memories the target did not take, and why."""
        return {name: kept_back(pushed) for name, pushed in self.pushed.items() if pushed.kept_back}

    @property
    def cure(self) -> str:
        waits = any(NO_EMBEDDING in pushed.waiting for pushed in self.pushed.values())
        return EMBEDDING_CURE if waits else "akosha-agent memories --failed lists them"

    @property
    def why_nothing(self) -> str:
        told = "; ".join(f"{name}: {why}" for name, why in sorted(self.kept_back.items()))
        return f"no memory is new{f' ({told})' if told else ''}"


def kept_back(pushed: Pushed) -> str:
    """Return how many memories a target did not take, and why, in words; empty where it took all."""
    told = [f"{count:,} wait: {why}" for why, count in sorted(pushed.waiting.items())]
    return "; ".join(told + [f"{count:,} were refused: {why}" for why, count in sorted(pushed.refused.items())])
