"""What a check says, how all are made at once, and what is printed of it."""

import asyncio
import io
import json
import threading

import pytest
from rich.console import Console

from agent.domain.errors import LedgerDamaged, SettingsError, StoreError
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

CANARY = "canary-in-the-text-of-somebody-elses-error"


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
def test_what_is_wrong_needs_a_hint(level):
    with pytest.raises(ValueError, match="hint"):
        Finding(name="x", level=level, found="broken")


def test_an_errors_own_hint_comes_first_and_a_question_is_followed_by_the_default():
    assert from_error("x", StoreError("no", hint="do this"), hint="or that").hint == "do this"
    assert from_error("x", StoreError("no"), hint="do that").hint == "do that"
    assert from_error("x", StoreError("no", hint="is it there?"), hint="look").hint == "is it there? look"


async def test_a_check_that_hangs_is_an_error_and_the_others_come_to_their_end():
    found = await examine([check("a", fine), check("b", hangs), check("c", fine)], seconds=0.05)
    assert [(finding.name, finding.level) for _, finding in found] == [
        ("fine", Level.OK),
        ("b", Level.ERROR),
        ("fine", Level.OK),
    ]
    assert found[1][1].hint == "turn it off and on"


async def test_checks_are_made_side_by_side():
    met = asyncio.Barrier(3)

    async def meets(_context):
        await met.wait()
        return [ok("met", "all three are here")]

    found = await examine([check(str(n), meets) for n in range(3)])
    assert [finding.level for _, finding in found] == [Level.OK] * 3


async def test_what_a_check_raises_is_a_finding_and_a_strangers_text_is_not_shown():
    async def ours(_context):
        raise StoreError("the bucket is gone", hint="make it")

    async def theirs(_context):
        raise RuntimeError(CANARY)

    (_, first), (_, second) = await examine([check("a", ours), check("b", theirs)])
    assert (first.level, first.found, first.hint) == (Level.ERROR, "the bucket is gone", "make it")
    assert second.level is Level.ERROR
    assert "RuntimeError" in second.found
    assert CANARY not in repr(second)


async def test_a_damaged_ledger_is_an_error_once_and_skips_the_checks_that_need_it():
    async def damaged(_context):
        raise LedgerDamaged("the ledger is damaged")

    ((_, found),) = await examine([check("warnings", damaged)])
    assert (found.level, found.found) == (Level.SKIPPED, "it needs the ledger, which is damaged")


async def test_checks_that_need_settings_are_skipped_where_these_are_wrong():
    context = DoctorContext(settings=Settings(), settings_error=SettingsError("wrong"))
    found = await examine([check("a", fine), check("b", fine, needs_settings=True)], context=context)
    assert [finding.level for _, finding in found] == [Level.OK, Level.SKIPPED]


async def test_a_command_that_is_cancelled_leaves_no_check_behind():
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
def test_the_worst_finding_decides_how_the_command_ends(levels, code):
    make = {
        "o": lambda: ok("x", "y"),
        "s": lambda: skipped("x", "y"),
        "w": lambda: warning("x", "y", hint="z"),
        "e": lambda: error("x", "y", hint="z"),
    }
    found = [make[letter]() for letter in levels]
    assert exit_code(found) == code
    assert document([("g", one) for one in found])["healthy"] is (code == 0)


def test_every_check_has_a_name_of_its_own_and_a_hint_for_silence():
    assert len({one.name for one in CHECKS}) == len(CHECKS)
    assert all(one.timeout_hint for one in CHECKS)


FOUND = [
    ("one", ok("good", "all well", detail="more")),
    ("one", error("bad", "broken \x1b[2J[red]", hint="repair it")),
    ("two", skipped("left", "not set up")),
]


def test_in_a_pipe_each_finding_is_a_line_and_its_hint_another_and_nothing_steers_a_terminal():
    lines = plain(FOUND)
    assert lines == [
        "ok       good: all well (more)",
        "error    bad: broken \\x1b[2J[red]",
        "         -> repair it",
        "skipped  left: not set up",
    ]


def test_on_a_terminal_findings_stand_in_their_groups_with_their_hints():
    out = io.StringIO()
    show(FOUND, Console(file=out, force_terminal=True, color_system=None, width=60, markup=False, highlight=False))
    text = out.getvalue()
    assert (
        text.index("one") < text.index("✓ good") < text.index("✗ bad") < text.index("→ repair it") < text.index("two")
    )
    assert "\x1b[2J" not in text
    assert text.rstrip().endswith("There are errors.")


def test_the_document_is_what_programs_were_promised():
    reported = json.loads(json.dumps(document(FOUND)))
    assert reported["healthy"] is False
    assert reported["checks"][1] == {
        "name": "bad",
        "level": "error",
        "found": "broken \x1b[2J[red]",
        "cure": "repair it",
        "detail": "",
    }


def test_a_thread_that_hangs_keeps_no_process_from_ending():
    """As a share that is gone: the system call never returns, and the loop ends all the same."""
    gone = threading.Event()

    async def hang(_context):
        return await in_thread(gone.wait)

    try:
        ((_, found),) = asyncio.run(examine([check("share", hang)], seconds=0.05))
        assert found.level is Level.ERROR
    finally:
        gone.set()
