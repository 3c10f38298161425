"""Who this agent is: a random id of its own, and the system whose memories it delivers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """Made at the first start and kept. Two machines may share a system id; no two agents share an agent id."""

    agent_id: str
    system_id: str

    def durable(self, role: str) -> str:
        """Return the name under which a bus keeps this agent's place in a stream, for one role."""
        return f"{self.system_id}-{self.agent_id[:8]}-{role}"
