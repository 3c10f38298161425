"""An earlier version that reads uploads of this one refuses what it does not know, and loses nothing by that."""

from collections import Counter

import pytest

from tests.support import session_buddy
from tests.support.earlier_version import NotInCloneError, earlier_version
from tests.support.machine import Machine
from tests.support.servers.akosha import Akosha

pytestmark = pytest.mark.long


@pytest.fixture
def earlier(tmp_path):
    try:
        return earlier_version(tmp_path / "earlier")
    except NotInCloneError as error:
        pytest.skip(str(error))


@pytest.fixture
def laptop(tmp_path):
    """A machine with two uploads: the second has compressed memories."""
    laptop = Machine(tmp_path / "laptop", agent_upload_on_change=False)
    for commits in (3, 5):
        laptop.write(commits=commits)
        laptop.sync()
    assert laptop.manifests[-1]["memories"]["key"].endswith("/memories.json.gz")
    return laptop


def check_restore_is_refused(laptop, earlier, tmp_path, error: str) -> None:
    """Check that the earlier version restores nothing and reports the error, and that this version restores."""
    other, to = Machine(tmp_path / "other", cloud_endpoint=laptop.bucket.as_uri()), tmp_path / "restored"
    words = ("restore", "latest", "--to", str(to), "--system", "laptop")
    done = other.call(*words, prefix=earlier)
    assert (done.code, error in done.err) == (1, True)
    assert not to.exists()
    assert other.call(*words).code == 0


def test_an_earlier_version_restores_nothing_of_an_upload_with_compressed_memories(laptop, earlier, tmp_path):
    check_restore_is_refused(laptop, earlier, tmp_path, "memories.json.gz' is not the key of its memories")


def test_an_earlier_version_restores_nothing_of_a_base_with_patches_and_says_what_helps(tmp_path, earlier):
    laptop = Machine(tmp_path / "laptop", agent_upload_on_change=False)
    laptop.write(commits=3)
    for statement in ("CREATE TABLE large AS SELECT uuid() FROM range(600000)", "INSERT INTO large VALUES (uuid())"):
        with session_buddy.opened(laptop.data / "reflection.duckdb") as base:
            base.execute(statement)
        laptop.sync()
    assert any(laptop.bucket.rglob("reflection.duckdb.patch-01"))
    check_restore_is_refused(laptop, earlier, tmp_path, "'patches (update akosha-agent)'")


def test_what_react_of_an_earlier_version_refused_is_ingested_after_an_update(laptop, earlier, tmp_path):
    with Akosha(token="secret-of-akosha") as akosha:
        server = Machine(tmp_path / "server", cloud_endpoint=laptop.bucket.as_uri(), http_endpoint=akosha.url)
        server.set(http_token=akosha.token, system_id="akosha-1", http_missing_embedding="zero")
        words = ("react", "--once", "--state-dir", str(server.state))
        done = server.call(*words, prefix=earlier, directories=False)
        assert (done.code, "is not the key of its memories" in done.err) == (1, True)
        laptop.write(commits=6)
        laptop.sync()
        assert server.call(*words, directories=False).code == 0
        stored = Counter(row.metadata["type"] for row in akosha.rows("laptop"))
    rows = laptop.manifests[-1]["metadata"]["rows"]["reflection"]
    assert rows["conversations_v2"] == 6
    assert stored["conversation"] >= rows["conversations_v2"]
    assert stored["reflection"] >= rows["reflections_v2"]
