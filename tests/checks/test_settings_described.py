"""Every setting and metric has a description, from which docs/reference is generated."""

from agent.settings.model import FIELDS
from docs.generator.metrics import metrics


def test_every_setting_has_a_description_in_sentences():
    for key, field in FIELDS.items():
        assert field.description, key
        assert field.description.endswith("."), key


def test_every_metric_has_a_help_text_in_sentences():
    found = metrics()
    assert len(found) > 15
    assert [name for name, _, _, text in found if not text.endswith(".")] == []
