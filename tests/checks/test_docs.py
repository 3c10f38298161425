"""Checks of the site that Zensical lacks: every page is in it, it fetches nothing, links to other files resolve."""

import re
import tomllib

import pytest

from docs.generator.__main__ import DOCUMENTS, ROOT, SOURCES

LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
AGENT = ROOT / "agent"
FOREIGN = {"CloudEvent", "CloudEvents", "JetStream", "IngestionWorker", "ProcessorFormatter"}
"""Names in the architecture that are not classes of the agent."""

OTHER_NAMES = {"open_ends"}
"""Names in the architecture that are not functions or attributes: a table of the ledger database."""

GENERATED = {f"docs/reference/{name}" for name in DOCUMENTS}


def committed_pages() -> set[str]:
    roots = [ROOT / name for name in SOURCES]
    found = [path for root in roots for path in (root.rglob("*.md") if root.is_dir() else [root])]
    names = {path.relative_to(ROOT).as_posix() for path in found}
    return {name for name in names if name.endswith(".md")} - GENERATED


def pages_of(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def test_the_navigation_lists_every_page_once():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    generated = {name for name in GENERATED if name.endswith(".md")}
    assert sorted(pages_of(nav)) == sorted(committed_pages() | generated)


@pytest.mark.parametrize("name", sorted(committed_pages()))
def test_every_relative_link_points_to_a_file_of_the_site(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        path = ((ROOT / name).parent / target).resolve()
        linked = path.relative_to(ROOT).as_posix()
        assert linked in GENERATED or path.exists(), f"{name}: {target}"
        assert linked.startswith(SOURCES), f"{name}: {target} is not on the site"


@pytest.mark.parametrize("name", sorted(committed_pages()))
def test_no_page_has_a_diagram_that_needs_a_script_from_the_internet(name):
    assert "```mermaid" not in (ROOT / name).read_text(encoding="utf-8")


def test_the_theme_fetches_no_fonts():
    theme = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["theme"]
    assert theme["font"] is False


@pytest.mark.parametrize("name", ["docs/architecture.md", "docs/design-notes.md"])
def test_modules_and_classes_named_in_the_architecture_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    packages = "|".join(path.name for path in AGENT.iterdir() if path.is_dir())
    paths = re.findall(rf"`(?:agent/)?((?:{packages})/[\w./]*)`", text)
    assert len(paths) > 5
    assert [path for path in paths if not (AGENT / path).exists()] == []
    source = "\n".join(path.read_text(encoding="utf-8") for path in AGENT.rglob("*.py"))
    classes = set(re.findall(r"\b(?:[A-Z][a-z0-9]+){2,}\b", text)) - FOREIGN
    assert [one for one in sorted(classes) if not re.search(rf"^(class {one}\b|{one} = )", source, re.MULTILINE)] == []
    members = re.findall(r"`[A-Z]\w+\.(\w+)`", text) + re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text)
    known = set(re.findall(r"^\s*(?:async )?(?:def|class) (\w+)", source, re.MULTILINE))
    known |= set(re.findall(r"^\s*(\w+): ", source, re.MULTILINE)) | {*packages.split("|")}
    assert sorted({one for one in members if one not in known and not one.startswith("akosha_")} - OTHER_NAMES) == []


def test_every_threat_names_tests_that_exist():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    threats, _, evidence = text.partition("\n## Tests\n")
    named = re.findall(r"^\| ([A-Z]\d+) \| `([^`]+)` \| (.+) \|$", evidence, re.MULTILINE)
    assert sorted({threat for threat, _, _ in named}) == sorted(re.findall(r"^\| ([A-Z]\d+) \|", threats, re.MULTILINE))
    missing = []
    for threat, file, tests in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        defined = set(re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE))
        missing += [(threat, file, test) for test in re.findall(r"`(\w+)`", tests) if test not in defined]
    assert len(named) > 40
    assert missing == []
