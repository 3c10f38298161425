"""Writes docs/reference, and the sources of the site.

    python -m docs.generator DIRECTORY

DIRECTORY gets a copy of the pages in the layout of the repository: a link works in a checkout and on the site alike.
"""

import shutil
import sys
from pathlib import Path

from docs.generator import cli, control_api, events, log_events, metrics, settings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
SOURCES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "docs", "deploy")


DOCUMENTS = {
    "cli.md": cli.text,
    "settings.md": settings.text,
    "events.md": events.text,
    "control-api.md": control_api.text,
    "openapi.json": control_api.document,
    "metrics.md": metrics.text,
    "logs.md": log_events.text,
}
"""The files of docs/reference."""


def write_reference(folder: Path = REFERENCE) -> None:
    """Write the reference pages."""
    folder.mkdir(exist_ok=True)
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text(), encoding="utf-8")


def copy_sources(folder: Path) -> None:
    """Replace the folder by a copy of everything that the site shows or links to."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.py", "*.toml")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


if __name__ == "__main__":
    write_reference()
    copy_sources(Path(sys.argv[1]))
