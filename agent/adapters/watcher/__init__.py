"""Reports changes of files in one directory.

watcher             `DirectoryWatcher` combines a native watch and the scan, and implements `Watch`
native              the interface of the native watches
inotify             on Linux, without a thread
watchfiles_thread   elsewhere
scan                a stat of all watched files
"""

from agent.adapters.watcher.watcher import DirectoryWatcher

__all__ = ["DirectoryWatcher"]
