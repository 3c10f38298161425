"""owner.json, a ledger's claim, and the suffix of a default system ID."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.domain import naming
from agent.domain.delivery_state import Target
from agent.domain.errors import WireError
from agent.domain.identity import Claim, Machine, Owner, note_key, suffixed

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MACHINE = Machine.of("1234", Path("/home/a/.claude/data"), "laptop")
OWNER = Owner.new("laptop", MACHINE, "a" * 32, NOON)


def test_an_owner_is_decoded_unchanged():
    assert Owner.decode(OWNER.encode()) == OWNER
    assert OWNER.key == "systems/laptop/owner.json"
    assert json.loads(OWNER.encode())["claimed_at"] == "2026-01-01T12:00:00+00:00"


def test_two_claims_of_one_agent_in_one_second_differ():
    assert Owner.new("laptop", MACHINE, "a" * 32, NOON).claim_id != OWNER.claim_id


def test_users_and_machines_have_different_hashes_that_hide_the_machine_id():
    other_user = Machine.of("1234", Path("/home/b/.claude/data"), "laptop")
    other_machine = Machine.of("5678", Path("/home/a/.claude/data"), "laptop")
    assert len({MACHINE.digest, other_user.digest, other_machine.digest}) == 3
    assert "1234" not in OWNER.encode().decode().replace(OWNER.claim_id, "").replace(MACHINE.digest, "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"version": 1}',
        OWNER.encode().replace(b'"version": 1', b'"version": 2'),
        OWNER.encode().replace(b'"laptop"', b'"../up"', 1),
        OWNER.encode().replace(OWNER.claim_id.encode(), b"x"),
        OWNER.encode().replace(b"+00:00", b""),
        OWNER.encode().replace(b"2026-01-01T12:00:00+00:00", b"0001-01-01T00:00:00+14:00"),
        OWNER.encode().replace(b"2026-01-01T12:00:00+00:00", b"9999-12-31T23:59:59-14:00"),
        OWNER.encode().replace(MACHINE.digest.encode(), b"\\u001b[2J"),
    ],
)
def test_bytes_that_are_not_an_owner_are_refused(data):
    with pytest.raises(WireError):
        Owner.decode(data)


def test_a_foreign_host_name_is_sanitised():
    document = json.loads(OWNER.encode()) | {"host": "evil\x1b[2J\nhost" + "x" * 900, "later": 1}
    host = Owner.decode(json.dumps(document).encode()).host
    assert host.startswith("evil-2J-host")
    assert len(host) <= 64


def test_a_foreign_path_with_control_characters_and_a_missing_one_are_unknown():
    document = json.loads(OWNER.encode())
    for path in ("/a\x1b[2J", "/" * 5000):
        assert Owner.decode(json.dumps(document | {"state_dir": path}).encode()).state_dir == ""
    del document["state_dir"]
    assert Owner.decode(json.dumps(document).encode()).state_dir == ""


def test_a_claim_is_read_from_its_note_and_an_invalid_note_is_ignored():
    claim = Claim(claim_id="b" * 32, confirmed=True, seen="20260101_120000_laptop")
    assert Claim.from_notes(claim.note()) == claim
    for text in (None, "", "x", "{}", '{"claim_id": "b", "confirmed": true, "seen": ""}'):
        assert Claim.from_notes(text) is None
    assert note_key(Target("cloud", "https://x", "b", "laptop")) == "owner cloud https://x b laptop"


def test_a_suffix_is_derived_from_the_machine_and_longer_the_second_time():
    digits = MACHINE.digest
    assert suffixed("laptop", MACHINE) == f"laptop-{digits[:4]}"
    assert suffixed(f"laptop-{digits[:4]}", MACHINE) == f"laptop-{digits[:8]}"
    assert suffixed(f"laptop-{digits[:8]}", MACHINE) is None
    assert len(suffixed("x" * 84, MACHINE)) == naming.MAX_GENERATED_ID
