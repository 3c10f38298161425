// Three plots of the results over time, as SVG, each with a table of the same values.

import { byId, el, show, svg } from "./dom.js";
import { bytes, clock, count, day, localTime, shortDay, took, twoUnits } from "./format.js";

const [WIDTH, HEIGHT] = [360, 190];
const EDGE = { left: 54, right: 10, top: 12, bottom: 26 };
const HOUR = 3_600_000;

/** Show the plots of `{results, since}`. */
export function showPlots({ results, since }) {
  const points = results.map((one) => ({ ...one, at: Date.parse(one.time) })).sort((a, b) => a.at - b.at);
  const start = day(Date.parse(since));
  byId("plots-text").textContent = points.length ? `Since ${start}` : `There is no result since ${start}.`;
  byId("plots").hidden = !points.length;
  if (!points.length) return;
  const minute = Math.floor(Date.now() / 60_000); // the last plot grows with the time
  show(byId("plots"), [points, minute], () => [sizes(points), durations(points), ages(points)]);
}

/** Return the scale of the time from the first point to now, or to the last point if a clock was wrong. */
function timeScale(points) {
  return times(points[0].at, Math.max(Date.now(), points.at(-1).at));
}

function sizes(points) {
  const done = points.filter((one) => one.success);
  const sent = done.filter((one) => one.bytes > 0);
  const sized = done.filter((one) => one.database_bytes > 0);
  const all = [...sent.map((one) => one.bytes), ...sized.map((one) => one.database_bytes)];
  const y = powers(all);
  const x = timeScale(points);
  const [sum, last] = [sent.reduce((total, one) => total + one.bytes, 0), sized.at(-1)];
  return figure({
    id: "sizes",
    title: "Bytes sent and database size",
    summary: `${bytes(sum)} sent in ${count(done.length, "sync", "syncs")}${last ? `; the databases have ${bytes(last.database_bytes)}` : ""}.`,
    legend: [
      ["line-size", "Database size"],
      ["dots-sent", "Sent by a sync"],
    ],
    drawing: [
      ...axes(x, y),
      path(
        "line-size",
        steps(
          sized.map((one) => [x.at(one.at), y.at(one.database_bytes)]),
          x.end,
        ),
      ),
      dots(
        "dots-sent",
        sent.map((one) => [x.at(one.at), y.at(one.bytes)]),
      ),
    ],
    head: ["Time", "Sent", "Database size"],
    rows: done.map((one) => [
      localTime(one.at),
      bytes(one.bytes),
      one.database_bytes ? bytes(one.database_bytes) : "–",
    ]),
  });
}

function durations(points) {
  const done = points.filter((one) => one.success);
  const failed = points.filter((one) => !one.success);
  const y = linear(Math.max(...points.map((one) => one.duration_seconds), 1), took, DECIMAL);
  const x = timeScale(points);
  const sorted = done.map((one) => one.duration_seconds).sort((a, b) => a - b);
  const median = sorted.length ? `, half of them within ${took(sorted[Math.floor((sorted.length - 1) / 2)])}` : "";
  return figure({
    id: "durations",
    title: "Duration of syncs",
    summary: `${done.length} succeeded${median}; ${failed.length} failed.`,
    legend: [
      ["dots-sent", "Succeeded"],
      ["crosses", "Failed"],
    ],
    drawing: [
      ...axes(x, y),
      dots(
        "dots-sent",
        done.map((one) => [x.at(one.at), y.at(one.duration_seconds)]),
      ),
      crosses(failed.map((one) => [x.at(one.at), y.at(one.duration_seconds)])),
    ],
    head: ["Time", "Outcome", "Duration"],
    rows: points.map((one) => [localTime(one.at), one.success ? "succeeded" : "failed", took(one.duration_seconds)]),
  });
}

function ages(points) {
  const now = Date.now();
  const done = points.filter((one) => one.success).map((one) => one.at);
  const gaps = done.map((at, index) => ({ at, until: done[index + 1] ?? Math.max(now, at) }));
  const longest = Math.max(...gaps.map((gap) => gap.until - gap.at), 0) / 1000;
  const y = linear(Math.max(longest, 60), spanLabel, TIMES);
  const x = timeScale(points);
  const line = gaps.flatMap((gap) => [
    [x.at(gap.at), y.at(0)],
    [x.at(gap.until), y.at((gap.until - gap.at) / 1000)],
  ]);
  return figure({
    id: "ages",
    title: "Time since the last upload",
    summary: done.length
      ? `Now ${twoUnits(Math.max(Math.floor((now - done.at(-1)) / 1000), 0))}; at most ${twoUnits(Math.floor(longest))}.`
      : "No upload in this time.",
    legend: [["line-age", "Time since the last upload"]],
    drawing: [...axes(x, y), path("line-age", line)],
    head: ["Upload at", "Next upload after"],
    rows: gaps.map((gap, index) => [
      localTime(gap.at),
      index + 1 < gaps.length ? twoUnits(Math.floor((gap.until - gap.at) / 1000)) : "–",
    ]),
  });
}

function figure({ id, title, summary, legend, drawing, head, rows }) {
  const open = byId(`${id}-table`)?.open ?? false;
  const details = el(
    "details",
    { id: `${id}-table`, "data-key": id, open },
    el("summary", { "data-key": `${id} summary` }, "Values as a table"),
  );
  const fill = () => details.open && !details.querySelector("table") && details.append(values(title, head, rows));
  details.addEventListener("toggle", fill);
  fill();
  return el(
    "figure",
    {},
    el("figcaption", {}, el("h3", {}, title), el("p", { class: "quiet", id: `${id}-summary` }, summary)),
    svg(
      "svg",
      { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${summary}` },
      ...drawing,
    ),
    el(
      "ul",
      { class: "legend", "aria-hidden": "true" },
      ...legend.map(([kind, name]) =>
        el("li", {}, svg("svg", { viewBox: "0 0 20 10", class: "key" }, sample(kind)), name),
      ),
    ),
    details,
  );
}

function values(title, head, rows) {
  return el(
    "div",
    { class: "values", tabindex: "0", role: "region", "aria-label": `${title}: values`, "data-key": `${title} values` },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...rows.toReversed().map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell))))),
    ),
  );
}

function sample(kind) {
  if (kind.startsWith("line"))
    return path(kind, [
      [1, 5],
      [19, 5],
    ]);
  return kind === "crosses" ? crosses([[10, 5]]) : dots(kind, [[10, 5]]);
}

const DECIMAL = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];
const TIMES = [1, 5, 15, 30, 60, 180, 360, 720, 1440, 2880, 5760, 11_520].map((minutes) => minutes * 60);

function spanLabel(seconds) {
  if (seconds < 3600) return `${seconds / 60} min`;
  return seconds <= 48 * 3600 ? `${seconds / 3600} h` : `${seconds / 86_400} d`;
}

/** Return a linear scale from 0 that has room for `most`. `steps` are the distances that its ticks may have. */
function linear(most, label, steps) {
  const step = steps.find((one) => most / one <= 4) ?? most;
  const top = Math.ceil(most / step) * step;
  const ticks = Array.from({ length: Math.round(top / step) + 1 }, (_, at) => at * step);
  return {
    at: (value) => inside(value / top),
    ticks: ticks.map((tick) => [tick, tick ? label(tick).replace(/\.0(?=\s)/, "") : "0"]),
  };
}

/** Return a logarithmic scale of bytes: a sync sends much less than the databases have. */
function powers(all) {
  const [least, most] = [Math.min(...all, 1e6), Math.max(...all, 1e6)];
  let [low, high] = [Math.floor(Math.log10(least)), Math.ceil(Math.log10(most))];
  if (high - low < 2) low = high - 2;
  const every = Math.ceil((high - low) / 4);
  const ticks = Array.from({ length: high - low + 1 }, (_, at) => low + at).filter(
    (power) => (high - power) % every === 0,
  );
  return {
    at: (value) => inside((Math.log10(value) - low) / (high - low)),
    ticks: ticks.map((power) => [10 ** power, bytes(10 ** power).replace(/\.0(?=\s)/, "")]),
  };
}

function inside(fraction) {
  return HEIGHT - EDGE.bottom - fraction * (HEIGHT - EDGE.bottom - EDGE.top);
}

/** Return the scale of time, with labels at full hours or at midnights of the local time zone. */
function times(from, to) {
  const span = Math.max(to - from, 60_000);
  const at = (time) => EDGE.left + ((time - from) / span) * (WIDTH - EDGE.left - EDGE.right);
  const isLong = span > 36 * HOUR;
  const [days, step] = [Math.ceil(span / (4 * 24 * HOUR)), niceStep(span)];
  const tick = new Date(from);
  tick.setHours(0, 0, 0, 0);
  const ticks = [];
  while (tick <= to) {
    if (tick >= from) ticks.push([tick.getTime(), isLong ? shortDay(tick) : clock(tick)]);
    if (isLong) tick.setDate(tick.getDate() + days); // a day may have 23 or 25 hours
    else tick.setTime(tick.getTime() + step);
  }
  return { at, ticks, end: at(to) };
}

function niceStep(span) {
  return (
    [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720].map((minutes) => minutes * 60_000).find((step) => span / step <= 4) ??
    12 * HOUR
  );
}

function axes(x, y) {
  const [right, bottom] = [WIDTH - EDGE.right, HEIGHT - EDGE.bottom];
  return [
    ...y.ticks.flatMap(([value, label]) => [
      svg("path", { class: "grid", d: `M${EDGE.left} ${round(y.at(value))}H${right}` }),
      svg("text", { class: "tick", x: EDGE.left - 8, y: round(y.at(value) + 4), "text-anchor": "end" }, label),
    ]),
    svg("path", { class: "axis", d: `M${EDGE.left} ${bottom}H${right}` }),
    ...x.ticks.flatMap(([time, label]) => [
      svg("path", { class: "axis", d: `M${round(x.at(time))} ${bottom}v4` }),
      svg(
        "text",
        {
          class: "tick",
          x: round(Math.min(Math.max(x.at(time), EDGE.left + 8), right - 14)),
          y: HEIGHT - 8,
          "text-anchor": "middle",
        },
        label,
      ),
    ]),
  ];
}

function steps(points, end) {
  return points.flatMap(([x, y], at) => [
    [x, y],
    [points[at + 1]?.[0] ?? end, y],
  ]);
}

function path(kind, points) {
  return svg("path", {
    class: kind,
    d: points.map(([x, y], at) => `${at ? "L" : "M"}${round(x)} ${round(y)}`).join(""),
  });
}

function dots(kind, points) {
  return svg("path", { class: kind, d: points.map(([x, y]) => `M${round(x)} ${round(y)}h0`).join("") });
}

function crosses(points) {
  return svg("path", {
    class: "crosses",
    d: points.map(([x, y]) => `M${round(x - 3)} ${round(y - 3)}l6 6m0 -6l-6 6`).join(""),
  });
}

function round(number) {
  return Math.round(number * 10) / 10;
}
