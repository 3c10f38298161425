"""Parts of the NATS bus without a server: addresses, pauses, patterns, stream marks and abridged results."""

import asyncio
import itertools
import os
from dataclasses import replace
from urllib.parse import quote

import pytest

from agent.adapters.nats import Login, NatsOptions, Patience
from agent.adapters.nats.connection import NatsConnection
from agent.adapters.nats.messages import encoded
from agent.adapters.nats.options import Server, Tls
from agent.adapters.wire import MAX_EVENT_BYTES, CloudEventsCodec
from agent.domain.errors import WireError
from agent.domain.events import MethodError
from agent.domain.naming import STREAM_SUBJECTS, UNSTORED_SUBJECTS, patterns_meet, subject_matches
from agent.ports import StreamMark
from tests.support import values

CODEC = CloudEventsCodec()
NOT_UTF8 = "\udce9" * 600
SECRET = "canary:p@ss/w%rd?#+ é"

LONG = {
    "skipped": replace(
        values.skipped(), why="; ".join(f"graph-{n} waits: it cannot be read {'x' * 250}" for n in range(300))
    ),
    "succeeded": replace(
        values.succeeded(values.manifest(reflection=1)), incomplete={f"graph-{n}": NOT_UTF8 for n in range(300)}
    ),
    "failed": replace(values.failed(), errors=(MethodError(method="cloud", error=NOT_UTF8),) * 300, error=NOT_UTF8),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_result_is_abridged_to_the_event_limit(kind):
    data = encoded(LONG[kind], CODEC, max_bytes=MAX_EVENT_BYTES)
    assert len(data) <= MAX_EVENT_BYTES
    assert CODEC.decode(data).id == LONG[kind].id


TEXTS = {
    "plain": "x" * 70_000,
    "not-utf8": "\udce9" * 70_000,
    "controls": "\0" * 70_000,
    "quotes": '"\\' * 35_000,
    "wide": "\U0001f9e0" * 70_000,
}


@pytest.mark.parametrize("text", TEXTS)
def test_an_abridged_result_fits_with_any_texts(text):
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


def test_a_result_that_fits_is_not_abridged():
    result = replace(values.skipped(), why="x" * 10_000)
    assert CODEC.decode(encoded(result, CODEC, max_bytes=MAX_EVENT_BYTES)) == result


def test_another_event_over_the_limit_is_refused():
    errors = (MethodError(method="cloud", error="x" * MAX_EVENT_BYTES),)
    with pytest.raises(WireError, match="larger than"):
        encoded(replace(values.request(), errors=errors), CODEC, max_bytes=MAX_EVENT_BYTES)


@pytest.mark.parametrize(
    ("url", "scheme", "location", "user", "password"),
    [
        ("nats://example.org", "nats", "nats://example.org", None, None),
        (" tls://example.org:4333 ", "tls", "tls://example.org:4333", None, None),
        ("nats://me:pw@example.org:4222", "nats", "nats://example.org:4222", "me", "pw"),
        (f"wss://{quote(SECRET, safe='')}@[::1]:443/nats", "wss", "wss://[::1]:443/nats", SECRET, None),
        (f"nats://a%40b:{quote(SECRET, safe='')}@example.org", "nats", "nats://example.org", "a@b", SECRET),
        ("nats://me:canary@x@example.org", "nats", "nats://example.org", "me", "canary@x"),
    ],
)
def test_an_address_is_parsed_and_shows_no_secret(url, scheme, location, user, password):
    server = Server.of(url)
    assert (server.scheme, server.location, server.user, server.password) == (scheme, location, user, password)
    made = NatsOptions(servers=(url, url), name="test", login=Login(user="u", password=SECRET, token=SECRET))
    assert made.location == f"{location}, {location}"
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
SUBJECTS = [".".join(tokens) for length in range(1, 6) for tokens in itertools.product("abc", repeat=length)]


def test_patterns_meet_if_a_subject_matches_both():
    matched = {pattern: {subject for subject in SUBJECTS if subject_matches(pattern, subject)} for pattern in PATTERNS}
    wrong = [
        (one, other)
        for one, other in itertools.product(PATTERNS, repeat=2)
        if patterns_meet(one, other) != (not matched[one].isdisjoint(matched[other]))
    ]
    assert not wrong


def test_stream_subjects_and_passing_subjects_do_not_overlap():
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
def test_another_or_truncated_stream_has_lost_events(now, lost):
    assert now.has_lost(StreamMark("a", 10)) is lost


def pauses(failures: int, **patience: float) -> list[float]:
    options = NatsOptions(servers=("nats://example.org",), name="test", patience=Patience(**patience))
    connection = NatsConnection(options, prepare=lambda client: asyncio.sleep(0), changed=lambda: None)
    return [connection._pause(failures) for _ in range(200)]


def test_the_reconnect_pause_is_a_random_part_of_a_limit_that_doubles_up_to_the_maximum():
    for failures, limit in {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 6: 30, 7: 30, 10_000: 30}.items():
        drawn = pauses(failures, reconnect=1.0, reconnect_max=30.0)
        assert all(limit * 0.1 <= pause <= limit for pause in drawn)
        assert max(drawn) - min(drawn) > limit * 0.5, "otherwise many agents would reconnect at the same time"


def test_the_maximum_pause_applies_to_the_first_attempt_too():
    assert max(pauses(0, reconnect=10.0, reconnect_max=2.0)) <= 2.5


def test_the_systems_cas_are_loaded_again_only_after_their_files_have_changed(tmp_path, monkeypatch):
    bundle = tmp_path / "cas.pem"
    bundle.write_bytes(b"")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    first = Tls().context()
    assert Tls(first=True).context() is first
    os.utime(bundle, ns=(1, 1))
    assert Tls().context() is not first
