// The agent's control API: the session, requests, and the stream of events.

const SESSION = "session";
const ANSWER_MS = 15_000;
const SILENCE_MS = 40_000; // the agent sends a comment every 15 s

/** The agent does not know the session, or it has ended. */
export class NoSession extends Error {}

/** The agent refused a request: the message is the problem's, `hint` says how to fix it. */
export class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail || problem.title || `the agent answered with status ${status}`);
    this.hint = problem.hint || "";
    this.status = status;
  }
}

/**
 * Start the session: exchange the one-time token of the address, if it has one.
 * Return "open", "none" if there is no session, or "refused" if the token is not valid.
 */
export async function openSession() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return sessionStorage.getItem(SESSION) ? "open" : "none";
  try {
    const opened = await request("/v1/page/session", { method: "POST", body: { token }, session: false });
    sessionStorage.setItem(SESSION, (await opened.json()).session);
    history.replaceState(null, "", location.pathname);
    return "open";
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    history.replaceState(null, "", location.pathname);
    // A page that was reloaded before the fragment was removed has a session, and a token that was used.
    return sessionStorage.getItem(SESSION) ? "open" : "refused";
  }
}

export function forgetSession() {
  sessionStorage.removeItem(SESSION);
}

/** `limitMs`: how long the agent may take to answer. */
export async function get(path, limitMs = ANSWER_MS) {
  return (await request(path, { limitMs })).json();
}

export async function post(path, body = {}) {
  return (await request(path, { method: "POST", body })).json();
}

/** Yield the events of the agent: `{type, data}`. Ends if the agent stops; throws if it does not answer. */
export async function* events(signal) {
  const ended = new AbortController();
  signal.addEventListener("abort", () => ended.abort(signal.reason), { once: true });
  let watchdog = 0;
  const alive = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => ended.abort(new Error("the agent is silent")), SILENCE_MS);
  };
  try {
    const response = await request("/v1/events", { signal: ended.signal });
    alive();
    yield { type: "open", data: null };
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      yield* blocks.map(message).filter(Boolean);
    }
  } finally {
    clearTimeout(watchdog);
    ended.abort();
  }
}

function message(block) {
  const fields = new Map(
    block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
  );
  return fields.has("data") ? { type: fields.get("event"), data: JSON.parse(fields.get("data")) } : null;
}

async function request(path, { method = "GET", body, signal, session = true, limitMs = ANSWER_MS } = {}) {
  const headers = {};
  if (session) headers.Authorization = `Bearer ${sessionStorage.getItem(SESSION)}`;
  if (body) headers["Content-Type"] = "application/json";
  const waiting = new AbortController();
  const limit = setTimeout(() => waiting.abort(new Error("the agent does not answer")), limitMs);
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body && JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: signal ? AbortSignal.any([signal, waiting.signal]) : waiting.signal,
    });
  } finally {
    clearTimeout(limit);
  }
  if (response.ok) return response;
  if (response.status === 401 && session) throw new NoSession();
  throw new Refused(await response.json().catch(() => ({})), response.status);
}
