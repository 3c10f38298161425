"""`akosha-agent` under a restriction that the kernel enforces.

python restricted.py (unprivileged | file-limit:BYTES) run --data-dir ...
"""

import ctypes
import os
import resource
import sys

from agent.__main__ import main
from tests.support.constants import replace_from_environment


def drop_privileges() -> None:
    """Give up root's right to read everything, so that file modes count for root too."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    restriction, _, figure = sys.argv.pop(1).partition(":")
    if restriction == "unprivileged":
        drop_privileges()
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(figure), resource.RLIM_INFINITY))
    replace_from_environment()
    main()
