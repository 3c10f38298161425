"""NATS settings: one login, complete and encrypted. Each error names the key and the fix."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.domain.errors import SettingsError
from agent.settings import Settings, load, variable

REMOTE = "nats://nats.lan:4222"
SAFE = "tls://nats.lan:4222"
USER = {"agent_nats_user": "me", "agent_nats_password": "p4ss"}
SEED = f"SU{'A' * 56}"
LOGINS = {
    "the address": {"agent_nats_url": "tls://me:p4ss@nats.lan"},
    "a token in the address": {"agent_nats_url": "tls://a, tls://t0k3n@nats.lan"},
    "user and password": USER,
    "token": {"agent_nats_token": "t0k3n"},
    "credentials": {"agent_nats_credentials_file": "me.creds"},
    "seed": {"agent_nats_nkey_seed": SEED},
    "seed in a file": {"agent_nats_nkey_file": "me.nk"},
}
LOGIN_NAMES = list(LOGINS)


def loaded(settings):
    nowhere = Path("/nowhere")
    return load(environ={variable(key): str(value) for key, value in settings.items()}, cwd=nowhere, home=nowhere)


def refused(**settings):
    """Return the lines of the error by the key that they name."""
    with pytest.raises(SettingsError) as caught:
        loaded(settings)
    with pytest.raises(ValidationError):
        Settings(**settings)
    return dict(line.removeprefix("akosha_").split(" is ", 1) for line in str(caught.value).splitlines())


# ------------------------------------------------------------------------------------------------------- a single login


@pytest.mark.parametrize("login", LOGIN_NAMES)
def test_any_single_login_is_accepted_with_or_without_an_address(login):
    assert Settings(**LOGINS[login])
    assert loaded({"agent_nats_url": SAFE, **LOGINS[login]}).warnings == ()


@pytest.mark.parametrize(
    ("first", "second"),
    [(a, b) for a in LOGIN_NAMES for b in LOGIN_NAMES[LOGIN_NAMES.index(a) + 1 :] if set(LOGINS[a]) != set(LOGINS[b])],
)
def test_of_two_logins_the_later_key_is_refused_and_the_earlier_named(first, second):
    lines = refused(**LOGINS[first], **LOGINS[second])
    (earlier, *_), (later, *_) = LOGINS[first], LOGINS[second]
    assert list(lines) == [later]
    assert "only one way to log in is allowed" in lines[later]
    assert f"akosha_{earlier} is set, too" in lines[later]


def test_an_empty_text_is_not_a_login():
    empty = {key: "" for login in list(LOGINS.values())[2:] for key in login}
    assert Settings(agent_nats_url="tls://t0k3n@nats.lan", **empty).agent_nats_credentials_file is None


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [
        ("agent_nats_user", "me", "agent_nats_password"),
        ("agent_nats_password", "p4ss", "agent_nats_user"),
        ("agent_nats_certificate_file", "me.pem", "agent_nats_key_file"),
        ("agent_nats_key_file", "key.pem", "agent_nats_certificate_file"),
    ],
)
def test_an_incomplete_pair_is_refused_and_the_missing_key_named(key, value, other):
    for rest in ({}, {other: ""}):
        lines = refused(**{key: value}, **rest)
        assert list(lines) == [key]
        assert f"(env {variable(key)}): needs akosha_{other}" in lines[key]


def test_a_certificate_can_be_combined_with_any_login():
    pair = {"agent_nats_certificate_file": "me.pem", "agent_nats_key_file": "key.pem", "agent_nats_ca_file": "ca.pem"}
    for login in LOGINS.values():
        assert Settings(**pair, **login).agent_nats_key_file == Path("key.pem")


def test_an_invalid_half_of_a_pair_is_the_only_error():
    assert list(refused(agent_nats_user="a\tb", agent_nats_password="p4ss")) == ["agent_nats_user"]
    assert list(refused(agent_nats_user="me", agent_nats_password="a\tb")) == ["agent_nats_password"]
    for certificate in ("a\0b", "~no-such-user-here/x"):
        pair = {"agent_nats_certificate_file": certificate, "agent_nats_key_file": "key.pem"}
        assert list(refused(**pair)) == ["agent_nats_certificate_file"]


# ------------------------------------------------------------------------------------------------------------ encrypted


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("agent_nats_url", {"agent_nats_url": "nats://me:p4ss@nats.lan"}),
        ("agent_nats_url", {"agent_nats_url": "nats://t0k3n@nats.lan"}),
        ("agent_nats_url", {"agent_nats_url": "NATS://me:p%40%3A@10.0.0.1"}),
        ("agent_nats_url", {"agent_nats_url": "ws://me:p4ss@nats.lan"}),
        ("agent_nats_url", {"agent_nats_url": "tls://me:p4ss@a, nats://me:p4ss@b"}),
        ("agent_nats_url", {"agent_nats_url": "nats://localhost@nats.lan"}),
        ("agent_nats_password", {"agent_nats_url": REMOTE, **USER}),
        ("agent_nats_password", {"agent_nats_url": "ws://nats.lan", **USER}),
        ("agent_nats_password", {"agent_nats_url": "nats://localhost, tls://a, nats://b", **USER}),
        ("agent_nats_token", {"agent_nats_url": REMOTE, "agent_nats_token": "t0k3n"}),
        ("agent_nats_token", {"agent_nats_url": "nats://[::2]", "agent_nats_token": "t0k3n"}),
        ("agent_nats_token", {"agent_nats_url": "nats://0.0.0.0", "agent_nats_token": "t0k3n"}),
    ],
)
def test_a_password_or_token_to_another_machine_needs_encryption(key, settings):
    lines = refused(**settings)
    assert list(lines) == [key]
    assert f"(env {variable(key)})" in lines[key]
    for fix in ("tls://", "wss://", "akosha_agent_nats_url", "akosha_agent_nats_allow_plaintext: true"):
        assert fix in lines[key]
    assert refused(**settings, agent_nats_allow_plaintext=False) == lines
    assert Settings(**settings, agent_nats_allow_plaintext=True)


@pytest.mark.parametrize(
    "url",
    [
        "nats://localhost:4222",
        "ws://LOCALHOST",
        "nats://127.0.0.1:4222",
        "nats://127.255.1.2",
        "nats://[::1]:4222",
        "nats://localhost, ws://127.0.0.1",
        SAFE,
        "wss://nats.lan",
        "tls://a, wss://b, nats://localhost",
    ],
)
def test_on_loopback_or_encrypted_any_login_is_accepted(url):
    for login in list(LOGINS.values())[2:]:
        assert Settings(agent_nats_url=url, **login)
    if "," not in url:
        assert Settings(agent_nats_url=url.replace("://", "://me:p%40ss@"))


def test_logins_that_send_no_secret_are_accepted_on_any_connection():
    for login in ("credentials", "seed", "seed in a file"):
        assert Settings(agent_nats_url=REMOTE, **LOGINS[login])
    assert Settings(agent_nats_url=REMOTE)


def test_credentials_in_a_loopback_address_do_not_affect_another_address():
    assert Settings(agent_nats_url="nats://me:p4ss@localhost, nats://nats.lan")


# ------------------------------------------------------------------------------------------------------- several errors


def test_errors_of_combinations_are_reported_together_with_those_of_single_keys():
    lines = refused(
        agent_nats_url=REMOTE,
        agent_bus="kafka",
        agent_nats_user="me",
        agent_nats_password="p4ss",
        agent_nats_nkey_file="me.nk",
        agent_nats_key_file="key.pem",
        agent_remote_control="perhaps",
    )
    assert set(lines) == {
        "agent_bus",
        "agent_nats_nkey_file",
        "agent_nats_key_file",
        "agent_nats_password",
        "agent_remote_control",
    }


def test_an_invalid_address_adds_no_dependent_errors():
    assert list(refused(agent_nats_url="http://nats.lan", agent_bus="nats", **USER)) == ["agent_nats_url"]


def test_nats_is_used_if_it_has_a_url_and_the_bus_is_not_memory():
    assert not Settings().over_nats
    assert Settings(agent_nats_url=REMOTE).over_nats
    assert Settings(agent_nats_url=REMOTE, agent_bus="nats").over_nats
    assert not Settings(agent_nats_url=REMOTE, agent_bus="memory").over_nats
