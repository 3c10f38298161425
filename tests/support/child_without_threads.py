"""The child process that makes and applies patches, where the operating system starts no thread to read prefixes."""

import sys

from agent.adapters.patches import applying, child
from agent.domain.errors import NO_THREAD


def no_thread(*_: object) -> None:
    raise RuntimeError(NO_THREAD)


applying.ThreadPoolExecutor.submit = no_thread
sys.exit(child.main())
