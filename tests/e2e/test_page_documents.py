"""What the page shows of the agent's documents, in a real Chromium. The test makes the documents: no agent runs."""

import hashlib
import hmac
import json
import re
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from agent.application.monitoring.status import VerifyStatus
from agent.domain.status_warning import StatusWarning
from agent.entrypoints.formatting import json_value
from agent.entrypoints.page.documents import HistoryItem, HistoryPage, PlotPoint, Plots, UploadItem, Uploads
from agent.entrypoints.page.files import HEADERS, read_files
from agent.ports import MemoryCounts
from tests.support.browser import MISSING, NARROW, Watched, running_browser
from tests.support.screens import AKOSHA, CHANGED, CLOUD, GRAPH, REFLECTION, SAFE, UPLOADING
from tests.support.values import NOON

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

ADDRESS = "http://127.0.0.1:9"
SESSION = "session"
VERIFIED = "akosha.archive.verified.v1"
SYNCED = "akosha.sync.succeeded.v1"
POLLING = "navigator.locks.request = async () => false"
"""Without a lock, the page asks regularly instead of following events; it asks at once if it gets the focus."""
PLOT_WIDTH = 360
ASK_NOW = "dispatchEvent(new Event('focus'))"
FILES = read_files()
SECONDS = 30
expect.set_options(timeout=SECONDS * 1000)


def entry(position: int, **fields: object) -> HistoryItem:
    item = HistoryItem(
        position=position, time=NOON.isoformat(), type=SYNCED, outcome="succeeded", title=f"entry {position}",
        detail="", hint="", method="cloud", bytes=1, duration_seconds=1.0, upload_id=None, request_id=None,
        retry_at=None,
    )  # fmt: skip
    return replace(item, **fields)


def upload(number: int, **fields: object) -> UploadItem:
    item = UploadItem(
        upload_id=f"20260301_1200{number:02}_laptop", time=NOON.isoformat(), databases=[], stored_bytes=1, memories=1,
        kind="whole", problems={},
    )  # fmt: skip
    return replace(item, **fields)


class FakeAgent:
    """Answers the requests of a page. `entries` are newest first; `refusal` is the answer of each path to refuse."""

    def __init__(self) -> None:
        self.status, self.refusal, self.entries, self.requests = SAFE, {}, [entry(1)], []
        self.plots = Plots(results=[], since=(NOON - timedelta(days=30)).isoformat())
        self.uploads = Uploads(uploads=[], total=0, error="")

    def answer(self, route) -> None:
        url = urlsplit(route.request.url)
        self.requests.append(url.path)
        if url.path in FILES:
            file = FILES[url.path]
            route.fulfill(body=file.body, headers={**HEADERS, "Content-Type": file.content_type})
        elif refusal := self.refusal.get(url.path):
            route.fulfill(status=503, json=refusal)
        else:
            document = self._document(url.path, parse_qs(url.query), route.request)
            route.fulfill(body=json.dumps(document, default=json_value), content_type="application/json")

    def _document(self, path: str, query: dict, request) -> object:
        if path == "/v1/page/proof":
            key = hashlib.sha256(SESSION.encode()).digest()
            text = f"akosha-agent page {urlsplit(ADDRESS).netloc} {request.post_data_json['nonce']}"
            return {"proof": hmac.digest(key, text.encode(), "sha256").hex()}
        if path == "/v1/history":
            before, limit = int(query.get("before", ["999999"])[0]), int(query["limit"][0])
            outcome = query.get("outcome", [""])[0]
            found = [one for one in self.entries if one.position < before and outcome in ("", one.outcome)]
            return asdict(HistoryPage(entries=found[:limit], next=found[limit - 1].position if found[limit:] else None))
        return {
            "/v1/page/session": lambda: {"session": SESSION},
            "/v1/status": self.status.to_dict,
            "/v1/plots": lambda: asdict(self.plots),
            "/v1/uploads": lambda: asdict(self.uploads),
            "/v1/sync": lambda: {"request_id": "wanted", "accepted": True},
            "/v1/verify": lambda: {"accepted": True},
        }[path]()


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


@pytest.fixture
def agent():
    return FakeAgent()


@contextmanager
def shown(browser, agent: FakeAgent, state: str = "live"):
    watched = Watched(browser)
    watched.context.add_init_script(POLLING)
    watched.context.route("**/*", agent.answer)
    watched.page.clock.install(time=NOON)
    watched.page.goto(f"{ADDRESS}/#token=t")
    expect(watched.page.locator("body")).to_have_attribute("data-state", state)
    yield watched.page
    assert [text for text in watched.complaints if "503" not in text] == []
    watched.context.close()


def cells(page, database: str) -> list[str]:
    """Return the last upload and the verification of a database."""
    row = page.locator("#databases tbody tr").filter(has=page.get_by_text(database, exact=True))
    return row.locator("td > span").all_inner_texts()[-2:]


def test_each_database_is_verified_only_if_the_verified_upload_has_it(browser, agent):
    work = replace(GRAPH, name="knowledge_graph_work")
    databases = (
        replace(GRAPH, delivered=True), replace(work, delivered=True), replace(REFLECTION, delivered=True),
        replace(CHANGED, name="knowledge_graph_new"), replace(GRAPH, name="knowledge_graph_late", delivered=True),
    )  # fmt: skip
    verified = VerifyStatus(
        upload_id="20260301_100000_laptop", at=NOON - timedelta(hours=2), whole=False,
        problems={"knowledge_graph_work.duckdb": "is missing"},
        databases=("knowledge_graph", "knowledge_graph_work", "reflection"), damaged=("knowledge_graph_work",),
    )  # fmt: skip
    agent.status = replace(
        SAFE, targets=(replace(CLOUD, databases=databases, last_success=NOON - timedelta(hours=1)),), verified=verified
    )
    with shown(browser, agent) as page:
        assert cells(page, "knowledge_graph") == ["1 h ago", "2 h ago, of an earlier upload"]
        assert cells(page, "knowledge_graph_work") == ["1 h ago", "Damaged, 2 h ago, of an earlier upload"]
        assert cells(page, "knowledge_graph_new") == ["Never", "Never"]
        assert cells(page, "knowledge_graph_late") == ["1 h ago", "Never"]


def test_the_plots_of_an_idle_page_go_on(browser, agent):
    at = (NOON - timedelta(minutes=3)).isoformat()
    point = PlotPoint(time=at, success=True, bytes=1, duration_seconds=1.0, database_bytes=1)
    future = replace(point, time=(NOON + timedelta(days=2)).isoformat(), success=False)
    agent.plots = Plots(results=[point, future], since=at)
    with shown(browser, agent) as page:
        expect(page.locator("#ages-summary")).to_have_text(re.compile(r"Now (\d min); at most \1\."))
        expect(page.locator("#plots-text")).to_have_text("Since 2026-03-01")
        width = page.locator("#durations-summary").evaluate(
            "(text) => text.closest('figure').querySelector('.crosses').getBBox().x"
        )
        assert width < PLOT_WIDTH
        page.locator("#ages-table summary").click()
        page.locator("#ages-table .values").focus()
        agent.refusal["/v1/plots"] = {"title": "not again"}
        page.clock.set_system_time(NOON + timedelta(hours=5))
        expect(page.locator("#ages-summary")).to_contain_text(re.compile(r"Now 5 h \d min"))
        expect(page.locator("#ages-table .values")).to_be_focused()


def test_after_a_new_ledger_the_history_begins_again(browser, agent):
    agent.entries = [entry(position) for position in range(90, 0, -1)]
    with shown(browser, agent) as page:
        rows = page.locator("#history > li")
        expect(rows).to_have_count(50)
        agent.entries = [entry(2, title="the first of a new ledger"), entry(1)]
        page.evaluate(ASK_NOW)
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("The first of a new ledger")
        agent.refusal["/v1/history"] = {"title": "busy"}
        page.get_by_role("radio", name="Failed").check()
        expect(rows).to_have_count(0)
        agent.entries = [entry(3, outcome="failed"), entry(2)]
        agent.refusal.clear()
        page.evaluate(ASK_NOW)
        expect(rows).to_have_count(1)
        page.get_by_role("radio", name="Skipped").check()
        expect(page.locator("#announcer")).to_have_text("There is no entry with this outcome.")


def test_the_result_of_an_action_is_found_behind_many_others(browser, agent):
    with shown(browser, agent) as page:
        page.locator("#sync").click()
        expect(page.locator("#sync")).to_be_disabled()
        agent.entries = [entry(position) for position in range(90, 0, -1)]
        agent.entries[-5] = entry(5, request_id="wanted", title="this is it")
        page.evaluate(ASK_NOW)
        expect(page.locator("#result")).to_have_text("This is it")
        expect(page.locator("#sync")).to_be_enabled()
        page.locator("#verify").click()
        expect(page.locator("#verify")).to_be_disabled()
        older = entry(91, type=VERIFIED, outcome="other", title="an older one", upload_id="20260101_000000_laptop")
        newest = replace(older, position=92, title="the newest one", upload_id=CLOUD.newest_upload_id)
        agent.entries.insert(0, older)
        page.evaluate(ASK_NOW)
        expect(page.locator("#history > li").first).to_contain_text("An older one")
        expect(page.locator("#verify")).to_be_disabled()
        agent.entries.insert(0, newest)
        page.evaluate(ASK_NOW)
        expect(page.locator("#result")).to_have_text("The newest one")


def test_uploads_are_listed_with_their_damage_and_a_failed_reading_leaves_no_button(browser, agent):
    damage = {"reflection.duckdb": "was modified after the upload: its SHA-256 differs from the one in the manifest"}
    agent.uploads = Uploads(uploads=[upload(1, problems=damage), *map(upload, range(2, 15))], total=300, error="")
    with shown(browser, agent) as page:
        page.set_viewport_size(NARROW)
        page.locator("#uploads-load").click()
        expect(page.locator("#uploads-text")).to_have_text("The newest 14 of 300 uploads.")
        expect(page.locator("#uploads .tag.failing")).to_contain_text("SHA-256 differs")
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        expect(page.locator("#uploads-more")).to_be_visible()
        agent.uploads = Uploads(uploads=[], total=0, error="the bucket cannot be reached")
        page.locator("#uploads-load").dblclick()
        expect(page.locator("#uploads-text")).to_have_text("the bucket cannot be reached")
        expect(page.locator("#uploads-more")).to_be_hidden()
        assert agent.requests.count("/v1/uploads") == 2


def test_only_hints_of_the_agent_have_commands_to_copy(browser, agent):
    refused = "the server says: akosha-agent config set http_endpoint https://198.51.100.7 (akosha-agent status)"
    target = replace(
        AKOSHA, error=refused, failures=0, next_try=NOON + timedelta(hours=2), confirmed_at=NOON,
        memories=MemoryCounts(delivered=7, waiting={"no embedding": 2}, refused={"too long": 3}),
    )  # fmt: skip
    warning = StatusWarning(
        code="target_check_failed",
        message="the last check failed",
        hint="akosha-agent verify ID --deep shows the damage",
    )
    agent.status = replace(SAFE, route=("http", "cloud"), targets=(target, CLOUD), warnings=(warning,))
    with shown(browser, agent) as page:
        expect(page.locator("#warning-list code")).to_have_text("akosha-agent verify ID --deep")
        said = []
        for _ in range(2):  # a screen reader says a text that has changed
            page.locator("#warning-list .copy").click()
            expect(page.locator("#announcer")).to_contain_text("opied: akosha-agent verify ID --deep")
            said.append(page.locator("#announcer").evaluate("element => element.textContent"))
        assert len({*said}) == len(said)
        first, second = page.locator("#route > ol > li").all()
        expect(first.locator("code")).to_have_text(["akosha-agent status", "akosha-agent memories --failed"])
        expect(first).to_contain_text("Next try in")
        expect(first).not_to_contain_text("failed sync")
        for text in ("7 memories delivered", "its search tools do not read them", "still had them", "2 memories wait"):
            expect(first).to_contain_text(text)
        expect(second).to_contain_text("last check failed")
        expect(second).not_to_contain_text("reachable")


def test_a_refusal_is_shown_and_the_focus_and_the_token_are_kept(browser, agent):
    agent.refusal["/v1/page/session"] = {"title": "too many connections", "hint": "close other windows"}
    with shown(browser, agent, "gone") as page:
        expect(page.locator("#banner")).to_contain_text("too many connections")
        expect(page.locator("#banner")).to_contain_text("close other windows")
        assert page.url.endswith("#token=t")
        agent.refusal.clear()
        page.evaluate(ASK_NOW)
        expect(page.locator("body")).to_have_attribute("data-state", "live")
        page.locator("#sync").focus()
        agent.refusal["/v1/status"] = {"detail": "the ledger is damaged", "hint": "akosha-agent doctor"}
        page.evaluate(ASK_NOW)
        expect(page.locator("#banner")).to_contain_text("the ledger is damaged")
        expect(page.locator("#banner code")).to_have_text("akosha-agent doctor")
        expect(page.locator("#sync")).to_be_disabled()
        expect(page.locator("#sync")).to_be_focused()


def test_what_counts_on_beside_the_verdict_is_not_in_it(browser, agent):
    agent.status = replace(SAFE, verdict=SAFE.judged(NOON).verdict)
    texts = {
        "Not uploaded yet: reflection; the next sync is in 4:59": "reflection",
        "Uploading: reflection, 37 %": "reflection",
        "Uploading: 37 %": "",
    }
    with shown(browser, agent) as page:
        for text, detail in texts.items():
            agent.status = replace(agent.status, verdict=replace(agent.status.verdict, text=text))
            page.evaluate(ASK_NOW)
            expect(page.locator("#headline")).to_have_text(text.partition(":")[0])
            expect(page.locator("#detail")).to_have_text(re.compile(f"^{detail}$"))
        agent.status = replace(agent.status, activity=UPLOADING)
        page.evaluate(ASK_NOW)
        expect(page.locator("#progress-announcer")).to_have_text("Uploading, 25 percent")
        expect(page.locator("#announcer")).to_have_text("Uploading: reflection")
