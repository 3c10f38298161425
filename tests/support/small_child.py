"""The child process that makes and applies patches, with too little memory for the prefix of a frame."""

import sys

from agent.adapters.patches import applying, child


def no_memory(_: bytearray) -> None:
    raise MemoryError


applying.prefix_of = no_memory
sys.exit(child.main())
