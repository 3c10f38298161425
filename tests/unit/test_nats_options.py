"""What a bus on NATS is made of, without a server: addresses, pauses, patterns, marks, and texts that fit."""

import asyncio
import itertools
from dataclasses import replace
from urllib.parse import quote

import pytest

from agent.adapters.nats import Login, NatsOptions, Patience
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.messages import encoded
from agent.adapters.nats.options import Server
from agent.adapters.wire import MAX_EVENT_BYTES, CloudEventsCodec
from agent.domain.errors import WireError
from agent.domain.events import MethodError
from agent.domain.naming import STREAM_SUBJECTS, UNSTORED_SUBJECTS, patterns_meet, subject_matches
from agent.ports import StreamMark
from tests.support import values
from tests.support.clock import ManualClock

CODEC = CloudEventsCodec()
NO_UTF8 = "\udce9" * 600
SECRET = "canary:p@ss/w%rd?#+ é"

LONG = {
    "skipped": replace(
        values.skipped(), why="; ".join(f"graph-{n} waits: it cannot be read {'x' * 250}" for n in range(300))
    ),
    "succeeded": replace(
        values.succeeded(values.manifest(reflection=1)), incomplete={f"graph-{n}": NO_UTF8 for n in range(300)}
    ),
    "failed": replace(values.failed(), errors=(MethodError(method="cloud", error=NO_UTF8),) * 300, error=NO_UTF8),
}


@pytest.mark.parametrize("kind", LONG)
def test_whatever_makes_a_result_long_it_can_be_reported(kind):
    data = encoded(LONG[kind], CODEC, max_bytes=MAX_EVENT_BYTES)
    assert len(data) <= MAX_EVENT_BYTES
    assert CODEC.decode(data).id == LONG[kind].id


TEXTS = {
    "plain": "x" * 70_000,
    "no-utf8": "\udce9" * 70_000,
    "controls": "\0" * 70_000,
    "quotes": '"\\' * 35_000,
    "wide": "\U0001f9e0" * 70_000,
}


@pytest.mark.parametrize("text", TEXTS)
def test_an_abridged_result_fits_whatever_its_texts(text):
    long, many = TEXTS[text], 5_000
    uploaded = values.succeeded(values.manifest(reflection=1))
    for result in (
        replace(values.skipped(), why=long),
        replace(
            uploaded, incomplete={f"{n}{long}": long for n in range(20)}, location=long, files_uploaded=(long,) * 5
        ),
        replace(uploaded, incomplete={f"graph-{n}": "x" for n in range(many)}, files_uploaded=("a/b",) * many),
        replace(values.failed(), error=long, errors=(MethodError(method="cloud", error=long),) * 20),
    ):
        data = CODEC.encode(result.abridged())
        assert len(data) <= MAX_EVENT_BYTES
        assert encoded(result, CODEC, max_bytes=MAX_EVENT_BYTES) == data
        reported = CODEC.decode(data)
        kept = ("id", "time", "system_id", "request_id", "method", "success", "upload_id", "triggered_by", "subject")
        assert [getattr(reported, name) for name in kept] == [getattr(result, name) for name in kept]


def test_a_result_that_fits_is_reported_whole():
    result = replace(values.skipped(), why="x" * 10_000)
    assert CODEC.decode(encoded(result, CODEC, max_bytes=MAX_EVENT_BYTES)) == result


def test_what_is_no_result_and_does_not_fit_is_refused():
    errors = (MethodError(method="cloud", error="x" * MAX_EVENT_BYTES),)
    with pytest.raises(WireError, match="larger than"):
        encoded(replace(values.request(), errors=errors), CODEC, max_bytes=MAX_EVENT_BYTES)


@pytest.mark.parametrize(
    ("url", "scheme", "place", "user", "password"),
    [
        ("nats://example.org", "nats", "nats://example.org", None, None),
        (" tls://example.org:4333 ", "tls", "tls://example.org:4333", None, None),
        ("nats://me:pw@example.org:4222", "nats", "nats://example.org:4222", "me", "pw"),
        (f"wss://{quote(SECRET, safe='')}@[::1]:443/nats", "wss", "wss://[::1]:443/nats", SECRET, None),
        (f"nats://a%40b:{quote(SECRET, safe='')}@example.org", "nats", "nats://example.org", "a@b", SECRET),
        ("nats://me:canary@x@example.org", "nats", "nats://example.org", "me", "canary@x"),
    ],
)
def test_an_address_is_taken_apart_and_shows_no_secret(url, scheme, place, user, password):
    server = Server.of(url)
    assert (server.scheme, server.location, server.user, server.password) == (scheme, place, user, password)
    made = NatsOptions(servers=(url, url), name="test", login=Login(user="u", password=SECRET, token=SECRET))
    assert made.location == f"{place}, {place}"
    for text in (repr(server), str(server), server.location, repr(made), made.location):
        assert "canary" not in text
        assert "pw" not in text


TOKENS = ("a", "b", "*")
PATTERNS = [
    ".".join((*head, *tail))
    for length in range(4)
    for head in itertools.product(TOKENS, repeat=length)
    for tail in ((), (">",))
    if head or tail
]
PLACES = [".".join(tokens) for length in range(1, 6) for tokens in itertools.product("abc", repeat=length)]


def test_patterns_meet_where_some_subject_is_covered_by_both():
    covered = {pattern: {place for place in PLACES if subject_matches(pattern, place)} for pattern in PATTERNS}
    wrong = [
        (one, other)
        for one, other in itertools.product(PATTERNS, repeat=2)
        if patterns_meet(one, other) != (not covered[one].isdisjoint(covered[other]))
    ]
    assert not wrong


def test_what_the_stream_keeps_does_not_pass_by():
    assert not [pair for pair in itertools.product(STREAM_SUBJECTS, UNSTORED_SUBJECTS) if patterns_meet(*pair)]


@pytest.mark.parametrize(
    ("now", "lost"),
    [
        (StreamMark("a", 10), False),
        (StreamMark("a", 11), False),
        (StreamMark("a", 9), True),
        (StreamMark("b", 10), True),
        (StreamMark("b", 99), True),
    ],
)
def test_a_stream_has_lost_events_where_it_is_another_or_was_cut(now, lost):
    assert now.has_lost(StreamMark("a", 10)) is lost


def pauses(failures: int, **patience: float) -> list[float]:
    options = NatsOptions(servers=("nats://example.org",), name="test", patience=Patience(**patience))
    link = NatsConnection(options, ManualClock(), prepare=lambda client: asyncio.sleep(0), changed=lambda: None)
    return [link._pause(failures) for _ in range(200)]


def test_the_pause_between_attempts_doubles_up_to_the_longest_give_or_take_a_quarter():
    for failures, middle in {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 6: 30, 7: 30, 10_000: 30}.items():
        drawn = pauses(failures, reconnect=1.0, reconnect_max=30.0)
        assert all(middle * 0.75 <= pause <= middle * 1.25 for pause in drawn)
        assert max(drawn) - min(drawn) > middle * 0.2, "many agents would come back in step"


def test_the_longest_pause_holds_for_the_first_too():
    assert max(pauses(0, reconnect=10.0, reconnect_max=2.0)) <= 2.5
