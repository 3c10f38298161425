"""What may be called where, beyond what import-linter sees."""

import re
from pathlib import Path

AGENT = Path(__file__).parents[2] / "agent"


def test_only_fs_and_the_hook_which_falls_back_to_it_call_fsync():
    callers = {path.name for path in AGENT.rglob("*.py") if re.search(r"\bos\.fsync\b", path.read_text())}
    assert callers == {"fs.py", "note.py"}
