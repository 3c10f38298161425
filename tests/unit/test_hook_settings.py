"""Adding the agent's hook to Claude Code's settings keeps everything else; removing it leaves nothing behind."""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain.errors import SettingsError
from agent.entrypoints.hook.claude_settings import ClaudeSettings
from agent.entrypoints.hook.hook_command import HookCommand, parsed

COMMAND = HookCommand(("/opt/akosha-agent",), {"--state-dir": "/home/me/the state"})
OTHER = HookCommand(("/old/akosha-agent",), {"--state-dir": "/elsewhere", "--system-id": "x"})
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
OTHER_HOOK = {"hooks": [{"type": "command", "command": "say bye"}]}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def documents(draw) -> str:
    """Settings as programs write them: any indent or one line, LF or CRLF, escaped or not, with or without a BOM."""
    document = draw(st.dictionaries(texts, values, max_size=3))
    if draw(st.booleans()):
        hooks = draw(st.dictionaries(texts, values, max_size=2))
        if draw(st.booleans()):
            hooks["SessionEnd"] = draw(st.lists(values | st.just(OTHER_HOOK), max_size=3))
        document["hooks"] = hooks
    document = draw(st.permutations(list(document.items())).map(dict))
    indent = draw(st.sampled_from([None, 0, 1, 2, 4, "\t"])) if document else 2
    separators = draw(st.sampled_from([None, (",", ":")])) if indent is None else None
    text = json.dumps(document, indent=indent, separators=separators, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return draw(st.sampled_from(["", "\ufeff"])) + text + draw(st.sampled_from(["", "\n", "\r\n", "\n\n"]))


def parsed_settings(text: str) -> ClaudeSettings:
    return ClaudeSettings.parse(Path("settings.json"), text.encode())


def with_hook(text: str, command: HookCommand = COMMAND) -> tuple[str, frozenset[str]]:
    settings = parsed_settings(text)
    made = settings.insert(command)
    return settings.render().decode(), made


def without_hook(text: str, *made: frozenset[str]) -> str:
    settings = parsed_settings(text)
    settings.remove(*made)
    return settings.render().decode()


def loaded(text: str):
    return json.loads(text.removeprefix("\ufeff"))


@settings(max_examples=40)
@given(documents(), st.sampled_from([(COMMAND, ENTRY), (WITH_ARGS, ENTRY_WITH_ARGS)]))
def test_installing_adds_only_the_hook_and_uninstalling_restores_the_text(text, command_and_entry):
    command, entry = command_and_entry
    new, made = with_hook(text, command)
    expected = loaded(text)
    expected.setdefault("hooks", {}).setdefault("SessionEnd", []).append(entry)
    assert loaded(new) == expected
    assert list(loaded(new)) == list(expected)
    assert with_hook(new, command)[0] == new
    left = without_hook(new, made)
    assert (loaded(left), list(loaded(left))) == (loaded(text), list(loaded(text)))


@settings(max_examples=25)
@given(documents().filter(lambda text: parsed_settings(text).render().decode() == text))
def test_a_text_in_a_programs_layout_is_restored_byte_for_byte(text):
    new, made = with_hook(text)
    assert without_hook(new, made) == text


@settings(max_examples=25)
@given(documents(), st.permutations([OTHER, COMMAND, WITH_ARGS]))
def test_an_earlier_command_is_updated_in_its_position(text, commands):
    """Another path, a shell line, a command with `args`: each replaces any other, and nothing else changes."""
    first, second, _ = commands
    new, made = with_hook(text, first)
    again, made_again = with_hook(new, second)
    assert loaded(again) == loaded(with_hook(text, second)[0])
    assert made_again == frozenset()
    assert loaded(without_hook(again, made)) == loaded(text)


@settings(max_examples=25)
@given(documents(), st.sampled_from([2, None, "\t"]))
def test_uninstalling_from_a_rewritten_file_restores_its_content(text, indent):
    new, made = with_hook(text)
    rewritten = json.dumps(loaded(new), indent=indent, ensure_ascii=False)
    assert loaded(without_hook(rewritten, made)) == loaded(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param('{\n  "a": 1\n}\n', '{\n  "a": 1,\n  "hooks": {\n    "SessionEnd": [\n      {\n', id="two-spaces"),
        pytest.param('{\n\t"a": 1\n}', '{\n\t"a": 1,\n\t"hooks": {\n\t\t"SessionEnd": [\n\t\t\t{\n', id="tabs"),
        pytest.param(
            '{\r\n    "a": 1\r\n}', '{\r\n    "a": 1,\r\n    "hooks": {\r\n        "SessionEnd": [', id="crlf"
        ),
        pytest.param('{"a": 1}', '{"a": 1, "hooks": {"SessionEnd": [{"hooks": [{"type": ', id="one-line"),
        pytest.param('{"a":1}', '{"a":1,"hooks":{"SessionEnd":[{"hooks":[{"type":', id="compact"),
        pytest.param("{}", '{\n  "hooks": {\n    "SessionEnd": [\n      {\n', id="empty"),
        pytest.param('{\n  "hooks": {}\n}\n', '{\n  "hooks": {\n    "SessionEnd": [\n      {\n', id="no-events"),
        pytest.param(
            '{\n  "a" : [ 1,2 ],\n   "b": "\\u00e9\\ud800"}',
            '{\n  "a": [\n    1,\n    2\n  ],\n  "b": "\\u00e9\\ud800",\n  "hooks": {\n',
            id="by-hand",
        ),
    ],
)
def test_the_layout_of_the_file_is_kept(before, after):
    new = with_hook(before)[0]
    assert new.startswith(after)
    assert new[new.rindex("}") + 1 :] == before[before.rindex("}") + 1 :]


def test_entries_that_others_added_next_to_the_hook_are_kept():
    document = json.loads(with_hook("{}")[0])
    document["hooks"]["SessionEnd"][0]["hooks"].append(OTHER_HOOK["hooks"][0])
    document["hooks"]["Stop"] = []
    left = json.loads(without_hook(json.dumps(document)))
    assert left == {"hooks": {"SessionEnd": [OTHER_HOOK], "Stop": []}}


def test_without_a_record_empty_containers_are_removed():
    assert json.loads(without_hook(with_hook("{}")[0])) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('{\n  "a": 1,\n  "b" 2}', "line 3, column 7", id="no-colon"),
        pytest.param('{\n  // why\n  "a": 1\n}', "line 2, column 3", id="comment"),
        pytest.param("", "line 1, column 1", id="nothing"),
        pytest.param('{"a": NaN}', "NaN is not a number", id="nan"),
        pytest.param('{"a": -1e400}', "-1e400 is out of range", id="range"),
        pytest.param('{"a": 1, "b": {"c": 1, "c": 1}}', 'the key "c" occurs twice in one object', id="twice"),
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
        pytest.param('{"a": 1} {}', "line 1, column 10", id="two"),
        pytest.param("[]", "the document is not an object", id="list"),
        pytest.param('{\n "hooks": []}', "hooks is not an object", id="hooks"),
        pytest.param('{"hooks": {"SessionEnd": {}}}', "hooks.SessionEnd is not a list", id="ends"),
    ],
)
def test_a_file_that_cannot_be_edited_without_loss_is_refused_with_the_reason(text, expected):
    with pytest.raises(SettingsError, match=r"settings\.json") as caught:
        with_hook(text)
    assert expected in str(caught.value)


def test_nesting_that_can_be_parsed_but_not_rendered_is_refused():
    for depth in range(900, sys.getrecursionlimit() + 10, 10):  # the limit depends on the stack
        with contextlib.suppress(SettingsError):
            with_hook(f'{{"a": {"[" * depth}1{"]" * depth}}}')


def test_a_path_that_is_not_utf8_is_refused():
    with pytest.raises(SettingsError, match="not UTF-8"):
        with_hook('{"a": "\\u00e9"}', replace(COMMAND, options={"--state-dir": "/a\udcff"}))


@pytest.mark.parametrize(
    ("command", "is_own"),
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
def test_only_commands_that_the_agent_writes_are_recognised(command, is_own):
    found = parsed(command)
    assert (found is not None) is is_own
    if found:
        assert parsed(str(found)) == found
        assert parsed(
            **{
                "command" if key == "command" else "arguments": value
                for key, value in replace(found, with_args=True).fields.items()
            }
        ) == replace(found, with_args=True)


def test_a_command_of_a_million_characters_is_not_parsed():
    """Parsing it as a shell does would take minutes."""
    assert parsed(f"/opt/akosha-agent hook session-end --state-dir {'ä' * 10**6}") is None


@pytest.mark.parametrize("arguments", ["hook session-end", [], ["sync"], ["hook", "session-end", 7], {"a": 1}])
def test_other_arguments_are_not_recognised(arguments):
    assert parsed("/opt/akosha-agent", arguments) is None
