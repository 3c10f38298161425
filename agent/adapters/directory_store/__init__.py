"""An object store in a directory: a NAS, a USB disk, or a local directory."""

from agent.adapters.directory_store.store import DirectoryStore

__all__ = ["DirectoryStore"]
