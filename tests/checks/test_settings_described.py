"""Every setting and metric has a description, from which docs/reference is generated."""

import re
from pathlib import Path

from agent.settings.model import FIELDS
from agent.settings.sources import SHORT_VARIABLES, variable
from docs.generator.metrics import metrics


def test_every_setting_has_a_description_in_sentences():
    for key, field in FIELDS.items():
        assert field.description, key
        assert field.description.endswith("."), key


def test_every_metric_has_a_help_text_in_sentences():
    found = metrics()
    assert len(found) > 15
    assert [name for name, _, _, text in found if not text.endswith(".")] == []


ROOT = Path(__file__).parents[2]
OTHER_VARIABLES = {"AKOSHA_PYTHON", "SESSION_BUDDY_DATA_DIR", "AKOSHA_SYNC"}
"""Of the tests, of Session-Buddy, and the name of a stream."""


def test_every_variable_in_the_documentation_is_a_setting():
    known = {variable(key) for key in FIELDS} | set(SHORT_VARIABLES.values()) | OTHER_VARIABLES
    pages = [ROOT / "README.md", *(path for path in (ROOT / "docs").rglob("*.md")), *(ROOT / "deploy").rglob("*.*")]
    assert len(pages) > 20
    for page in pages:
        named = set(re.findall(r"\b(?:SESSION_BUDDY|AKOSHA)_[A-Z0-9_]*[A-Z0-9]", page.read_text(errors="replace")))
        assert {name for name in named - known if not name.startswith("AKOSHA_EVENT_")} == set(), page
