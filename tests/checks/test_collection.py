"""All tests can be collected."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_module_is_imported_and_no_test_has_the_id_of_another():
    """This also compiles the modules once, so that no worker of `make test` has to."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(ids) == len(set(ids))
