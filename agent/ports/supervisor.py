"""Who keeps the agent running."""

from typing import Protocol


class Supervisor(Protocol):
    """systemd, or whoever else started the agent and wants to know how it is. Cheap; never raises."""

    @property
    def alive_every(self) -> float | None:
        """How often, in seconds, it wants a sign of life; None: never."""
        ...

    def ready(self) -> None:
        """The agent works: it watches, and hears requests. Also said after `reloading`."""
        ...

    def reloading(self) -> None:
        """The settings are being read anew."""
        ...

    def status(self, text: str) -> None:
        """How it is, in one line, for people."""
        ...

    def alive(self) -> None:
        """A sign of life. When it stays out for twice `alive_every`, the supervisor ends the agent."""
        ...

    def stopping(self) -> None:
        """The agent is coming to its end."""
        ...
