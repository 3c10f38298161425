"""bandit and pip-audit, as `make check` runs them, find what they must find; neither needs the internet to pass."""

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.checks import audit

ROOT = Path(__file__).parents[2]


def entry(name: str, identifier: str, alias: str, fixed: str) -> dict:
    """Return an entry of the database of OSV, without the fields that pip-audit does not read."""
    events = [{"introduced": "0"}, {"fixed": fixed}]
    ranges = [{"type": "ECOSYSTEM", "events": events}]
    affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
    return {"schema_version": "1.7.3", "id": identifier, "aliases": [alias], "affected": affected}


VULNERABLE = {
    "jinja2==3.1.2": entry("jinja2", "GHSA-h5c8-rqwp-cp95", "CVE-2024-22195", "3.1.3"),
    "idna==3.6": entry("idna", "GHSA-jjg7-2v4v-x38h", "CVE-2024-3651", "3.7"),
}

PLANTED = """
import pickle, ssl, subprocess, yaml


def f(text, data):
    subprocess.run(text, shell=True)
    eval(text)
    yaml.load(text)
    ssl._create_unverified_context()
    return pickle.loads(data)
"""


@contextmanager
def osv(*, silent: bool = False):
    """Serve the database, with VULNERABLE in it. `silent`: queries are not answered."""
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(405)

        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if silent:
                end.wait()
            found = VULNERABLE.get(f"{query['package']['name']}=={query['version']}")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"vulns": [found]} if found else {}).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, name="osv")
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            end.set()
            server.shutdown()
            serving.join()


@pytest.fixture
def pinned(tmp_path):
    path = tmp_path / "pinned.txt"
    path.write_text("jinja2==3.1.2\nidna==3.6\nattrs==26.1.0\n")
    return path


def test_a_known_vulnerability_fails_the_audit_unless_it_is_ignored(pinned, capsys, monkeypatch):
    monkeypatch.setattr(audit, "IGNORED", {"CVE-2024-3651": "the agent encodes no host names of others"})
    with osv() as url:
        assert audit.main(pinned, url) == 1
    assert capsys.readouterr().out.splitlines() == [
        "jinja2 3.1.2: CVE-2024-22195, fixed in 3.1.3",
        "pip-audit: 3 packages, known vulnerabilities: 1",
    ]


def test_without_a_connection_the_audit_is_skipped_and_says_so(pinned, capsys):
    assert audit.main(pinned, "http://127.0.0.1:9/v1/query") == 0
    assert capsys.readouterr().out.startswith("pip-audit: skipped: http://127.0.0.1:9/v1/query cannot be reached")


def test_a_silent_database_ends_the_audit_in_time(pinned, capsys):
    with osv(silent=True) as url:
        assert audit.main(pinned, url, limit_seconds=3) == 0
    assert "did not answer everything within 3 s" in capsys.readouterr().out


def test_a_file_that_cannot_be_audited_fails_the_audit(pinned, capsys):
    pinned.write_text("jinja2>=3\n")
    with osv() as url:
        assert audit.main(pinned, url) == 1
    assert "jinja2" in capsys.readouterr().out


def test_bandit_finds_planted_calls_with_the_projects_configuration(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED)
    command = [sys.executable, "-m", "bandit", "-q", "-f", "json", "-c", "pyproject.toml", str(tmp_path / "planted.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = {issue["test_id"] for issue in json.loads(done.stdout)["results"]}
    assert done.returncode == 1
    assert found >= {"B602", "B307", "B506", "B323", "B301"}
