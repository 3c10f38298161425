"""Patches: any file is made exactly, and an invalid patch makes none."""

import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings, strategies as st

from agent.adapters.patches import applying
from agent.adapters.patches.applying import apply_chain
from agent.adapters.patches.container import PatchReader
from agent.adapters.patches.making import make
from agent.adapters.patches.matching import _ANCHOR
from agent.domain.errors import PatchError, StagingFull, StateError, WireError
from tests.support.patches import BLOCK, frame, header, random_bytes, record, sha256, sizes_of, step, write

OLD = random_bytes(5 * BLOCK + 1000)


def patched(folder: Path, old: bytes, new: bytes, *, most_bytes: int = 2**30, name: str = "patch") -> Path | None:
    reference, file = write(folder / "old", old), write(folder / "new", new)
    (folder / name).unlink(missing_ok=True)
    written = make(reference, file, folder / name, most_bytes)
    if written is None:
        return None
    data = (folder / name).read_bytes()
    assert (written.size, written.sha256) == (len(data), sha256(data))
    return folder / name


def applied(folder: Path, old: bytes, *patches: Path, size: int, digest: str) -> bytes:
    result = folder / "result"
    result.unlink(missing_ok=True)
    apply_chain(write(folder / "old", old), patches, result, sizes=sizes_of(patches, size), sha256=digest)
    return result.read_bytes()


def round_trip(folder: Path, old: bytes, new: bytes) -> int:
    """Make and apply a patch, and return its size."""
    patch = patched(folder, old, new)
    assert patch is not None
    assert applied(folder, old, patch, size=len(new), digest=sha256(new)) == new
    return patch.stat().st_size


def refusal(folder: Path, data: bytes, *, size: int = 8, old: bytes = OLD) -> str:
    """Return the error of an invalid patch, which leaves no file."""
    patch = write(folder / "patch", data)
    with pytest.raises(WireError) as refused:
        applied(folder, old, patch, size=size, digest=sha256(b""))
    assert {path.name for path in folder.iterdir()} == {"old", "patch"}
    return refused.value.message


@pytest.mark.parametrize(
    ("old", "new", "most"),
    [
        pytest.param(OLD, OLD, 200, id="the same"),
        pytest.param(b"", b"", 100, id="both empty"),
        pytest.param(OLD, b"", 100, id="now empty"),
        pytest.param(b"", OLD, len(OLD) + 1000, id="was empty"),
        pytest.param(b"abc", b"abcd", 200, id="a few bytes"),
        pytest.param(OLD, OLD[: 2 * BLOCK + 7], 200, id="cut off"),
        pytest.param(OLD, OLD + b"more", 400, id="longer in its last block"),
        pytest.param(OLD, OLD + random_bytes(BLOCK, 1), BLOCK + 2000, id="longer by a block"),
        pytest.param(OLD, OLD[BLOCK:] + OLD[:BLOCK], 1000, id="blocks at other places"),
        pytest.param(OLD, b"x" + OLD, 1000, id="all bytes moved by one"),
        pytest.param(OLD, OLD[100_000:-100_000], 1000, id="both ends cut off"),
        pytest.param(OLD, OLD[: BLOCK + 9] + b"!" + OLD[BLOCK + 10 :], 500, id="a byte changed"),
        pytest.param(OLD, random_bytes(3 * BLOCK, 2), 3 * BLOCK + 1000, id="nothing in common"),
        pytest.param(bytes(5 * BLOCK), bytes(6 * BLOCK + 5), 500, id="zeros"),
    ],
)
def test_a_file_is_made_exactly_and_the_patch_follows_the_change(tmp_path, old, new, most):
    assert round_trip(tmp_path, old, new) <= most


edits = st.lists(
    st.tuples(st.integers(0, len(OLD)), st.integers(0, 2 * BLOCK), st.binary(max_size=40), st.integers(0, len(OLD))),
    max_size=6,
)


def cut(pieces: list[bytes], at: int) -> tuple[list[bytes], list[bytes]]:
    """Return the pieces before and after a position."""
    before: list[bytes] = []
    for number, piece in enumerate(pieces):
        if at < len(piece):
            return [*before, piece[:at]], [piece[at:], *pieces[number + 1 :]]
        before.append(piece)
        at -= len(piece)
    return before, []


ANCHORS = [0, 0, *(found.start() for found in _ANCHOR.finditer(OLD)), len(OLD), len(OLD)]
LONGEST_WITHOUT_ANCHOR = max(after - before for before, after in zip(ANCHORS, ANCHORS[2:], strict=False))
"""One anchor more than necessary: the one between may lie across the end of a block."""


@settings(max_examples=60, deadline=None)
@given(edits=edits)
def test_any_edits_are_made_exactly(tmp_path_factory, edits):
    pieces = [OLD]
    for at, removed, added, moved_to in edits:
        before, rest = cut(pieces, at)
        taken, after = cut(rest, removed)
        moved, _ = cut(taken, sum(map(len, taken)) // 2)
        before, after = cut([*before, added, *after], moved_to)
        pieces = [*before, *moved, *after]
    size = round_trip(tmp_path_factory.mktemp("edits"), OLD, b"".join(pieces))
    # Both ends of a piece may lie in blocks of which it has no anchor: these bytes are sent.
    assert size <= 2000 + sum(300 + min(len(piece), 2 * LONGEST_WITHOUT_ANCHOR) for piece in pieces)


def test_the_same_files_give_the_same_patch(tmp_path):
    new = OLD[70_000:] + OLD[:50_000]
    first = patched(tmp_path, OLD, new, name="first")
    second = patched(tmp_path, OLD, new, name="second")
    assert first.read_bytes() == second.read_bytes()


def test_a_patch_that_would_be_too_large_is_not_made(tmp_path):
    new = random_bytes(3 * BLOCK, 2)
    size = patched(tmp_path, OLD, new).stat().st_size
    assert patched(tmp_path, OLD, new, most_bytes=size) is not None
    assert patched(tmp_path, OLD, new, most_bytes=size - 1) is None


def test_an_extent_larger_than_one_step_is_made_exactly(tmp_path):
    old = random_bytes(40 * 2**20)
    new = b"".join(b"%08d" % n + old[at : at + BLOCK] for n, at in enumerate(range(0, len(old), BLOCK)))
    assert round_trip(tmp_path, old, new) < 100_000
    shuffled = b"".join(old[at : at + BLOCK] for at in range(len(old) - BLOCK, -1, -BLOCK))
    assert round_trip(tmp_path, old, shuffled) < 10_000


def test_a_chain_of_patches_makes_the_last_state(tmp_path):
    states = [OLD]
    for n in range(6):
        last = states[-1]
        cut = 60_000 * (n + 1)
        states.append(last[cut:] + random_bytes(30_000, n) + last[: cut - 5000 * n])
    chain = [patched(tmp_path, old, new, name=f"patch{n}") for n, (old, new) in enumerate(pairwise(states))]
    for length in range(1, len(chain) + 1):
        new = states[length]
        assert applied(tmp_path, OLD, *chain[:length], size=len(new), digest=sha256(new)) == new
    with pytest.raises(PatchError, match="patch2 is not a patch of this file") as refused:
        applied(tmp_path, OLD, chain[0], *chain[2:], size=len(states[-1]), digest=sha256(states[-1]))
    assert refused.value.number == 2


def test_every_truncation_is_refused(tmp_path):
    new = OLD[70_000:300_000] + random_bytes(500, 3) + OLD[: 2 * BLOCK]
    patch = patched(tmp_path, OLD, new).read_bytes()
    (tmp_path / "new").unlink()
    for length in [*range(0, len(patch), 17), len(patch) - 1]:
        refusal(tmp_path, patch[:length], size=len(new))


def test_the_patch_of_another_reference_is_refused(tmp_path):
    new = OLD[70_000:] + b"!"
    patch = patched(tmp_path, OLD, new)
    (tmp_path / "new").unlink()
    other = OLD[: 2 * BLOCK] + bytes([OLD[2 * BLOCK] ^ 1]) + OLD[2 * BLOCK + 1 :]
    with pytest.raises(WireError):
        applied(tmp_path, other, patch, size=len(new), digest=sha256(new))
    refused = refusal(tmp_path, patch.read_bytes(), size=len(new), old=OLD[:-1])
    assert refused == f"patch is not a patch of this file: it is a patch of {len(OLD)} bytes, not of {len(OLD) - 1}"


def test_a_flipped_bit_never_gives_another_file(tmp_path):
    new = OLD[70_000:300_000] + random_bytes(500, 3) + OLD[: 2 * BLOCK]
    data = patched(tmp_path, OLD, new).read_bytes()
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        patch = write(tmp_path / "damaged", bytes(damaged))
        try:
            assert applied(tmp_path, OLD, patch, size=len(new), digest=sha256(new)) == new
        except WireError:
            assert not (tmp_path / "result").exists()


H = header(len(OLD), 8)
WHOLE = [[0, 8]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is incomplete"),
        (b"AKPATCH2" + H[8:], "it is not a patch"),
        (H + b"\xff\xff\xff\xff", "a record is too long"),
        (H + b"\x02\x00\x00\x00{]", "a record is not JSON"),
        (H + record([1]), "a record does not have the keys frame, from, to"),
        (H + record({"from": WHOLE, "to": WHOLE, "frame": 0, "more": 1}), "a record does not have the keys"),
        (b"AKPATCH1" + record({"reference": -1, "size": 8}), "a number is out of range"),
        (b"AKPATCH1" + record({"reference": len(OLD), "size": 2**60}), "a number is out of range"),
        (b"AKPATCH1" + record({"reference": True, "size": 8}), "a number is out of range"),
        (header(len(OLD), 9), "it makes 9 bytes instead of 8"),
        (H + step(WHOLE, WHOLE[0]), "a range is not a pair"),
        (H + step({"0": 8}, WHOLE), "ranges are not a list"),
        (H + step([[0.0, 8]], WHOLE), "a number is out of range"),
        (H + step([[-1, 8]], WHOLE), "a number is out of range"),
        (H + step([[len(OLD) - 7, 8]], WHOLE), "a range is empty or not within the file"),
        (H + step(WHOLE, [[1, 8]]), "a range is empty or not within the file"),
        (H + step(WHOLE, [[0, 0], [0, 8]]), "a range is empty or not within the file"),
        (H + step([], []), "a step is too large or makes nothing"),
        (H + step([[0, 7]], WHOLE), "a step does not copy as many bytes as it makes"),
        (H + step([[0, 16]], [[0, 8], [0, 8]]), "two steps make the same bytes"),
        (H + step([[0, 4]], [[0, 4]]) * 2, "two steps make the same bytes"),
        (H + step([[0, 5]], [[3, 5]]) + step([[0, 4]], [[0, 4]]), "two steps make the same bytes"),
        (H + step([[0, 4]], [[0, 4]]), "it is incomplete"),
        (H + step(WHOLE, WHOLE) + b"\0", "there are bytes after its end"),
        (H + step([[0, len(OLD)]] * 30, WHOLE, frame(b"x" * 8)), "a step is too large or makes nothing"),
        (H + step([[0, 7]], WHOLE, frame(b"x" * 8)), "a frame refers to too few bytes"),
        (H + step([], WHOLE, b"not zstd"), "a frame is not valid"),
        (H + step([], WHOLE, frame(b"x" * 9)), "a frame contains more bytes than its step makes"),
        (H + step([], WHOLE, frame(bytes(2**27))), "a frame"),
        (H + step([], WHOLE, frame(b"x" * 7)), "a frame does not end with its step"),
        (H + step([], WHOLE, frame(b"x" * 8)[:-1]), "a frame does not end with its step"),
        (H + step([], WHOLE, frame(b"x" * 8) + b"\0"), "a frame does not end with its step"),
        (H + step([], WHOLE, frame(b"x" * 8) * 2**15), "there are bytes after a frame"),
        (H + step([], WHOLE, b"\x50\x2a\x4d\x18\x04\0\0\0abcd"), "a frame does not end with its step"),
        (H + record({"from": [], "to": WHOLE, "frame": 2**40}), "a number is out of range"),
        (H + record({"from": [], "to": WHOLE, "frame": 100}) + b"\x28", "it is incomplete"),
    ],
)
def test_an_invalid_patch_is_refused_with_the_reason(tmp_path, data, reason):
    assert refusal(tmp_path, data).startswith(f"patch is not a patch of this file: {reason}")


def test_a_result_with_another_digest_is_refused(tmp_path):
    assert "SHA-256" in refusal(tmp_path, H + step(WHOLE, WHOLE))


def test_a_frame_that_needs_a_large_window_is_refused(tmp_path):
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(b"x" * 8) + compressor.flush()
    assert "a frame is not valid" in refusal(tmp_path, H + step([], WHOLE, data))


def test_the_number_of_ranges_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.adapters.patches.container.MOST_RANGES", 8)
    one = [step([[0, 1]], [[n, 1]]) for n in range(8)]
    assert "too many ranges" in refusal(tmp_path, H + b"".join(one))


def test_states_of_a_chain_have_a_limited_number_of_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(applying, "MOST_RANGES", 5)
    small = write(tmp_path / "small", H + b"".join(step([[n, 1]], [[n, 1]]) for n in range(8)))
    with pytest.raises(WireError, match="too many ranges"):
        applied(tmp_path, OLD, small, small, size=8, digest=sha256(b""))


def test_scratch_files_leave_space_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(applying, "SPARE_BYTES", 2**62)
    first = write(tmp_path / "first", H + step([], WHOLE, frame(b"x" * 8)))
    second = write(tmp_path / "second", header(8, 8) + step(WHOLE, WHOLE))
    with pytest.raises(StagingFull):
        applied(tmp_path, OLD, first, second, size=8, digest=sha256(b"x" * 8))
    assert not (tmp_path / "result").exists()
    monkeypatch.setattr(applying, "SPARE_BYTES", 0)
    assert applied(tmp_path, OLD, first, second, size=8, digest=sha256(b"x" * 8)) == b"x" * 8


def test_an_existing_file_is_neither_replaced_nor_removed(tmp_path):
    patch = patched(tmp_path, OLD, OLD[1:])
    (tmp_path / "result").write_text("mine")
    with pytest.raises(StateError):
        apply_chain(tmp_path / "old", [patch], tmp_path / "result", sizes=[1], sha256=sha256(b""))
    assert (tmp_path / "result").read_text() == "mine"


@pytest.mark.skipif(not shutil.which("zstd"), reason="the zstd command is not installed")
def test_the_zstd_command_decompresses_the_frames(tmp_path):
    new = OLD[70_000:] + random_bytes(500, 1)
    patch = patched(tmp_path, OLD, new)
    made = bytearray(len(new))
    with patch.open("rb") as file:
        reader = PatchReader(file)
        for each in reader.steps():
            data = b"".join(OLD[offset : offset + length] for offset, length in each.sources)
            if each.frame:
                data = decompressed(tmp_path, data, b"".join(reader.frame(each)))
            for offset, length in each.targets:
                made[offset : offset + length], data = data[:length], data[length:]
    assert made == new


def decompressed(folder: Path, reference: bytes, data: bytes) -> bytes:
    """Return the content of a frame, decompressed by the zstd command."""
    paths = [write(folder / "reference", reference), write(folder / "frame.zst", data), folder / "content"]
    subprocess.run(["zstd", "-dqf", f"--patch-from={paths[0]}", paths[1], "-o", paths[2]], check=True)
    return paths[2].read_bytes()


def test_scratch_files_of_a_long_chain_stay_below_twice_the_file(tmp_path, monkeypatch):
    """Each patch changes another half of the file, so that every frame stays in use."""
    largest = 0

    class Watched(applying._Chain):
        def _replace_state(self, state):
            nonlocal largest
            largest = max(largest, sum(os.fstat(file.fileno()).st_size for file in self._scratch))
            super()._replace_state(state)

    monkeypatch.setattr(applying, "_Chain", Watched)
    size, state, patches = 8 * BLOCK, random_bytes(8 * BLOCK), []
    first = state
    for number in range(9):
        start = (number % 2) * size // 2
        changed = bytearray(state)
        for block in range(start, start + size // 2, BLOCK):
            changed[block : block + BLOCK // 2] = random_bytes(BLOCK // 2, seed=number * size + block + 1)
        patches.append(patched(tmp_path, state, bytes(changed), name=f"patch-{number}"))
        state = bytes(changed)
    assert applied(tmp_path, first, *patches, size=size, digest=sha256(state)) == state
    assert largest <= 3 * size


def test_a_patch_in_a_chain_that_makes_another_size_than_its_manifest_records_is_refused(tmp_path):
    old, middle, new = random_bytes(BLOCK), random_bytes(2 * BLOCK), random_bytes(3 * BLOCK)
    patches = [patched(tmp_path, old, middle, name="first"), patched(tmp_path, middle, new, name="second")]
    write(tmp_path / "old", old)
    with pytest.raises(WireError, match="instead of 5"):
        apply_chain(tmp_path / "old", patches, tmp_path / "result", sizes=[5, len(new)], sha256=sha256(new))
