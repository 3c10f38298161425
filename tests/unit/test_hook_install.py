"""`hook install` changes the settings file atomically, and `hook uninstall` reverts it completely."""

import json
import os
from pathlib import Path

import pytest

from agent.domain.errors import SettingsError, StateError
from agent.entrypoints.hook import install as installing
from agent.entrypoints.hook.hook_command import HookCommand
from agent.entrypoints.hook.install import Outcome, install, uninstall
from agent.entrypoints.hook.status import InstalledHook, State, hook_status, installed_hook

ORIGINAL = '{\r\n\t"model": "x",\r\n\t"hooks": {}\r\n}'


@pytest.fixture
def state(tmp_path):
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def hook_command(state):
    program = state.parent / "bin" / "akosha-agent"
    program.parent.mkdir()
    program.touch(0o755)
    return HookCommand((str(program),), {"--state-dir": str(state)})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "claude" / "settings.json"
    path.parent.mkdir()
    path.write_bytes(ORIGINAL.encode())
    path.chmod(0o640)
    return path


def names(folder):
    return sorted(one.name for one in folder.iterdir())


def found_in(path: Path) -> InstalledHook:
    return installed_hook(path, {}, path.parent)


def test_install_backs_up_the_file_and_uninstall_restores_it_and_deletes_the_backup(path, hook_command, state):
    inode = path.stat().st_ino
    done = install(path, hook_command, state)
    assert done.outcome is Outcome.INSTALLED
    assert done.backup.read_bytes() == ORIGINAL.encode()
    assert {path.stat().st_mode & 0o777, done.backup.stat().st_mode & 0o777} == {0o640}
    assert path.stat().st_ino != inode
    assert hook_status(found_in(path), hook_command).state is State.INSTALLED
    assert install(path, hook_command, state) == installing.Change(Outcome.UNCHANGED)
    assert uninstall(path, state) == installing.Change(Outcome.REMOVED)
    assert path.read_bytes() == ORIGINAL.encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert (names(path.parent), names(state)) == (["settings.json"], [])
    assert uninstall(path, state).outcome is Outcome.UNCHANGED


def test_uninstall_deletes_a_file_that_install_created(tmp_path, hook_command, state):
    path = tmp_path / "new" / ".claude" / "settings.json"
    path.parent.parent.mkdir()
    assert install(path, hook_command, state).backup is None
    assert path.stat().st_mode & 0o777 == 0o600
    removed = uninstall(path, state)
    assert (removed.outcome, removed.deleted) == (Outcome.REMOVED, True)
    assert names(tmp_path / "new") == []


def test_uninstall_keeps_a_created_file_that_other_programs_changed(tmp_path, hook_command, state):
    path = tmp_path / ".claude" / "settings.json"
    install(path, hook_command, state)
    document = json.loads(path.read_bytes()) | {"model": "x"}
    path.write_text(json.dumps(document))
    assert uninstall(path, state).backup is not None
    assert json.loads(path.read_bytes()) == {"model": "x"}


def test_edits_since_the_installation_are_kept(path, hook_command, state):
    backup = install(path, hook_command, state).backup
    edited = json.loads(path.read_bytes()) | {"model": "y"}
    edited["hooks"]["Stop"] = []
    path.write_text(json.dumps(edited))
    before = path.read_bytes()
    done = uninstall(path, state)
    assert json.loads(path.read_bytes()) == {"model": "y", "hooks": {"Stop": []}}
    assert (done.backup.read_bytes(), backup.read_bytes()) == (before, ORIGINAL.encode())


def test_a_hand_written_layout_is_kept_in_the_backup(path, hook_command, state):
    by_hand = '{\n  "a" : [ 1,2 ],\n   "b": 1}'
    path.write_text(by_hand)
    backup = install(path, hook_command, state).backup
    uninstall(path, state)
    assert json.loads(path.read_bytes()) == json.loads(by_hand)
    assert backup.read_text() == by_hand


def test_a_record_of_an_earlier_version_is_read(path, hook_command, state):
    install(path, hook_command, state)
    (record,) = json.loads((state / installing.RECORD).read_bytes()).values()
    (state / installing.RECORD).write_text(json.dumps({str(path): record | {"gap": " "}}))
    uninstall(path, state)
    assert (path.read_bytes(), names(path.parent), names(state)) == (ORIGINAL.encode(), ["settings.json"], [])


def test_a_symlink_is_kept_and_its_target_changed(tmp_path, path, hook_command, state):
    link = tmp_path / "link.json"
    link.symlink_to(path)
    install(link, hook_command, state)
    assert link.is_symlink()
    assert found_in(path).commands
    assert names(path.parent)[0].startswith("settings.json")
    uninstall(link, state)
    assert path.read_bytes() == ORIGINAL.encode()


def test_another_state_directory_updates_the_command_and_uninstall_still_reverts_it(
    path, hook_command, state, tmp_path
):
    install(path, hook_command, state)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    newer = HookCommand(hook_command.program, {"--state-dir": str(elsewhere)})
    assert hook_status(found_in(path), newer).state is State.OUTDATED
    assert install(path, newer, elsewhere).outcome is Outcome.UPDATED
    assert [str(one) for one in found_in(path).commands] == [str(newer)]
    assert names(state) == []
    uninstall(path, state)
    assert path.read_bytes() == ORIGINAL.encode()
    assert (names(path.parent), names(elsewhere)) == (["settings.json"], [])


def test_a_missing_program_and_disabled_hooks_are_reported(path, hook_command, state):
    install(path, hook_command, state)
    Path(hook_command.program[0]).unlink()
    assert hook_status(found_in(path), hook_command).state is State.BROKEN
    path.write_text(path.read_text().replace('"model"', '"disableAllHooks": true, "model"'))
    assert "disableAllHooks" in hook_status(found_in(path), hook_command).reason


def test_an_unparsable_file_is_not_changed(path, hook_command, state):
    path.write_text("{,}")
    for change in (lambda: install(path, hook_command, state), lambda: uninstall(path, state)):
        with pytest.raises(SettingsError, match="line 1, column 2"):
            change()
    assert (path.read_text(), names(path.parent), names(state)) == ("{,}", ["settings.json"], [])
    assert hook_status(found_in(path), hook_command).state is State.UNKNOWN
    path.write_bytes(b'{\n"a": "\xff"}')
    assert "not UTF-8: byte 8, line 2" in found_in(path).error


def test_a_concurrent_change_by_another_program_is_not_lost(path, hook_command, state, monkeypatch):
    fsync = os.fsync

    def write_meanwhile(descriptor: int) -> None:
        path.write_text('{"model": "y"}')
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write_meanwhile)
    with pytest.raises(StateError, match="another program has just changed"):
        install(path, hook_command, state)
    assert path.read_text() == '{"model": "y"}'
    assert not [name for name in names(path.parent) if name.endswith(".draft")]


def test_a_full_disk_leaves_the_file_unchanged(path, hook_command, state, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        install(path, hook_command, state)
    assert (path.read_bytes(), names(path.parent)) == (ORIGINAL.encode(), ["settings.json"])
