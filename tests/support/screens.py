"""Texts that commands print on terminals of several widths and in a pipe, for files that a person can read.

`python -m tests.support.screens` writes the files again.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from agent.application.fleet.bucket import BucketFacts, NewestUpload
from agent.application.fleet.events import SystemEvents
from agent.application.fleet.fleet import FleetReport, Source
from agent.application.fleet.merge import FleetSystem, by_severity, merged
from agent.application.monitoring.status import (
    DELIVERED_TO_AKOSHA,
    BusStatus,
    DatabaseStatus,
    NextSync,
    TargetStatus,
    VerifyStatus,
)
from agent.application.status_warnings import notes_waiting
from agent.domain.databases import NO_DATABASES
from agent.domain.events import Event, MethodError, UploadsPruned, UploadVerified
from agent.domain.memories import NO_EMBEDDING, Kind, RowState
from agent.domain.progress import Activity, Progress
from agent.domain.status_warning import StatusWarning
from agent.domain.sync_preview import DatabasePreview, DatabaseStep, FilePreview, FileStep
from agent.entrypoints import live_line, narrator
from agent.entrypoints.fleet_text import fleet_lines
from agent.entrypoints.memories_text import Account, account_lines
from agent.entrypoints.progress_line import progress_texts
from agent.entrypoints.sentences import event_lines, log_lines
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_text import status_lines
from agent.entrypoints.sync_preview import SyncPreview, preview_lines
from agent.entrypoints.text_lines import Line, rendered
from agent.ports import HeldMemory, MemoryCounts, StreamEntry
from tests.support import fleet, values
from tests.support.values import NOON

DIRECTORY = Path(__file__).parents[1] / "unit" / "screens"
WIDTHS: Mapping[str, int | None] = {"40": 40, "80": 80, "200": 200, "pipe": None}
LOCATIONS = {"cloud": "s3.example.com/memories", "http": "https://akosha.example.org/mcp"}

GRAPH = DatabaseStatus(name="knowledge_graph", state="clean", pending=False, size=2_600_000)
REFLECTION = DatabaseStatus(name="reflection", state="clean", pending=False, size=5_400_000)
CHANGED = replace(REFLECTION, state="owed", pending=True)
CLOUD = TargetStatus(
    method="cloud", endpoint="https://s3.example.com", bucket="memories", databases=(GRAPH, REFLECTION),
    newest_upload_id="20260301_115700_laptop", last_success=NOON - timedelta(minutes=3), failures=0, next_try=None,
    error="", memories=MemoryCounts(), last_bytes=210_000,
)  # fmt: skip
AKOSHA = replace(
    CLOUD, method="http", endpoint=LOCATIONS["http"], bucket="", newest_upload_id=None,
    memories=MemoryCounts(delivered=1_305), delivered_means=DELIVERED_TO_AKOSHA,
)  # fmt: skip
RUNNING: Mapping[str, object] = {"pid": 4711, "command": "run", "since": "2026-03-01T07:00:00+00:00"}
SAFE = StatusDocument(
    system_id="laptop", agent_id="a" * 32, route=("cloud",), targets=(CLOUD,), pending=(), notes={"watcher": "polling"},
    bus=BusStatus(text="in this process", since=None), running=dict(RUNNING), problem="", sync_enabled=True,
    data_dir="/home/me/.claude/data", state_dir="/home/me/.local/state/akosha-agent",
    verified=VerifyStatus(
        upload_id="20260301_115700_laptop", at=NOON - timedelta(minutes=2), problems={}, whole=True
    ),
)  # fmt: skip
OWED = replace(SAFE, targets=(replace(CLOUD, databases=(GRAPH, CHANGED)),), pending=("reflection",))
UPLOADING = Activity(
    request_id="r", method="cloud", phase="upload", done_bytes=42_000_000, total_bytes=100_000_000,
    bytes_per_second=3.1e6, remaining_seconds=18.7,
)  # fmt: skip


def later(seconds: float, reason: str) -> NextSync:
    return NextSync(at=NOON + timedelta(seconds=seconds), reason=reason)


REFUSED = (
    "s3.example.com refused the key: InvalidAccessKeyId (renew the credentials; the next attempt reads them again)"
)


def failing(document: StatusDocument = OWED, error: str = REFUSED) -> StatusDocument:
    at = later(90, "retry")
    target = replace(document.targets[0], error=error, failures=3, next_try=at.at)
    return replace(document, targets=(target,), next_sync=at)


def stopped(document: StatusDocument) -> StatusDocument:
    return replace(document, running=None, bus=None)


STATUSES: Mapping[str, StatusDocument] = {
    "everything is uploaded": SAFE,
    "an upload is under way": replace(OWED, activity=UPLOADING),
    "a change waits for the minimum interval": replace(OWED, next_sync=later(252, "min_interval")),
    "the target refuses the credentials": failing(),
    "the disk is not mounted": replace(
        OWED,
        warnings=(
            StatusWarning(
                code="target_not_mounted", message="/mnt/nas/memories has no uploads any more",
                hint="is the disk mounted? If it was replaced: akosha-agent sync --new-target",
            ),
        ),
    ),
    "the newest upload is damaged": replace(
        SAFE,
        verified=VerifyStatus(
            upload_id="20260301_115700_laptop", at=NOON, problems={"reflection.duckdb": "is missing"}, whole=False
        ),
    ),
    "no agent is running": replace(stopped(OWED), warnings=notes_waiting(2)),
    "a database was removed": replace(
        SAFE, targets=(replace(CLOUD, databases=(replace(GRAPH, removed=True, size=0), REFLECTION)),)
    ),
    "a change has waited for days, and its last verified upload is an earlier one": replace(
        OWED, verified=replace(SAFE.verified, upload_id="20260220_080000_laptop", at=NOON - timedelta(days=9, hours=4)),
        targets=(
            replace(CLOUD, databases=(GRAPH, replace(CHANGED, changed_at=NOON - timedelta(days=9, minutes=70)))),
        ),
    ),
    "the clock was set back": replace(SAFE, targets=(replace(CLOUD, last_success=NOON + timedelta(days=3)),)),
    "an Akosha server is the target": replace(
        SAFE, route=("http",), verified=None,
        targets=(replace(AKOSHA, memories=MemoryCounts(delivered=1_305, waiting={NO_EMBEDDING: 13})),),
    ),
    "an Akosha server does not accept the token": failing(
        replace(
            SAFE, route=("http",), verified=None, pending=("reflection",),
            targets=(replace(AKOSHA, databases=(CHANGED,)),),
        ),
        "akosha.example.org: status 401 (set akosha_http_token to a token that the server accepts)",
    ),
    "nothing is there yet": replace(
        stopped(SAFE), problem=NO_DATABASES, verified=None, system_id_undecided=True,
        targets=(replace(CLOUD, databases=(), newest_upload_id=None, last_success=None, last_bytes=None),),
    ),
}  # fmt: skip


UPLOADED = replace(
    values.succeeded(values.manifest(reflection=1)), upload_id="20260301_115700_laptop", bytes_transferred=210_000,
    location="s3.example.com/memories", memories=12, incomplete={},
)  # fmt: skip
REQUESTED = values.request()
NARRATION: Mapping[str, Sequence[tuple[Sequence[Line], float]]] = {
    "a change is uploaded": [
        (event_lines(replace(REQUESTED, reason="file_change"), [CHANGED]), 0),
        (event_lines(UPLOADED), 1),
    ],
    "a person has requested a sync": [(event_lines(replace(REQUESTED, reason="manual")), 0)],
    "a database cannot be copied": [
        (event_lines(replace(REQUESTED, reason="session_end")), 0),
        (event_lines(replace(UPLOADED, incomplete={"knowledge_graph": "not a DuckDB database"})), 1),
    ],
    "the target cannot be reached, and the agent goes on": [
        (event_lines(replace(REQUESTED, reason="startup")), 0),
        (log_lines("sync_retry_scheduled", "warning", {
            "attempt": 1, "delay_seconds": 2.1, "error": "s3.example.com does not answer (check the network)",
        }), 1),
        (event_lines(replace(
            values.failed("r"),
            errors=(MethodError(method="cloud", error="s3.example.com does not answer (check the network)"),),
            retry_at=NOON + timedelta(seconds=30),
        )), 4),
    ],
    "a warning of the log": [
        (log_lines("data_directory_unreadable", "warning", {
            "error": "cannot read the data directory /home/me/.claude/data: Permission denied", "system_id": "laptop",
        }), 0),
        (log_lines("settings_refused", "error", {
            "reason": "akosha_max_retries is not a number", "hint": "akosha-agent config",
            "next_step": "the previous settings stay in effect",
        }), 1),
    ],
    "an upload is verified, old ones are deleted": [
        (event_lines(UploadVerified(
            id="v", time=NOON, system_id="laptop", upload_id="20260301_115700_laptop", whole=False, deep=True,
            objects=4, problems={"reflection.duckdb": "is missing"},
        )), 0),
        (event_lines(UploadsPruned(
            id="p", time=NOON, system_id="laptop", upload_ids=("a", "b"), kept=10, objects=6, bytes_freed=1_600_000,
            leftovers=0,
        )), 1),
    ],
}  # fmt: skip


LARGE = FilePreview(
    name="reflection.duckdb", step=FileStep.PATCH, size=72_000_000, whole_bytes=66_000_000, patch_bytes=33_000_000
)
WAL = FilePreview(name="reflection.duckdb.wal", step=FileStep.WHOLE, size=910_000, whole_bytes=180_000)
PREVIEW = SyncPreview(
    method="cloud", location=LOCATIONS["cloud"], system_id="laptop",
    databases=(
        DatabasePreview(name="knowledge_graph", step=DatabaseStep.UNCHANGED),
        DatabasePreview(name="knowledge_graph_old", step=DatabaseStep.REMOVED),
        DatabasePreview(name="reflection", step=DatabaseStep.SEND, files=(LARGE, WAL)),
    ),
)  # fmt: skip
PREVIEWS: Mapping[str, SyncPreview] = {
    "a large database and its WAL have changed": PREVIEW,
    "an interrupted first upload, and a database that could not be copied": replace(
        PREVIEW, resumes="20260301_115700_laptop", known=False,
        databases=(
            DatabasePreview(
                name="reflection", step=DatabaseStep.SEND, files=(replace(WAL, name="reflection.duckdb"),),
                problem="not a DuckDB database",
            ),
        ),
    ),
    "the target is an Akosha server": replace(PREVIEW, method="http", location=LOCATIONS["http"]),
    "nothing has changed": replace(PREVIEW, databases=PREVIEW.databases[:1]),
}  # fmt: skip


def held(number: int, state: str, reason: str, kind: Kind = "conversation") -> HeldMemory:
    row = RowState(database="reflection", kind=kind, id=f"{number:032x}", digest="0" * 32, embedded=False)
    return HeldMemory(row=row, state=state, reason=reason, since=NOON)


HELD = (held(1, "refused", "the text is too long"), *(held(number, "waiting", NO_EMBEDDING) for number in range(2, 15)))
TEXTS = {
    HELD[0].row.key: "Full transcript of the session about the parser:\n" + "and then " * 40,
    HELD[1].row.key: "How do I configure the retry back-off of the uploads?",
}
COUNTS = MemoryCounts(delivered=1_305, waiting={NO_EMBEDDING: 13}, refused={"the text is too long": 1})
AKOSHA_ACCOUNT = Account(replace(values.TARGET, method="http"), COUNTS, HELD, confirmed_at=NOON)
ACCOUNTS: Mapping[str, tuple[Account, bool]] = {
    "an Akosha server": (AKOSHA_ACCOUNT, False),
    "an Akosha server, --all": (replace(AKOSHA_ACCOUNT, held=HELD[:2]), True),
    "a bucket": (Account(values.TARGET, MemoryCounts(), (), None, rows=8_210), False),
}


def advanced(phase: str, per_second: float, total: int, seconds: int = 14) -> Progress:
    """Return the progress of a phase that has advanced steadily until second `seconds`."""
    progress = Progress(phase, total, at=0)
    for second in range(1, seconds + 1):
        progress.update(round(per_second * second), at=second)
    return progress


PROGRESS: Mapping[str, list[str]] = {
    about: progress_texts(advanced(phase, per_second, total), at=14, of_bytes=of_bytes, encoding="utf-8")
    for about, phase, per_second, total, of_bytes in (
        ("sync", "upload", 3.1e6, 100_000_000, True),
        ("sync, memories of a first push", "memories", 104.6e6, 123_456_000_000, True),
        ("restore", "download", 3.1e6, 100_000_000, True),
        ("verify --all --deep", "verifying 20260301_115700_laptop (3 of 12)", 3.1e6, 100_000_000, True),
        ("react --once", "ingesting", 6, 200, False),
    )
} | {"run, a change waits": narrator.waiting_texts(later(252, "min_interval"), NOON)}


def fleet_system(number: int, bucket: BucketFacts | None, *events: Event, failures: int = 0) -> FleetSystem:
    """Return a system as NATS and the bucket show it."""
    newest = {
        type(event): StreamEntry(subject=event.subject, sequence=1, stored_at=event.time, event=event)
        for event in events
    }
    since = NOON - timedelta(hours=29) if failures else None
    return merged(
        f"laptop-{number}", bucket, SystemEvents(newest=newest, failures=failures, failing_since=since),
        now=NOON, overdue=timedelta(days=1),
    )  # fmt: skip


def uploaded(number: int, hours: float, **facts: object) -> BucketFacts:
    manifest = fleet.upload(f"laptop-{number}", NOON - timedelta(hours=hours))
    newest = replace(NewestUpload.of(manifest), stored_bytes=42_000_000)
    return BucketFacts(newest=newest, host=f"studio-{number}", **facts)


REFUSED = "s3.example.com refused the key: InvalidAccessKeyId (renew the credentials)"
FLEET_SOURCES = (
    Source(name="bucket", location="s3.example.com/memories", systems=5),
    Source(name="nats", location="tls://nats.example.org", systems=4),
)
FINE = [
    fleet_system(n, uploaded(n, n / 7), fleet.ingested(fleet.upload(f"laptop-{n}", NOON - timedelta(hours=n / 7))))
    for n in (1, 2)
]
NOT_FINE = [
    fleet_system(3, uploaded(3, 30), fleet.failed("laptop-3", NOON - timedelta(minutes=3), error=REFUSED), failures=58),
    fleet_system(4, uploaded(4, 29), fleet.ingested(fleet.upload("laptop-4", NOON - timedelta(hours=31)))),
    fleet_system(5, BucketFacts(problems=("systems/laptop-5/owner.json: owner.json is damaged: KeyError",))),
    replace(fleet_system(6, uploaded(6, 1)), system_id="x" * 100),
]
FLEETS: Mapping[str, FleetReport] = {
    "all systems are fine": FleetReport(time=NOON, sources=FLEET_SOURCES, systems=tuple(FINE)),
    "the example in docs/guides/fleet.md": FleetReport(
        time=NOON, sources=tuple(replace(source, systems=3) for source in FLEET_SOURCES),
        systems=tuple(by_severity([*FINE[:1], *NOT_FINE[:2]])),
    ),
    "some are not, and one has a very long name": FleetReport(
        time=NOON, sources=FLEET_SOURCES, systems=tuple(by_severity([*FINE, *NOT_FINE]))
    ),
    "NATS cannot be reached, and a folder is no system": FleetReport(
        time=NOON, systems=tuple(FINE),
        sources=(
            replace(FLEET_SOURCES[0], notes=("folders that name no system were ignored: \x1b[2J",)),
            replace(FLEET_SOURCES[1], systems=0, error="NATS at tls://nats.example.org cannot be reached"),
        ),
    ),
    "only a bucket is configured, and it is empty": FleetReport(
        time=NOON, systems=(),
        sources=(replace(FLEET_SOURCES[0], systems=0), Source(name="nats", hint="akosha_agent_nats_url")),
    ),
}  # fmt: skip


def screens() -> Mapping[str, Mapping[str, list[Line]]]:
    """Return name of the command -> what it is about -> its lines."""
    return {
        "run": {
            about: [line for event, at in entries for line in narrator.timed(event, NOON + timedelta(seconds=at))]
            for about, entries in NARRATION.items()
        },
        "memories": {
            about: account_lines(account, LOCATIONS[account.target.method], TEXTS, failed=False, everything=everything)
            for about, (account, everything) in ACCOUNTS.items()
        },
        "sync_dry_run": {about: list(preview_lines(found)) for about, found in PREVIEWS.items()},
        "status": {
            about: status_lines(
                document,
                locations=LOCATIONS,
                over_nats=False,
                other_id="laptop-3f9a" if document.system_id_undecided else "",
                now=NOON,
            )
            for about, document in STATUSES.items()
        },
    }


def files() -> Mapping[str, str]:
    """Return file name -> text: all screens of a command at one width."""
    found = {}
    for name, shown in screens().items():
        for suffix, width in WIDTHS.items():
            parts = [
                "\n".join([f"---- {about}", *rendered(lines, width=width, colours=False), ""])
                for about, lines in shown.items()
            ]
            found[f"{name}_{suffix}.txt"] = "\n".join(parts)
    for suffix, width in WIDTHS.items():
        parts = [
            "\n".join([f"---- {about}", *rendered(fleet_lines(report, width=width), width=width, colours=False), ""])
            for about, report in FLEETS.items()
        ]
        found[f"fleet_{suffix}.txt"] = "\n".join(parts)
        if width is not None:  # elsewhere there is no progress
            parts = [f"---- {about}\n{live_line.fitted(texts, width)}\n" for about, texts in PROGRESS.items()]
            found[f"progress_{suffix}.txt"] = "\n".join(parts)
    return found


if __name__ == "__main__":
    os.environ["TZ"] = "UTC"
    time.tzset()
    for file, content in files().items():
        (DIRECTORY / file).write_text(content)
