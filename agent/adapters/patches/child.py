"""Makes one patch, at the parent's command, and ends.

    python -P -m agent.adapters.patches.child REFERENCE FILE PATCH

`make N`    {"made": [size, SHA-256]}, or {"made": null} if the patch would be larger than N bytes

`child_output` describes the frames. The child exits at the end of its standard input: it never outlives its parent.
"""

import os
import sys
import threading
from pathlib import Path

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.child_output import Output, limit_resources
from agent.adapters.patches.making import make

ADDRESS_SPACE_BYTES = 2**30

SMALLEST_LARGE_BYTES = 4 * 2**20
"""More than the pieces of a file: mapping and unmapping each of them takes longer than reading it."""


def main() -> int:
    """Serve one command."""
    reference, file, patch = map(Path, sys.argv[1:])
    output = Output()
    threading.Thread(target=output.beat, name="beat", daemon=True).start()
    limit_resources(ADDRESS_SPACE_BYTES)
    give_back_large_blocks(SMALLEST_LARGE_BYTES)
    most_bytes = int(sys.stdin.buffer.readline().removeprefix(b"make "))
    output.command_received()
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    try:
        output.answer({"made": make(reference, file, patch, most_bytes)})
    except Exception as error:  # noqa: BLE001 - any failure is the answer
        output.answer({"error": f"{type(error).__name__}: {error}"})
    return 0


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
