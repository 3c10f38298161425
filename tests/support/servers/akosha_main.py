"""Runs the stand-in for Akosha as a process and prints its address. Ends when its standard input is closed.

python akosha_main.py [TOOL...]        GET /stand-in returns its data
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.servers.akosha import Akosha


def main() -> None:
    with Akosha(tools=sys.argv[1:]) as akosha:
        print(akosha.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
