"""The directory that a restore writes to. Files are completed in a scratch folder, then renamed into place.

directory   the directory: processes that have files open, existing files, free space
scratch     a restore's own folder in the directory, and its files
placement   moves old files aside and new files into place, in an order that survives a kill; the journal
"""

from agent.adapters.restore_directory.directory import RestoreDirectoryFiles

__all__ = ["RestoreDirectoryFiles"]
