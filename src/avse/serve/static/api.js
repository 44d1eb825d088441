// The server's API: addresses, requests, and what may go wrong with them. Knows nothing of the page.

const address = (path, asked = {}) => {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(asked)) if (value || value === 0) url.searchParams.set(name, value);
  return url;
};

export const thumbnail = (id, size) => address(`thumbnails/${encodeURIComponent(id)}`, { size }).href;

/** What the server refused or could not do. `kind`: "gone", "token", "wait" (after `seconds`), "asked" or "broken". */
export class Refusal extends Error {
  constructor(kind, message, status = 0, seconds = 0) {
    super(message);
    Object.assign(this, { kind, status, seconds });
  }
}

async function ask(path, { asked, ...options } = {}) {
  let answer;
  try {
    answer = await fetch(address(path, asked), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("gone", "The server does not answer.");
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const said = String(await answer.json().then((body) => body.detail, () => ""));
  const seconds = Math.min(Math.max(Number(answer.headers.get("Retry-After")) || 1, 1), 60);
  const { status } = answer;
  if (status === 401) throw new Refusal("token", said, status);
  if (status === 429) throw new Refusal("wait", said, status, seconds);
  if ([502, 503, 504].includes(status)) throw new Refusal("gone", "The server is starting or going down.", status);
  throw new Refusal(status < 500 ? "asked" : "broken", said || `The server answered ${status}.`, status);
}

const json = (body) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

export const info = () => ask("api/info");
export const entries = (limit) => ask("api/images", { asked: { limit } });
export const entry = (id) => ask(`api/images/${encodeURIComponent(id)}`);
export const health = () => ask("healthz");
export const explain = (id, query, signal) => ask("api/explain", { asked: { id, query }, signal });
export const similar = (id, { where, k }, signal) =>
  ask(`api/similar/${encodeURIComponent(id)}`, { asked: { where, k }, signal });
export const session = (token) => ask("api/session", json({ token }));

/** Ask with a sentence, a picture (a Blob) or both. */
export function search({ query, image, where, k }, signal) {
  if (!image) return ask("api/search", { ...json({ query, k, ...(where && { where }) }), signal });
  const body = new FormData();
  for (const [name, value] of Object.entries({ query, where, k })) if (value) body.set(name, value);
  body.set("image", image, image.name || "picture");
  return ask("api/search", { method: "POST", body, signal });
}
