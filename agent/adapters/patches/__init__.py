"""Patches: zstd frames that refer to an earlier state of the file.

patcher     implements `Patcher`: makes a patch in a child process, applies patches in one, too
child       the program of the child process
making      makes a patch and verifies it
matching    finds the bytes of a file in a reference
applying    makes a file from a reference and patches
container   the format of a patch
zstd        compresses and decompresses frames
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.adapters.patches.patcher import ZstdPatcher

__all__ = ["ZstdPatcher"]


def __getattr__(name: str) -> object:
    """Import the class on first use: the child process imports this package too, and starts faster this way."""
    if name == "ZstdPatcher":
        from agent.adapters.patches import patcher  # noqa: PLC0415

        return patcher.ZstdPatcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
