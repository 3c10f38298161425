"""The verdict of `status`: one case for each row of its table, and none that is safe although something is wrong."""

import ast
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from agent.application.archive.deep_schedule import DAMAGED, NOTE, DeepSchedule
from agent.application.monitoring.status import VerifyStatus
from agent.application.sync.lost_databases import DATABASE_LOST
from agent.domain.databases import NO_DATABASES
from agent.domain.status_warning import StatusWarning
from agent.entrypoints import status_verdict
from agent.entrypoints.formatting import PHASES, phase_name
from agent.entrypoints.status_document import AGENT_STOPPED
from agent.entrypoints.status_verdict import ROWS, Severity, verdict_of
from agent.ports import MemoryCounts
from tests.support import screens
from tests.support.values import NOON

ROOT = Path(__file__).parents[2]
CLOUD, AKOSHA, SAFE, OWED = screens.CLOUD, screens.AKOSHA, screens.SAFE, screens.OWED


def warned(code, document=SAFE):
    return replace(document, warnings=(StatusWarning(code=code, message="it is so", hint="do this"),))


def with_target(target=CLOUD, **fields):
    return replace(SAFE, targets=(replace(target, **fields),))


NEWEST = CLOUD.newest_upload_id
DAMAGE = VerifyStatus(upload_id=NEWEST, at=NOON, problems={"a.duckdb": "is missing"}, whole=False)
REMOVED = replace(screens.CHANGED, removed=True, pending=False)
GONE = replace(screens.REFLECTION, removed=True, size=0)
NEVER = {"last_success": None, "newest_upload_id": None, "last_bytes": None}

CASES = {
    "_newest_upload_damaged": (replace(SAFE, verified=DAMAGE), f"The upload {NEWEST} is damaged: a.duckdb: is missing"),
    "_stored_damage": (warned(DATABASE_LOST), "Memories are damaged: it is so"),
    "_no_target": (replace(SAFE, targets=()), "Nothing is backed up: no target is set"),
    "_target_refuses": (warned("credentials_refused_cloud"), "Uploads fail: it is so"),
    "_databases_unreadable": (replace(SAFE, problem="no access"), "The databases cannot be read: no access"),
    "_agent_unhealthy": (replace(SAFE, unhealthy={"watch": "no scan"}), "The agent is not working: watch: no scan"),
    "_target_fails": (with_target(error="403 (allow it)", failures=1), "Uploads fail: 403"),
    "_database_refused": (
        with_target(databases=(replace(screens.CHANGED, problem="not a database (restore it)"),)),
        "Not everything can be uploaded: reflection: not a database",
    ),
    "_memories_refused": (
        with_target(AKOSHA, memories=MemoryCounts(refused={"odd": 2})), "Akosha refused 2 memories",
    ),
    "_uploading": (replace(OWED, activity=screens.UPLOADING), "Uploading: reflection, 42 %"),
    "_pending": (
        replace(OWED, next_sync=screens.later(252, "min_interval")),
        "Not uploaded yet: reflection; the next sync is in 4:12",
    ),
    "_memories_waiting": (with_target(AKOSHA, memories=MemoryCounts(waiting={"odd": 1})), "1 memory waits: odd"),
    "_agent_unresponsive": (
        warned(AGENT_STOPPED), "Unknown: it is so; this status is from its ledger",
    ),
    "_no_databases": (
        replace(with_target(databases=(GONE,)), problem=NO_DATABASES),
        (
            "No longer on this machine: reflection; the upload 20260301_115700_laptop has the last state "
            "(akosha-agent restore --to DIR gets it back)"
        ),
    ),
    "_removed_while_owed": (
        with_target(databases=(REMOVED,)),
        "Removed before their last changes were uploaded: reflection (akosha-agent sync ends this warning)",
    ),
    "_removed": (
        with_target(AKOSHA, newest_upload_id=None, databases=(screens.GRAPH, GONE)),
        "No longer on this machine: reflection; the memories were delivered before",
    ),
    "_clock_wrong": (
        with_target(last_success=NOON + timedelta(days=3, hours=2)),
        "The clock of this machine is or was wrong: last upload 3 d 2 h in the future, 210.0 kB",
    ),
    "_never": (with_target(databases=(), **NEVER), "Nothing has been uploaded yet"),
    "_disabled": (
        replace(SAFE, sync_enabled=False),
        "Sync is disabled, so later changes are not uploaded: last upload 3 min ago, 210.0 kB",
    ),
    "_unknown_warning": (warned("of_a_later_version"), "Everything is uploaded, but: it is so"),
    "_no_agent": (
        screens.stopped(SAFE),
        "Everything is uploaded, but no agent is running: last upload 3 min ago, 210.0 kB",
    ),
    "_kept_by_akosha": (
        with_target(AKOSHA),
        "1,305 memories were delivered to Akosha; whether it still has them is unknown: last push 3 min ago, 210.0 kB",
    ),
}  # fmt: skip


def judged(document):
    return document.judged(NOON).verdict


def test_refused_credentials_that_are_the_last_error_are_reported_once():
    warning = StatusWarning(code="credentials_refused_cloud", message="cloud: no usable credentials: 403", hint="-")
    document = replace(with_target(error="403 (allow it)", failures=1), warnings=(warning,))
    assert judged(document).text == "Uploads fail: 403"
    later = replace(with_target(error="no answer", failures=2), warnings=(warning,))
    assert judged(later).text == "Uploads fail: cloud: no usable credentials: 403"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"error": "403 (set a token)", "failures": 1}, "Memories cannot be sent to Akosha: 403"),
        (NEVER | {"databases": ()}, "Nothing has been sent to Akosha yet"),
        ({"databases": (replace(screens.CHANGED, problem="odd"),)}, "Not everything can be sent to Akosha: reflection"),
    ],
)
def test_nothing_is_called_an_upload_if_an_akosha_server_is_the_target(fields, text):
    assert judged(with_target(AKOSHA, **fields)).text.startswith(text)
    assert judged(replace(with_target(AKOSHA), pending=("a",))).text == "Not sent to Akosha yet: a"
    stopped = judged(screens.stopped(with_target(AKOSHA))).text
    assert stopped.startswith("Everything has been sent to Akosha, but no agent is running: last push")


@pytest.mark.parametrize(("severity", "row"), [(severity, row.__name__) for severity, row in ROWS])
def test_each_row_has_a_case_with_its_severity(severity, row):
    document, text = CASES[row]
    assert (judged(document).severity, judged(document).text) == (severity, text)


def test_rows_are_in_the_order_of_severity_and_safe_is_none_of_them():
    order = [*Severity]
    ranks = [order.index(severity) for severity, _ in ROWS]
    assert ranks == sorted(ranks)
    assert Severity.SAFE not in {severity for severity, _ in ROWS}
    assert {row.__name__ for _, row in ROWS} == CASES.keys()


def test_all_is_safe_only_if_no_row_applies():
    assert judged(SAFE) == status_verdict.Verdict(
        severity=Severity.SAFE, text="All memories are safe: last upload 3 min ago, 210.0 kB"
    )
    for code in status_verdict.HARMLESS_CODES - {"agent_stopped", "agent_silent"}:
        assert judged(warned(code)).severity is Severity.SAFE, code


def test_databases_removed_while_owed_are_reported_before_those_that_the_upload_has():
    document = replace(with_target(databases=(GONE, replace(REMOVED, name="knowledge_graph"))), problem=NO_DATABASES)
    assert judged(document).text.startswith("Removed before their last changes were uploaded: knowledge_graph")


def test_a_removed_graph_with_a_name_of_its_own_is_named_in_a_safe_verdict():
    graph = replace(GONE, name="knowledge_graph_old")
    verdict = judged(with_target(databases=(screens.REFLECTION, graph)))
    assert (verdict.severity, verdict.text.partition("; ")[2]) == (
        Severity.SAFE, "no longer on this machine: knowledge_graph_old",
    )  # fmt: skip


def test_uploads_of_another_program_are_not_called_safe():
    assert judged(warned("foreign_uploads")).severity is Severity.UNKNOWN


@pytest.mark.parametrize(("age", "shown"), [(timedelta(seconds=9), ""), (timedelta(days=9), " (changed 9 d ago)")])
def test_a_change_that_has_waited_for_long_has_its_age(age, shown):
    document = replace(OWED, targets=(replace(CLOUD, databases=(replace(screens.CHANGED, changed_at=NOON - age),)),))
    assert judged(document).text == f"Not uploaded yet: reflection{shown}"


def test_a_damaged_upload_before_the_newest_is_no_verdict():
    assert judged(replace(SAFE, verified=replace(DAMAGE, upload_id="u"))).severity is Severity.SAFE


@pytest.mark.parametrize(
    ("upload", "severity"), [(NEWEST, Severity.DAMAGED), ("20260101_000000_laptop", Severity.FAILING)]
)
def test_damage_that_a_deep_check_found_is_the_verdict_only_if_the_newest_upload_has_it(upload, severity):
    damaged = DeepSchedule(damaged={upload: "reflection.duckdb: is cut"})
    failing = replace(screens.failing(), warnings=warned(DAMAGED).warnings, notes={NOTE: damaged.note()})
    assert judged(failing).severity is severity


def test_a_missing_newest_upload_is_called_missing():
    missing = replace(DAMAGE, problems={"manifest.json": "is missing"})
    assert judged(replace(SAFE, verified=missing)).text == (
        f"The newest upload, {NEWEST}, is missing: akosha-agent sync uploads its databases again"
    )


def test_refused_credentials_of_a_fallback_that_is_not_needed_do_no_harm():
    assert judged(warned("credentials_refused_http")).severity is Severity.SAFE
    assert judged(warned("credentials_refused_cloud")).severity is Severity.FAILING


def test_the_worst_of_several_conditions_is_reported():
    document = replace(screens.failing(), verified=DAMAGE, activity=screens.UPLOADING)
    assert judged(document).severity is Severity.DAMAGED
    assert judged(replace(document, verified=None)).severity is Severity.FAILING
    assert judged(replace(screens.stopped(OWED), sync_enabled=False)).severity is Severity.OWED
    assert judged(screens.stopped(OWED)).text == "Not uploaded yet: reflection; no agent is running"


def codes_in_the_source():
    """Yield the codes of all status warnings: constants, and the prefixes of those with a method's name."""
    for path in (ROOT / "agent").rglob("*.py"):
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                for target in node.targets:
                    if isinstance(target, ast.Tuple):
                        names = [getattr(one, "id", "") for one in target.elts]
                        constants |= {
                            name: value.value
                            for name, value in zip(names, node.value.elts, strict=False)
                            if isinstance(value, ast.Constant)
                        }
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "StatusWarning"
                and "doctor" not in path.parts
            ):
                (code,) = [word.value for word in node.keywords if word.arg == "code"]
                if isinstance(code, ast.Constant):
                    yield code.value
                elif isinstance(code, ast.Name) and code.id in constants:
                    yield constants[code.id]


def test_every_code_of_a_warning_has_a_severity():
    known = frozenset().union(
        status_verdict.DAMAGE_CODES, status_verdict.FAILURE_CODES, status_verdict.UNKNOWN_CODES,
        status_verdict.HARMLESS_CODES,
    )  # fmt: skip
    found = {*codes_in_the_source()}
    assert "target_not_mounted" in found
    assert found <= known
    assert known <= found


def test_the_quick_start_lists_the_beginning_of_every_verdict():
    page = (ROOT / "docs" / "quickstart.md").read_text()
    table = page.partition("| it begins with | meaning |")[2].partition("\n\n")[0]
    cells = " ".join(line.split("|")[1] for line in table.strip().splitlines())
    patterns = [re.escape(text).replace(re.escape("..."), ".*") for text in re.findall("`([^`]+)`", cells)]
    texts = [text for _, text in CASES.values()] + [judged(SAFE).text]
    texts += [phase_name(phase).capitalize() for phase in PHASES if phase != "download"]
    texts += [judged(with_target(AKOSHA, error="403", failures=1)).text]
    assert [text for text in texts if not any(re.match(pattern, text) for pattern in patterns)] == []


def test_the_verdict_of_an_earlier_agent_is_made_by_the_command():
    assert SAFE.verdict is None
    assert verdict_of(status_verdict.Facts(
        status=SAFE, agent_runs=True, unresponsive="", problem="", sync_enabled=True, now=NOON
    )).severity is Severity.SAFE  # fmt: skip
