// The page: follows the agent's events while it is visible, and shows what they change.

import { events, forgetSession, get, lastHeard, NoSession, openSession, OtherServer, post, Refused } from "./api.js";
import { byId, command, hint, isUsable, sentence, setBusy, showUsable } from "./dom.js";
import { updateTimes } from "./format.js";
import { entriesAfter, History, newestPosition } from "./history.js";
import { showPlots } from "./plots.js";
import { hideBanner, showActivity, showGone, showStatus } from "./status.js";
import { prepareUploads } from "./uploads.js";

const SECOND_MS = 1_000;
const REFRESH_MS = 30_000;
const SETTLE_MS = 250; // several events of one sync cause one refresh
const PROGRESS_MS = 2_000; // the rate and the remaining time are in the status only
const MOST_STREAMS = 4; // a browser has 6 connections to one address, which all windows share
const BACKOFF_MS = [1_000, 2_000, 4_000, 8_000, 15_000, 30_000];
const PROGRESS = "akosha.sync.progress.v1";
const VERIFIED = "akosha.archive.verified.v1";

const entries = new History(get, failed);
const actions = { sync: null, verify: null }; // the requests whose results are awaited
let status = null;
let plots = null;
let verdict = null;
let goneSince = null;
let shownSince = Date.now(); // the tab
let following = false; // the event stream
let visit = new AbortController(); // ends when the tab is hidden
let due = { timer: 0, at: 0 };
let refreshes = 0;
let ticking = 0;
let updated = 0;

/** Follow the agent for as long as there is a session. */
async function follow() {
  for (let attempt = 0; ;) {
    await visible();
    const live = async () => {
      await refresh({ everything: true });
      attempt = 0;
      connected();
    };
    try {
      if (await ifPermitted(() => stream(live))) gone(); // the agent has stopped
      else {
        await live();
        await pause(REFRESH_MS);
        continue;
      }
    } catch (error) {
      if (document.body.dataset.state === "closed" || isOver(error)) return;
      if (document.hidden || visit.signal.aborted) continue;
      gone(error);
    }
    await pause(BACKOFF_MS[Math.min(attempt++, BACKOFF_MS.length - 1)]);
  }
}

/** Await `work` while fewer than MOST_STREAMS pages of this browser do; else return false. */
function ifPermitted(work, number = 0) {
  if (number === MOST_STREAMS) return false;
  return navigator.locks.request(`stream ${number}`, { ifAvailable: true }, async (lock) => {
    if (!lock) return ifPermitted(work, number + 1);
    await work();
    return true;
  });
}

async function stream(live) {
  following = true;
  try {
    for await (const { type, data } of events(visit.signal)) {
      if (type === "open") await live();
      else received(type, data);
    }
  } finally {
    following = false;
  }
}

/** Wait until the tab is visible. */
async function visible() {
  while (document.hidden)
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  if (visit.signal.aborted) visit = new AbortController();
}

/** Wait, or until the tab is shown or hidden, or gets the focus. */
function pause(milliseconds) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", done);
      removeEventListener("focus", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    document.addEventListener("visibilitychange", done);
    addEventListener("focus", done);
  });
}

function received(type, event) {
  if (type !== PROGRESS) return refreshSoon(SETTLE_MS, true);
  const known =
    status?.activity?.request_id === event.data.request_id && status.activity.phase === event.data.phase
      ? status.activity
      : {};
  showActivity({ ...known, ...event.data });
  refreshSoon(PROGRESS_MS, false);
}

/** Refresh after some time. Events cause a refresh of the history too. */
function refreshSoon(milliseconds, withHistory) {
  due.withHistory ||= withHistory;
  const at = Date.now() + milliseconds;
  if (due.timer && due.at <= at) return;
  clearTimeout(due.timer);
  due.at = at;
  due.timer = setTimeout(() => {
    const { withHistory: history } = due;
    due = { timer: 0, at: 0 };
    refresh({ history }).catch(failed);
  }, milliseconds);
}

async function refresh({ everything = false, history = everything }) {
  const number = ++refreshes;
  const [current, read] = await Promise.all([
    get("/v1/status"),
    history ? get("/v1/plots") : null,
    history ? entries.update() : null,
  ]);
  if (number === refreshes) {
    status = current;
    if (status.verdict) verdict = { at: Date.now(), text: status.verdict.text };
    byId("content").hidden = false;
    showStatus(status);
    updated = Date.now();
    updateTimes();
  }
  plots = read ?? plots;
  if (plots) showPlots(plots); // without a new result, too: the time since the last upload grows
  if (history) await showResults();
}

/** Count down each second. Read the status regularly: its verdict has ages, and files may change without an event. */
function tick() {
  updateTimes("until");
  const waiting = !following && (actions.sync || actions.verify); // no event reports the result
  if (Date.now() - updated < (waiting ? PROGRESS_MS : REFRESH_MS)) return;
  updated = Date.now();
  updateTimes();
  if (status && !goneSince) refreshSoon(0, waiting);
}

/** Let no timer run and no connection be open while the tab is hidden. */
function visibilityChanged() {
  clearInterval(ticking);
  if (document.hidden) {
    cancelRefresh();
    visit.abort();
  } else {
    shownSince = Date.now();
    updateTimes();
    ticking = setInterval(tick, SECOND_MS);
  }
}

function cancelRefresh() {
  clearTimeout(due.timer);
  due = { timer: 0, at: 0 };
}

function connected() {
  goneSince = null;
  hideBanner();
  setState("live", "Live");
}

function gone(error = null) {
  cancelRefresh();
  goneSince ??= Math.max(lastHeard(), shownSince);
  for (const name of Object.keys(actions)) ended(name, ""); // the request may be lost
  setState("gone", "Not connected");
  showGone(goneSince, verdict, error instanceof Refused ? error : null);
}

/** Return whether an error ends the page; if so, the page says why. */
function isOver(error) {
  if (error instanceof NoSession) noSession("expired");
  else if (error instanceof OtherServer) noSession("other");
  else return false;
  return true;
}

/** Show an error of a request. Return false if the agent did not answer: the event stream notices that. */
function failed(error) {
  if (isOver(error)) return true;
  if (!(error instanceof Refused)) return false;
  byId("result").replaceChildren(sentence(error.message), error.hint ? hint(error.hint) : "");
  return true;
}

function setState(state, words) {
  document.body.dataset.state = state;
  byId("connection").textContent = words;
  for (const button of document.querySelectorAll(".actions button, #uploads-load, #history-more")) showUsable(button);
}

const ACCESS = {
  none: [
    "Open this page with a command",
    "The address alone does not open it, so that no other program and no web page can read your status.",
  ],
  refused: [
    "This link was used before, or is too old",
    "A link opens the page once, within a minute. The command makes a new one.",
  ],
  other: ["Another program has the agent's address", "Close this page, and open a new one with the command."],
  expired: ["The session has ended", "A session ends 12 hours after its last use. The command starts a new one."],
};

function noSession(reason) {
  visit.abort();
  forgetSession();
  status = null;
  const [title, text] = ACCESS[reason];
  byId("content").hidden = true;
  hideBanner();
  byId("access").hidden = false;
  byId("access-title").textContent = title;
  byId("access-title").focus(); // a screen reader says it
  byId("access-text").textContent = text;
  byId("access-command").replaceChildren(command("akosha-agent open"));
  byId("footer").replaceChildren();
  byId("system").textContent = "";
  document.title = "akosha-agent";
  document.body.dataset.state = "closed";
  byId("connection").textContent = "No session";
}

/** Ask for a sync or a verification, and show what comes of it. */
async function act(name, path, waiting) {
  const button = byId(name);
  if (!isUsable(button)) return;
  setBusy(button, true);
  byId("result").textContent = waiting;
  try {
    const newest = status.targets.find(({ method }) => method === "cloud")?.newest_upload_id ?? "";
    const since = await newestPosition(get);
    actions[name] = { since, newest, id: (await post(path)).request_id };
  } catch (error) {
    setBusy(button, false);
    if (!failed(error)) byId("result").textContent = "The agent does not answer.";
  }
  refreshSoon(name === "verify" ? SETTLE_MS : 0, true); // a target that cannot be read is a warning by then
}

/** Show the results of the actions, once the history has them. */
async function showResults() {
  const awaited = Object.values(actions).filter(Boolean);
  if (!awaited.length) return;
  const added = await entriesAfter(get, Math.min(...awaited.map(({ since }) => since)));
  for (const entry of added) {
    const isSync = actions.sync && entry.request_id === actions.sync.id && entry.outcome !== "other";
    if (isSync || isVerification(entry)) ended(isSync ? "sync" : "verify", sentence(entry.title), entry.hint);
  }
  for (const action of awaited) action.since = Math.max(action.since, added[0]?.position ?? 0);
}

/** Return whether an entry is the result of Verify, and not of a deep verification of an older upload. */
function isVerification({ type, position, upload_id: upload }) {
  const { verify } = actions;
  return verify && type === VERIFIED && position > verify.since && upload >= verify.newest;
}

function ended(name, text, cure = "") {
  if (actions[name]) byId("result").replaceChildren(text, cure ? hint(cure) : "");
  actions[name] = null;
  setBusy(byId(name), false);
}

async function start() {
  prepareUploads(get, isOver);
  byId("sync").addEventListener("click", () => act("sync", "/v1/sync", "The sync was requested."));
  const waiting =
    "The verification was requested. It starts when no sync is running and the bucket or directory can be reached.";
  byId("verify").addEventListener("click", () => act("verify", "/v1/verify", waiting));
  for (let attempt = 0; ; attempt++) {
    try {
      const session = await openSession();
      return session === "open" ? await follow() : noSession(session);
    } catch (error) {
      gone(error);
      await pause(BACKOFF_MS[Math.min(attempt, BACKOFF_MS.length - 1)]);
    }
  }
}

document.addEventListener("visibilitychange", visibilityChanged);
addEventListener("hashchange", () => location.hash.startsWith("#token=") && location.reload());
visibilityChanged();
await start();
