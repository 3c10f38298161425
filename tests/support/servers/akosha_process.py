"""The stand-in for Akosha as a process that a test may kill: its port and its memories survive.

with AkoshaProcess(folder) as akosha:
    akosha.kill()
    akosha.start()
"""

from pathlib import Path

from tests.support.servers import akosha_main
from tests.support.servers.akosha import Row, stored_rows
from tests.support.servers.kept_process import KeptProcess


class AkoshaProcess(KeptProcess):
    """A server that keeps its memories in a file of `folder`, and refuses requests without `token`."""

    def __init__(self, folder: Path, *, token: str = "") -> None:
        super().__init__(akosha_main, folder / "memories.jsonl", ("--token", token))

    def forget(self) -> None:
        """Delete the memories while the server is down."""
        self._file.unlink(missing_ok=True)

    def rows(self) -> list[Row]:
        """Return the stored memories in the order of arrival, without their embeddings."""
        return stored_rows(self._file)
