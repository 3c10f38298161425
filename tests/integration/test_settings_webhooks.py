"""The setting of webhooks: from a variable, from both files of the agent, and by `config set`."""

import json
import re
from base64 import b64encode
from pathlib import Path

import pytest

from agent.domain.errors import SettingsError
from agent.entrypoints.logs import known_secrets
from agent.entrypoints.stored_settings import draft
from agent.settings import load, settings_table

SECRET = f"whsec_{b64encode(b'k3y-of-the-signature-32-bytes-lo').decode()}"
PING = {"url": "https://hc-ping.example/0f3c9a1b-canary", "events": ["succeeded"]}
SIGNED = {
    "url": "https://me:canary@hooks.example:8443/in?token=canary",
    "events": ["overdue", "damaged"],
    "secret": SECRET,
    "overdue_hours": 6,
}


@pytest.fixture
def home(tmp_path):
    (tmp_path / ".config/akosha-agent").mkdir(parents=True)
    return tmp_path


def write(home, name: str, text: str) -> None:
    path = home / ".config/akosha-agent" / name
    path.write_text(text)
    path.chmod(0o600)


def loaded(home, **environ):
    return load(environ=environ, cwd=home, home=home)


def webhooks(home, **environ):
    return [one.webhook(n) for n, one in enumerate(loaded(home, **environ).settings.agent_webhooks, 1)]


YAML = f"""\
agent_webhooks:
  - url: {PING["url"]}
    events: [succeeded]
  - url: {SIGNED["url"]}
    events: [overdue, damaged]
    secret: {SECRET}
    overdue_hours: 6
"""


def test_the_variable_and_the_file_of_secrets_have_the_same_webhooks(home):
    by_variable = webhooks(home, AKOSHA_AGENT_WEBHOOKS=json.dumps([PING, SIGNED]))
    write(home, "credentials.yaml", YAML)
    assert webhooks(home) == by_variable
    ping, signed = by_variable
    assert (ping.url, ping.events, ping.key, ping.overdue_hours) == (PING["url"], {"succeeded"}, b"", 24.0)
    assert (signed.key, signed.overdue_hours) == (b"k3y-of-the-signature-32-bytes-lo", 6.0)


def test_the_lines_of_the_guide_are_valid(home):
    page = (Path(__file__).parents[2] / "docs/guides/webhooks.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    write(home, "credentials.yaml", block.replace("whsec_YOUR-BASE64", SECRET))
    found = webhooks(home)
    assert [one.as_text for one in found] == [False, True, False, False]
    assert found[1].events == {"overdue", "recovered", "damaged"}
    (command,) = re.findall(r"^\$ echo '(.*)' \|", page, re.MULTILINE)
    assert [one.url for one in webhooks(home, AKOSHA_AGENT_WEBHOOKS=command)] == [found[0].url]


def test_a_webhook_without_a_secret_may_be_in_the_settings_file_and_one_with_a_secret_not(home):
    write(home, "config.yaml", f"agent_webhooks: [{{url: {PING['url']}, events: [succeeded]}}]\n")
    assert len(webhooks(home)) == 1
    write(home, "config.yaml", YAML)
    with pytest.raises(SettingsError, match=r"secrets belong in ~/.config/akosha-agent/credentials.yaml"):
        loaded(home)


@pytest.mark.parametrize("given", [[PING], [SIGNED]], ids=["config.yaml", "credentials.yaml"])
def test_config_set_stores_json_in_the_file_that_it_belongs_to(home, given, request):
    made = draft({"agent_webhooks": json.dumps(given)}, {}, home, home, {})
    made.write()
    assert made.files[0].endswith(request.node.callspec.id)
    assert [one.url for one in webhooks(home)] == [given[0]["url"]]


def test_no_text_shows_a_path_a_query_a_password_or_a_secret(home):
    found = loaded(home, AKOSHA_AGENT_WEBHOOKS=json.dumps([PING, SIGNED]))
    (row,) = [row for row in settings_table(found) if row.key == "akosha_agent_webhooks"]
    assert row.value == "https://hc-ping.example: succeeded; https://hooks.example:8443: overdue, damaged"
    for text in (str(found), repr(found.settings), found.settings.model_dump_json(), row.value):
        assert "canary" not in text
        assert SECRET not in text
    assert {SECRET, PING["url"], "0f3c9a1b-canary", "token=canary"} <= set(known_secrets(found.settings, {}))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("[canary", "is not valid JSON"),
        ("5", "must be a list of webhooks, each with url and events"),
        ({"url": "https://canary.example"}, "must be a list of webhooks"),
        ([{"url": "https://x.example/canary"}], "webhook 1: events is missing"),
        ([PING, {"events": ["failed"]}], "webhook 2: url is missing"),
        ([PING | {"canary": 1}], "webhook 1 has an unknown key"),
        ([PING | {"event": "canary"}], "did you mean events?"),
        ([PING | {"events": []}], "webhook 1: events must be a list of succeeded"),
        ([PING | {"events": ["canary"]}], "webhook 1: events must be a list of succeeded"),
        ([PING | {"url": "ftp://canary.example"}], "webhook 1: url must be https://HOST"),
        ([PING | {"url": "https://x.example/a b canary"}], "percent-encoded"),
        ([PING | {"url": "https://x.example/${CANARY}canary"}], "percent-encoded"),
        ([PING | {"url": "https://x.example/#canary"}], "must not contain #"),
        ([PING | {"url": "http://x.example/canary"}], "webhook 1: url would be unencrypted to another machine"),
        (
            [PING | {"url": f"https://{'x' * 64}.example/canary"}],
            "host name that is too long: at most 63 characters",
        ),
        ([PING | {"secret": "canary"}], "webhook 1: secret must be whsec_"),
        ([PING | {"secret": f"whsec_{b64encode(b'canary').decode()}"}], "24 to 64 bytes"),
        ([PING | {"overdue_hours": 0}], "webhook 1: overdue_hours must be a number above 0"),
        ([PING | {"overdue_hours": True}], "not true or false"),
        ([PING, PING], "must not have a URL twice"),
        ([PING] * 21, "at most 20"),
        (["canary"], "webhook 1 must be a mapping"),
    ],
)
def test_an_invalid_webhook_is_refused_with_its_place_and_without_its_content(home, given, problem):
    text = given if isinstance(given, str) else json.dumps(given)
    with pytest.raises(SettingsError) as caught:
        loaded(home, AKOSHA_AGENT_WEBHOOKS=text)
    assert str(caught.value).count(problem) == 1
    assert "canary" not in str(caught.value).lower().replace("${canary}", "")


@pytest.mark.parametrize(
    "text", ["{}", "[[a]]", "[{url: https://x.example, events: {a: b}}]", f"[{', '.join(['{url: a}'] * 21)}]"]
)
def test_a_list_that_yaml_nests_deeper_is_an_error_and_not_an_empty_setting(home, text):
    write(home, "config.yaml", f"agent_webhooks: {text}\n")
    with pytest.raises(SettingsError, match="akosha_agent_webhooks"):
        loaded(home)


def test_http_is_permitted_to_this_machine_and_to_allowed_hosts(home):
    urls = ["http://127.0.0.1:9/a", "http://localhost/b", "http://nas.lan/c"]
    given = json.dumps([{"url": url, "events": ["failed"]} for url in urls])
    allowed = {"AKOSHA_AGENT_ALLOW_PLAINTEXT": "nas.lan"}
    assert [one.url for one in webhooks(home, AKOSHA_AGENT_WEBHOOKS=given, **allowed)] == urls


def test_a_file_of_the_working_directory_sets_no_webhook(home):
    (home / "settings").mkdir()
    (home / "settings/local.yaml").write_text("akosha_" + YAML)
    found = loaded(home)
    assert found.settings.agent_webhooks == ()
    assert any("akosha_agent_webhooks" in warning for warning in found.warnings)
