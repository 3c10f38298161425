"""What commands print on terminals of 40, 80 and 200 columns and in a pipe: the files in `screens`."""

import re
import time
from pathlib import Path

import pytest

from agent.domain.plain_text import printable
from agent.entrypoints.formatting import columns
from agent.entrypoints.live_line import fitted
from agent.entrypoints.text_lines import Line, Style, has_colours, labelled, rendered, text_width
from tests.support import screens


@pytest.fixture
def files(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield screens.files()
    monkeypatch.undo()
    time.tzset()


def test_commands_print_their_screens(files):
    """After a change of a text: python -m tests.support.screens, and read the difference."""
    assert files == {path.name: path.read_text() for path in screens.DIRECTORY.iterdir()}
    for text in files.values():
        assert printable(text, lines=True) == text


def test_the_guide_shows_what_fleet_prints(files):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "fleet.md").read_text()
    (shown,) = re.findall(
        r"^---- the example in docs/guides/fleet.md\n(.*?)\n^----", files["fleet_80.txt"], re.DOTALL | re.MULTILINE
    )
    assert f"```text\n{shown}```\n" in guide


@pytest.mark.parametrize("width", [40, 80])
def test_only_a_single_word_exceeds_the_width(files, width):
    for name, text in files.items():
        for line in text.splitlines() if name.endswith(f"_{width}.txt") else ():
            assert len(line) <= width or len(line.split()) == 1 or line.startswith("----"), line


@pytest.mark.parametrize("about", [about for about in screens.PROGRESS if not about.startswith("run")])
@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_progress_line_has_percent_and_remaining_time(about, width):
    line = fitted(screens.PROGRESS[about], width)
    assert len(line) < width
    assert re.search(r"\d %  .*\S left$", line), line


def test_wide_characters_are_wrapped_at_the_width_of_the_terminal():
    text = "記憶のデータベースが読めません reflection (確認してください) " * 3
    shown = rendered([labelled("warning", text, 11)], width=40, colours=False)
    assert max(map(text_width, shown)) <= 40
    assert "".join("".join(shown).split()).removeprefix("warning") == "".join(text.split())
    assert [text_width(row) for row in columns([("記憶", "1"), ("reflection", "2")])] == [13, 13]


def test_lines_keep_their_indent_and_their_words():
    text = "the uploads belong to another machine (akosha-agent sync --take-over)"
    shown = rendered([labelled("warning", text, 11, Style.WARNING)], width=40, colours=False)
    assert [line[:11] for line in shown] == ["warning    ", *[" " * 11] * (len(shown) - 1)]
    assert " ".join(" ".join(shown).split()).removeprefix("warning ") == text


def test_colours_are_escape_sequences_around_the_text():
    lines = [Line("safe", Style.GOOD), Line("cloud  here", bold=5), Line("plain")]
    assert rendered(lines, width=None, colours=True) == [
        "\x1b[32msafe\x1b[0m", "\x1b[1mcloud\x1b[0m  here", "plain",
    ]  # fmt: skip
    assert rendered(lines, width=None, colours=False) == ["safe", "cloud  here", "plain"]


class Screen:
    def __init__(self, *, terminal):
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    ("terminal", "environ", "coloured"),
    [
        (True, {"TERM": "xterm"}, True), (False, {"TERM": "xterm"}, False), (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False), (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
    ],
)  # fmt: skip
def test_colours_need_a_terminal_and_no_no_color(terminal, environ, coloured, monkeypatch):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert has_colours(Screen(terminal=terminal)) == coloured
