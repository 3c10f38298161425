"""Patches: zstd frames with an earlier state of the file as reference.

patcher     the port: makes a patch in a child process, applies patches in a thread
child       the program of the child process
making      makes a patch and verifies it
matching    finds the bytes of a file in a reference
applying    makes a file from a reference and patches
container   the format of a patch
zstd        compresses and decompresses frames
"""

from agent.adapters.patches.patcher import ZstdPatcher

__all__ = ["ZstdPatcher"]
