// The history, newest first: pages of it are read as they are asked for, and an outcome filters it.

import { announce, byId, el, hint, icon, isUsable, sentence, setBusy } from "./dom.js";
import { bytes, clock, count, day, localTime, took } from "./format.js";

const LIMIT = 50;
const OUTCOMES = { "": "All", succeeded: "Succeeded", failed: "Failed", skipped: "Skipped", other: "Other" };
const WORDS = { succeeded: "Succeeded", failed: "Failed", skipped: "Skipped", other: "Event" };

/** The list of history entries in the page. `get` reads a path of the control API. */
export class History {
  #get;
  #outcome = "";
  #newest = 0;
  #next = null;
  #reading = 0;

  constructor(get, failed) {
    this.#get = get;
    byId("history-more").addEventListener("click", () => this.#more().catch(failed));
    byId("filter").append(...Object.entries(OUTCOMES).map(([outcome, name]) => this.#choice(outcome, name, failed)));
  }

  #choice(outcome, name, failed) {
    const chosen = async () => {
      this.#outcome = outcome;
      this.#newest = 0; // the rows are those of another outcome
      try {
        if (!(await this.#restart())) return;
        const rows = byId("history").children.length;
        announce(rows ? `${name}: ${count(rows, "entry", "entries")} shown` : byId("history-empty").textContent);
      } catch (error) {
        if (this.#outcome === outcome) this.#clear();
        failed(error);
      }
    };
    const input = el("input", {
      type: "radio",
      name: "outcome",
      value: outcome,
      checked: outcome === "",
      change: chosen,
    });
    return el("label", {}, input, el("span", {}, name));
  }

  /** Read the newest page, and show nothing else. Return false if another page was shown meanwhile. */
  async #restart() {
    const reading = ++this.#reading;
    const page = await this.#page(null);
    if (reading !== this.#reading) return false;
    this.#replace(page);
    return true;
  }

  #replace(page) {
    this.#clear();
    this.#newest = page.entries[0]?.position ?? 0;
    this.#append(page);
  }

  #clear() {
    this.#reading++; // older entries that are being read do not follow what is shown next
    this.#newest = 0;
    byId("history").replaceChildren();
    byId("history-more").hidden = true;
  }

  /** Add what is new at the top. Older pages stay. */
  async update() {
    if (!this.#newest) return this.#restart();
    const reading = this.#reading;
    const page = await this.#page(null);
    if (reading !== this.#reading) return;
    const fresh = page.entries.filter((entry) => entry.position > this.#newest);
    // There may be a gap; or another ledger begins with position 1 again.
    if (fresh.length === page.entries.length || page.entries[0].position < this.#newest) return this.#replace(page);
    if (fresh.length) this.#newest = fresh[0].position;
    byId("history").prepend(...fresh.map(entryRow));
  }

  async #more() {
    const button = byId("history-more");
    if (!isUsable(button)) return;
    setBusy(button, true);
    try {
      await this.#readMore();
    } finally {
      setBusy(button, false);
    }
  }

  async #readMore() {
    const reading = this.#reading;
    const page = await this.#page(this.#next);
    if (reading !== this.#reading) return;
    const first = this.#append(page);
    first?.focus({ preventScroll: true });
  }

  #append(page) {
    const rows = page.entries.map(entryRow);
    byId("history").append(...rows);
    this.#next = page.next;
    byId("history-more").hidden = page.next == null;
    byId("history-empty").hidden = byId("history").children.length > 0;
    byId("history-empty").textContent = this.#outcome
      ? "There is no entry with this outcome."
      : "There is no entry yet.";
    return rows[0];
  }

  #page(before) {
    const query = new URLSearchParams({ limit: LIMIT });
    if (before != null) query.set("before", before);
    if (this.#outcome) query.set("outcome", this.#outcome);
    return this.#get(`/v1/history?${query}`);
  }
}

/** Return the position of the newest entry, 0 if there is none. */
export async function newestPosition(get) {
  return (await get("/v1/history?limit=1")).entries[0]?.position ?? 0;
}

/** Return the entries after a position, newest first. */
export async function entriesAfter(get, position) {
  const found = [];
  let next = "";
  do {
    const page = await get(`/v1/history?limit=20${next && `&before=${next}`}`);
    found.push(...page.entries.filter((entry) => entry.position > position));
    next = page.next ?? 0;
  } while (next > position);
  return found;
}

function entryRow(entry) {
  const at = Date.parse(entry.time);
  const time = el(
    "time",
    { datetime: entry.time, title: localTime(at) },
    el("span", { class: "day" }, day(at)),
    " ",
    clock(at),
  );
  const figures = [
    entry.bytes ? bytes(entry.bytes) : "",
    entry.duration_seconds >= 0.05 ? took(entry.duration_seconds) : "",
  ]
    .filter(Boolean)
    .join(" · ");
  return el(
    "li",
    { class: entry.outcome, tabindex: "-1" },
    el(
      "span",
      { class: "outcome" },
      icon(entry.outcome),
      el("span", { class: "visually-hidden" }, `${WORDS[entry.outcome] ?? entry.outcome}: `),
    ),
    el(
      "div",
      { class: "words" },
      el("p", { class: "title" }, sentence(entry.title)),
      entry.detail && el("p", { class: "quiet" }, sentence(entry.detail)),
      entry.retry_at && el("p", { class: "quiet" }, `Next attempt at ${localTime(Date.parse(entry.retry_at))}`),
      entry.hint && hint(entry.hint),
    ),
    el("p", { class: "figures" }, figures),
    time,
  );
}
