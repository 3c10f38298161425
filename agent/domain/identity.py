"""Who this agent is: a random id of its own, and the system whose memories it delivers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """Made at the first start and kept. No two agents share an agent id.

    `is_default`: the system id is the host name. Where another machine owns it in the cloud target, this one gets a
    suffix before its first upload.
    """

    agent_id: str
    system_id: str
    is_default: bool = False

    def durable(self, role: str) -> str:
        """Return the name under which a bus keeps this agent's place in a stream, for one role."""
        return f"{self.system_id}-{self.agent_id[:8]}-{role}"
