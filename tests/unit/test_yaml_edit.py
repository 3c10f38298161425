"""Changes of single keys in a YAML file keep everything else: comments, order, spelling, line ends."""

import pytest

from agent.domain.errors import SettingsError
from agent.settings.yaml_edit import edited


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ("", {"a": "x"}, "a: x\n"),
        ("# one\n# two", {"a": 5}, "# one\n# two\na: 5\n"),
        ("# one\na: 1 # note\nb: 'x' # note\n", {"a": 2, "b": None}, "# one\na: 2 # note\n"),
        ("a:\nb: 2\n", {"a": "yes"}, "a: 'yes'\nb: 2\n"),
        ("akosha_a: 1\n\n# end\n", {"a": "0123"}, "akosha_a: '0123'\n\n# end\n"),
        ("akosha_a: 1\n\n# end\n", {"a": None}, "\n# end\n"),
        ("{a: 1, b: 2}\n", {"a": 2}, "{a: 2, b: 2}\n"),
        ("a: |\n  x\n  y\n# note\nb: 1\n", {"a": None}, "# note\nb: 1\n"),
        ("a: [1,\n 2]\nb: 1\n", {"a": None}, "b: 1\n"),
        ('a: "x\n  y"\nb: 1\n', {"a": True}, "a: true\nb: 1\n"),
        ("a: 1\na: 2\nb: 1", {"a": None}, "b: 1"),
        ("a: 1\na: 2\nb: 1", {"a": 3}, "a: 1\na: 3\nb: 1"),
        ("a: 1\r\nb: 2\r\n", {"a": "x: y #"}, "a: 'x: y #'\r\nb: 2\r\n"),
        ("---\na: 1\n...\n", {"a": 2}, "---\na: 2\n...\n"),
        ("\ufeffa: 1\n", {"a": 2}, "a: 2\n"),
        ("x: &A {a: 1}\n<<: *A\n", {"a": 2}, "x: &A {a: 1}\n<<: *A\na: 2\n"),
        ("a: 1\n", {"b": "é", "c": "", "d": 1.5, "e": "l\nb"}, "a: 1\nb: é\nc: ''\nd: 1.5\ne: 'l\n\n  b'\n"),
        ("b: 1\n", {"a": None}, "b: 1\n"),
        ("a:\n- x\n- y\n\n# note\n", {"a": None}, "\n# note\n"),
        ("a: # one\n  - x\n  # two\n  - y\n# three\nb: 1\n", {"a": "z"}, "a: z # one\n# three\nb: 1\n"),
        ("a:\n  k:\n  - v\n  # note\nb: 1\n", {"a": None}, "  # note\nb: 1\n"),
        ("a: |\n  x\n  y\n# note\nb: 1\n", {"a": "z"}, "a: z\n# note\nb: 1\n"),
        ("a:\r\n- x\r\n# note\r\n", {"a": 2}, "a: 2\r\n# note\r\n"),
    ],
)
def test_only_the_changed_keys_change(before, changes, after):
    assert edited(before.encode(), changes, "the file") == after.encode()


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        ("{a: 1, b: 2}\n", {"c": 2}),
        ("{a: 1, b: 2}\n", {"a": None}),
        ("? a\n: x\nb: 1\n", {"a": "z"}),
        ("a: &x 1\nb: *x\n", {"a": 2}),
        ("x: &A {a: 1}\n<<: *A\n", {"a": None}),
        ("---\na: 1\n...\n", {"b": 2}),
    ],
)
def test_a_change_that_the_layout_does_not_allow_is_refused(before, changes):
    with pytest.raises(SettingsError, match=r"the file cannot be changed by a command \(edit it by hand"):
        edited(before.encode(), changes, "the file")


def test_a_file_that_is_not_valid_is_refused_with_its_position():
    with pytest.raises(SettingsError, match="the file is not valid YAML at line 3"):
        edited(b"a: 1\nb: [\n", {"a": 2}, "the file")
