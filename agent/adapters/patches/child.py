"""Makes one patch, or applies a chain of patches, at the parent's command; then it ends.

    python -P -m agent.adapters.patches.child

["make", REFERENCE, FILE, PATCH, N, CHECKSUMS]    {"made": [size, SHA-256, [CRC-32 of each MiB]]}, or {"made": null}
                                                  if the patch would be larger than N bytes
["apply", REFERENCE, [PATCH, ...], FILE, [SIZE, ...], SHA-256]
                                                  {"applied": null}, or {"applied": [class, message, hint, transient]}
                                                  of the error of the agent that prevented it, or
                                                  {"applied": ["PatchError", message, number]}

`child_output` describes the frames. The child exits at the end of its standard input: it never outlives its parent.
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.child_output import Output, limit_resources
from agent.adapters.patches.applying import apply_chain
from agent.adapters.patches.making import make
from agent.domain.errors import AkoshaError, PatchError

ADDRESS_SPACE_BYTES = 2**30

MAPPED_BYTES = 4 * 2**20
"""The allocator maps blocks of this size. Smaller ones, such as pieces of a file, it can use again sooner."""


def main() -> int:
    """Serve one command."""
    output = Output()
    threading.Thread(target=output.beat, name="beat", daemon=True).start()
    limit_resources(ADDRESS_SPACE_BYTES)
    give_back_large_blocks(MAPPED_BYTES)
    command, *arguments = json.loads(sys.stdin.buffer.readline())
    output.command_received()
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    try:
        output.answer({"made": _make(*arguments)} if command == "make" else {"applied": _apply(*arguments)})
    except Exception as error:  # noqa: BLE001 - any failure is the answer
        output.answer({"error": f"{type(error).__name__}: {error}"})
    return 0


def _make(
    reference: str, file: str, patch: str, most_bytes: int, checksums: Sequence[int] | None
) -> tuple[int, str, tuple[int, ...]] | None:
    made = make(Path(reference), Path(file), Path(patch), most_bytes, checksums)
    return None if made is None else (made.size, made.sha256, made.checksums)


def _apply(
    reference: str, patches: Sequence[str], file: str, sizes: Sequence[int], sha256: str
) -> tuple[str, str, int] | tuple[str, str, str, bool] | None:
    try:
        apply_chain(Path(reference), [Path(patch) for patch in patches], Path(file), sizes=sizes, sha256=sha256)
    except PatchError as error:
        return type(error).__name__, error.message, error.number
    except AkoshaError as error:
        return type(error).__name__, error.message, error.hint, error.transient
    return None


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
