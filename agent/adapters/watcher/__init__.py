"""Reports changes of files in one directory.

watcher   `DirectoryWatcher` combines the other two, and implements `Watch`
native    a thread in watchfiles
scan      a stat of all watched files
"""

from agent.adapters.watcher.watcher import DirectoryWatcher

__all__ = ["DirectoryWatcher"]
