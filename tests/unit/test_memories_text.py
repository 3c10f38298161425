"""The groups of `memories`, and the texts that are read for their examples."""

from dataclasses import replace

from agent.entrypoints.memories_text import EXAMPLES, account_lines
from tests.support import screens


def text_of(account=screens.AKOSHA_ACCOUNT, **how):
    lines = account_lines(account, "akosha", screens.TEXTS, **({"failed": False, "everything": False} | how))
    return "\n".join(line.text for line in lines)


def test_each_reason_has_its_count_and_a_few_examples():
    assert len(screens.AKOSHA_ACCOUNT.examples()) == 1 + EXAMPLES
    text = text_of()
    assert "1 was refused: the text is too long" in text
    assert "13 wait: no embedding" in text
    assert '"How do I configure the retry back-off of the uploads?"' in text
    assert "and 10 more: akosha-agent memories --all lists them" in text


def test_failed_leaves_out_what_waits():
    assert "wait: " not in text_of(failed=True)


def test_a_list_has_every_memory_below_the_reason():
    text = text_of(everything=True)
    assert text.count("\n    reflection  conversation  ") == len(screens.HELD)
    assert text.count("13 wait: no embedding") == 1
    assert "more: " not in text


def test_a_text_with_control_characters_is_escaped():
    key = screens.HELD[1].row.key
    account = replace(screens.AKOSHA_ACCOUNT, held=screens.HELD[:2])
    lines = account_lines(account, "akosha", {key: "\x1b[2J evil"}, failed=False, everything=False)
    assert any("\\x1b[2J evil" in line.text for line in lines)
