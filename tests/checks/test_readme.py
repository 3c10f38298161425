"""The README has every command."""

from pathlib import Path

from agent.entrypoints.cli.app import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_every_command_is_in_the_readme():
    for name in COMMANDS:
        assert f"`akosha-agent {name}`" in README
