"""A directory that cannot be used as the bucket: the error names the problem and its fix."""

import sys
from pathlib import Path

import pytest

from tests.support.machine import Machine

RESTRICTED = Path(__file__).with_name("restricted.py")
UNREACHABLE = "cannot be reached"


def is_a_file(bucket: Path) -> None:
    bucket.write_text("")


def parent_is_a_file(bucket: Path) -> None:
    bucket.parent.rmdir()
    bucket.parent.write_text("")


def closed(bucket: Path) -> None:
    bucket.mkdir(mode=0)


def read_only(bucket: Path) -> None:
    bucket.mkdir(mode=0o500)


def parent_closed(bucket: Path) -> None:
    bucket.parent.chmod(0)


def parent_read_only(bucket: Path) -> None:
    bucket.parent.chmod(0o500)


def not_mounted(bucket: Path) -> None:
    bucket.parent.rmdir()


SPOILT = {
    is_a_file: "move it away",
    parent_is_a_file: "move it away",
    closed: "chmod or chown",
    read_only: "chmod or chown",
    parent_closed: "chmod or chown",
    parent_read_only: "chmod or chown",
    not_mounted: UNREACHABLE,
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_the_error_and_the_status_name_the_directory_and_the_fix(tmp_path, spoil):
    machine = Machine(tmp_path, max_retries=0, enable_fallback="false")
    machine.write(commits=1, entities=1)
    bucket = tmp_path / "mnt" / "nas"
    machine.set(cloud_endpoint=bucket.as_uri())
    bucket.parent.mkdir()
    spoil(bucket)
    try:
        result = machine.sync(code=1, prefix=(sys.executable, str(RESTRICTED), "unprivileged"))
    finally:
        for path in (bucket.parent, bucket):
            if path.is_dir():
                path.chmod(0o700)
    assert SPOILT[spoil] in result["error"]
    assert str(bucket) in result["error"]
    assert (UNREACHABLE in result["error"]) == (spoil is not_mounted)
    status = machine.status()
    assert SPOILT[spoil] in status["targets"][0]["error"]
    assert status["pending"] == ["knowledge_graph", "reflection"]
