"""The page in a real Chromium, shown by a real agent: what it says, and what it cannot do."""

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.support.browser import CHROMIUM, MISSING, NARROW, WIDE, Watched, running_browser
from tests.support.machine import Machine
from tests.support.past_results import add_results, failed, skipped, succeeded
from tests.support.servers.nats import connected, running_nats

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

ROWS = 10_000
HOSTILE = "<img src=http://198.51.100.7/x onerror=document.title='run'>"
SECONDS = 60
expect.set_options(timeout=SECONDS * 1000)

UNREACHABLE = "Failed to load resource: net::ERR_"
"""What Chromium's console says about each request while no agent runs."""


@pytest.fixture(scope="module")
def browser():
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def rested(tmp_path_factory):
    """An agent that has nothing left to do, with a history of ROWS results; the newest failed with a hostile text."""
    machine = Machine(tmp_path_factory.mktemp("rested"))
    machine.write(commits=3, entities=1)
    now = datetime.now(UTC)
    times = [now - timedelta(minutes=number) for number in range(ROWS, 0, -1)]
    events = [
        skipped("laptop", at)
        if number % 10 == 0
        else succeeded("laptop", at, sent=40_000 + number, seconds=1.5, size=9_000_000, location="file:///mnt/nas")
        for number, at in enumerate(times[:-1])
    ]
    machine.state.mkdir(mode=0o700)
    add_results(machine.state / "ledger.sqlite", [*events, failed("laptop", times[-1], f"{HOSTILE} (run it again)")])
    with machine.run():
        machine.sync()
        yield machine


def link_of(machine: Machine) -> str:
    done = machine.call("open", "--print")
    assert done.code == 0, done.err
    return done.out.strip()


@contextmanager
def watched_page(browser):
    """Yield a new page. At the end it must have requested nothing from another host, and complained about nothing."""
    watched = Watched(browser)
    try:
        yield watched
        assert {urlsplit(url).netloc for url in watched.requested} == {urlsplit(watched.page.url).netloc}
        assert [text for text in watched.complaints if not text.startswith(UNREACHABLE)] == []
    finally:
        watched.context.close()


@contextmanager
def opened(browser, machine: Machine):
    """Open the page of an agent, as `watched_page` does."""
    with watched_page(browser) as watched:
        watched.page.goto(link_of(machine))
        expect(watched.page.locator("body")).to_have_attribute("data-state", "live")
        yield watched


def violations(page) -> list[str]:
    found = Axe().run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]
    return [f"{one['id']}: {[node['html'] for node in one['nodes']]}" for one in found]


def check_layouts(page) -> None:
    """Check accessibility and width, light on a wide screen and dark on a narrow one."""
    for size, scheme in ((WIDE, "light"), (NARROW, "dark")):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == [], scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.set_viewport_size(WIDE)


@pytest.mark.long
def test_every_state_of_the_agent_is_shown_and_is_accessible(browser, tmp_path):
    machine = Machine(tmp_path, agent_max_upload_kib_per_s=1)
    with watched_page(browser) as watched:
        page = watched.page
        verdict, banner = page.locator("#verdict"), page.locator("#banner")
        with machine.run():
            page.goto(link_of(machine))
            expect(verdict).to_contain_text("There is nothing to back up yet")
            assert "#" not in page.url
            check_layouts(page)
            machine.write(commits=100, entities=3)
            expect(page.locator("#activity [aria-current=step]")).to_have_text("Upload databases")
            expect(page.locator("#activity .figures")).to_contain_text(re.compile(r"Uploading · \d+ %"))
            expect(page.locator("#progress-announcer")).to_contain_text("percent")
            check_layouts(page)
        expect(page.locator("#facts")).to_contain_text("Next sync\N{EN DASH}")
        expect(banner).to_contain_text(re.compile(r"The agent has not answered since \d\d:\d\d"))
        expect(verdict).to_have_attribute("data-severity", "unknown")
        expect(page.locator("#sync")).to_be_disabled()
        check_layouts(page)
        machine.set(agent_max_upload_kib_per_s=None)
        with machine.run():
            expect(verdict).to_contain_text("All memories are safe")
            expect(banner).to_be_empty()
            expect(page.locator("#databases .tag.safe")).to_have_count(2)
            expect(page.locator("#sizes-summary")).to_contain_text("sent in 1 sync;")
            expect(page.locator("#ages-summary")).to_have_text(re.compile(r"Now (\d+ s); at most \1\."))
            check_layouts(page)
            machine.bucket.rename(tmp_path / "unplugged")
            machine.write(commits=101)
            expect(verdict).to_have_attribute("data-severity", "failing")
            expect(page.locator("#history > li.failed")).not_to_have_count(0)
            expect(page.locator("#route > ol > li")).to_have_count(2)
            expect(page.locator("#route > ol > li").last).to_contain_text("last attempt failed")
            page.locator("#verify").click()
            expect(page.locator("#warning-list")).to_contain_text("The requested verification of")
            check_layouts(page)
            (tmp_path / "unplugged").rename(machine.bucket)
            page.locator("#sync").click()
            expect(page.locator("#result")).to_contain_text(re.compile("Uploaded|[Nn]othing"))  # a retry may come first
            expect(verdict).to_contain_text("All memories are safe")


def test_the_bus_and_its_consumers_are_shown(browser, tmp_path):
    async def add_consumer(url: str) -> None:
        async with connected(url) as client:
            await client.jetstream().add_consumer("AKOSHA_SYNC", durable_name="program")

    with running_nats(tmp_path / "nats") as server:
        machine = Machine(tmp_path / "machine", agent_nats_url=server.url)
        machine.write(commits=1)
        with machine.run() as agent:
            agent.logged("sync_succeeded")
        with ThreadPoolExecutor() as threads:  # the browser has the event loop of this one
            threads.submit(asyncio.run, add_consumer(server.url)).result()
        with machine.run(), opened(browser, machine) as watched:
            bus = watched.page.locator("#bus")
            expect(bus).to_contain_text(urlsplit(server.url).netloc)
            expect(bus).to_contain_text("All are published")
            expect(bus).to_contain_text("1 on the stream")
            check_layouts(watched.page)


def test_a_long_history_is_shown_in_parts_and_filtered(browser, rested):
    with opened(browser, rested) as watched:
        page = watched.page
        rows = page.locator("#history > li")
        expect(rows).to_have_count(50)
        expect(page.locator("#history")).to_contain_text(HOSTILE)
        assert page.locator("#history img").count() == 0
        page.get_by_role("button", name="Show more").first.click()
        expect(rows).to_have_count(100)
        check_layouts(page)
        page.get_by_role("radio", name="Failed").check()
        expect(rows).to_have_count(1)
        expect(rows.locator(".hint")).to_contain_text("Run it again")
        page.get_by_role("radio", name="Skipped").check()
        expect(rows).to_have_count(50)
        expect(page.locator("figure svg.plot")).to_have_count(3)
        page.locator("summary").first.click()
        expect(page.locator("#sizes-table tbody tr").first).to_be_visible()


def test_a_hidden_tab_has_no_connection_and_continues_when_it_is_shown(browser, rested):
    with opened(browser, rested) as watched:
        page = watched.page
        with page.expect_event("requestfailed", lambda request: request.url.endswith("/v1/events")):
            page.evaluate(SET_HIDDEN, arg=True)
        with page.expect_request("**/v1/events"), page.expect_response("**/v1/status"):
            page.evaluate(SET_HIDDEN, arg=False)
        expect(page.locator("body")).to_have_attribute("data-state", "live")
        expect(page.locator("#banner")).to_be_empty()


SET_HIDDEN = """hidden => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_in_seven_windows_of_a_browser_requests_are_answered(browser, rested):
    """A browser has 6 connections to an address: if each window had an event stream, none would be left."""
    with opened(browser, rested) as watched:
        streams = []
        watched.context.on("request", lambda request: streams.append(request.url.endswith("/v1/events")))
        pages = [watched.context.new_page() for _ in range(6)]
        for page in pages:
            page.goto(link_of(rested))
            expect(page.locator("body")).to_have_attribute("data-state", "live")
        assert sum(streams) == 3
        pages[-1].locator("#sync").click()
        expect(pages[-1].locator("#result")).to_contain_text("nothing", ignore_case=True)
        watched.page.close()
        with pages[-1].expect_request("**/v1/events"):
            pages[-1].evaluate("dispatchEvent(new Event('focus'))")


def test_the_keyboard_reaches_and_operates_everything(browser, rested):
    with opened(browser, rested) as watched:
        page = watched.page
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_in_viewport()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.locator("#sync")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#result")).to_contain_text("nothing", ignore_case=True)
        reached = []
        while (name := page.evaluate(FOCUSED)) and name not in reached:
            assert page.evaluate(OUTLINE) not in ("none", ""), name
            reached.append(name)
            if name == "show ":
                page.keyboard.press("ArrowRight")
                expect(page.locator("#history > li.skipped")).to_have_count(0)
            page.keyboard.press("Tab")
        summaries = ["sizes summary", "durations summary", "ages summary"]
        wanted = ["sync", "verify", *summaries, "show ", "history-more", "uploads-load"]
        assert [name for name in reached if name in wanted] == wanted
        page.locator("#verify").focus()
        page.keyboard.press("Space")
        expect(page.locator("#result")).to_contain_text("intact")
        page.locator("#uploads-load").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#uploads tbody tr")).to_have_count(1)
        restore = page.locator("#uploads code")
        expect(restore).to_contain_text("akosha-agent restore")
        watched.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#uploads").get_by_role("button", name="Copy").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#uploads .copy")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == restore.text_content()
        check_layouts(page)


FOCUSED = """
    (element => element.id || element.dataset.key || (element.type === 'radio' ? `show ${element.value}` : ''))
    (document.activeElement)
"""
OUTLINE = """
    (element => getComputedStyle(element.type === 'radio' ? element.nextElementSibling : element).outlineStyle)
    (document.activeElement)
"""


def test_without_a_session_the_page_says_how_to_open_it(browser, rested):
    link = link_of(rested)
    address = link.partition("#")[0]
    for first, wanted in ((address, "Open this page with a command"), (link, ""), (link, "This link was used before")):
        watched = Watched(browser)
        watched.page.goto(first)
        if wanted:
            expect(watched.page.locator("#access-title")).to_contain_text(wanted)
            expect(watched.page.locator("#access-command code")).to_have_text("akosha-agent open")
            expect(watched.page.locator("#content")).to_be_hidden()
            expect(watched.page.locator("#access-title")).to_be_focused()
            assert violations(watched.page) == []
        else:
            expect(watched.page.locator("body")).to_have_attribute("data-state", "live")
            watched.page.evaluate("sessionStorage.setItem('session', 'unknown')")
            watched.page.reload()
            expect(watched.page.locator("#access-title")).to_have_text("The session has ended")
            expect(watched.page.locator("#access-title")).to_be_focused()
            expect(watched.page.locator("#footer, #system")).to_have_text(["", ""])
        watched.context.close()


def test_a_program_that_takes_the_address_of_a_dead_agent_gets_no_session(browser, tmp_path):
    """It answers as the agent would, but cannot prove that it knows the session."""
    machine = Machine(tmp_path)
    with watched_page(browser) as watched:
        page = watched.page
        with machine.run():
            page.goto(link_of(machine))
            expect(page.locator("body")).to_have_attribute("data-state", "live")
            session = page.evaluate("sessionStorage.getItem('session')")
        with serving('{"proof": "' + "0" * 64 + '"}', urlsplit(page.url).netloc) as (_, heads):
            expect(page.locator("#access-title")).to_contain_text("Another program has the agent's address")
            expect(page.locator("#access-command code")).to_have_text("akosha-agent open")
            expect(page.locator("#content")).to_be_hidden()
        assert {head.split()[0] for head in heads} == {"POST"}
        assert session not in "".join(heads)


HOSTILE_PAGE = """<!doctype html><title>waiting</title><iframe name="frame"></iframe>
<form method="post" action="AGENT/v1/sync" target="frame" enctype="text/plain"><input name='{"a' value='":1}'></form>
<script>
  const agent = "AGENT", read = {}, frame = document.querySelector("iframe");
  const text = async (path, options) => (await fetch(agent + path, options)).text();
  const opaque = { method: "POST", mode: "no-cors", body: "{}" };
  const json = { method: "POST", body: "{}", headers: { "Content-Type": "application/json" } };
  const listened = (source, event) => new Promise((onevent, onerror) =>
    Object.assign(source, { [event]: () => onevent("heard"), onerror }));
  const loaded = (tag, attributes) => {
    const element = Object.assign(document.createElement(tag), attributes);
    document.body.append(element);
    return listened(element, "onload");
  };
  const attempts = {
    status: () => text("/v1/status"),
    page: () => text("/"),
    opaque: () => text("/v1/status", { mode: "no-cors" }),
    sync: () => text("/v1/sync", opaque),
    json: () => text("/v1/sync", json),
    session: () => text("/v1/page/session", opaque),
    events: () => listened(new EventSource(agent + "/v1/events?after=0"), "onmessage"),
    socket: () => listened(new WebSocket(agent.replace("http", "ws") + "/v1/events"), "onopen"),
    image: () => loaded("img", { src: agent + "/icon.svg" }),
    script: () => loaded("script", { src: agent + "/page.js", type: "module" }),
    style: () => loaded("link", { href: agent + "/page.css", rel: "stylesheet" }),
    form: async () => {
      document.forms[0].submit();
      await listened(frame, "onload");
      return frame.contentDocument?.body.textContent;
    },
  };
  (async () => {
    for (const [name, attempt] of Object.entries(attempts)) {
      try { read[name] = await attempt() || ""; } catch { read[name] = ""; }
    }
    document.title = "done";
  })();
</script>"""
ATTEMPTS = 12


@contextmanager
def serving(body: str, address: str = "127.0.0.1:0"):
    """Serve a page at another origin of this machine; yield its address, and the requests that it gets."""
    host, _, port = address.partition(":")
    heads = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self):
            heads.append(f"{self.requestline}\n{self.headers}")
            self.do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer((host, int(port)), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}/", heads
        finally:
            server.shutdown()
            thread.join()


SYNCS = """async () => (await (await fetch("/v1/history?limit=100&outcome=skipped", { headers: {
    Authorization: `Bearer ${sessionStorage.getItem("session")}` } })).json()).entries.map(entry => entry.position)"""


def test_another_origin_reads_and_triggers_nothing(browser, rested):
    with opened(browser, rested) as watched:
        agent = watched.page.url.rstrip("/")
        before = watched.page.evaluate(SYNCS)
        hostile = Watched(browser)
        with serving(HOSTILE_PAGE.replace("AGENT", agent)) as (address, _):
            hostile.page.goto(address)
            expect(hostile.page).to_have_title("done")
            read = hostile.page.evaluate("read")
        with serving(HOSTILE_PAGE.replace("AGENT", "")) as (
            address,
            _,
        ):  # where nothing is refused, the attempts succeed
            hostile.page.goto(address)
            expect(hostile.page).to_have_title("done")
            allowed = {name for name, text in hostile.page.evaluate("read").items() if text}
        assert allowed >= {"status", "page", "sync", "json", "session", "form"}
        assert len(read) == ATTEMPTS
        assert {name: text for name, text in read.items() if text} == {}
        hostile.context.close()
        watched.page.locator("#sync").click()  # were another sync requested before, it would have a result by now
        expect(watched.page.locator("#result")).to_contain_text("nothing", ignore_case=True)
        assert len(set(watched.page.evaluate(SYNCS)) - set(before)) == 1


REBOUND = """paths => Promise.all(paths.map(async ([method, path]) =>
    (await fetch(path, { method, headers: { "Content-Type": "application/json" } })).status))"""


def test_a_name_that_is_rebound_to_the_agents_address_reads_and_triggers_nothing(browser, rested):
    """The browser takes the agent for the other site, whose name resolves to the agent's address."""
    agent = urlsplit(link_of(rested))
    rules = f"--host-resolver-rules=MAP evil.test {agent.hostname}, MAP * ~NOTFOUND, EXCLUDE 127.*"
    rebound = browser.browser_type.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules], handle_sigint=False)
    try:
        page = rebound.new_page()
        assert page.goto(f"http://evil.test:{agent.port}/").status == 403
        paths = [("GET", path) for path in ("/", "/page.js", "/v1/status", "/v1/history", "/v1/events")]
        paths += [("POST", path) for path in ("/v1/page/session", "/v1/page/proof", "/v1/sync", "/v1/verify")]
        assert page.evaluate(REBOUND, paths) == [403] * len(paths)
        assert page.goto(f"http://{agent.netloc}/").status == 200
    finally:
        rebound.close()
