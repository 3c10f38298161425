"""A directory as a bucket: a NAS, a USB disk, a folder of this machine."""

from agent.adapters.directory_store.store import DirectoryStore

__all__ = ["DirectoryStore"]
