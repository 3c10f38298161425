"""Reading settings files: only the agent's keys are read, and errors name the line without quoting the file."""

import os

import pytest
from hypothesis import given, strategies as st

from agent.domain.errors import SettingsError
from agent.settings.yaml_file import MAX_BYTES, expand, identity_of, read_settings_file


def read(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_settings_file(path, name="the file", wanted=lambda key: key.startswith("akosha_"))


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "~\n", "null"])
def test_an_empty_file_has_no_values(tmp_path, text):
    assert read(tmp_path / "f.yaml", text).values == {}


def test_only_wanted_keys_of_the_top_level_are_read(tmp_path):
    found = read(
        tmp_path / "f.yaml", "akosha_max_retries: 5\nother: 1\nnested:\n  akosha_system_id: x\n3: 4\n[a, b]: c\n"
    )
    assert found.values == {"akosha_max_retries": 5}


def test_values_have_the_types_of_yaml(tmp_path):
    found = read(
        tmp_path / "f.yaml",
        "akosha_a: yes\nakosha_b: 1.5\nakosha_c: '1.5'\nakosha_d:\nakosha_e: [1, x]\nakosha_f: {x: 1}\nakosha_g: ''\n",
    )
    assert list(found.values.values()) == [True, 1.5, "1.5", None, [1, "x"], {}, ""]


@pytest.mark.parametrize(
    "number", ["9" * 5000, "0x" + "f" * 5000, "0" + "7" * 9000, "1:" * 3000 + "1", "1." + "0" * 99]
)
def test_a_number_of_thousands_of_digits_is_refused_with_its_position(tmp_path, number):
    with pytest.raises(
        SettingsError, match=r"the file has a number of [\d,]+ characters at line 2, column 11"
    ) as caught:
        read(tmp_path / "f.yaml", f"akosha_b: 1\nakosha_a: {number}\n")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value", ["!!int ''", "!!int x", "!!float ''", "!!bool x", "!!timestamp x", "!!binary x", "!x y"]
)
def test_a_text_that_does_not_fit_its_tag_is_refused_with_its_position(tmp_path, value):
    with pytest.raises(SettingsError, match="the file is not valid YAML at line 2, column 11"):
        read(tmp_path / "f.yaml", f"akosha_b: 1\nakosha_a: {value}\n")


def test_anchors_and_merge_keys_are_followed(tmp_path):
    found = read(tmp_path / "f.yaml", "base: &b {akosha_a: 1, akosha_b: &v 2}\n<<: *b\nakosha_a: 3\nakosha_c: *v\n")
    assert found.values == {"akosha_a": 3, "akosha_b": 2, "akosha_c": 2}


@pytest.mark.parametrize("levels", [6, 300])
def test_merges_that_multiply_are_refused(tmp_path, levels):
    """With six levels, half a kilobyte merges into 120,000 keys; each further level multiplies them by nine."""
    bomb = "".join(f"k{n}: &k{n} {{<<: [{', '.join([f'*k{n - 1}'] * 9)}]}}\n" for n in range(1, levels))
    with pytest.raises(SettingsError, match="merges too many keys"):
        read(tmp_path / "f.yaml", f"k0: &k0 {{x: 1}}\n{bomb}<<: *k{levels - 1}\nakosha_a: 1\n")


def test_a_mapping_that_merges_itself_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="is not valid YAML"):
        read(tmp_path / "f.yaml", "base: &b {<<: *b, akosha_a: 1}\n<<: *b\n")


def test_values_of_other_keys_are_not_constructed(tmp_path):
    """Tags of other programs, impossible dates and exponential nesting are not constructed."""
    bomb = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 40))
    found = read(tmp_path / "f.yaml", f"x: !vault abc\ny: 2024-99-99\nk0: &k0 lol\n{bomb}akosha_a: 1\nakosha_b: *k39\n")
    assert found.values == {"akosha_a": 1, "akosha_b": [[]] * 9}


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("akosha_a: 1\nakosha_b: 'open\n", 3, 1),
        ("akosha_a: 1\n\tb: 2\n", 2, 1),
        ("akosha_a: @c4n4ry\n", 1, 11),
        ("akosha_a: 1\nakosha_http_token: *c4n4ry\n", 2, 20),
        ("akosha_a: 1\nakosha_http_token: !c4n4ry x\n", 2, 20),
        ("akosha_a: 2024-99-99\n", 1, 11),
        ("x: 1\nakosha_a: !!int c4n4ry\n", 2, 11),
        ("akosha_a: c4n4ry: b\n", 1, 17),
        ("a: 1\n--- \nb: 2\n", 2, 1),
        ("ä: 1\nb: ä\x07\n", 2, 5),
        (b"a: 1\nb: c4n4ry\xff\n", 2, 10),
    ],
)
def test_a_broken_file_is_named_with_line_and_column_and_never_quoted(tmp_path, text, line, column):
    with pytest.raises(SettingsError) as caught:
        read(tmp_path / "f.yaml", text)
    assert caught.value.message == f"the file is not valid YAML at line {line}, column {column}"
    assert caught.value.__suppress_context__
    assert "c4n4ry" not in str(caught.value)


def test_very_deep_nesting_is_an_error_not_a_crash(tmp_path):
    with pytest.raises(SettingsError, match="not valid YAML"):
        read(tmp_path / "f.yaml", "[" * 3_000)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just a text\n", "5\n"])
def test_a_file_without_a_mapping_is_an_error(tmp_path, text):
    with pytest.raises(SettingsError, match="the file is not a mapping"):
        read(tmp_path / "f.yaml", text)


def test_a_missing_file_is_none(tmp_path):
    assert read_settings_file(tmp_path / "no.yaml", name="no", wanted=bool) is None
    (tmp_path / "plain").touch()
    assert read_settings_file(tmp_path / "plain" / "no.yaml", name="no", wanted=bool) is None


def test_a_directory_a_device_and_a_pipe_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "zero"):
        with pytest.raises(SettingsError, match="is not a regular file"):
            read_settings_file(path, name="it", wanted=bool)


def test_a_file_that_cannot_be_read_is_an_error_with_the_reason(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SettingsError, match=r"it cannot be read: .*symbolic links"):
        read_settings_file(tmp_path / "loop", name="it", wanted=bool)
    with pytest.raises(SettingsError, match="it cannot be read: not a path"):
        read_settings_file(tmp_path / "a\0b", name="it", wanted=bool)
    assert identity_of(tmp_path / "a\0b") is None


def test_a_huge_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="larger than"):
        read(tmp_path / "f.yaml", b"#" * (MAX_BYTES + 1))


def test_a_file_has_the_same_identity_under_any_name(tmp_path):
    (tmp_path / "link.yaml").symlink_to("f.yaml")
    assert read(tmp_path / "f.yaml", "akosha_a: 1").identity == identity_of(tmp_path / "link.yaml")


@pytest.mark.parametrize(
    ("text", "result", "unset"),
    [
        ("${SET}", "value", ()),
        ("a-${SET}-${SET}-b", "a-value-value-b", ()),
        ("${UNSET:-other}", "other", ()),
        ("${EMPTY:-other}", "other", ()),
        ("${SET:-other}", "value", ()),
        ("${UNSET:-}", "", ()),
        ("${UNSET}", "", ("UNSET",)),
        ("${EMPTY}", "", ()),
        ("$SET {SET} ${} ${1X} ${SET", "$SET {SET} ${} ${1X} ${SET", ()),
        ("${NESTED}", "${SET}", ()),
        ("${URL:-http://localhost:9000}", "http://localhost:9000", ()),
    ],
)
def test_variables_are_expanded_as_in_a_shell(text, result, unset):
    found = expand(text, {"SET": "value", "EMPTY": "", "NESTED": "${SET}"})
    assert (found.text, found.unset) == (result, unset)


@given(st.text(), st.text())
def test_the_value_of_a_variable_is_not_expanded_again(before, held):
    before = before.replace("$", "")
    assert expand(before + "${X}", {"X": held}).text == before + held
