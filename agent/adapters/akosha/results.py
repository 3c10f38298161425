"""What a tool returned: structured where the server does that, else JSON in its text."""

from dataclasses import dataclass
from typing import Any, Self

import orjson

Message = dict[str, Any]
"""A JSON object from outside. It does not leave this package."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """`data` is None where the server said nothing structured; `text` is all that it said in words."""

    failed: bool
    text: str
    data: Message | None

    @classmethod
    def of(cls, result: Message) -> Self:
        """Read the result of tools/call. Takes anything."""
        content = result.get("content")
        texts = [part["text"] for part in content if _is_text(part)] if isinstance(content, list) else []
        text = "\n".join(texts)
        data = result.get("structuredContent")
        if not isinstance(data, dict):
            data = _object(texts[0]) if len(texts) == 1 else None
        # Tools that return something else than an object have it wrapped so.
        if data is not None and set(data) == {"result"}:
            inner = data["result"]
            data = inner if isinstance(inner, dict) else _object(inner) if isinstance(inner, str) else None
        return cls(failed=result.get("isError") is True, text=text, data=data)


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _object(text: str) -> Message | None:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
