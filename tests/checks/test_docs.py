"""The site has every page and fetches nothing; Zensical does not check these, nor links to files that are not pages."""

import re
import tomllib

import pytest

from docs.generator.__main__ import DOCUMENTS, ROOT, SOURCES

LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
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


def test_the_navigation_has_every_page_once_and_no_other():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    generated = {name for name in GENERATED if name.endswith(".md")}
    assert sorted(pages_of(nav)) == sorted(committed_pages() | generated)


@pytest.mark.parametrize("name", sorted(committed_pages()))
def test_every_relative_link_leads_to_a_file_of_the_site(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        path = ((ROOT / name).parent / target).resolve()
        linked = path.relative_to(ROOT).as_posix()
        assert linked in GENERATED or path.exists(), f"{name}: {target}"
        assert linked.startswith(SOURCES), f"{name}: {target} is not on the site"


def test_the_theme_fetches_no_fonts():
    theme = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["theme"]
    assert theme["font"] is False
