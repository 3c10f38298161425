"""Secrets in log lines are masked in any context and encoding; other text is unchanged."""

import base64
import json
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from agent.domain.plain_text import MASK
from agent.entrypoints.logs import hide, known_secrets, pipeline, redacted
from agent.settings import Settings

SEED = f"SU{'CANARY' * 9}AA"
KEY = "wJalr/XUtn+FEMI'K7 é\"\\"
JWT = "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5In0.eyJqdGkiOiJDQU5BUlkifQ.c2lnbmF0dXJl"
HEX = "fe5f80f77d5fa3beca038a248ff027d0445342fe2855ddc963176630326f1024"


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        quote(KEY),
        quote(KEY, safe=""),
        json.dumps(KEY),
        json.dumps({"key": KEY}, ensure_ascii=False),
        repr(KEY),
        repr(KEY.encode()),
        f"Basic {base64.b64encode(KEY.encode()).decode()}",
    ],
    ids=["plain", "url", "url-all-quoted", "json", "json-unicode", "repr", "bytes", "basic"],
)
def test_a_known_secret_is_masked_in_any_encoding(written):
    hide(KEY)
    shown = redacted(f"before {written} after")
    assert MASK in shown
    assert "XUtn" not in shown
    assert base64.b64encode(KEY.encode()).decode() not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


def test_a_secret_that_contains_another_is_masked_completely():
    hide("canary", "canary-and-more")
    hide("canary")
    assert redacted("canary-and-more, canary") == f"{MASK}, {MASK}"


def test_a_short_value_is_not_masked():
    hide("", "is", "http", "12345")
    assert redacted("this is http on port 12345") == "this is http on port 12345"


def test_a_secret_is_masked_in_every_field_of_an_event():
    class Odd:
        def __repr__(self):
            return "<Odd s3cr3t-canary>"

    hide("s3cr3t-canary")
    event = pipeline.redact(
        None,
        "info",
        {
            "event": "s3cr3t-canary",
            "error": "no: s3cr3t-canary",
            "nested": [{"s3cr3t-canary": ({"s3cr3t-canary"}, b"s3cr3t-canary", Path("/s3cr3t-canary"))}, Odd()],
            "exception": "Traceback\n  File\nValueError: s3cr3t-canary",
            "count": 3,
        },
    )
    assert "s3cr3t-canary" not in str(event)
    assert (event["count"], event["error"]) == (3, f"no: {MASK}")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("{'Authorization': b'Basic dXNlcjpwYXNz', 'Host': 'h'}", "dXNlcjpwYXNz"),
        ("[(b'authorization', b'Token t0k3n-canary')]", "t0k3n-canary"),
        ("the server says: Bearer abcdefgh12345 is unknown", "abcdefgh12345"),
        (
            f"AWS4-HMAC-SHA256 Credential=AKIACANARY/20250601/auto/s3/aws4_request, SignedHeaders=h, Signature={HEX}",
            HEX,
        ),
        (f"x-amz-security-token:{'Q' * 40}\nx-amz-date:20250601", "Q" * 40),
        (f"{{'X-Amz-Security-Token': '{'Q' * 40}'}}", "Q" * 40),
        (f"https://h/b?X-Amz-Credential=AKIACANARY%2Fauto&X-Amz-Signature={HEX}&x=1", HEX),
        ("https://h/b?X-Amz-Credential=AKIACANARY%2Fauto", "AKIACANARY"),
        ("tls://me:c4n4ry@nats.lan:4222 cannot be reached", "c4n4ry"),
        ("nats://c4n4ry@nats.lan", "c4n4ry"),
        ("http://u:p%40c4n4ry@proxy:3128", "c4n4ry"),
        (f"seed {SEED} is none", SEED),
        (f"auth_token={JWT}", JWT),
        (f'CONNECT {{"jwt":"{JWT}","pass":"c4n4ry-pass"}}', "c4n4ry-pass"),
        ("aws_secret_access_key=c4n4ry-key", "c4n4ry-key"),
        ("-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----", "MIGHAgEAMBMG"),
        ("-----BEGIN EC PRIVATE KEY-----\\nMIGHAgEAMBMG", "MIGHAgEAMBMG"),
    ],
    ids=[
        "bearer-header", "basic-in-a-mapping", "raw-header", "bearer-alone", "sigv4", "canonical-request",
        "session-token", "signature-in-a-query", "credential-in-a-query", "url", "url-token", "url-quoted", "seed",
        "jwt", "nats-connect", "key-in-a-file", "pem", "pem-cut",
    ],
)  # fmt: skip
def test_a_text_that_looks_like_a_secret_is_masked(text, secret):
    shown = redacted(text)
    assert secret not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "text",
    [
        "https://s3.example/b refuses: AccessDenied (the signature does not match: check AWS_SECRET_ACCESS_KEY)",
        "akosha_http_token: must consist of visible ASCII characters, as in an HTTP header",
        "set akosha_agent_nats_password (empty: none)",
        "systems/mac/uploads/20250601_120000_mac/reflection.duckdb",
        "file:///home/me/a@b/bucket, user me@example.com",
        "SUCCEEDED: 3 of 3, SUBSCRIPTIONS",
        "a bearer token is needed (akosha_http_token)",
    ],
)
def test_the_agents_own_messages_are_not_masked(text):
    assert redacted(text) == text


def test_secrets_in_settings_and_environment_are_known(tmp_path):
    creds = tmp_path / "me.creds"
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{JWT}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"
    )
    settings = Settings(
        http_token="c4n4ry-http",
        agent_http_token="c4n4ry-control",
        agent_nats_url="tls://nats.lan",
        agent_nats_credentials_file=creds,
    )
    environ = {
        "AWS_SECRET_ACCESS_KEY": "c4n4ry-key",
        "AWS_SESSION_TOKEN": "c4n4ry-session",
        "https_proxy": "http://me:c4n4ry%21proxy@proxy:3128",
        "HOME": "/home/me",
    }
    known = set(known_secrets(settings, environ))
    assert known - {""} == {
        "c4n4ry-http", "c4n4ry-control", "c4n4ry-key", "c4n4ry-session", "c4n4ry%21proxy", "c4n4ry!proxy", JWT, SEED,
    }  # fmt: skip


def test_passwords_and_tokens_in_urls_are_known_and_user_names_are_not():
    settings = Settings(agent_nats_url="tls://somebody:c4n4ry-one@a.lan,tls://somebody:c4n4ry-two@b.lan")
    assert {"c4n4ry-one", "c4n4ry-two"} == set(known_secrets(settings, {})) - {""}
    assert "c4n4ry-token" in set(known_secrets(Settings(agent_nats_url="tls://c4n4ry-token@a.lan"), {}))


def test_a_line_without_secrets_is_redacted_in_less_than_a_millisecond():
    hide(*(f"canary-number-{number}" for number in range(12)))
    line = {"event": "sync_succeeded", "request_id": "0" * 36, "error": "x" * 200, "system_id": "mac", "files": 4}
    best = min(_timed(line) for _ in range(20))
    assert best < 0.001


def _timed(line):
    started = time.perf_counter()
    pipeline.redact(None, "info", line)
    return time.perf_counter() - started
