"""A secret in any setting never appears in output, errors or tracebacks."""

import json
import re
import traceback
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent.domain.errors import SettingsError
from agent.domain.plain_text import MASK
from agent.settings import Settings, load, settings_table, variable
from agent.settings.model import FIELDS, SECRET

CANARY = "c4n4ry-s3cr3t"
SEED = f"SU{'CANARY' * 9}AA"


def loaded_with(environ):
    return load(environ=environ, cwd=Path("/nowhere"), home=Path("/nowhere"))


def test_no_text_of_valid_settings_shows_a_secret():
    loaded = loaded_with(
        {"SESSION_BUDDY_AKOSHA_HTTP_TOKEN": CANARY, "AKOSHA_AGENT_NATS_URL": f"tls://me:{CANARY}@nats.lan:4222"}
    )
    table = settings_table(loaded)
    texts = [
        str(loaded), repr(loaded), str(loaded.settings), repr(loaded.settings), loaded.settings.model_dump_json(),
        str(loaded.settings.http_token), repr(loaded.settings.http_token), str(loaded.warnings), str(loaded.origins),
        str(table), json.dumps([asdict(row) for row in table]),
    ]  # fmt: skip
    assert not [text for text in texts if CANARY in text]
    assert loaded.settings.http_token.get_secret_value() == CANARY
    assert CANARY in loaded.settings.agent_nats_url
    values = {row.key: row.value for row in table}
    assert values["akosha_http_token"] == MASK
    assert values["akosha_agent_nats_url"] == f"tls://{MASK}@nats.lan:4222"


@pytest.mark.parametrize(
    ("key", "secret", "rest"),
    [
        ("agent_nats_password", CANARY, {"AKOSHA_AGENT_NATS_USER": "me"}),
        ("agent_nats_token", CANARY, {}),
        ("agent_nats_nkey_seed", SEED, {}),
    ],
)
def test_no_text_of_valid_settings_shows_a_nats_secret(key, secret, rest):
    loaded = loaded_with({variable(key): secret, **rest})
    table = settings_table(loaded)
    texts = [str(loaded), repr(loaded.settings), loaded.settings.model_dump_json(), str(table)]
    assert not [text for text in texts if secret in text]
    assert getattr(loaded.settings, key).get_secret_value() == secret
    assert {row.key: row.value for row in table}[f"akosha_{key}"] == MASK


def test_an_absent_secret_is_shown_as_absent():
    values = {row.key: row.value for row in settings_table(loaded_with({}))}
    assert {values[f"akosha_{key}"] for key in SECRET} == {""}


def test_every_key_that_holds_a_secret_is_masked():
    assert {key for key, field in FIELDS.items() if field.annotation is SecretStr} == SECRET


@pytest.mark.parametrize(
    "environ",
    [
        {"SESSION_BUDDY_AKOSHA_HTTP_TOKEN": f"{CANARY} with blanks"},
        {"AKOSHA_AGENT_NATS_URL": f"http://me:{CANARY}@nats.lan"},
        {"AKOSHA_AGENT_NATS_URL": f"nats://me:{CANARY}@nats.lan:99999"},
        {"AKOSHA_CLOUD_ENDPOINT": f"https://key:{CANARY}@s3.example"},
        {"AKOSHA_CLOUD_ENDPOINT": f"https://s3.example/?sig={CANARY}"},
        {"AKOSHA_CLOUD_ENDPOINT": f"file://me:{CANARY}@nas/share"},
        {"SESSION_BUDDY_AKOSHA_HTTP_ENDPOINT": f"https://{CANARY}@akosha.example/mcp"},
        {"SESSION_BUDDY_AKOSHA_HTTP_TOKEN": CANARY, "SESSION_BUDDY_AKOSHA_MAX_RETRIES": "x"},
        {"AKOSHA_AGENT_NATS_URL": f"nats://me:{CANARY}@nats.lan"},
        {"AKOSHA_AGENT_NATS_URL": f"nats://{CANARY}@nats.lan"},
        {"AKOSHA_AGENT_NATS_URL": f"tls://{CANARY}:@nats.lan"},
        {"AKOSHA_AGENT_NATS_URL": f"tls://me:{CANARY}%0a@nats.lan"},
        {"AKOSHA_AGENT_NATS_URL": f"tls://me:x/{CANARY}@nats.lan"},
        {"AKOSHA_AGENT_NATS_URL": f"tls://me:x,{CANARY}@nats.lan"},
        {"AKOSHA_AGENT_NATS_URL": f"tls://me:{CANARY}@nats.lan", "AKOSHA_AGENT_NATS_TOKEN": CANARY},
        {"AKOSHA_AGENT_NATS_PASSWORD": CANARY},
        {"AKOSHA_AGENT_NATS_PASSWORD": f"{CANARY}\n{CANARY}", "AKOSHA_AGENT_NATS_USER": "me"},
        {
            "AKOSHA_AGENT_NATS_URL": "nats://nats.lan",
            "AKOSHA_AGENT_NATS_USER": "me",
            "AKOSHA_AGENT_NATS_PASSWORD": CANARY,
        },
        {"AKOSHA_AGENT_NATS_URL": "ws://nats.lan", "AKOSHA_AGENT_NATS_TOKEN": CANARY},
        {"AKOSHA_AGENT_NATS_TOKEN": f"{CANARY}\t{CANARY}"},
        {"AKOSHA_AGENT_NATS_TOKEN": CANARY, "AKOSHA_AGENT_NATS_NKEY_SEED": SEED},
        {"AKOSHA_AGENT_NATS_NKEY_SEED": f"{CANARY}{SEED}"},
    ],
)
def test_an_error_and_its_traceback_never_show_a_secret(environ):
    with pytest.raises(SettingsError) as caught:
        loaded_with(environ)
    text = "".join(traceback.format_exception(caught.value))
    assert re.search("must|needs|only one way|unencrypted", text)
    assert CANARY not in text
    assert SEED not in text


@pytest.mark.parametrize("yaml", ["[", "12345", "'a b'", "*", "!", "{a: ", '"\\q'])
def test_a_secret_in_a_broken_file_is_not_shown(tmp_path, yaml):
    path = tmp_path / "f.yaml"
    path.write_text(f"akosha_http_token: {yaml}{CANARY}\nakosha_max_retries: x\n")
    with pytest.raises(SettingsError) as caught:
        load(settings_file=path, environ={}, cwd=tmp_path, home=tmp_path)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_misspelled_key_of_a_secret_warns_without_its_value():
    loaded = loaded_with({"SESSION_BUDDY_AKOSHA_HTTP_TOKN": CANARY})
    assert len(loaded.warnings) == 1
    assert CANARY not in loaded.warnings[0]


def test_the_error_of_an_invalid_token_does_not_show_it():
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        Settings(http_token=f"{CANARY}\n\n{CANARY}")
    assert CANARY not in str(caught.value)
