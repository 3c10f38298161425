"""The directory that is restored to: files are completed in a scratch folder, and then get their names.

directory   the directory: processes that have it open, files in the way, free space
scratch     a restore's own folder in it, and the files there
placement   old files aside and new ones in their place, in an order that survives a kill; the journal
"""

from agent.adapters.restore_directory.directory import RestoreDirectoryFiles

__all__ = ["RestoreDirectoryFiles"]
