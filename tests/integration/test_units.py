"""The systemd units, checked with systemd-analyze."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent.entrypoints.service.manager import Runner, ServiceSpec
from agent.entrypoints.service.systemd import UNIT, Systemd

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"
ANALYZE = shutil.which("systemd-analyze")
NOTHING = "/bin/true"

pytestmark = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


@pytest.fixture
def analyze(tmp_path):
    """Return a function that runs systemd-analyze with the environment of a user manager.

    Its runtime directory has a short path: it reads the units of other programs, too, with the paths of their sockets.
    """

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as runtime:
            environ = os.environ | {"XDG_RUNTIME_DIR": runtime, "HOME": str(tmp_path), "SYSTEMD_PAGER": "cat"}
            command = [str(ANALYZE), *map(str, words)]
            return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    return run


def knows_offline() -> bool:
    version = subprocess.run([str(ANALYZE), "--version"], capture_output=True, text=True, timeout=60).stdout
    return int(re.search(r"systemd (\d+)", version)[1]) >= 250


def write_unit(tmp_path: Path) -> Path:
    """Write the user's unit as the agent installs it, and return its path."""
    keeper = Systemd(tmp_path, Runner({}, say=lambda _: None))
    text = keeper.render(ServiceSpec((NOTHING, "run", "--data-dir", '/a b/$HOME/%h/"q"')))
    unit = tmp_path / UNIT
    unit.write_text(text)
    return unit


def test_systemd_verifies_the_unit_of_the_user(analyze, tmp_path):
    done = analyze("--user", "--man=no", "verify", write_unit(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_verifies_the_unit_of_react(analyze, tmp_path):
    text = (DEPLOY / "akosha-agent-react.service").read_text()
    unit = tmp_path / "akosha-agent-react.service"
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={NOTHING}", text))
    done = analyze("--man=no", "verify", unit)
    reported = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, reported) == (0, []), done.stderr


@pytest.mark.parametrize(
    ("kind", "threshold"),
    [
        # 2.5 of these 6.1 are for capabilities: offline, it treats the service as one of root. A user has none to drop.
        pytest.param("user", 62, id="user"),
        pytest.param("react", 20, id="react"),
    ],
)
def test_the_units_meet_the_exposure_limit(analyze, tmp_path, kind, threshold):
    if not knows_offline():
        pytest.skip("this systemd-analyze cannot check a file offline")
    unit = write_unit(tmp_path) if kind == "user" else DEPLOY / "akosha-agent-react.service"
    done = analyze("security", "--offline=true", f"--threshold={threshold}", unit)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_the_unit_of_the_user_has_no_key_that_needs_privileges(tmp_path):
    """Such a key prevents the start (status 218), has no effect, or needs user namespaces."""
    keys = {line.partition("=")[0] for line in write_unit(tmp_path).read_text().splitlines() if re.match(r"\w+=", line)}
    stopping = {"CapabilityBoundingSet", "PrivateDevices", "ProtectClock", "ProtectKernelLogs", "ProtectKernelModules"}
    silent = {"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateNetwork", "PrivateUsers", "ReadWritePaths", "User"}
    assert keys & (stopping | silent) == set()


def test_the_unit_of_the_user_works_with_systemd_252(tmp_path):
    text = write_unit(tmp_path).read_text()
    assert re.search(r"(?m)^Type=notify$", text)
    assert not re.search(r"(?m)^(RestartSteps|RestartMaxDelaySec|RestartMode|MemoryZSwapMax)=", text)


OTHER_RUN = 'mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec "$@"'
"""Runs a command where systemd seems to have booted the machine, and no user manager answers, as after `su`."""

CALL = """
import os, sys
from pathlib import Path
from agent.entrypoints.service.manager import Runner
from agent.entrypoints.service.systemd import Systemd
manager = Systemd(Path.home(), Runner(os.environ, say=print))
manager.enable(None, changed=True, start=False) if sys.argv[1] == "enable" else manager.disable(None)
"""


def test_without_a_user_manager_systemctl_enables_and_disables_the_service(tmp_path):
    without_manager = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", OTHER_RUN, "sh"]
    if subprocess.run([*without_manager, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare cannot create a mount namespace here")
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    units = tmp_path / ".config/systemd/user"
    units.mkdir(parents=True)
    write_unit(units)
    link = units / "default.target.wants" / UNIT
    for word, linked in (("enable", True), ("disable", False)):
        command = [*without_manager, sys.executable, "-c", CALL, word]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert (done.returncode, link.is_symlink()) == (0, linked), done.stdout + done.stderr
