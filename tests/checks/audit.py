"""Checks the pinned versions for known vulnerabilities, with pip-audit and the database of https://osv.dev.

    python tests/checks/audit.py [REQUIREMENTS]

Exits with 1 if a version has a known vulnerability that IGNORED does not name. Without a connection to the database,
or if it does not answer in time, the check is skipped, with a line that says so.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

PINNED = Path(__file__).parents[2] / "constraints.txt"
OSV_URL = "https://api.osv.dev/v1/query"
CONNECT_SECONDS = 3.0
LIMIT_SECONDS = 120.0

IGNORED: Mapping[str, str] = {}
"""Vulnerabilities by ID, with the reason why they do not affect the agent or its tests."""


def main(requirements: Path, url: str = OSV_URL, *, limit_seconds: float = LIMIT_SECONDS) -> int:
    """Audit the pinned versions in a file, print the result, and return the exit status."""
    if reason := unreachable(url):
        print(f"pip-audit: skipped: {reason}")
        return 0
    ignored = [word for name in IGNORED for word in ("--ignore-vuln", name)]
    command = [
        sys.executable, "-m", "pip_audit", "-r", str(requirements), "--no-deps", "--disable-pip", *ignored,
        "-s", "osv", "--osv-url", url, "-f", "json", "--desc", "off", "--progress-spinner", "off",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        print(f"pip-audit: skipped: {url} did not answer everything within {limit_seconds:g} s")
        return 0
    try:
        audited = json.loads(done.stdout)["dependencies"]
    except ValueError:
        if reason := unreachable(url):
            print(f"pip-audit: skipped: {reason}")
            return 0
        print(f"pip-audit failed:\n{done.stderr}")
        return 1
    found = [(one, vulnerability) for one in audited for vulnerability in one.get("vulns", ())]
    for one, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
        print(f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}")
    not_audited = [f"{one['name']} ({one['skip_reason']})" for one in audited if "skip_reason" in one]
    for line in not_audited:
        print(f"not audited: {line}")
    print(f"pip-audit: {len(audited) - len(not_audited)} packages, known vulnerabilities: {len(found)}")
    return 1 if found or not_audited else 0


def unreachable(url: str) -> str:
    """Return why the database cannot be reached, "" if it can. Uses the proxies of the environment."""
    try:
        urllib.request.urlopen(url, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # a GET is not allowed, but it answers
    except OSError as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', error)})"
    return ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else PINNED))
