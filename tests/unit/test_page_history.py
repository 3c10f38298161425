"""The history of the page: its sentences, its outcomes, and its pages in a ledger of 10,000 events."""

from dataclasses import replace
from datetime import timedelta
from itertools import count, islice

import pytest

from agent.application.monitoring.agent_service import AgentService
from agent.domain.events import IngestCompleted, IngestFailed, MethodError, UploadsPruned, UploadVerified
from agent.entrypoints.page.documents import OUTCOMES
from agent.entrypoints.page.history import MOST_PLOTTED, read_history, read_plots
from agent.ports import HistoryEntry
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger

ROWS = 10_000


class LedgerService(AgentService):
    """The agent's service, of which only the ledger exists."""

    def __init__(self, ledger) -> None:
        self._ledger = ledger


class Entries(AgentService):
    """One event."""

    def __init__(self, event) -> None:
        self._event = event

    async def past_events(self, *, before, limit, types):
        return [HistoryEntry(7, self._event)]


def verified(**fields) -> UploadVerified:
    given = {"whole": True, "deep": False, "objects": 5, "problems": {}} | fields
    return UploadVerified(id="v", time=values.NOON, system_id=values.SYSTEM, upload_id=values.upload_id(), **given)


def pruned(error: str | None = None) -> UploadsPruned:
    return UploadsPruned(
        id="p", time=values.NOON, system_id=values.SYSTEM, upload_ids=("u",), kept=3, objects=4, bytes_freed=5_000,
        leftovers=0, error=error,
    )  # fmt: skip


DONE = values.succeeded(values.manifest(0, reflection=1))
INGESTED = IngestCompleted(
    id="i", time=values.NOON, system_id=values.SYSTEM, upload_id="u", source="memories", stored=1, known=2, kept_back={}
)
NOT_INGESTED = IngestFailed(
    id="i", time=values.NOON, system_id=values.SYSTEM, upload_id="u", error="refused (set the token)"
)
REFUSED = replace(values.failed(), errors=(MethodError(method="cloud", error="no bucket (create the bucket)"),))
FALLBACK = replace(DONE, errors=(MethodError(method="http", error="no server (start the server)"),))


@pytest.mark.parametrize(
    ("event", "outcome", "title", "hint"),
    [
        (DONE, "succeeded", "uploaded 20260301_120000_laptop-7: ", ""),
        (FALLBACK, "succeeded", "uploaded 20260301_120000_laptop-7: ", "start the server"),
        (values.skipped(), "skipped", "nothing has changed", ""),
        (REFUSED, "failed", "cloud: no bucket", "create the bucket"),
        (values.failed(), "failed", "cloud: 403", "run akosha-agent status to see the problem"),
        (verified(), "other", "20260301_120000_laptop-7: intact", ""),
        (verified(whole=False, problems={"a": "is missing"}), "failed", "20260301_120000_laptop-7: DAMAGED", ""),
        (pruned(), "other", "1 upload deleted", ""),
        (pruned("denied (allow deletes)"), "failed", "1 upload deleted", "allow deletes"),
        (INGESTED, "other", "u: 1 memories stored", ""),
        (NOT_INGESTED, "failed", "u: refused", "set the token"),
    ],
)
async def test_an_event_is_a_sentence_with_its_outcome_and_its_cure(event, outcome, title, hint):
    (item,) = (await read_history(Entries(event), before=None, limit=1, outcome=None)).entries
    assert (item.position, item.time, item.type) == (7, "2026-03-01T12:00:00.123456+00:00", event.type)
    assert (item.outcome, item.title[: len(title)], item.hint) == (outcome, title, hint)
    assert not hint or item.hint not in item.detail


async def test_the_next_attempt_is_a_time_that_the_browser_shows_in_its_zone():
    event = replace(values.failed(), retry_at=values.NOON + timedelta(minutes=2))
    (item,) = (await read_history(Entries(event), before=None, limit=1, outcome=None)).entries
    assert (item.retry_at, item.detail) == ("2026-03-01T12:02:00.123456+00:00", "")


async def test_control_characters_in_errors_are_escaped():
    event = replace(values.failed(), errors=(MethodError(method="cl\x1b[2Joud", error="bad"),))
    (item,) = (await read_history(Entries(event), before=None, limit=1, outcome=None)).entries
    assert item.title.isprintable()


@pytest.fixture
async def service():
    """A ledger with 10,000 events in one transaction: each third one is a request, which is not shown."""
    ledger = inline_ledger(ManualClock(values.NOON))
    kinds = [DONE, values.request(), values.failed(), values.skipped(), verified(), verified(whole=False)]
    history = ledger._history

    def add() -> None:
        for number, event in zip(range(ROWS), (kinds[n % len(kinds)] for n in count()), strict=False):
            at = values.NOON + timedelta(seconds=number)
            history.add(replace(event, id=f"e{number}", time=at), published_at=values.NOON)

    await ledger._transactions.write(add)
    yield LedgerService(ledger)
    await ledger.aclose()


async def test_pages_over_10000_rows_have_no_gap_and_no_repetition(service):
    everything = {outcome: await positions(service, outcome, limit=200) for outcome in (None, *OUTCOMES)}
    expected = [at for at in range(ROWS, 0, -1) if (at - 1) % 6 != 1]
    assert everything[None] == expected
    of = {"succeeded": (0,), "failed": (2, 5), "skipped": (3,), "other": (4,)}
    for outcome, kinds in of.items():
        assert everything[outcome] == [at for at in expected if (at - 1) % 6 in kinds]


async def positions(service, outcome, *, limit: int) -> list[int]:
    found, before = [], None
    while True:
        page = await read_history(service, before=before, limit=limit, outcome=outcome)
        assert len(page.entries) == limit or page.next is None
        found += [entry.position for entry in page.entries]
        if page.next is None:
            return found
        before = page.next


async def test_entries_that_are_added_between_two_pages_are_not_in_the_second(service):
    first = await read_history(service, before=None, limit=10, outcome="failed")
    await service._ledger.settle(None, values.failed("new"))
    second = await read_history(service, before=first.next, limit=10, outcome="failed")
    shown = [entry.position for entry in (*first.entries, *second.entries)]
    assert shown == list(islice((at for at in range(ROWS, 0, -1) if (at - 1) % 6 in (2, 5)), 20))


async def test_plots_have_the_newest_results_and_say_since_when(service):
    plots = await read_plots(service, values.NOON + timedelta(seconds=ROWS))
    assert len(plots.results) == MOST_PLOTTED
    assert plots.since == plots.results[0].time
    assert [point.time for point in plots.results] == sorted(point.time for point in plots.results)
    later = await read_plots(service, values.NOON + timedelta(days=31))
    assert later.results == []
