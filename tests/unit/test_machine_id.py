"""The machine ID: the operating system's, or a random one kept in the state directory."""

import pytest

from agent.adapters import machine_id as module
from agent.adapters.machine_id import machine_id
from agent.domain.errors import StateError

ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"


def test_the_first_file_with_a_valid_id_is_used(tmp_path):
    files = [tmp_path / "none", tmp_path / "empty", tmp_path / "odd", tmp_path / "good", tmp_path / "later"]
    for path, text in zip(files[1:], ("", "uninitialized\n", f"{ID}\n", "f" * 32), strict=True):
        path.write_text(text)
    assert machine_id(tmp_path, files=files) == ID


def test_without_a_machine_id_a_random_one_is_kept_in_the_state_directory(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = machine_id(tmp_path / "one", files=())
    assert first == machine_id(tmp_path / "one", files=())
    assert first != machine_id(tmp_path / "two", files=())
    assert [path.name for path in (tmp_path / "one").iterdir()] == [module.OWN]


def test_a_damaged_kept_id_is_replaced(tmp_path):
    (tmp_path / module.OWN).write_text("half")
    made = machine_id(tmp_path, files=())
    assert len(made) == 32
    assert machine_id(tmp_path, files=()) == made


def test_if_no_id_can_be_kept_the_error_names_the_setting(tmp_path):
    (tmp_path / module.OWN).mkdir()
    with pytest.raises(StateError, match="akosha_agent_state_dir"):
        machine_id(tmp_path, files=())


def test_before_the_first_start_an_id_is_returned_and_nothing_written(tmp_path):
    """`doctor` also checks a machine on which no agent has run."""
    assert len(machine_id(tmp_path / "state", files=())) == 32
    assert [*tmp_path.iterdir()] == []


def test_on_macos_the_id_is_the_platform_uuid(tmp_path, monkeypatch):
    output = '    | "IOPlatformUUID" = "564D4B6A-1234-5678-9ABC-DEF012345678"'
    tool = tmp_path / "ioreg"
    tool.write_text(f"#!/bin/sh\necho '{output}'\n")
    tool.chmod(0o700)
    monkeypatch.setattr(module, "_IOREG", (str(tool),))
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    assert machine_id(tmp_path, files=()) == "564d4b6a-1234-5678-9abc-def012345678"
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert len(machine_id(tmp_path, files=())) == 32
