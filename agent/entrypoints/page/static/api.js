// The agent's control API: the session, requests, and the stream of events.

const SESSION = "session";
const ANSWER_MS = 15_000;
const NONCE_BYTES = 16;
const ID_DIGITS = 16;
const SILENCE_MS = 40_000; // the agent sends a comment every 15 s

/** The agent does not know the session, or it has ended. */
export class NoSession extends Error {}

/** The server does not know the session: it is another program, which has the agent's address. */
export class OtherServer extends Error {}

/** The agent refused a request: the message is the problem's, `hint` says how to fix it. */
export class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail || problem.title || `the agent answered with status ${status}`);
    this.hint = problem.hint || "";
    this.status = status;
  }
}

let heard = Date.now();

/** Return when the agent last answered or sent an event. */
export const lastHeard = () => heard;

let following = false; // an event stream is open: its server has proven that it is the agent, and still has the address

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
    if (!(error instanceof Refused && error.status === 401)) throw error; // the token may still be valid
    history.replaceState(null, "", location.pathname);
    // A page that was reloaded before the fragment was removed has a session, and a token that was used.
    return sessionStorage.getItem(SESSION) ? "open" : "refused";
  }
}

export function forgetSession() {
  sessionStorage.removeItem(SESSION);
}

/** Throws Refused, NoSession or OtherServer. `limitMs`: how long the agent may take to answer. */
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
    heard = Date.now();
    clearTimeout(watchdog);
    watchdog = setTimeout(() => ended.abort(new Error("the agent is silent")), SILENCE_MS);
  };
  try {
    const response = await request("/v1/events", { signal: ended.signal });
    alive();
    following = true;
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
    following = false;
    clearTimeout(watchdog);
    ended.abort();
  }
}

/** Let the server prove that it knows the session, without sending it. Throws OtherServer if it does not. */
async function checkServer(signal) {
  const bytes = new TextEncoder();
  const key = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes.encode(sessionStorage.getItem(SESSION))));
  const nonce = hex(crypto.getRandomValues(new Uint8Array(NONCE_BYTES)));
  const hmac = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  let proof = "";
  try {
    const body = { id: hex(key).slice(0, ID_DIGITS), nonce };
    const answer = await request("/v1/page/proof", { method: "POST", body, session: false, signal });
    ({ proof } = await answer.json());
  } catch (error) {
    if (!(error instanceof Refused || error instanceof SyntaxError)) throw error;
    if (error.status === 401) throw new NoSession();
    if (error.status === 503) throw error; // too many connections
  }
  const given = Uint8Array.from(String(proof).match(/[0-9a-f]{2}/g) ?? [], (digits) => parseInt(digits, 16));
  const text = bytes.encode(`akosha-agent page ${location.host} ${nonce}`);
  if (!(await crypto.subtle.verify("HMAC", hmac, given, text))) throw new OtherServer();
}

function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function message(block) {
  const fields = new Map(
    block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
  );
  return fields.has("data") ? { type: fields.get("event"), data: JSON.parse(fields.get("data")) } : null;
}

async function request(path, { method = "GET", body, signal, session = true, limitMs = ANSWER_MS } = {}) {
  const headers = {};
  if (session && !following) await checkServer(signal);
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
  heard = Date.now();
  if (response.ok) return response;
  if (response.status === 401 && session) throw new NoSession();
  throw new Refused(await response.json().catch(() => ({})), response.status);
}
