// Exchanges the one-time token in the address for a session, and shows the verdict.

const SESSION = "session";

async function startSession() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", "/");
  const response = await fetch("/v1/page/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (response.ok) sessionStorage.setItem(SESSION, (await response.json()).session);
}

async function read(path) {
  const session = sessionStorage.getItem(SESSION) ?? "";
  const response = await fetch(path, { headers: { Authorization: `Bearer ${session}` } });
  const document = await response.json();
  if (!response.ok) throw new Error(`${document.detail} (${document.hint})`);
  return document;
}

const verdict = document.getElementById("verdict");
try {
  await startSession();
  verdict.textContent = (await read("/v1/status")).verdict.text;
} catch (error) {
  verdict.textContent = error.message;
}
