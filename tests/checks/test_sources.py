"""Rules for calls, which import-linter does not check."""

import re
from pathlib import Path

AGENT = Path(__file__).parents[2] / "agent"


def test_only_fs_and_the_hooks_fallback_call_fsync():
    callers = {path.name for path in AGENT.rglob("*.py") if re.search(r"\bos\.fsync\b", path.read_text())}
    assert callers == {"fs.py", "note.py"}
