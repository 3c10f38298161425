"""Makes the state directory and the bucket in this folder with the code of 53ebc98: see README.md."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fakes.machine import COMMAND, Machine

HERE = Path(__file__).parent
KILLED_SYNC = Path.cwd() / "tests" / "faults" / "killed_sync.py"
UNREACHABLE_NATS = "nats://127.0.0.1:9"


def end_session(machine: Machine, session_id: str) -> None:
    event = json.dumps({"session_id": session_id, "reason": "other", "hook_event_name": "SessionEnd"})
    command = [COMMAND, "hook", "session-end", "--state-dir", str(machine.state)]
    subprocess.run(command, input=event, text=True, env=machine.environ, check=True)


def dump(ledger: Path, bucket: str) -> str:
    """Return the ledger as SQL, with `BUCKET` for the bucket's path, also in the events, which are JSON as blobs."""
    with sqlite3.connect(ledger) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        sql = "\n".join([f"PRAGMA user_version = {version};", *connection.iterdump()])
    renamed = re.sub(r"X'([0-9A-F]*)'", lambda blob: f"X'{in_blob(blob[1], bucket)}'", sql)
    return renamed.replace(bucket, "BUCKET") + "\n"


def in_blob(digits: str, bucket: str) -> str:
    return bytes.fromhex(digits).replace(bucket.encode(), b"BUCKET").hex().upper()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), agent_nats_url=UNREACHABLE_NATS, agent_nats_connect_seconds=1)
        machine.write(commits=3, entities=2)
        assert machine.sync()["outcome"] == "succeeded"
        machine.write(commits=5)
        killed = (sys.executable, str(KILLED_SYNC), "put-file:after", str(Path(folder) / "published.jsonl"))
        assert machine.call(prefix=killed).code == -signal.SIGKILL
        end_session(machine, "before the upgrade")

        for name in ("state", "bucket"):
            shutil.rmtree(HERE / name, ignore_errors=True)
        shutil.copytree(machine.bucket, HERE / "bucket")
        (HERE / "state" / "spool").mkdir(parents=True)
        for path in (*machine.state.glob("*.json"), *machine.state.glob("spool/*.json")):
            shutil.copy(path, HERE / "state" / path.relative_to(machine.state))
        (HERE / "state" / "ledger.sql").write_text(dump(machine.state / "ledger.sqlite", str(machine.bucket)))


if __name__ == "__main__":
    main()
