"""A lasting condition that the user must know about: it does not stop a sync, and persists until the user acts."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from agent.domain.parsing import parse_json
from agent.domain.plain_text import safe_text


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusWarning:
    """A warning that `status` shows.

    `code` is a stable snake_case identifier for programs; `hint` is the command or setting that fixes the condition.
    `since` is the time when the condition was first seen, None if it is computed for each status.
    """

    code: str
    message: str
    hint: str = ""
    since: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", safe_text(self.message))
        object.__setattr__(self, "hint", safe_text(self.hint))

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def encode(self) -> str:
        """Return the warning as JSON text."""
        since = self.since.isoformat() if self.since else None
        return json.dumps({"message": self.message, "hint": self.hint, "since": since})

    @classmethod
    def decode(cls, code: str, text: str) -> Self | None:
        """Return the warning from the result of `encode`, None for any other text."""
        try:
            document = parse_json(text)
            since = document["since"]
            return cls(
                code=code,
                message=str(document["message"]),
                hint=str(document["hint"]),
                since=datetime.fromisoformat(since) if since else None,
            )
        except (ValueError, TypeError, KeyError):
            return None
