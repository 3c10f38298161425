"""What has been heard from the demo's processes so far, and how each thing heard is shown."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from agent.entrypoints.demo.bucket import Part, Upload
from agent.entrypoints.demo.children import Ended, Heard
from agent.entrypoints.demo.screen import Screen
from agent.entrypoints.demo.shape import Content, Tally
from agent.entrypoints.results import human_bytes

WRITER, AGENT, EVENTS = "writer", "agent", "events"

_REASONS = {
    "startup": "it has started and found what the bucket lacks",
    "file_change": "a file has changed",
    "retry": "an earlier attempt failed",
}
_ORIGINS = {"sent": "sent", "copied": "copied by the store, unchanged", "carried": "carried over from the last upload"}


@dataclass(slots=True)
class Chronicle:
    """Hears lines, shows them, and remembers what the stages and the checks ask for."""

    screen: Screen
    bucket: Path
    answers: int = 0
    files: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    commits: int = 0
    checkpoints: int = 0
    tally: Tally = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)
    sent_bytes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)

    _noticed: bool = False
    _requested: bool = False
    _early: list[str] = field(default_factory=list)

    @property
    def up_to_date(self) -> bool:
        """Whether the newest upload has as many rows in every table as the writer has committed."""
        return bool(self.uploads and self.rows) and self.uploads[-1].rows == self.rows

    @property
    def told(self) -> list[str]:
        """The uploads told of, in that order."""
        return [upload.upload_id for upload in self.uploads]

    def hear(self, heard: Heard) -> None:
        """Take in one line or end. Raises WireError for an upload told of that cannot be read."""
        if isinstance(heard, Ended):
            self.ended[heard.child] = heard.status
            return
        try:
            said = json.loads(heard.text)
        except ValueError:
            self.screen.line(heard.child, heard.text)
            return
        if heard.child == WRITER:
            self._writer(said)
        elif heard.child == AGENT:
            self._log(said)
        else:
            self._event(said)

    def _writer(self, said: Mapping[str, object]) -> None:
        self.screen.line(WRITER, str(said["text"]))
        self.rows = _counts(said["rows"])
        if not said.get("done"):
            return
        self.answers += 1
        self.files = _counts(said["files"])
        self.commits, self.checkpoints = int(str(said["commits"])), int(str(said["checkpoints"]))
        tally = said.get("tally")
        if isinstance(tally, dict):
            self.tally = {table: Content(rows, digest) for table, (rows, digest) in tally.items()}

    def _log(self, said: Mapping[str, object]) -> None:
        """Show of the agent's log what is no event: that it noticed, and that it copied."""
        what = said.get("event")
        if what == "files_changed" and not self._noticed:
            self._noticed = True
            names = said["names"]
            assert isinstance(names, list)
            self.screen.line(AGENT, f"change noticed: {', '.join(map(str, names))}")
        elif what == "snapshot_taken":
            how = "opened and read through" if said["verified"] else f"not verified: {said['why']}"
            size, took = human_bytes(float(str(said["bytes"]))), said["duration_seconds"]
            text = f"snapshot of {said['database']}: {size} in {took} s, {how}"
            # The log is quicker than the events: a snapshot is not shown before the request it is for.
            if self._requested:
                self.screen.line(AGENT, text)
            else:
                self._early.append(text)
        elif said.get("level") in ("warning", "error", "critical"):
            rest = {k: v for k, v in said.items() if k not in ("event", "level", "timestamp")}
            self.screen.line(AGENT, f"{said['level']}: {what} {json.dumps(rest, ensure_ascii=False)}")

    def _event(self, said: Mapping[str, object]) -> None:
        kind, data = str(said["type"]), said["data"]
        assert isinstance(data, dict)
        if kind.startswith("akosha.sync.requested."):
            self._requested, self._noticed = True, False
            why = _REASONS.get(data["reason"], data["reason"])
            self.screen.line(AGENT, f"sync requested: {why}")
            self._show_early()
            return
        self._show_early()
        self._requested = False
        if kind.startswith("akosha.sync.succeeded."):
            folder = self.bucket / Path(data["manifest_key"]).parent
            upload = Upload.read(folder)
            self.uploads.append(upload)
            self.sent_bytes[upload.upload_id] = data["bytes_transferred"]
            told = datetime.fromisoformat(str(said["time"])).astimezone()
            self.screen.line(
                "cloud",
                f"{upload.upload_id} is whole since {told:%H:%M:%S}: {human_bytes(data['bytes_transferred'])} sent in "
                f"{data['duration_seconds']:.1f} s",
            )
            for origin, text in _ORIGINS.items():
                parts = [part for part in upload.parts if part.origin == origin]
                if parts:
                    names = (_with_size(part) if origin == "sent" else part.name for part in parts)
                    self.screen.line("", f"  {text}: {', '.join(names)}")
        elif kind.startswith("akosha.sync.skipped."):
            self.screen.line(AGENT, f"nothing to do: {data['why']}")
        elif kind.startswith("akosha.sync.failed."):
            self.failures.append(str(data["error"]))
            self.screen.line(AGENT, f"failed: {data['error']}")

    def _show_early(self) -> None:
        for text in self._early:
            self.screen.line(AGENT, text)
        self._early.clear()


def _with_size(part: Part) -> str:
    return f"{part.name} ({human_bytes(part.raw_size)})"


def _counts(document: object) -> dict[str, int]:
    assert isinstance(document, dict)
    return {str(name): int(count) for name, count in document.items()}
