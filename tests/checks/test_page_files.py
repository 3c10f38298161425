"""The static files of the page: nothing inline, nothing from other hosts, no text that is parsed as HTML."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

STATIC = Path(__file__).parents[2] / "agent" / "entrypoints" / "page" / "static"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(STATIC.iterdir())}
SCRIPTS = [name for name in FILES if name.endswith(".js")]
NAMESPACE = "http://www.w3.org/2000/svg"
UNSAFE = re.compile(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function|setHTMLUnsafe)\b")


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host(name):
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", FILES[name].replace(NAMESPACE, "")) == []


def test_the_document_has_no_inline_script_style_or_handler():
    html = FILES["index.html"]
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=\"/)|javascript:", html) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_elements_from_text(name):
    assert UNSAFE.findall(FILES[name]) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_valid(name):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    command = [node, "--input-type=module", "--check"]
    done = subprocess.run(command, input=FILES[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
