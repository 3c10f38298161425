"""Whose fault it is that something was not stored, by the server's own words."""

import re

_ITEM = re.compile(
    r"validation error|should be a valid|embedding|isoformat|codec|conversion error|missing required|\binvalid\b"
    r"|unexpected keyword|missing_argument|must be |too (long|large|big)|out of range",
    re.IGNORECASE,
)
_PASSING = re.compile(
    r"\block(ed)?\b|time[d -]*out|connect|temporar|unavailable|try again|busy|\bdisk\b|no space|out of memory"
    r"|read-only|not initialized|shutting down|rate limit|too many|transaction|io error|internal|fatal|invalidated",
    re.IGNORECASE,
)
_UNKNOWN_TOOL = re.compile(r"unknown tool\b|no such tool\b|tool .{1,60} not found", re.IGNORECASE)
_DUPLICATE = re.compile(r"duplicate key|primary key constraint", re.IGNORECASE)


def is_items_fault(why: str) -> bool:
    """Whether the memory itself is what the server does not take."""
    return bool(_ITEM.search(why))


def is_passing(why: str) -> bool:
    """Whether it is the server's own trouble, which may pass."""
    return not is_items_fault(why) and bool(_PASSING.search(why))


def is_known(why: str, memory_id: str) -> bool:
    """Whether it is there already, under our own id: an id says what is stored, so this is the very same."""
    return bool(_DUPLICATE.search(why)) and memory_id.lower() in why.lower()


def is_unknown_tool(why: str) -> bool:
    return bool(_UNKNOWN_TOOL.match(why))
