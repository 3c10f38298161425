"""Changes of the agent's own files are written together, or not at all."""

import errno
from pathlib import Path

import pytest

from agent.adapters import fs
from agent.domain.errors import StateError
from agent.entrypoints.stored_settings import draft

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("failure", "raised"), [(FULL, StateError), (KeyboardInterrupt(), KeyboardInterrupt)])
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("renamed", [True, False])
def test_a_target_is_not_stored_without_its_keys(monkeypatch, tmp_path, failure, raised, existing, renamed):
    folder = tmp_path / ".config" / "akosha-agent"
    if existing:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("cloud_bucket: earlier\n")
        (folder / "credentials.yaml").write_text("http_token: earlier\n")
        (folder / "credentials.yaml").chmod(0o600)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    write = fs.write_atomically

    def fail_once(path: Path, data: bytes, **options: object) -> None:
        if path.name == "credentials.yaml":
            monkeypatch.setattr(fs, "write_atomically", write)
            if renamed:
                write(path, data, **options)
            raise failure
        write(path, data, **options)

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(fs, "write_atomically", fail_once)
    changes = {"cloud_bucket": "another", "cloud_access_key_id": "AKIA", "cloud_secret_access_key": "secret"}
    with pytest.raises(raised):
        draft(changes, {}, tmp_path, tmp_path, {}).write()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")} == before
