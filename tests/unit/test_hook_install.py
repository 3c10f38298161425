"""The settings file under `hook install` and `hook uninstall`: one atomic change, and all of it taken back."""

import json
import os
from pathlib import Path

import pytest

from agent.domain.errors import SettingsError, StateError
from agent.entrypoints.hook import install as installing
from agent.entrypoints.hook.command_line import HookCommand
from agent.entrypoints.hook.install import Outcome, install, uninstall
from agent.entrypoints.hook.status import State, hook_status, installed_hook

ORIGINAL = '{\r\n\t"model": "x",\r\n\t"hooks": {}\r\n}'


@pytest.fixture
def state(tmp_path):
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def ours(state):
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


def test_install_backs_up_and_uninstall_restores_and_takes_the_backup_back(path, ours, state):
    inode = path.stat().st_ino
    done = install(path, ours, state)
    assert done.outcome is Outcome.INSTALLED
    assert done.backup.read_bytes() == ORIGINAL.encode()
    assert {path.stat().st_mode & 0o777, done.backup.stat().st_mode & 0o777} == {0o640}
    assert path.stat().st_ino != inode
    assert hook_status(installed_hook(path), ours).state is State.INSTALLED
    assert install(path, ours, state) == installing.Change(Outcome.UNCHANGED)
    assert uninstall(path, state) == installing.Change(Outcome.REMOVED)
    assert path.read_bytes() == ORIGINAL.encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert (names(path.parent), names(state)) == (["settings.json"], [])
    assert uninstall(path, state).outcome is Outcome.UNCHANGED


def test_where_there_was_no_file_there_is_none_afterwards(tmp_path, ours, state):
    path = tmp_path / "new" / ".claude" / "settings.json"
    path.parent.parent.mkdir()
    assert install(path, ours, state).backup is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert uninstall(path, state).outcome is Outcome.REMOVED
    assert names(tmp_path / "new") == []


def test_a_file_that_we_made_stays_where_others_have_written_into_it(tmp_path, ours, state):
    path = tmp_path / ".claude" / "settings.json"
    install(path, ours, state)
    document = json.loads(path.read_bytes()) | {"model": "x"}
    path.write_text(json.dumps(document))
    assert uninstall(path, state).backup is not None
    assert json.loads(path.read_bytes()) == {"model": "x"}


def test_edits_since_the_installation_stay_and_no_backup_is_put_over_them(path, ours, state):
    backup = install(path, ours, state).backup
    edited = json.loads(path.read_bytes()) | {"model": "y"}
    edited["hooks"]["Stop"] = []
    path.write_text(json.dumps(edited))
    before = path.read_bytes()
    done = uninstall(path, state)
    assert json.loads(path.read_bytes()) == {"model": "y", "hooks": {"Stop": []}}
    assert (done.backup.read_bytes(), backup.read_bytes()) == (before, ORIGINAL.encode())


def test_a_layout_that_no_program_writes_is_kept_in_the_backup(path, ours, state):
    by_hand = '{\n  "a" : [ 1,2 ],\n   "b": 1}'
    path.write_text(by_hand)
    backup = install(path, ours, state).backup
    uninstall(path, state)
    assert json.loads(path.read_bytes()) == json.loads(by_hand)
    assert backup.read_text() == by_hand


def test_a_record_of_an_earlier_version_is_understood(path, ours, state):
    install(path, ours, state)
    (record,) = json.loads((state / installing.RECORD).read_bytes()).values()
    (state / installing.RECORD).write_text(json.dumps({str(path): record | {"gap": " "}}))
    uninstall(path, state)
    assert (path.read_bytes(), names(path.parent), names(state)) == (ORIGINAL.encode(), ["settings.json"], [])


def test_a_link_stays_one_and_the_file_it_leads_to_is_changed(tmp_path, path, ours, state):
    link = tmp_path / "link.json"
    link.symlink_to(path)
    install(link, ours, state)
    assert link.is_symlink()
    assert installed_hook(path).commands
    assert names(path.parent)[0].startswith("settings.json")
    uninstall(link, state)
    assert path.read_bytes() == ORIGINAL.encode()


def test_another_state_directory_updates_the_command_and_uninstall_knows_what_was_made(path, ours, state, tmp_path):
    install(path, ours, state)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    newer = HookCommand(ours.program, {"--state-dir": str(elsewhere)})
    assert hook_status(installed_hook(path), newer).state is State.OUTDATED
    assert install(path, newer, elsewhere).outcome is Outcome.UPDATED
    assert [str(one) for one in installed_hook(path).commands] == [str(newer)]
    assert names(state) == []
    uninstall(path, state)
    assert path.read_bytes() == ORIGINAL.encode()
    assert (names(path.parent), names(elsewhere)) == (["settings.json"], [])


def test_a_program_that_is_gone_and_hooks_switched_off_are_reported(path, ours, state):
    install(path, ours, state)
    Path(ours.program[0]).unlink()
    assert hook_status(installed_hook(path), ours).state is State.BROKEN
    path.write_text(path.read_text().replace('"model"', '"disableAllHooks": true, "model"'))
    assert "disableAllHooks" in hook_status(installed_hook(path), ours).reason


def test_what_is_not_understood_is_left_alone(path, ours, state):
    path.write_text("{,}")
    for change in (lambda: install(path, ours, state), lambda: uninstall(path, state)):
        with pytest.raises(SettingsError, match="line 1, column 2"):
            change()
    assert (path.read_text(), names(path.parent), names(state)) == ("{,}", ["settings.json"], [])
    assert hook_status(installed_hook(path), ours).state is State.UNKNOWN
    path.write_bytes(b'{\n"a": "\xff"}')
    assert "not UTF-8: byte 8, line 2" in installed_hook(path).error


def test_what_another_program_writes_meanwhile_is_not_lost(path, ours, state, monkeypatch):
    fsync = os.fsync

    def meanwhile(descriptor: int) -> None:
        path.write_text('{"model": "y"}')
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(StateError, match="another program has just changed"):
        install(path, ours, state)
    assert path.read_text() == '{"model": "y"}'
    assert not [name for name in names(path.parent) if name.endswith(".draft")]


def test_a_full_disk_leaves_the_file_as_it_was(path, ours, state, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        install(path, ours, state)
    assert (path.read_bytes(), names(path.parent)) == (ORIGINAL.encode(), ["settings.json"])
