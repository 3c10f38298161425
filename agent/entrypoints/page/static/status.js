// The sections that show the status: verdict, activity, facts, warnings, databases, route and bus.

import { announce, byId, command, el, hint, icon, problem, sentence, show } from "./dom.js";
import { ago, bytes, clockOrDay, count, duration, plural, until, untilFirst, updateTimes } from "./format.js";

const SEVERITIES = { safe: "Safe", owed: "Pending", unknown: "Unknown", failing: "Failing", damaged: "Damaged" };
const METHODS = { cloud: "Bucket or directory", http: "Akosha server" };
const REASONS = {
  quiet: "because the files are still changing",
  deadline: "because the files keep changing",
  min_interval: "because of the minimum interval",
  retry: "because the last attempt failed",
};
const STAGES = {
  cloud: [
    ["snapshot", "Copy"],
    ["upload", "Upload databases"],
    ["memories", "Upload memories"],
  ],
  http: [
    ["snapshot", "Copy"],
    ["push", "Send memories"],
  ],
};
const DOING = {
  "": "Syncing",
  snapshot: "Copying",
  upload: "Uploading",
  memories: "Uploading memories",
  push: "Sending",
};

/** The end of a verdict that the page shows beside it, where it counts on: the time of the next sync, and the percent. */
const SHOWN_BESIDE = /; the next sync is [^;]*$|(?:, )?\d+ %$/;

/** Code of the warning that the hourly check of the bucket or directory failed. */
const CHECK_FAILED = "target_check_failed";

let shownFacts = null;

/** Show a status document. */
export function showStatus(status) {
  showVerdict(status.verdict ?? { severity: "unknown", text: "Unknown: the agent is of an earlier version" });
  showActivity(status.activity);
  shownFacts = factData(status);
  show(byId("facts"), shownFacts, facts);
  show(byId("warning-list"), warningsOf(status), (warnings) => warnings.map(warning));
  byId("warnings").hidden = !warningsOf(status).length;
  show(byId("databases"), [status.targets, status.verified, status.problem], () => databases(status));
  show(byId("route"), [status.route, status.targets, failedCheck(status)], () => route(status));
  show(byId("bus"), [status.bus, status.results_waiting], () => bus(status));
  show(byId("footer"), [status.running, status.data_dir, status.state_dir], () => footer(status));
  byId("system").textContent = status.system_id;
}

/** Show a verdict: its first clause large, the rest below. A screen reader says it when the first clause changes. */
export function showVerdict({ severity, text }) {
  const section = byId("verdict");
  const [headline, detail] = clauses(text);
  if (section.dataset.severity !== severity || !byId("verdict-icon").firstChild)
    byId("verdict-icon").replaceChildren(icon(severity));
  section.dataset.severity = severity;
  byId("severity").textContent = SEVERITIES[severity] ?? severity;
  byId("detail").textContent = detail;
  if (byId("headline").textContent !== headline) {
    byId("headline").textContent = headline;
    announce(detail ? `${headline}: ${detail}` : headline);
  }
  document.title = `${SEVERITIES[severity] ?? severity} · akosha-agent`;
}

/** Return the first clause of a sentence and the rest. A clause that ends with "but" needs the rest. */
function clauses(text) {
  const at = text.indexOf(": ");
  if (at < 0 || at > 70 || text.slice(0, at).endsWith("but")) return [text, ""];
  const rest = text.slice(at + 2);
  return [text.slice(0, at), sentence(rest.replace(SHOWN_BESIDE, ""))];
}

/** Show the running sync: its stages, and how far the present one is. `null` hides it. */
export function showActivity(activity) {
  const box = byId("activity");
  box.hidden = !activity;
  if (!activity) {
    box.replaceChildren();
    announce("", { region: "progress-announcer" });
    return;
  }
  if (!box.firstChild)
    box.append(
      el("ol", { class: "stages" }),
      el("progress", { max: 1, "aria-label": "Progress of this stage" }),
      el("p", { class: "figures" }),
    );
  const [stages, progress, figures] = box.children;
  const steps = STAGES[activity.method] ?? [];
  const now = steps.findIndex(([phase]) => phase === activity.phase);
  show(stages, [activity.method, activity.phase], () => steps.map(([, name], at) => stage(name, at, now)));
  const fraction = activity.total_bytes ? Math.min(activity.done_bytes / activity.total_bytes, 1) : null;
  if (fraction === null) progress.removeAttribute("value");
  else progress.value = fraction;
  const doing = DOING[activity.phase] ?? activity.phase;
  figures.textContent = [doing, ...figuresOf(activity, fraction)].join(" · ");
  const said = fraction === null ? doing : `${doing}, ${Math.floor(fraction * 4) * 25} percent`;
  announce(said, { region: "progress-announcer" });
}

function stage(name, at, now) {
  const done = at < now;
  return el(
    "li",
    { class: done ? "done" : at === now ? "now" : "", "aria-current": at === now && "step" },
    done && icon("succeeded"),
    name,
  );
}

function figuresOf(activity, fraction) {
  const figures = [];
  if (fraction !== null)
    figures.push(`${Math.floor(fraction * 100)} %`, `${bytes(activity.done_bytes)} of ${bytes(activity.total_bytes)}`);
  if (activity.bytes_per_second != null) figures.push(`${bytes(activity.bytes_per_second)}/s`);
  if (activity.remaining_seconds != null) figures.push(`${duration(activity.remaining_seconds)} left`);
  return figures;
}

function factData(status) {
  const { pending, next_sync, sync_enabled, problem, activity, targets, verified } = status;
  return {
    pending,
    next_sync,
    sync_enabled,
    problem,
    syncing: Boolean(activity),
    target: targets[0],
    verified,
    uploads: targets.some((one) => one.method === "cloud"),
  };
}

function facts(data) {
  const found = [
    fact("Pending", data.problem || data.pending.join(", ") || "Nothing"),
    fact("Next sync", ...nextSync(data)),
  ];
  const { target, verified } = data;
  if (target) found.push(fact(target.method === "http" ? "Last push" : "Last upload", ...lastDelivery(target)));
  if (data.uploads)
    found.push(
      fact(
        "Verified",
        ...(verified ? [verified.whole ? "Intact, " : "Damaged, ", ago(verified.at)] : ["Never"]),
      ),
    );
  return found;
}

function fact(label, ...value) {
  return el("div", {}, el("dt", {}, label), el("dd", {}, ...value));
}

function lastDelivery(target) {
  if (!target.last_success) return ["Never"];
  return [ago(target.last_success), target.last_bytes == null ? "" : `, ${bytes(target.last_bytes)} sent`];
}

function nextSync({ pending, next_sync: next, sync_enabled: enabled, problem, syncing, isGone }) {
  if (isGone) return ["–"];
  if (!enabled) return ["None: sync is disabled"];
  if (syncing) return ["Running now"];
  if (problem) return ["When there are databases to read"];
  if (!pending.length) return ["When a database changes or a session ends"];
  if (!next) return ["Within a minute or two"];
  if (next.reason === "change") return ["When its files change"];
  if (!next.at) return ["When a session ends"];
  return [untilFirst(next.at), `, ${REASONS[next.reason] ?? next.reason}`];
}

function warningsOf(status) {
  const unhealthy = Object.entries(status.unhealthy)
    .sort()
    .map(([name, reason]) => ({ message: `${name}: ${reason}`, hint: "" }));
  const none = status.targets.length ? [] : [{ message: "no target is set", hint: "akosha-agent init" }];
  return [...none, ...unhealthy, ...status.warnings];
}

function warning({ message, hint: cure, since }) {
  return el(
    "li",
    {},
    icon("failing"),
    el(
      "div",
      {},
      el("p", {}, sentence(message)),
      cure && hint(cure),
      since && el("p", { class: "quiet" }, "First seen ", ago(since)),
    ),
  );
}

function databases(status) {
  const target = status.targets[0];
  if (!target?.databases.length)
    return el("p", { class: "quiet" }, status.problem ? sentence(status.problem) : "There is no database yet.");
  const head = ["Database", "Size", "Last change", "Last upload", "Verified"].map((name) =>
    el("th", { scope: "col" }, name),
  );
  return el(
    "table",
    { class: "stacked" },
    el("caption", { class: "visually-hidden" }, "Databases, with their state in the first target of the route"),
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...target.databases.map((one) => database(one, target, status.verified))),
  );
}

function database(one, target, verified) {
  const state = one.pending ? ["owed", "pending"] : one.removed ? ["unknown", "removed here"] : ["safe", "up to date"];
  const name = el(
    "th",
    { scope: "row" },
    el("span", { class: "name" }, one.name),
    " ",
    el("span", { class: `tag ${state[0]}` }, icon(state[0]), state[1]),
  );
  if (one.problem) name.append(...problem(one.problem));
  const cell = (label, ...content) => el("td", { "data-label": label }, el("span", {}, ...content));
  return el(
    "tr",
    {},
    name,
    cell("Size", one.removed ? "–" : bytes(one.size)),
    cell("Last change", one.changed_at ? ago(one.changed_at) : "–"),
    cell("Last upload", lastUpload(one, target, verified)),
    cell("Verified", ...verifiedAs(one, target, verified)),
  );
}

function lastUpload(one, target, verified) {
  if (!one.delivered) return verified?.damaged.includes(one.name) ? "Damaged" : "Never";
  return one.pending ? "Lacks the last change" : ago(target.last_success);
}

function verifiedAs(one, target, verified) {
  if (target.method !== "cloud" || !verified) return ["–"];
  const which = verified.upload_id === target.newest_upload_id ? "" : ", of an earlier upload";
  if (verified.damaged.includes(one.name)) return ["Damaged, ", ago(verified.at), which];
  const isIn = verified.databases.includes(one.name) || !verified.databases.length; // none: they are unknown
  return one.delivered && isIn ? [ago(verified.at), which] : ["Never"];
}

function failedCheck(status) {
  return status.warnings.some(({ code }) => code === CHECK_FAILED);
}

function route(status) {
  const steps = status.route.map((method, at) => [method, status.targets.find((one) => one.method === method), at]);
  if (!steps.length) return el("p", { class: "quiet" }, "No target is set.");
  const unread = failedCheck(status) ? "cloud" : "";
  return el("ol", { class: "route" }, ...steps.map(([method, target, at]) => destination(method, target, at, unread)));
}

function destination(method, target, at, unread) {
  const name = el(
    "h3",
    {},
    METHODS[method] ?? method,
    at ? el("span", { class: "quiet" }, " if the one above fails") : "",
  );
  if (!target) return el("li", {}, name, el("p", { class: "quiet" }, "Nothing has been sent to it"));
  const location = [target.endpoint, target.bucket].filter(Boolean).join(" · ");
  const tag = target.error
    ? ["failing", "last attempt failed"]
    : method === unread
      ? ["failing", "last check failed"]
      : target.last_success
        ? ["safe", "reachable"]
        : ["unknown", "not used yet"];
  return el(
    "li",
    {},
    name,
    el(
      "p",
      {},
      el("span", { class: `tag ${tag[0]}` }, icon(tag[0]), tag[1]),
      tag[0] === "safe"
        ? el("span", { class: "quiet" }, " at the last sync, ", ago(target.last_success))
        : "",
    ),
    location && el("p", { class: "location" }, location),
    target.error && problem(target.error),
    target.error && attempts(target),
    ...memories(target),
  );
}

function attempts({ failures, next_try: next }) {
  const failed = failures ? `${count(failures, "failed sync", "failed syncs")}. ` : ""; // 0: the first is tried again
  return el("p", { class: "quiet" }, failed, ...(next ? ["Next try ", until(next)] : []));
}

function memories({ memories: counts, delivered_means: means, confirmed_at: confirmed }) {
  const { delivered, waiting, refused } = counts;
  const held = Object.values(refused).reduce((total, number) => total + number, 0);
  const lines = [
    delivered ? [`${count(delivered, "memory", "memories")} delivered`] : [],
    delivered && means ? [sentence(means)] : [],
    confirmed ? ["The server still had them ", ago(confirmed)] : [],
    ...Object.entries(waiting).map(([reason, number]) => [
      `${count(number, "memory", "memories")} ${plural(number, "waits", "wait")}: ${reason}`,
    ]),
  ];
  return [
    ...lines.filter(({ length }) => length).map((line) => el("p", { class: "quiet" }, ...line)),
    held > 0 && hint(`${count(held, "memory was", "memories were")} refused: akosha-agent memories --failed shows them`),
  ];
}

function bus(status) {
  const waiting = status.results_waiting;
  const rows = [];
  if (status.bus)
    rows.push(fact("Bus", sentence(status.bus.text)), status.bus.since && fact("Since", ago(status.bus.since)));
  else rows.push(fact("Bus", "Unknown"));
  rows.push(
    fact("Results", waiting ? `${waiting} ${plural(waiting, "waits", "wait")} to be published` : "All are published"),
  );
  if (status.bus?.consumers != null) rows.push(fact("Consumers", `${status.bus.consumers} on the stream`));
  return rows.filter(Boolean);
}

function footer(status) {
  const agent =
    status.running &&
    el(
      "p",
      {},
      `Agent ${status.running.pid}`,
      status.running.since && [", started ", ago(status.running.since.replace(" ", "T"))],
    );
  return [
    agent,
    el("p", {}, "Databases in ", el("code", {}, status.data_dir)),
    el("p", {}, "State in ", el("code", {}, status.state_dir)),
  ];
}

/**
 * Show that the agent does not answer since a time, or refuses requests, and no longer the verdict, which may not hold
 * any more.
 */
export function showGone(since, verdict, refusal) {
  const last = verdict ? `The last verdict, at ${clockOrDay(verdict.at)}, was: ${verdict.text}` : "";
  const now = refusal ? "The agent does not report its status" : "The agent does not answer";
  showVerdict({ severity: "unknown", text: [now, last].filter(Boolean).join(": ") });
  showActivity(null);
  if (shownFacts) show(byId("facts"), { ...shownFacts, isGone: true }, facts);
  updateTimes("until");
  show(byId("banner"), [since, refusal?.message], () => {
    const what = refusal
      ? `The agent refuses the requests of this page: ${refusal.message}.`
      : `The agent has not answered since ${clockOrDay(since)}.`;
    const restart = [
      "If it does not run: ",
      command("akosha-agent service restart"),
      ", or without the service ",
      command("akosha-agent run"),
    ];
    return el(
      "div",
      { class: "banner" },
      icon("unknown"),
      el(
        "div",
        {},
        el("p", {}, el("strong", {}, what), " This page shows what it reported before, and tries again by itself."),
        refusal ? refusal.hint && hint(refusal.hint) : el("p", { class: "hint" }, ...restart),
      ),
    );
  });
}

export function hideBanner() {
  show(byId("banner"), null, () => []);
}
