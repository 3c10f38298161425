// The commands and settings that a text of the agent names.

// An argument: an option, a quoted value, a word in capitals that stands for a value, "-", or the ID of an upload.
const ARGUMENT = String.raw` (?:--[a-z][a-z-]*|'[^']*'|[A-Z]{2,}\b|-(?![\w-])|\d{8}_\d{6}_[\w-]+)`;
// A value of `config set` is never a text that the agent may have from a server.
const COMMANDS = [
  String.raw`config set(?: (?:[a-z_]+|KEY) (?:-|VALUE)(?![\w-]))+`,
  String.raw`config unset (?:[a-z_]+|KEY)`,
  "config(?: path|(?! (?:un)?set))",
  "hook (?:install|session-end|status|uninstall)",
  "service (?:install|logs|restart|start|status|stop|uninstall)",
  "uploads(?: (?:list|show))?",
  "demo|doctor|events|fleet|init|mcp|memories|open|prune|react|restore|run|status|sync|verify",
];
const NAMED = new RegExp(
  String.raw`(\bakosha-agent (?:${COMMANDS.join("|")})(?![\w-])(?:${ARGUMENT})*|kill -CONT \d+|\bakosha_[a-z_]+\b)`,
);

/** Split a text: every second part is a command that can be run, or a setting. */
export function split(text) {
  return text.split(NAMED);
}

/**
 * Return the message of an error, and its hint in parentheses at the end, or "". Only the hint is the agent's own: the
 * message may quote a server. A single word in parentheses is not a hint.
 */
export function messageAndHint(error) {
  let depth = 0;
  for (let at = error.endsWith(")") ? error.length - 1 : -1; at >= 0; at--) {
    depth += (error[at] === ")") - (error[at] === "(");
    if (depth) continue;
    const found = error.slice(at + 1, -1);
    return found.includes(" ") ? [error.slice(0, at).trimEnd(), found] : [error, ""];
  }
  return [error, ""];
}
