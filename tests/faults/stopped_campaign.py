"""A campaign of which one chunk sends a signal to the runner, once; a program for tests to run.

    python tests/faults/stopped_campaign.py FOLDER SIGNAL

Each chunk appends its number to FOLDER/played, and starts a process that runs until it is killed.
"""

import sys
from pathlib import Path

from tests.campaign import run
from tests.campaign.plan import Chunk
from tests.campaign.record import Record, Run

STOPS = 2
PLAN = [Chunk("row", number, rounds=1, seconds=4 - number) for number in (1, 2, 3)]
CHUNK = f"""
import json, os, subprocess, sys
folder, number, seed, row, chunk, rounds, own = sys.argv[1:]
child = subprocess.Popen(["sleep", "1000"])
with open(f"{{folder}}/children", "a") as file:
    file.write(f"{{child.pid}}\\n")
if int(chunk) == {STOPS} and not os.path.exists(f"{{folder}}/stopped"):
    open(f"{{folder}}/stopped", "w").close()
    os.kill(os.getppid(), int(number))
    sys.stdin.read()
else:
    with open(f"{{folder}}/played", "a") as file:
        file.write(f"{{seed}} {{chunk}}\\n")
    with open(f"{{own}}/outcome.json", "w") as file:
        json.dump({{"row": row, "rounds": int(rounds)}}, file)
"""


def main() -> None:
    folder, number = Path(sys.argv[1]), sys.argv[2]
    run.PROGRAM = (sys.executable, "-c", CHUNK, str(folder), number)
    played = run.campaign(PLAN, Run("7", "", ""), Record(folder / "record"), jobs=1)
    sys.exit(0 if len(played) == len(PLAN) else 3)


if __name__ == "__main__":
    main()
