"""Makes text safe to show: masks secrets, escapes terminal control characters, limits the length.

A secret that this process knows (`hide`) is masked wherever it appears, also in the encodings of URLs, JSON and Python;
text that looks like a secret is masked, too. Known secrets of fewer than six characters are not masked: they would also
match ordinary words.
"""

import base64
import json
import re
import signal
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

MASK = "********"
"""The replacement of a secret."""

MIN_SECRET_LENGTH = 6

LONGEST_LINE = 2000
"""Maximum number of characters of a line in `safe_text`."""

_SPACES = "\u00a0\u202f\u3000"
"""Spaces that are common in many languages although Python does not count them as printable."""

_hidden: tuple[str, ...] = ()
"""All encodings of all secrets, longest first, because one may be a part of another."""

_VALUE = r"""['"]?\s*[:=,]\s*b?['"]?"""
"""The text between a name and its value in headers, queries, JSON, and Python's repr of a mapping or a pair."""

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
"""Words, pattern, replacement. Every match contains at least one of these words in lower case (a fast pre-check)."""


def hide(*secrets: str) -> None:
    """Mask these values in all texts of this process from now on. Idempotent, and cheap for known values."""
    global _hidden  # noqa: PLW0603 - secrets stay known until the process ends
    forms = {form for secret in secrets if len(secret) >= MIN_SECRET_LENGTH for form in _forms(secret)}
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


def printable(text: str, *, lines: bool = False) -> str:
    """Return the text with all characters escaped that control a terminal.

    These are control characters, line breaks (kept with `lines`), bidirectional marks, and bytes that are not Unicode.
    """
    if text.isprintable():
        return text
    kept = f"{_SPACES}\n" if lines else _SPACES
    return "".join(char if char.isprintable() or char in kept else _escape(char) for char in text)


def printable_json(document: str) -> str:
    """Return an encoded JSON document with these characters as JSON escapes. Its content and its lines are the same."""
    if document.isprintable():
        return document
    kept = f"{_SPACES}\n"
    return "".join(char if char.isprintable() or char in kept else json.dumps(char)[1:-1] for char in document)


def problem_list(problems: Mapping[str, str]) -> str:
    """Return problems in one line, sorted by name: `name: reason; name: reason`."""
    return "; ".join(f"{name}: {reason}" for name, reason in sorted(problems.items()))


def safe_text(text: str, *, lines: bool = False) -> str:
    """Return text that may quote files, servers or other programs in a form that can be shown, stored and published.

    Secrets are masked, characters are `printable`, and each line has at most `LONGEST_LINE` characters.
    """
    shown = printable(redacted(text), lines=lines)
    if len(shown) <= LONGEST_LINE:
        return shown
    return "\n".join(shorten(line, LONGEST_LINE) for line in shown.split("\n"))


def shorten(text: str, longest: int) -> str:
    """Return the text, truncated to `longest` characters and an ellipsis if it is longer."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _forms(secret: str) -> set[str]:
    """Return the secret as it is, and as encoded in URLs, in JSON and Python strings, and in Basic authentication."""
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


def signal_name(number: int) -> str:
    """Return the name of a signal; `signal 35` for one without, as most real-time signals are."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
