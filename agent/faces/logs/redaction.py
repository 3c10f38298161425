"""No secret in a log line: the values that this process knows, and what looks like one.

What is known (`hide`) is masked wherever it appears, also as a URL, JSON or Python would write it. A value of fewer
than six characters is not: it would eat words.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote, quote_plus

from structlog.typing import EventDict, WrappedLogger

from agent.domain.errors import MASK

SHORTEST = 6
DEEPEST = 6

_PLAIN = (int, float, bool, type(None))

_hidden: tuple[str, ...] = ()
"""All forms of all secrets, the longest first: one may be a part of another."""


def hide(*secrets: str) -> None:
    """Never show these again, in this process. Cheap for those that are hidden already."""
    global _hidden  # noqa: PLW0603 - what a process knows, it knows for good
    forms = {form for secret in secrets if len(secret) >= SHORTEST for form in _forms(secret)}
    if not forms <= set(_hidden):
        _hidden = tuple(sorted(forms.union(_hidden), key=lambda form: (-len(form), form)))


def redacted(text: str) -> str:
    """Return the text with every secret in it masked."""
    for secret in _hidden:
        if secret in text:
            text = text.replace(secret, MASK)
    lower = text.lower()
    for marks, pattern, put in _PATTERNS:
        if any(mark in lower for mark in marks):
            text = pattern.sub(put, text)
    return text


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask the secrets in all values, as a structlog processor; exceptions must be text by now."""
    return {key: _clean(value, DEEPEST) for key, value in event.items()}


def _clean(value: object, depth: int) -> object:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, _PLAIN):
        return value
    if depth and isinstance(value, Mapping):
        return {redacted(_text(key, str)): _clean(one, depth - 1) for key, one in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(one, depth - 1) for one in value]
    return redacted(_text(value, repr))


def _text(value: object, how: Callable[[object], str]) -> str:
    try:
        return how(value)
    except Exception:  # noqa: BLE001 - whatever it is: a log line must come about
        return f"<{type(value).__name__}>"


def _forms(secret: str) -> set[str]:
    """As it is, as a URL writes it, as JSON and Python write it in a text, and as Basic authentication sends it."""
    encoded = secret.encode(errors="surrogatepass")
    return {
        secret,
        quote(encoded, safe=""),
        quote(encoded),
        quote_plus(encoded),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        repr(encoded)[2:-1],
        base64.b64encode(encoded).decode(),
    }


_VALUE = r"""['"]?\s*[:=,]\s*b?['"]?"""
"""What stands between a name and its value: in a header, a query, JSON, or what Python shows of a mapping or a pair."""

_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("authorization",), re.compile(rf"(?i)(authorization{_VALUE})[^'\"\r\n}}]+"), rf"\1{MASK}"),
    (("bearer",), re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{MASK}"),
    (("aws4-hmac",), re.compile(r"(AWS4-HMAC-SHA256)\s+[^'\"\r\n]+"), rf"\1 {MASK}"),
    (
        ("security-token", "signature", "x-amz-credential"),
        re.compile(rf"(?i)((?:x-amz-security-token|signature|x-amz-credential){_VALUE})[^\s'\"&,}}]{{6,}}"),
        rf"\1{MASK}",
    ),
    (
        ("pass", "secret", "_token", "api_key"),
        re.compile(
            r"(?i)((?:password|passwd|pass|secret|secret_access_key|session_token|auth_token|access_token|api_key)"
            r"(?:=|['\"]\s*:\s*b?['\"]))[^\s'\",&}]{6,}"
        ),
        rf"\1{MASK}",
    ),
    (("://",), re.compile(r"(://)[^/\s'\"<>]*@"), rf"\1{MASK}@"),
    (
        ("-----begin",),
        re.compile(r"-----BEGIN [A-Z ]*(?:KEY|SEED|JWT)-----.*?(?:-----END[^-]*-----|\Z)", re.DOTALL),
        MASK,
    ),
    (("eyj",), re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), MASK),
    (tuple(f"s{kind}" for kind in "uaocnx"), re.compile(r"\bS[UAOCNX][A-Z2-7]{56}\b"), MASK),
)
"""Words (in lower case) without which a pattern need not be tried, the pattern, and what is put in its place."""
