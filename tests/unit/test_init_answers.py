"""Answers to `init` that are wrong: the message names their source and what is right, and repeats no password."""

from pathlib import Path

import pytest
import typer

from agent.domain.errors import SettingsError, StoreError
from agent.entrypoints.doctor.findings import Level, error, from_error
from agent.entrypoints.init import answers as init_answers, dialogue
from agent.entrypoints.init.answers import ANSWER, INPUT, Answers, Flags, answers
from agent.entrypoints.init.check import only_credentials_refused, with_advice
from agent.entrypoints.init.destination import Kind, from_address
from agent.entrypoints.init.dialogue import ask
from agent.entrypoints.stored_settings import draft
from agent.settings.endpoints import check_bucket, check_cloud_endpoint

PASSWORD = "hush/Pw1"


def flags(**changes) -> Flags:
    plain = {"to": None, "bucket": "", "region": "", "system_id": None, "directories": {}, "keys_from_stdin": False}
    return Flags(**plain | {"allow_plaintext": False, "yes": True, "force": False} | changes)


@pytest.fixture
def known(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return draft({}, {}, tmp_path, tmp_path, {})


def refused(given: Answers, tmp_path: Path) -> str:
    with pytest.raises(SettingsError) as error:
        draft(given.changes, {}, tmp_path, tmp_path, given.origins)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"to": "akosha+https://host:0/mcp"}, "akosha_http_endpoint is 'https://host:0/mcp' (--to): must have a port"),
        ({"to": "s3://memories", "region": "a b"}, "akosha_cloud_region is 'a b' (--region): must be a region's name"),
    ],
)
def test_a_wrong_option_is_named_and_not_the_file_that_does_not_have_it(known, tmp_path, options, named):
    assert refused(answers(flags(**options), known, None), tmp_path).startswith(named)


def test_a_wrong_answer_is_called_an_answer(known, tmp_path, monkeypatch):
    given = iter(["http://127.0.0.1:9/mcp", ""])
    monkeypatch.setattr(dialogue, "ask_destination", lambda *_: from_address(next(given), "", "", tmp_path, tmp_path))
    monkeypatch.setattr(dialogue, "ask_secret", lambda *_, **__: "two words")
    monkeypatch.setattr(dialogue, "ask", lambda *_, **__: "laptop")
    message = refused(answers(flags(yes=False), known, None), tmp_path)
    assert message.startswith("akosha_http_token is '********' (your answer): must consist of visible ASCII")


@pytest.mark.parametrize(
    ("to", "bucket"),
    [
        (f"https://user:{PASSWORD}@s3.test", "memories"),
        (f"https://user:{PASSWORD}@s3.test", ""),
        (f"https://user:{PASSWORD}@s3.test/memories", "other"),
        (f"user:{PASSWORD}@s3.test", ""),
        (f"s3://user:{PASSWORD}@memories", ""),
        (f"s3://user:{PASSWORD}@memories/path", ""),
        (f"file://user:{PASSWORD}@host/path", ""),
        (f"ftp://user:{PASSWORD}@host", ""),
        (f"akosha+https://user:{PASSWORD}@host/mcp", ""),
    ],
)
def test_a_password_in_an_address_is_not_repeated(known, tmp_path, to, bucket):
    def draft_of_answers():
        given = answers(flags(to=to, bucket=bucket), known, None)
        draft(given.changes, {}, tmp_path, tmp_path, given.origins)

    with pytest.raises(SettingsError) as error:
        draft_of_answers()
    assert not any(part in str(error.value) for part in PASSWORD.split("/"))


@pytest.mark.parametrize("check", [check_cloud_endpoint, check_bucket, dialogue.r2_endpoint])
@pytest.mark.parametrize("answer", [f"https://user:{PASSWORD}@s3.test", f"user:{PASSWORD}@s3.test"])
def test_an_answer_with_a_password_is_explained_without_it(monkeypatch, check, answer):
    explained = []

    def prompt(_text, *, value_proc, **_):
        with pytest.raises(typer.BadParameter) as error:
            value_proc(answer)
        explained.append(error.value.message)

    monkeypatch.setattr(typer, "prompt", prompt)
    ask("URL of the store", check)
    assert not any(part in explained[0] for part in PASSWORD.split("/"))
    assert "must" in explained[0] or "is not an account ID" in explained[0]


def test_an_address_without_a_scheme_is_answered_with_one(known, tmp_path):
    with pytest.raises(ValueError, match="must begin with https://"):
        check_cloud_endpoint("nas.local:9000")
    with pytest.raises(SettingsError, match=r"--to nas\.local:9000 is not an address") as error:
        answers(flags(to="nas.local:9000"), known, None)
    assert error.value.hint.startswith("begin with https://")
    with pytest.raises(SettingsError, match=r"https://nas\.local is the URL of a store or a server, not a dir"):
        dialogue.directory("https://nas.local", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("given", "advised"),
    [("old laptop", "'old laptop' must have letters, digits, - and _ only, at most 84; for example old-laptop"),
     ("///", "'///' must have letters")],
)  # fmt: skip
def test_a_system_id_that_would_become_another_one_is_refused(given, advised):
    with pytest.raises(SettingsError) as error:
        flags(system_id=given)
    assert str(error.value).startswith(f"--system-id {advised}")


def test_a_server_s_url_is_a_chosen_target_and_is_kept(known, tmp_path):
    known = draft({"http_endpoint": "https://akosha.test/mcp"}, {}, tmp_path, tmp_path, {})
    assert answers(flags(), known, None).destination is None


REFUSED = StoreError("wrong secret key for s3.test", hint="correct AWS_SECRET_ACCESS_KEY")
REFUSED.credentials_refused = True


def test_refused_keys_are_explained_by_where_they_were_given():
    found = [from_error("bucket", REFUSED, hint="-"), from_error("Akosha", REFUSED, hint="-")]
    assert [one.hint for one in with_advice(found, ANSWER)] == [
        "type both again: they may not belong together", "type the token again",
    ]  # fmt: skip
    assert [one.hint for one in with_advice(found, INPUT)] == [
        "both were sent as you gave them (standard input)", "the token was sent as you gave it (standard input)",
    ]  # fmt: skip
    assert with_advice(found, "")[0].hint == "correct AWS_SECRET_ACCESS_KEY"
    assert only_credentials_refused(found)
    assert not only_credentials_refused([*found, error("clock", "off", hint="-")])
    assert {one.level for one in found} == {Level.ERROR}


def test_after_refused_keys_only_the_keys_are_asked_for_again(known, monkeypatch):
    first = answers(flags(to="https://s3.test", bucket="memories"), known, None)
    asked = []
    monkeypatch.setattr(dialogue, "ask", lambda text, *_, **__: asked.append(text) or "AKIA")
    monkeypatch.setattr(dialogue, "ask_secret", lambda text, **_: asked.append(text) or "secret")
    again = answers(flags(yes=False), known, first)
    assert asked == ["Access key ID (empty: the AWS configuration in ~/.aws)", "Secret access key (not shown)"]
    assert (again.destination.kind, again.origin_of_keys) == (Kind.BUCKET, ANSWER)
    assert again.changes["cloud_bucket"] == "memories"
    assert init_answers.HTTP_TOKEN not in again.changes
