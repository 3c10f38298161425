// The uploads in the bucket or directory, and the command that restores each.

import { byId, command, el, icon, isUsable, setBusy } from "./dom.js";
import { bytes, clock, count, day } from "./format.js";

const SHOWN = 10;
const READ_MS = 120_000;
const UPLOAD_ID = /^[0-9]{8}_[0-9]{6}_[A-Za-z0-9_-]{1,100}$/;
const KINDS = { whole: "", patches: "base and patches", unknown: "contents unknown" };

/** Let the button read the list. `isOver` returns whether an error ends the page. */
export function prepareUploads(get, isOver) {
  let left = [];
  const more = () => {
    const rows = left.splice(0, SHOWN).map(upload);
    byId("uploads")
      .querySelector("tbody")
      .append(...rows);
    byId("uploads-more").hidden = !left.length;
    return rows[0];
  };
  byId("uploads-more").addEventListener("click", () => more()?.focus({ preventScroll: true }));
  byId("uploads-load").addEventListener("click", async () => {
    const [button, text] = [byId("uploads-load"), byId("uploads-text")];
    if (!isUsable(button)) return;
    setBusy(button, true);
    text.textContent = "Reading the list…";
    try {
      const { uploads, total, error } = await get("/v1/uploads", READ_MS);
      left = uploads;
      byId("uploads-more").hidden = true;
      byId("uploads").replaceChildren(...(uploads.length ? [table()] : []));
      text.textContent = error || summary(uploads.length, total);
      if (uploads.length) more();
      button.textContent = "Read the list again";
    } catch (problem) {
      if (!isOver(problem)) text.textContent = `The list was not read: ${problem.message}`;
    } finally {
      setBusy(button, false);
    }
  });
}

function summary(shown, total) {
  if (!total) return "There is no upload yet.";
  if (total > shown) return `The newest ${shown} of ${count(total, "upload", "uploads")}.`;
  return `${count(total, "upload", "uploads")}, newest first.`;
}

function table() {
  const head = ["Upload", "Databases", "Rows", "Stored"].map((name) => el("th", { scope: "col" }, name));
  return el(
    "table",
    { class: "stacked uploads" },
    el("caption", { class: "visually-hidden" }, "Uploads, newest first, with the command that restores each"),
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody"),
  );
}

function damage(problems) {
  return Object.entries(problems ?? {}).map(([name, reason]) =>
    el("span", { class: "tag failing" }, icon("damaged"), `${name}: ${reason}`),
  );
}

function upload(one) {
  const at = Date.parse(one.time);
  const cell = (label, ...content) => el("td", { "data-label": label }, el("span", {}, ...content));
  const contents = (one.databases ?? []).map(({ name, bytes: size }) =>
    el("span", { class: "content" }, name, " ", el("span", { class: "quiet" }, size == null ? "" : bytes(size))),
  );
  return el(
    "tr",
    { tabindex: "-1" },
    el(
      "th",
      { scope: "row" },
      el("span", { class: "name" }, `${day(at)} ${clock(at)}`),
      KINDS[one.kind] ? el("span", { class: "quiet" }, KINDS[one.kind]) : "",
      ...damage(one.problems),
      UPLOAD_ID.test(one.upload_id) && command(`akosha-agent restore ${one.upload_id} --to ~/restored-memories`),
    ),
    cell("Databases", ...(contents.length ? contents : ["–"])),
    cell("Rows", one.memories == null ? "–" : one.memories.toLocaleString("en")),
    cell("Stored", bytes(one.stored_bytes)),
  );
}
