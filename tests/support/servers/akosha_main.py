"""Runs the stand-in for Akosha as a process and prints its address. Ends when its standard input is closed.

python akosha_main.py [--port PORT] [--token TOKEN] [--file FILE] [TOOL...]        GET /stand-in returns its data
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.support.servers.akosha import Akosha


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tools", nargs="*")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", default="")
    parser.add_argument("--file", type=Path)
    with Akosha(**vars(parser.parse_args())) as akosha:
        print(akosha.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
