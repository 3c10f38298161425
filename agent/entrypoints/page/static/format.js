// Sizes, times and durations in the same form as the commands print them.

import { el } from "./dom.js";

const SPACE = "\u00a0"; // keeps a number and its unit in one line

/** Return a number of bytes in decimal units: 43200000 is "43.2 MB". */
export function bytes(count) {
  if (count < 1000) return `${Math.round(count)}${SPACE}bytes`;
  for (const unit of ["kB", "MB", "GB"]) {
    count /= 1000;
    if (count < 1000) return `${count.toFixed(1)}${SPACE}${unit}`;
  }
  return `${(count / 1000).toFixed(1)}${SPACE}TB`;
}

/** Return a number of seconds, rounded up: "42 s", "4:12" or "2 h 5 min". */
export function duration(seconds) {
  const whole = Math.max(Math.ceil(seconds), 0);
  if (whole < 60) return `${whole}${SPACE}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Return how long something took, with tenths of a second. */
export function took(seconds) {
  return seconds < 60 ? `${seconds.toFixed(1)}${SPACE}s` : duration(seconds);
}

/** Return how long ago a time was, rounded down: "3 min ago". */
export function age(at, now = Date.now()) {
  const seconds = Math.floor((now - at) / 1000);
  return seconds < -60 ? `${twoUnits(-seconds)} in the future` : `${twoUnits(Math.max(seconds, 0))} ago`;
}

/** Return a number of seconds in its largest unit, and the rest of days and hours in the next unit. */
export function twoUnits(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  const [large, small, names] = seconds >= 86400 ? [86400, 3600, ["d", "h"]] : [3600, 60, ["h", "min"]];
  const rest = Math.floor((seconds % large) / small);
  return `${Math.floor(seconds / large)} ${names[0]}${rest ? ` ${rest} ${names[1]}` : ""}`;
}

export function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function plural(number, one, many) {
  return number === 1 ? one : many;
}

const two = (number) => String(number).padStart(2, "0");

/** Return a time of day in the local time zone: "17:03". */
export function clock(at) {
  const time = new Date(at);
  return `${two(time.getHours())}:${two(time.getMinutes())}`;
}

/** Return a day in the local time zone: "2026-03-01". */
export function day(at) {
  const time = new Date(at);
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
}

/** Return a time of today as "17:03", any other with its day. */
export function clockOrDay(at) {
  return day(at) === day(Date.now()) ? clock(at) : `${day(at)} ${clock(at)}`;
}

/** Return a day for an axis: "1 Mar". */
export function shortDay(at) {
  const time = new Date(at);
  return `${time.getDate()} ${time.toLocaleString("en", { month: "short" })}`;
}

/** Return a time in the local time zone: "2026-03-01 17:03:12". */
export function localTime(at) {
  return `${day(at)} ${clock(at)}:${two(new Date(at).getSeconds())}`;
}

/** Return an element with the age of a time, which `updateTimes` keeps up to date. */
export function ago(iso) {
  const at = Date.parse(iso);
  return el("time", { datetime: iso, title: localTime(at), "data-form": "age" }, age(at));
}

/** Return an element with the time that is left until a time, which `updateTimes` keeps up to date. */
export function until(iso) {
  return timeLeft("until", iso);
}

/** Return the same for the beginning of a text, with a capital letter. */
export function untilFirst(iso) {
  return timeLeft("until-first", iso);
}

function timeLeft(form, iso) {
  const at = Date.parse(iso);
  return el("time", { datetime: iso, title: localTime(at), "data-form": form }, FORMS[form](at));
}

const FORMS = {
  age,
  until: left,
  "until-first": (at) => left(at).replace(/^[in]/, (letter) => letter.toUpperCase()),
};

function left(at) {
  if (document.body.dataset.state === "gone") return "–"; // no agent keeps to it
  const seconds = (at - Date.now()) / 1000;
  return seconds >= 1 ? `in ${duration(seconds)}` : "now";
}

/** Bring the ages and the times that are left up to date, or those whose form begins with a text. */
export function updateTimes(form = "") {
  for (const element of document.querySelectorAll(form ? `time[data-form^="${form}"]` : "time[data-form]")) {
    const text = FORMS[element.dataset.form](Date.parse(element.dateTime));
    if (element.textContent !== text) element.textContent = text;
  }
}
