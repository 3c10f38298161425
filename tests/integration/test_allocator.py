"""Freed large blocks are returned to the system, regardless of earlier frees."""

import json
import subprocess
import sys

# Every second one of 64 blocks of 512 KiB is freed, after a much larger block was freed.
FREED_BETWEEN = """
import json, sys
from agent.adapters.allocator import give_back_large_blocks

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

limited = give_back_large_blocks()
larger = b"x" * (24 << 20)
del larger
blocks = [b"x" * (512 << 10) for _ in range(64)]
before = resident() if limited else 0
del blocks[::2]
json.dump([limited, before - resident() if limited else 0], sys.stdout)
"""


def test_freed_large_blocks_are_returned_to_the_system():
    done = subprocess.run([sys.executable, "-c", FREED_BETWEEN], check=True, capture_output=True, text=True)
    limited, freed = json.loads(done.stdout)
    assert limited or sys.platform != "linux"
    assert not limited or freed > 30 * (512 << 10)
