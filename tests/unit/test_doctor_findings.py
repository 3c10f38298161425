"""Findings of doctor's checks: how checks run in parallel, and how findings are printed."""

import asyncio
import io
import json
import threading

import pytest
from rich.console import Console

from agent.domain.errors import LedgerDamaged, SettingsError, StoreError
from agent.entrypoints.doctor import delivery_checks
from agent.entrypoints.doctor.context import DoctorContext, in_thread
from agent.entrypoints.doctor.findings import (
    Check,
    Finding,
    Level,
    error,
    exit_code,
    from_error,
    ok,
    run_checks,
    skipped,
    warning,
)
from agent.entrypoints.doctor.output import document, plain, show
from agent.entrypoints.doctor.run import CHECKS
from agent.settings import Settings

CANARY = "canary-in-the-text-of-a-foreign-error"


CONTEXT = DoctorContext(settings=Settings())


def check(name, run, *, hint="turn it off and on", needs_settings=False):
    return Check("g", name, run, hint, needs_settings)


async def examine(checks, *, seconds=20, context=CONTEXT):
    return await run_checks(context, checks, seconds=seconds)


async def fine(_context):
    return [ok("fine", "well")]


async def hangs(_context):
    await asyncio.Event().wait()


@pytest.mark.parametrize("level", [Level.WARNING, Level.ERROR])
def test_a_warning_or_error_needs_a_hint(level):
    with pytest.raises(ValueError, match="hint"):
        Finding(name="x", level=level, found="broken")


def test_the_hint_of_an_error_replaces_the_default_unless_it_is_a_question():
    assert from_error("x", StoreError("no", hint="do this"), hint="or that").hint == "do this"
    assert from_error("x", StoreError("no"), hint="do that").hint == "do that"
    assert from_error("x", StoreError("no", hint="is it there?"), hint="look").hint == "is it there? look"


async def test_a_hanging_check_is_an_error_and_the_others_finish():
    found = await examine([check("a", fine), check("b", hangs), check("c", fine)], seconds=0.05)
    assert [(finding.name, finding.level) for _, finding in found] == [
        ("fine", Level.OK),
        ("b", Level.ERROR),
        ("fine", Level.OK),
    ]
    assert found[1][1].hint == "turn it off and on"


async def test_checks_run_in_parallel():
    met = asyncio.Barrier(3)

    async def meet(_context):
        await met.wait()
        return [ok("met", "all three are here")]

    found = await examine([check(str(n), meet) for n in range(3)])
    assert [finding.level for _, finding in found] == [Level.OK] * 3


async def test_an_exception_of_a_check_is_a_finding_without_foreign_text():
    async def own_error(_context):
        raise StoreError("the bucket is gone", hint="make it")

    async def foreign_error(_context):
        raise RuntimeError(CANARY)

    (_, first), (_, second) = await examine([check("a", own_error), check("b", foreign_error)])
    assert (first.level, first.found, first.hint) == (Level.ERROR, "the bucket is gone", "make it")
    assert second.level is Level.ERROR
    assert "RuntimeError" in second.found
    assert CANARY not in repr(second)


async def test_a_damaged_ledger_is_an_error_once_and_skips_the_checks_that_need_it():
    async def damaged(_context):
        raise LedgerDamaged("the ledger is damaged")

    ((_, found),) = await examine([check("warnings", damaged)])
    assert (found.level, found.found) == (Level.SKIPPED, "it needs the ledger, which is damaged")


async def test_checks_that_need_settings_are_skipped_if_these_are_invalid():
    context = DoctorContext(settings=Settings(), settings_error=SettingsError("wrong"))
    found = await examine([check("a", fine), check("b", fine, needs_settings=True)], context=context)
    assert [finding.level for _, finding in found] == [Level.OK, Level.SKIPPED]


async def test_a_cancelled_command_leaves_no_checks_running():
    examining = asyncio.create_task(examine([check("a", hangs)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    examining.cancel()
    await asyncio.wait({examining})
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("check-")] == []


@pytest.mark.parametrize(
    ("levels", "code"),
    [("oo", 0), ("os", 0), ("ow", 1), ("we", 2), ("", 0)],
    ids=["well", "skipped", "warning", "error", "nothing"],
)
def test_the_worst_finding_determines_the_exit_code(levels, code):
    make = {
        "o": lambda: ok("x", "y"),
        "s": lambda: skipped("x", "y"),
        "w": lambda: warning("x", "y", hint="z"),
        "e": lambda: error("x", "y", hint="z"),
    }
    found = [make[letter]() for letter in levels]
    assert exit_code(found) == code
    assert document([("g", one) for one in found])["healthy"] is (code == 0)


def test_every_check_has_a_unique_name_and_a_hint_for_timeouts():
    assert len({one.name for one in CHECKS}) == len(CHECKS)
    assert all(one.timeout_hint for one in CHECKS)


FOUND = [
    ("one", ok("good", "all well", detail="more")),
    ("one", error("bad", "broken \x1b[2J[red]", hint="repair it")),
    ("two", skipped("left", "not set up")),
]


def test_in_a_pipe_findings_and_hints_are_lines_without_escape_sequences():
    lines = plain(FOUND)
    assert lines == [
        "ok       good: all well (more)",
        "error    bad: broken \\x1b[2J[red]",
        "         -> repair it",
        "skipped  left: not set up",
    ]


def test_on_a_terminal_findings_are_grouped_and_have_their_hints():
    out = io.StringIO()
    show(FOUND, Console(file=out, force_terminal=True, color_system=None, width=60, markup=False, highlight=False))
    text = out.getvalue()
    assert (
        text.index("one") < text.index("✓ good") < text.index("✗ bad") < text.index("→ repair it") < text.index("two")
    )
    assert "\x1b[2J" not in text
    assert text.rstrip().endswith("There are errors.")


def test_the_document_has_the_documented_keys():
    reported = json.loads(json.dumps(document(FOUND)))
    assert reported["healthy"] is False
    assert reported["checks"][1] == {
        "name": "bad",
        "level": "error",
        "found": "broken \x1b[2J[red]",
        "cure": "repair it",
        "detail": "",
    }


def test_a_hanging_thread_does_not_keep_the_process_alive():
    """Like a share that no longer responds: the system call never returns, and the loop ends all the same."""
    released = threading.Event()

    async def hang(_context):
        return await in_thread(released.wait)

    try:
        ((_, found),) = asyncio.run(examine([check("share", hang)], seconds=0.05))
        assert found.level is Level.ERROR
    finally:
        released.set()


@pytest.mark.parametrize(
    "date", ["", "soon", f"Fri, 31 Dec {'9' * 20} 23:59:59 GMT", f"Fri, 31 Dec 2026 23:59:59 +{'9' * 20}"]
)
def test_a_date_header_that_is_no_time_is_not_compared(date):
    assert delivery_checks._seconds_ahead(CONTEXT, date) is None
