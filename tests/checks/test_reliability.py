"""docs/reliability.md agrees with the faults, with its template and with the results of the last campaigns."""

from tests.campaign import report
from tests.campaign.faults import ALL
from tests.campaign.record import PAGE, RESULTS, ROOT, read_results


def test_the_report_is_the_one_of_the_recorded_results():
    agrees = (ROOT / PAGE).read_text(encoding="utf-8") == report.page(read_results(ROOT / RESULTS))
    assert agrees, f"{PAGE} is out of date: `.venv/bin/python -m tests.campaign.report` writes it again"


def test_the_report_lists_every_fault():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert [kind.row for kind in ALL if f"\n| {kind.row} | " not in text] == []
