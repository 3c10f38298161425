"""The commands of the quick start and of the guides do what the pages say."""

import gzip
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from agent.adapters.patches.making import make
from tests.support.machine import TIMEOUT, Lines, Machine
from tests.support.patches import BLOCK, random_bytes, sha256, write
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY
from tests.support.session_buddy import create

pytest_plugins = ["tests.support.servers.fixtures"]

DOCS = Path(__file__).parents[2] / "docs"
TARGET = "file:///mnt/nas/memories"


def block_with(page: str, text: str, language: str = "console") -> str:
    """Return the code block of a page that contains a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if text in block]
    return found


@pytest.fixture
def machine(tmp_path):
    """A home with databases in Session-Buddy's directory, and without variables that init reports."""
    made = Machine(tmp_path)
    for name in [name for name in made.environ if name.startswith(("AKOSHA_", "SESSION_BUDDY_", "AWS_", "SSL_"))]:
        del made.environ[name]
    create(made.home / ".claude" / "data", commits=5, entities=2)
    return made


def steps_of(page: str) -> dict[str, list[str]]:
    """Return the arguments of each command in a page's console blocks, with the output that the page shows."""
    found: dict[str, list[str]] = {}
    for block in re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                shown = found.setdefault(line.removeprefix("$ akosha-agent ").partition("  #")[0].strip(), [])
            else:
                shown.append(line)
    return found


def skeleton(line: str, home: Path) -> str:
    """Return an output line without its figures, paths and column widths."""
    without_paths = re.sub(r"(file://)?/\S+", "PATH", line.replace(str(home), "/home"))
    return " ".join(re.sub(r"[\d.,]*\d( [kM]?B)?", "N", without_paths).split())


def test_the_quick_start_prints_the_output_on_its_page(machine):
    page = (DOCS / "quickstart.md").read_text()
    machine.environ["COLUMNS"] = "200"
    steps = {line: shown for line, shown in steps_of(page[page.index("## 2. ") :]).items() if shown}
    (init,) = [line for line in steps if line.startswith("init ")]
    assert TARGET in init
    assert list(steps) == [init, "status", "uploads", "verify", "restore --to ~/restored"]
    for line, shown in steps.items():
        command = line.replace("~", str(machine.home)).replace(TARGET, machine.bucket.as_uri())
        done = machine.call(*shlex.split(command), directories=False)
        assert (done.code, done.err) == (0, ""), line
        printed = {skeleton(text, machine.home) for text in done.out.splitlines()}
        compared = [text for text in shown if "WAL" not in text]  # these databases have none
        assert {skeleton(text, machine.home) for text in compared} <= printed, line
    restored = {path.name for path in (machine.home / "restored").glob("*.duckdb")}
    assert restored == {"reflection.duckdb", "knowledge_graph.duckdb"}


def test_the_guides_restore_with_gzip_alone_reads_the_rows(machine):
    machine.environ["SESSION_BUDDY_AKOSHA_CLOUD_ENDPOINT"] = machine.bucket.as_uri()
    assert machine.call("sync", directories=False).code == 0
    (upload,) = machine.bucket.glob("systems/*/uploads/*")
    script = re.sub(r"^\$ ", "", block_with("guides/restore.md", "for f in"), flags=re.MULTILINE)
    script = re.sub(r"^cd \S+", f"cd {shlex.quote(str(upload))}", script)
    Path(machine.environ["HOME"], "duckdb").symlink_to(sys.prefix)  # an environment that has DuckDB
    done = subprocess.run(
        ["bash", "-euc", script], env=machine.environ, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(5,)\n", "")


@pytest.mark.parametrize("packed", [gzip.compress, bytes], ids=["gzip", "not compressed"])
def test_the_guides_program_applies_patches(machine, packed):
    old, home = random_bytes(3 * BLOCK), Path(machine.environ["HOME"])
    states = [old, old[5000:] + random_bytes(3000, 1), b"!" + old[: 2 * BLOCK] + random_bytes(100, 2)]
    upload, by_hand = home / "upload", home / "by-hand"
    for folder in (upload, by_hand):
        folder.mkdir()
    write(upload / "reflection.duckdb.base", packed(states[0]))
    for number, (before, after) in enumerate(pairwise(states), 1):
        files = write(home / "before", before), write(home / "after", after)
        assert make(*files, upload / f"reflection.duckdb.patch-{number:02}", 2**30)
    write(by_hand / "patch.py", block_with("guides/restore.md", "AKPATCH1", "python").encode())
    script = re.sub(r"^\$ ", "", block_with("guides/restore.md", "patch.py"), flags=re.MULTILINE)
    script = re.sub(r"^cd \S+", f"cd {shlex.quote(str(upload))}", script).replace("python3 ", f"{sys.executable} ")
    done = subprocess.run(
        ["bash", "-euc", script], env=machine.environ, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == sha256(states[-1])


def test_the_first_python_example_syncs(machine):
    code = block_with("guides/python-api.md", "HybridSyncError", "python")
    configured = re.sub(
        r"AkoshaSyncConfig\(.*?\)", f'AkoshaSyncConfig(cloud_endpoint="{machine.bucket.as_uri()}")', code
    )
    done = subprocess.run(
        [sys.executable, "-c", configured],
        env=machine.environ, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()[0]) == (0, "succeeded"), done.stderr
    assert list(machine.bucket.glob("systems/*/uploads/*/manifest.json"))


def test_the_quick_starts_commands_for_a_bucket_deliver_to_it(machine, rclone):
    block = block_with("quickstart.md", "--bucket my-memories")
    keys = iter((ACCESS_KEY, SECRET_KEY))
    machine.environ |= {name: next(keys) for name in re.findall(r"(?:export |\s)([A-Z_]+)=", block)}
    (line,) = re.findall(r"^\$ akosha-agent (.+)$", block, re.MULTILINE)
    line = re.sub(r"https://\S+", rclone.endpoint, line).replace("my-memories", rclone.new_bucket())
    done = machine.call(*shlex.split(line), directories=False)
    assert (done.code, done.err) == (0, "")
    assert "sent in" in done.out
    assert rclone.endpoint.rpartition("/")[2] in done.out


def test_the_guides_program_prints_the_results(machine, fresh_nats):
    code = block_with("guides/nats-and-events.md", "results(", "python").replace(
        "nats://localhost:4222", fresh_nats.url
    )
    machine.environ["SESSION_BUDDY_AKOSHA_CLOUD_ENDPOINT"] = machine.bucket.as_uri()
    (variable,) = re.findall(
        r"^\$ export (\w+_NATS_URL)=", block_with("guides/nats-and-events.md", "export"), re.MULTILINE
    )
    machine.environ[variable] = fresh_nats.url
    result = machine.call("sync", "--json", directories=False).json
    command = [sys.executable, "-uc", code]
    with subprocess.Popen(
        command, env=machine.environ, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as program:
        lines = Lines(program.stdout)
        (line,) = lines.wait(lambda line: result["upload_id"] in line.get("text", ""))
        program.kill()
        lines.join()
    assert line["text"].split() == [result["upload_id"].split("_", 2)[2], result["upload_id"], machine.bucket.as_uri()]
