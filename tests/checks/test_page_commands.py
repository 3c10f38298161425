"""The commands that the page finds in texts of the agent, and offers to copy."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer

from agent.entrypoints.cli.app import COMMANDS
from tests.checks.test_readme import unknown_in

AGENT = Path(__file__).parents[2] / "agent"
SCRIPT = AGENT / "entrypoints" / "page" / "static" / "commands.js"
MANY = 80
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")

FIND = """
    import { readFileSync } from "node:fs";
    const { texts, name } = JSON.parse(readFileSync(0, "utf8"));
    const found = texts.map(name === "split" ? (text) => split(text).filter((_, at) => at % 2) : messageAndHint);
    console.log(JSON.stringify(found));
"""


def called(name: str, texts: list[str]) -> list[list[str]]:
    """Return the results of a function of commands.js."""
    program = SCRIPT.read_text(encoding="utf-8").replace("export ", "") + FIND
    given = json.dumps({"texts": texts, "name": name})
    done = subprocess.run(
        [NODE, "--input-type=module", "--eval", program], input=given, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def texts_with_commands() -> Iterator[str]:
    """Yield the texts in the code that name a command, without docstrings. `some_key` stands for an inserted value."""
    for path in sorted(AGENT.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        nodes = [*ast.walk(ast.parse(source))] if "akosha-agent " in source else []
        joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        pieces = {id(part) for node in joined for part in node.values}
        single = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in pieces]
        for node in (*joined, *single):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else " some_key" for part in parts)
            if "akosha-agent " in text and not re.search(r"[`\n]", text):
                yield text


def test_each_command_in_the_texts_of_the_agent_is_found_and_can_be_run():
    texts = [*texts_with_commands()]
    assert len(texts) > MANY
    wrong = {}
    for text, found in zip(texts, called("split", texts), strict=True):
        shown = [one for one in found if one.startswith("akosha-agent ")]
        named = [word for word in re.findall(r"akosha-agent ([a-z]+)", text) if word in COMMANDS]
        if " config " in text:  # it is not offered with a value
            named = [word for word in named if word != "config"]
            shown = [one for one in shown if " config " not in f"{one} "]
        if [one.split()[1] for one in shown] != named or any(map(unknown_in, shown)):
            wrong[text] = found
    assert wrong == {}


def test_each_command_and_subcommand_is_known():
    lines = []
    for name, (module, _) in COMMANDS.items():
        subcommands = getattr(typer.main.get_command(import_module(f"agent.entrypoints.{module}").app), "commands", {})
        lines += [f"akosha-agent {name} {one}" for one in subcommands] or [f"akosha-agent {name}"]
    needed = {"akosha-agent config set": " KEY VALUE", "akosha-agent config unset": " KEY"}
    lines = [line + needed.get(line, "") for line in lines]
    assert called("split", lines) == [[line] for line in lines]


COMMANDS_IN = {
    "write a note to the spool, as akosha-agent does: the agent reads it": [],
    "update akosha-agent if the file is newer than its DuckDB": [],
    "akosha-agent config set cloud_access_key_id - cloud_secret_access_key -; or set AWS_PROFILE": [
        "akosha-agent config set cloud_access_key_id - cloud_secret_access_key -"
    ],
    "akosha-agent config set http_token - stores it": ["akosha-agent config set http_token -"],
    "akosha-agent config set cloud_endpoint https://198.51.100.7": [],
    "akosha-agent verify ID --deep shows the damage": ["akosha-agent verify ID --deep"],
    "akosha-agent verify 20260301_120000_laptop-7 --deep: later": [
        "akosha-agent verify 20260301_120000_laptop-7 --deep"
    ],
    "akosha-agent restore ID --only NAME --to DIR gets it": ["akosha-agent restore ID --only NAME --to DIR"],
    "akosha-agent uploads lists the others": ["akosha-agent uploads"],
    "akosha-agent events --follow --system '*' --json (or not)": ["akosha-agent events --follow --system '*' --json"],
    "set akosha_http_token; kill -CONT 4711": ["akosha_http_token", "kill -CONT 4711"],
    "akosha-agent synchronise": [],
}


def test_a_command_has_its_arguments_and_ends_before_the_prose():
    assert called("split", [*COMMANDS_IN]) == [*COMMANDS_IN.values()]


def test_only_the_hint_of_an_error_is_the_agents_own():
    server = "it says (akosha-agent prune) and (akosha-agent sync --take-over"
    texts = [f"{server} (run akosha-agent doctor (or wait))", f"{server} (503)", "plain"]
    hints = [hint for _, hint in called("messageAndHint", texts)]
    assert hints == ["run akosha-agent doctor (or wait)", "", ""]
