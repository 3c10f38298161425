"""Each import-linter contract is broken by an import that it forbids."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PLANTED = {
    "Layers: a module imports only from layers below its own": (
        "application/sync/results.py",
        "import agent.entrypoints.result_document",
    ),
    "Layers of the application": ("application/sync/attempt.py", "import agent.application.archive.catalog"),
    "The core knows no technology": ("application/sync/bucket_uploads.py", "import sqlite3"),
    "The domain is the standard library": ("domain/routing.py", "import asyncio"),
    "The core gets values, not settings": ("ports/objects.py", "import agent.settings"),
    "Adapters know the ports, not the use cases": ("adapters/gunzip.py", "import agent.application.signal"),
    "Adapters do not import each other": ("adapters/spool.py", "import agent.adapters.wire"),
    "Only the bootstrap imports adapters": ("entrypoints/cli/events.py", "import agent.adapters.wire"),
    "The Python API is built from the entrypoints": ("api/config.py", "import agent.ports"),
    "The events client gets values, not settings": ("events_client/logs.py", "import agent.settings"),
    "Only the child process imports duckdb": ("entrypoints/cli/status.py", "import duckdb"),
    "No import cycles": ("entrypoints/result_document.py", "import agent.entrypoints.cli.sync"),
}


def lint(folder: Path) -> dict[str, str]:
    shutil.copy(ROOT / "pyproject.toml", folder)
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    process = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    return dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", process.stdout, re.MULTILINE))


def test_each_contract_is_kept_and_breaks_for_a_planted_import(tmp_path):
    shutil.copytree(ROOT / "agent", tmp_path / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    assert lint(tmp_path) == dict.fromkeys(PLANTED, "KEPT")
    for module, line in PLANTED.values():
        path = tmp_path / "agent" / module
        path.write_text(f"{path.read_text()}\n{line}\n")
    assert lint(tmp_path) == dict.fromkeys(PLANTED, "BROKEN")
