"""The directory that is restored to: where files come together out of sight, and then take their names.

place    the directory: who works in it, what is in the way, how much room there is
scratch  a restore's own folder in it
placing  old files aside and new ones in their place, in an order that a kill leaves whole; the journal
files    what the others do with files
"""

from agent.adapters.restore_directory.directory import RestoreDirectoryFiles

__all__ = ["RestoreDirectoryFiles"]
