"""The wheel, built and installed into a new environment outside the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.once import made_once
from tests.support.session_buddy import create

ROOT = Path(__file__).parents[2]
TIMEOUT = 300


def call(*command: object, folder: Path, **environment: str) -> str:
    """Run a command outside the checkout, without this process's Python variables, and return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AKOSHA_", "PIP_REQ"))}
    clean |= {"HOME": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel with pip and the build backend of this environment, so that nothing is downloaded."""

    def build(folder: Path) -> None:
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
        call(*pip, "--wheel-dir", folder, ROOT, folder=folder)

    (built,) = made_once(tmp_path_factory, "wheel", build).glob("*.whl")
    return built


def test_the_wheel_has_only_the_package_its_types_and_its_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "agent/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"agent", "akosha_agent"}
    assert not [name for name in names if "test" in name.lower() or name.endswith((".pyc", ".yaml"))]
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    units = {
        path.relative_to(ROOT).as_posix() for kind in ("systemd", "launchd") for path in ROOT.glob(f"deploy/{kind}/*")
    }
    assert {name for name in names if name.startswith("agent/deploy/")} == {f"agent/{name}" for name in units}
    built = {name for name in names if name.startswith("agent/") and name.endswith(".py")}
    assert built == {path.relative_to(ROOT).as_posix() for path in (ROOT / "agent").rglob("*.py")}
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "agent").glob("entrypoints/page/static/*")}
    assert page
    assert page <= set(names)


def test_the_wheel_works_in_a_new_environment(wheel, tmp_path):
    """Its dependencies are those of this environment, so that nothing is downloaded; the package is the wheel's."""
    own = tmp_path / "own"
    venv.create(own, with_pip=False, symlinks=True)
    python = own / "bin" / "python"
    target = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip())
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    call(*pip, wheel, folder=tmp_path)
    (target / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    call(sys.executable, "-m", "pip", "--python", python, "check", folder=tmp_path)  # as pip install would resolve them
    where = call(python, "-c", "import agent; print(agent.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(own)
    command = own / "bin" / "akosha-agent"
    assert re.fullmatch(r"akosha-agent \d+\.\d+\.\d+\n", call(command, "--version", folder=tmp_path))
    overview = call(command, "--help", folder=tmp_path)
    for name in ("run", "sync", "status", "events", "config", "demo"):
        assert f" {name} " in overview
    assert "akosha_cloud_bucket" in call(command, "config", "--all", folder=tmp_path)
    template = (
        "from agent.entrypoints.service.service_file import template as t; print(t('systemd/akosha-agent.service'))"
    )
    assert "ExecStart=" in call(python, "-c", template, folder=tmp_path)
    create(tmp_path / ".claude" / "data", commits=1)
    assert "\nSync\n" in call(command, "init", "--yes", "--to", tmp_path / "bucket", folder=tmp_path)
    assert len(list(tmp_path.glob("bucket/systems/*/uploads/*/manifest.json"))) == 1
    assert call(command, "status", "--json", folder=tmp_path, XDG_STATE_HOME=str(tmp_path / "state"))


def _normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_the_wheel_declares_every_dependency_it_imports(wheel, tmp_path):
    """Every imported distribution is in the metadata, so an installation of the wheel lacks none."""
    import ast
    import email
    from importlib.metadata import packages_distributions

    with zipfile.ZipFile(wheel) as opened:
        (metadata,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        declared = email.message_from_bytes(opened.read(metadata)).get_all("Requires-Dist")
        imported = set()
        for name in opened.namelist():
            if name.endswith(".py"):
                for node in ast.walk(ast.parse(opened.read(name))):
                    if isinstance(node, ast.Import):
                        imported |= {alias.name.split(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and not node.level:
                        imported.add(node.module.split(".")[0])
    known = packages_distributions()
    foreign = {
        _normalized(known[name][0]) for name in imported - set(sys.stdlib_module_names) - {"agent"} if name in known
    }
    stated = {_normalized(re.match(r"[A-Za-z0-9._-]+", text)[0]) for text in declared}
    # Dependencies of declared distributions: aiobotocore needs aiohttp and botocore, aiohttp yarl, typer click.
    transitive = {"botocore", "aiohttp", "yarl", "pydantic", "click"}
    assert foreign - stated - transitive == set()
