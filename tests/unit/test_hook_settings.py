"""Claude Code's settings with our hook in them: all else stays as it is, and nothing is left when it goes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain.errors import SettingsError
from agent.entrypoints.hook.claude_settings import inserted, is_empty, withdrawn
from agent.entrypoints.hook.command_line import HookCommand, parsed
from agent.entrypoints.hook.json_text import checked

PATH = Path("settings.json")
COMMAND = HookCommand(("/opt/akosha-agent",), {"--state-dir": "/home/me/the state"})
WITH_ARGS = replace(COMMAND, with_args=True)
ENTRY = {"hooks": [{"type": "command", "command": str(COMMAND), "timeout": 5}]}
ENTRY_WITH_ARGS = {
    "hooks": [
        {
            "type": "command",
            "command": "/opt/akosha-agent",
            "args": ["hook", "session-end", "--state-dir", "/home/me/the state"],
            "timeout": 5,
        }
    ]
}
THEIRS = {"hooks": [{"type": "command", "command": "say bye"}]}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
spaces = st.text(" \t\r\n", max_size=3)


@st.composite
def spelled(draw, value) -> str:
    """A value as JSON, with space anywhere, members twice, and characters escaped or not."""

    def gap() -> str:
        return draw(spaces)

    if isinstance(value, dict):
        members = [(key, inner) for key, inner in value.items() if key or inner]
        if members and draw(st.booleans()):
            members.insert(0, (members[-1][0], draw(st.none() | st.just({}) | st.just([]))))
        inside = ",".join(f"{gap()}{draw(spelled(key))}{gap()}:{draw(spelled(one))}" for key, one in members)
        body = f"{{{inside}{gap()}}}"
    elif isinstance(value, list):
        body = f"[{','.join(draw(spelled(one)) for one in value)}{gap()}]"
    else:
        body = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return f"{gap()}{body}{gap()}"


@st.composite
def documents(draw) -> str:
    document = draw(st.dictionaries(texts, values, max_size=3))
    if draw(st.booleans()):
        hooks = draw(st.dictionaries(texts, values, max_size=2))
        if draw(st.booleans()):
            hooks["SessionEnd"] = draw(st.lists(values | st.just(THEIRS), max_size=3))
        document["hooks"] = hooks
    if draw(st.booleans()):
        document = dict(reversed(document.items()))
    made = st.sampled_from([None, 1, 2, 4, "\t"]).map(lambda indent: json.dumps(document, indent=indent) + "\n")
    text = draw(made | spelled(document))
    if draw(st.booleans()):
        text = text.replace("\r", "").replace("\n", "\r\n")
    return draw(st.sampled_from(["", "\ufeff"])) + text


def loaded(text: str):
    return json.loads(text.removeprefix("\ufeff"))


@settings(max_examples=50, deadline=None)
@given(documents(), st.sampled_from([(COMMAND, ENTRY), (WITH_ARGS, ENTRY_WITH_ARGS)]))
def test_installing_adds_the_hook_and_keeps_all_else_and_uninstalling_restores_every_byte(text, ours):
    command, entry = ours
    new = inserted(text, command, PATH)
    expected = loaded(text)
    expected.setdefault("hooks", {}).setdefault("SessionEnd", []).append(entry)
    assert loaded(new.text) == expected
    assert inserted(new.text, command, PATH).text == new.text
    assert withdrawn(new.text, PATH, new.made, new.gap) == text


@settings(max_examples=50, deadline=None)
@given(documents())
def test_an_earlier_command_is_brought_up_to_date_where_it_stands(text):
    other = HookCommand(("/old/akosha-agent",), {"--state-dir": "/elsewhere", "--system-id": "x"})
    new = inserted(text, other, PATH)
    again = inserted(new.text, COMMAND, PATH)
    assert again.text == new.text.replace(json.dumps(str(other)), json.dumps(str(COMMAND)))
    assert (again.made, again.gap) == (frozenset(), "")
    assert withdrawn(again.text, PATH, new.made, new.gap) == text


@settings(max_examples=50, deadline=None)
@given(documents(), st.sampled_from([(COMMAND, WITH_ARGS), (WITH_ARGS, COMMAND)]))
def test_a_hook_is_changed_from_a_shell_line_to_a_program_with_args_and_back_where_it_stands(text, forms):
    before, after = forms
    new = inserted(text, before, PATH)
    again = inserted(new.text, after, PATH)
    expected = loaded(inserted(text, after, PATH).text)
    assert loaded(again.text) == expected
    assert withdrawn(again.text, PATH, new.made, new.gap) == text


@settings(max_examples=50, deadline=None)
@given(documents(), st.sampled_from([2, None, "\t"]))
def test_rewritten_by_another_program_in_between_uninstalling_leaves_what_there_was(text, indent):
    new = inserted(text, COMMAND, PATH)
    rewritten = json.dumps(loaded(new.text), indent=indent, ensure_ascii=False)
    assert loaded(withdrawn(rewritten, PATH, new.made, new.gap)) == loaded(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param('{\n  "a": 1\n}\n', '{\n  "a": 1,\n  "hooks": {\n    "SessionEnd": [\n      {\n', id="two-spaces"),
        pytest.param('{\n\t"a": 1\n}', '{\n\t"a": 1,\n\t"hooks": {\n\t\t"SessionEnd": [\n\t\t\t{\n', id="tabs"),
        pytest.param(
            '{\r\n    "a": 1\r\n}', '{\r\n    "a": 1,\r\n    "hooks": {\r\n        "SessionEnd": [', id="crlf"
        ),
        pytest.param('{"a":1}', '{"a":1, "hooks": {"SessionEnd": [{"hooks": [{"type"', id="one-line"),
        pytest.param("{}", '{\n  "hooks": {\n    "SessionEnd": [\n      {\n', id="empty"),
        pytest.param('{\n  "hooks": {}\n}\n', '{\n  "hooks": {\n    "SessionEnd": [\n      {\n', id="no-events"),
    ],
)
def test_what_is_added_is_laid_out_as_its_surroundings_are(before, after):
    assert inserted(before, COMMAND, PATH).text.startswith(after)


def test_what_others_added_beside_the_hook_stays_when_it_goes():
    text = inserted("{}", COMMAND, PATH).text
    document = json.loads(text)
    document["hooks"]["SessionEnd"][0]["hooks"].append(THEIRS["hooks"][0])
    document["hooks"]["Stop"] = []
    left = json.loads(withdrawn(json.dumps(document), PATH))
    assert left == {"hooks": {"SessionEnd": [THEIRS], "Stop": []}}


def test_without_a_record_of_what_was_made_what_is_empty_goes():
    assert is_empty(withdrawn(inserted("{}", COMMAND, PATH).text, PATH))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param('{\n  "a": 1,\n  "b" 2}', "line 3, column 7", id="no-colon"),
        pytest.param('{\n  // why\n  "a": 1\n}', "line 2, column 3", id="comment"),
        pytest.param("", "line 1, column 1", id="nothing"),
        pytest.param('{"a": NaN}', "NaN is no number", id="nan"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
        pytest.param('{"a": 1} {}', "line 1, column 10", id="two"),
    ],
)
def test_what_is_not_json_is_refused_with_the_place(text, said):
    with pytest.raises(SettingsError, match=r"settings\.json") as caught:
        checked(text, str(PATH))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("[]", "the document is not an object (line 1, column 1)", id="list"),
        pytest.param('{\n "hooks": []}', "hooks is not an object (line 2, column 11)", id="hooks"),
        pytest.param(
            '{"hooks": {\n"SessionEnd":\n  {}}}', "hooks.SessionEnd is not a list (line 3, column 3)", id="ends"
        ),
    ],
)
def test_what_is_shaped_otherwise_is_refused_with_the_place(text, said):
    with pytest.raises(SettingsError) as caught:
        inserted(text, COMMAND, PATH)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        pytest.param("akosha-agent hook session-end", True, id="bare"),
        pytest.param("'/a b/akosha-agent' hook session-end --state-dir '/x y'", True, id="quoted"),
        pytest.param("/venv/bin/python -EP -m agent hook session-end --system-id a", True, id="module"),
        pytest.param("/venv/bin/python -EP /venv/bin/akosha-agent hook session-end", True, id="script"),
        pytest.param("sudo /venv/bin/python akosha-agent hook session-end", False, id="wrapped"),
        pytest.param("akosha-agent hook session-end || true", False, id="by-hand"),
        pytest.param("akosha-agent sync", False, id="another"),
        pytest.param("hook session-end", False, id="no-program"),
        pytest.param("say 'akosha-agent hook session-end", False, id="unbalanced"),
        pytest.param(7, False, id="number"),
    ],
)
def test_only_what_we_write_is_taken_for_ours(command, ours):
    found = parsed(command)
    assert (found is not None) is ours
    if found:
        assert parsed(str(found)) == found
        assert parsed(
            **{
                "command" if key == "command" else "arguments": value
                for key, value in replace(found, with_args=True).fields.items()
            }
        ) == replace(found, with_args=True)


@pytest.mark.parametrize("arguments", ["hook session-end", [], ["sync"], ["hook", "session-end", 7], {"a": 1}])
def test_other_arguments_are_not_taken_for_ours(arguments):
    assert parsed("/opt/akosha-agent", arguments) is None
