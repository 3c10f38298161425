"""Strategies of input near a valid one: bytes, texts, and JSON documents with other, missing and additional values."""

import json
import re
import unicodedata
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

_RAW = {
    "@deep 40@": b"[" * 40 + b"]" * 40,
    "@deep 300@": b"[" * 300 + b"]" * 300,
    "@deep 990@": b'{"a":' * 990 + b"1" + b"}" * 990,
    "@deep@": b"[" * 100_000,
    "@digits 20@": b"9" * 20,
    "@digits 400@": b"9" * 400,
    "@digits 4000@": b"-" + b"9" * 4000,
    "@digits 5000@": b"9" * 5000,
    "@exponent@": b"1e400",
    "@zeros@": b"0." + b"0" * 400 + b"1",
    "@long@": b'"' + b"x" * 10**6 + b'"',
    "@long wide@": b'"' + "ä".encode() * 10**6 + b'"',
    "@many@": b"[" + b"0," * 50_000 + b"0]",
    "@nothing@": b"",
}
"""Strings of a document that `encoded` replaces by text that `json.dumps` does not write."""

TIMES = (
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z",
    "2025-06-01T12:00:00+23:59:59", "2025-06-01T12:00:00", "2025-06-01", "2025-13-45T99:99:99Z", "1969-12-31T23:59:59Z",
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "a\0b", "\n", "\x1b[31m", "\u202e", "\ud800", "\udcff", "\ufeff", "\uffff", "😀", "..", "../..", "/",
    ".", "~", "%00", "*", ">", "NaN", "null", "true", "1", "-1", "1e5", "9" * 25, "x" * 300, "ä" * 200, "${HOME}",
    "$(x)", "99991231_235959_a", "00010101_000000_a", *TIMES,
)  # fmt: skip
ODD_TEXTS = st.sampled_from(TEXTS) | st.text(max_size=12)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT.*")
_NUMBERS = (
    0, 1, -1, 2, 255, 65_536, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30,
    0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"),
    "@digits 20@", "@digits 400@", "@digits 4000@", "@exponent@", "@zeros@",
)  # fmt: skip
_STRUCTURES = (None, True, False, [], {}, [[]], [{}], [None], {"": None}, {"a": {"b": [1, "c"]}})
ODD_VALUES = (
    st.sampled_from(_STRUCTURES).map(deepcopy) | st.sampled_from(_NUMBERS) | ODD_TEXTS | st.sampled_from(sorted(_RAW))
)


class _Twice(dict):
    """An object whose last member is written twice."""

    def items(self):
        members = list(super().items())
        return members + members[-1:]


@st.composite
def near_text(draw: st.DrawFn, text: str) -> str:
    """Return a text like this one: cut, extended, with other characters, in another case or normal form."""
    if _TIME.fullmatch(text) and draw(st.booleans()):
        return draw(st.sampled_from(TIMES))
    at = draw(st.integers(0, len(text)))
    match draw(st.sampled_from(("cut", "insert", "replace", "other", "normalize", "case", "repeat"))):
        case "cut":
            return text[:at]
        case "insert":
            return text[:at] + draw(ODD_TEXTS) + text[at:]
        case "replace":
            return text[:at] + draw(ODD_TEXTS) + text[at + 1 :]
        case "other":
            return draw(ODD_TEXTS)
        case "normalize":
            return unicodedata.normalize(draw(st.sampled_from(("NFC", "NFD", "NFKC", "NFKD"))), f"{text}äﬁ")
        case "case":
            return text.swapcase()
        case _:
            return text * draw(st.integers(2, 40))


@st.composite
def near(draw: st.DrawFn, document: Any, keys: Sequence[str] = ()) -> Any:
    """Return a copy of a JSON document with up to three changes. `keys`: names of members that may be added."""
    holder = [deepcopy(document)]
    for _ in range(draw(st.integers(0, 3))):
        _change(draw, holder, keys)
    return holder[0]


def _change(draw: st.DrawFn, holder: Any, keys: Sequence[str]) -> None:
    """Change one value somewhere in the only element of `holder`."""
    place, key = holder, 0
    while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
        place = place[key]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    value = place[key]
    match draw(
        st.sampled_from(("like", "like", "like", "other", "delete", "add", "rename", "repeat", "wrap", "twice"))
    ):
        case "like" if isinstance(value, str):
            place[key] = draw(near_text(value))
        case "like" if isinstance(value, int | float):
            place[key] = draw(st.sampled_from(_NUMBERS))
        case "delete" if place is not holder:
            del place[key]
        case "add" if isinstance(value, dict):
            value[draw((st.sampled_from(keys) | ODD_TEXTS) if keys else ODD_TEXTS)] = draw(ODD_VALUES)
        case "rename" if isinstance(place, dict):
            place[draw(near_text(key))] = place.pop(key)
        case "repeat" if isinstance(value, list):
            value.extend(deepcopy(value) * draw(st.integers(1, 3)))
        case "wrap":
            place[key] = [value]
        case "twice" if isinstance(value, dict):
            place[key] = _Twice(value)
        case _:
            place[key] = draw(ODD_VALUES)


def encoded(document: Any, *, ascii_only: bool = True) -> bytes:
    """Return a document as JSON, also with NaN, lone surrogates (as escapes or bytes) and the texts of `_RAW`."""
    data = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if b'"@' in data:
        for name, raw in _RAW.items():
            data = data.replace(f'"{name}"'.encode(), raw)
    return data


@st.composite
def near_bytes(draw: st.DrawFn, data: bytes, odd: Sequence[bytes] = ()) -> bytes:
    """Return the bytes with one part cut, replaced, inserted or repeated, or in another encoding of text.

    `odd`: bytes to insert.
    """
    start = draw(st.integers(0, len(data)))
    end = min(start + draw(st.integers(0, 8) | st.integers(0, len(data))), len(data))
    match draw(st.sampled_from(("replace", "replace", "insert", "cut", "repeat", "mark", "encoding"))):
        case "cut":
            return data[:start]
        case "repeat":
            return data[:end] + data[start:]
        case "mark":
            return b"\xef\xbb\xbf" + data
        case "encoding":
            return data.decode("utf-8", "replace").encode(
                draw(st.sampled_from(("utf-16", "utf-32", "cp437"))), "replace"
            )
        case change:
            usual = (b"", b"\0", b"\xff\xfe", b"\r\n", b'"', b"\xed\xa0\x80")
            new = draw(st.binary(max_size=8) | st.sampled_from((*usual, *odd)))
            return data[:start] + new + data[start if change == "insert" else end :]


def json_near(*documents: Any, keys: Sequence[str] = ()) -> st.SearchStrategy[bytes]:
    """Return JSON near one of these documents: mostly valid JSON, sometimes changed bytes, seldom any bytes."""
    some = st.one_of([near(document, keys) for document in documents])
    valid = st.builds(lambda document, ascii_only: encoded(document, ascii_only=ascii_only), some, st.booleans())
    return st.one_of(valid, valid, valid, valid.flatmap(near_bytes), st.binary(max_size=64))
