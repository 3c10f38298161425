"""Large blocks that are freed leave the process, whatever was freed before."""

import json
import subprocess
import sys

# Of 64 blocks of 512 KiB every second is freed, between others that live; a far larger one was freed before.
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


def test_large_blocks_freed_between_living_ones_leave_the_process():
    done = subprocess.run([sys.executable, "-c", FREED_BETWEEN], check=True, capture_output=True, text=True)
    limited, freed = json.loads(done.stdout)
    assert limited or sys.platform != "linux"
    assert not limited or freed > 30 * (512 << 10)
