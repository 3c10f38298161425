"""What `uploads` and `status` print that depends on the terminal's width and on the settings of the command."""

from dataclasses import replace

import pytest
from rich.console import Console

from agent.application.archive.catalog import CatalogEntry, CatalogListing
from agent.entrypoints.cli.status import lines_of
from agent.entrypoints.cli.uploads import _table
from agent.settings import Settings
from tests.support import screens, values

ENTRY = CatalogEntry(
    upload_id="20260301_120000_laptop-kitchen",
    sizes={"manifest.json": 1_300_000},
    manifest=values.manifest(0, reflection=0),
)


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (40, ["upload", "copy", "checked"]),
        (80, ["upload", "time", "stored", "copy", "checked"]),
        (200, ["upload", "time", "stored", "raw", "rows", "copy", "checked"]),
    ],
)
def test_the_id_of_an_upload_stays_in_one_line_on_a_narrow_terminal(width, titles):
    console = Console(width=width)
    with console.capture() as printed:
        console.print(_table(CatalogListing(uploads=(ENTRY,), unfinished=()), width))
    lines = printed.get().splitlines()
    assert any(ENTRY.upload_id in line for line in lines)
    assert sorted(" ".join(line for line in lines if ENTRY.upload_id not in line).split()) == sorted(titles)


def notices(document, **settings):
    return [line.text for line in lines_of(document, Settings(**settings)) if line.text.startswith("settings ")]


def test_status_names_the_target_of_these_settings_if_the_running_agent_has_another():
    same = {"cloud_endpoint": "https://s3.example.com", "cloud_bucket": "memories"}
    assert notices(screens.SAFE, **same) == []
    (found,) = notices(screens.SAFE, cloud_endpoint="file:///mnt/nas")
    assert "another target than these settings, file:///mnt/nas; it reads them after kill -HUP 4711" in found
    assert notices(replace(screens.SAFE, running=None), cloud_endpoint="file:///mnt/nas") == []


def test_status_on_a_machine_that_was_never_set_up_names_init():
    new = replace(screens.AKOSHA, endpoint=Settings().http_endpoint, last_success=None)
    document = replace(screens.SAFE, route=("http",), targets=(new,), running=None, verified=None)
    assert notices(document) == ["settings   no target is chosen: akosha-agent init asks where memories go"]
    assert notices(replace(document, targets=(replace(new, last_success=values.NOON),))) == []
