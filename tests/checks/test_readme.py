"""The README keeps up with the settings and the commands."""

import re
from pathlib import Path

from agent.entrypoints.cli.app import COMMANDS
from agent.settings import load, settings_table

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_every_setting_is_in_the_readme_with_its_default_and_meaning():
    nowhere = Path("/nonexistent")
    table = dict(re.findall(r"^\| `(akosha_\w+)` \| (.*) \|$", README, re.MULTILINE))
    for row in settings_table(load(environ={}, cwd=nowhere, home=nowhere)):
        default = row.default or '""'
        assert table.pop(row.key, None) == f"`{default}` | {row.description}", f"{row.key}: mend README's table"
    assert table == {}


def test_every_command_is_in_the_readme():
    for name in COMMANDS:
        assert f"`akosha-agent {name}`" in README
