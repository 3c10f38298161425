// Elements, made from text that is never parsed as HTML.

import { messageAndHint, split } from "./commands.js";

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. `attributes.class` and all others are attributes; functions are event listeners. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false && child !== ""));
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

const shown = new Map();

/** Show nodes in a container if `data`, from which `make` makes them, has changed. Controls keep focus and scrolling. */
export function show(container, data, make) {
  const key = JSON.stringify(data);
  if (shown.get(container) === key) return;
  shown.set(container, key);
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scrolled = [...container.querySelectorAll(".values")].map((one) => [one.dataset.key, one.scrollTop]);
  container.replaceChildren(...[make(data)].flat().filter(Boolean));
  const found = (name) => container.querySelector(`[data-key="${CSS.escape(name)}"]`);
  if (focused) found(focused)?.focus({ preventScroll: true });
  for (const [name, top] of scrolled) found(name)?.scrollTo(0, top);
}

const ICONS = {
  safe: ["M12 2.8 4.5 5.6v5.6c0 4.7 3.1 8.3 7.5 10 4.4-1.7 7.5-5.3 7.5-10V5.6z", "m8.4 12 2.6 2.6 4.8-5.2"],
  owed: ["M12 3.2a8.8 8.8 0 1 0 0 17.6 8.8 8.8 0 0 0 0-17.6z", "M12 7.6V12l3 2"],
  unknown: [
    "M12 3.2a8.8 8.8 0 1 0 0 17.6 8.8 8.8 0 0 0 0-17.6z",
    "M9.6 9.6a2.5 2.5 0 1 1 3.6 2.2c-.8.4-1.2.9-1.2 1.8",
    "M12 16.6v.1",
  ],
  failing: ["M12 3.6 2.8 19.6h18.4z", "M12 9.8v4.4", "M12 17v.1"],
  damaged: ["M8.2 3h7.6L21 8.2v7.6L15.8 21H8.2L3 15.8V8.2z", "m9 9 6 6", "m15 9-6 6"],
  succeeded: ["m5 12.6 4.4 4.4L19 7.4"],
  failed: ["m6.5 6.5 11 11", "m17.5 6.5-11 11"],
  skipped: ["M6 12h12"],
  other: ["M12 11.9v.2"],
  copy: ["M9 9h10.5v10.5H9z", "M5.5 15h-1V4.5H15v1"],
};

/** Return an icon, which is hidden from screen readers. */
export function icon(name) {
  const paths = (ICONS[name] ?? ICONS.other).map((d) => svg("path", { d }));
  return svg(
    "svg",
    { class: `icon icon-${name}`, viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    ...paths,
  );
}

/** Return a button that copies a text, and says whether that succeeded. */
export function copyButton(text, label = "Copy") {
  const words = el("span", {}, label);
  const button = el(
    "button",
    { type: "button", class: "copy", "data-key": `copy ${text}`, "aria-label": `${label}: ${text}` },
    icon("copy"),
    words,
  );
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      said = "Not copied";
    }
    words.textContent = said;
    announce(`${said}: ${text}`, { again: true });
    setTimeout(() => (words.textContent = label), 2000);
  });
  return button;
}

/** Return a command as code with a button that copies it. */
export function command(text) {
  return el("span", { class: "command" }, el("code", {}, text), copyButton(text));
}

const CAPITAL =
  /^(a|an|another|check|delivered|events|free|in|is|it|last|mount|no|nothing|process|run|sent|set|the|this|upload|uploaded|waiting) /;

/** Return a text of the agent as the beginning of a sentence. A name at its beginning stays as it is. */
export function sentence(text) {
  return CAPITAL.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
}

/** Return a hint of the agent with its settings as code, and its commands as code that can be copied. */
export function hint(text) {
  return el("p", { class: "hint" }, ...split(sentence(text)).map((part, at) => (at % 2 ? code(part) : part)));
}

/** Return an error of the agent: its message as it is, and its hint with the commands. */
export function problem(error) {
  const [message, cure] = messageAndHint(error);
  return [el("p", { class: "hint" }, sentence(message)), cure && hint(cure)];
}

function code(text) {
  return text.startsWith("akosha_") ? el("code", {}, text) : command(text);
}

/** Let a screen reader say a text when it has ended its sentence. The same text is repeated only with `again`. */
export function announce(text, { again = false, region = "announcer" } = {}) {
  const announcer = byId(region);
  if (announcer.textContent !== text) announcer.textContent = text;
  else if (again) announcer.textContent = `${text}\u00a0`;
}

/** Mark a button as busy, or no longer. It cannot be used then, nor while the agent does not answer. */
export function setBusy(button, busy) {
  button.toggleAttribute("data-busy", busy);
  showUsable(button);
}

/** Show whether a button can be used. It keeps the focus, which `disabled` would take. */
export function showUsable(button) {
  if (isUsable(button)) button.removeAttribute("aria-disabled");
  else button.setAttribute("aria-disabled", "true");
}

export function isUsable(button) {
  return document.body.dataset.state === "live" && !button.hasAttribute("data-busy");
}
