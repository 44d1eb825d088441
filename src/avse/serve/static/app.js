// The page: what is asked (kept in the address), the answer, and what is said while there is none.

import * as api from "./api.js";
import * as detail from "./detail.js";
import { find, make, percent } from "./dom.js";
import * as filters from "./filters.js";
import * as grid from "./grid.js";
import { trouble, calm } from "./trouble.js";

const PAUSE = 200; // ms without a key before a sentence is asked
const SLOW = 150; // ms after which waiting shows
const PAGE = 24;
const KEPT = 10; // pictures that were searched with and can be come back to
const FAIR = 0.2; // chance of the best hit from which a weak answer is worth more than "no good match"

const query = find("query");
const results = find("results");
const pictures = []; // dropped ones: {file, name, url}; history holds their places here, the latest have something
let facts = null; // what /api/info answers
let asked = {}; // q, like (an id), picture (a place in `pictures`), set (filters), id (whose dialog is open)
let answer = null; // {hits, ...} and the key of what it answers
let asking = null; // the request under way
let typing = false; // whether the newest entry of the history is a sentence still being typed
let opened = false; // whether the dialog's entry of the history is ours to go back from
let timer = 0;

const texts = () => facts?.side === "texts";
const noun = (count) => `${count.toLocaleString()} ${texts() ? "sentence" : "picture"}${count === 1 ? "" : "s"}`;
const key = ({ q, like, picture, set }) => JSON.stringify([q, like, picture, set]);
const anything = ({ q, like, picture }) => Boolean(q || like || picture != null);

function address({ q, like, set, id }) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries({ q, like, id })) if (value) params.set(name, value);
  filters.write(params, set ?? {});
  return `${location.pathname}${params.size ? `?${params}` : ""}`;
}

/** Change what is asked, in the address too, and act on it. */
function go(changes, how = "push") {
  const next = { ...asked, ...changes };
  const ours = Boolean(next.id && (opened || how === "push"));
  history[`${how}State`]({ picture: next.picture ?? null, opened: ours }, "", address(next));
  route();
}

/** Read the address and bring the page in line with it. */
function route() {
  const params = new URLSearchParams(location.search);
  const kept = history.state?.picture;
  asked = {
    q: params.get("q") ?? "", like: params.get("like"), id: params.get("id"),
    picture: kept != null && pictures[kept] ? kept : null, set: filters.read(params, facts.fields),
  };
  opened = Boolean(history.state?.opened);
  if (query.value.trim() !== asked.q) query.value = asked.q;
  document.title = asked.q ? `${asked.q} – avse` : "avse";
  chip();
  welcoming(!anything(asked));
  const count = Object.keys(asked.set).length;
  find("filters-count").textContent = count || "";
  find("filters-count").hidden = !count;
  find("filters-toggle").title = count ? `Filters: ${count} set` : "Filters";
  if (answer?.key !== key(asked)) ask();
  else {
    if (results.classList.contains("old")) show(false);
    look();
  }
  if (!asked.id) detail.close();
}

function welcoming(yes) {
  find("empty").hidden = !yes;
  find("results-title").textContent = yes ? "From this collection" : "Results";
  find("results-title").classList.toggle("unseen", !yes || !facts.entries);
}

function chip() {
  const picture = asked.picture == null ? null : pictures[asked.picture];
  find("chip").hidden = !picture && !asked.like;
  if (picture || asked.like) {
    find("chip-image").src = picture ? picture.url : api.thumbnail(asked.like, 320);
    find("chip-name").textContent = picture ? picture.name : "More like this";
  }
  const empty = picture ? "Add words" : asked.like ? "Describe another picture" : "Describe a picture";
  query.placeholder = texts() ? "Drop, paste or choose a picture" : empty;
}

/** Show that something is waited for, if it takes long; the result stops it, and hides it unless others go on. */
function waiting(more) {
  const slow = setTimeout(() => {
    find("progress").hidden = false;
    results.ariaBusy = "true";
    if (more || (!results.children.length && anything(asked))) grid.skeletons(results);
  }, SLOW);
  return (last = true) => {
    clearTimeout(slow);
    if (!last) return;
    find("progress").hidden = true;
    results.ariaBusy = "false";
  };
}

/** Ask the server; a newer question takes the place of an older one, whose answer is never shown. */
async function ask(more = false) {
  clearTimeout(timer);
  asking?.abort();
  const mine = (asking = new AbortController());
  const wanted = key(asked);
  const { q, like, picture, set } = asked;
  const done = waiting(more);
  try {
    const question = {
      query: q, image: pictures[picture]?.file, where: filters.where(set, facts.fields),
      k: Math.min(more ? answer.hits.length + PAGE : PAGE, facts.limits.k),
    };
    let found;
    if (!anything(asked)) found = { hits: (await api.entries(PAGE)).entries, browsing: true };
    else found = await (like ? api.similar(like, question, mine.signal) : api.search(question, mine.signal));
    if (mine.signal.aborted || wanted !== key(asked)) return;
    const full = found.hits.length === question.k && question.k < facts.limits.k && !found.browsing;
    answer = { ...found, key: wanted, full };
    calm();
    show(more);
    look();
  } catch (error) {
    if (error.name === "AbortError" || mine.signal.aborted) return;
    grid.skeletons(results, 0);
    if (answer && answer.key !== wanted) stale();
    find("more").hidden = answer?.key !== wanted || !answer.full;
    trouble(error, facts, () => mine === asking && ask(more));
  } finally {
    done(mine === asking);
  }
}

/** What is said above hits that are all weak. */
function poor() {
  const { hits: [first], gallery } = answer;
  const among = `${noun(gallery)}${Object.keys(asked.set).length ? " and these filters" : ""}`;
  const what = asked.q ? `“${asked.q}”` : "this";
  const [head, words] = fair()
    ? ["Nothing here is a sure match", `The best has a chance of ${percent(first.confidence)} to be right.`]
    : ["No good match", `Nothing among ${among} fits ${what} well. The nearest are below, greyed.`];
  return make("li", { class: "weak-note", id: "weak" }, make("h3", {}, head), make("p", {}, words));
}

const fair = () => answer.hits[0]?.confidence >= FAIR;

function stale() {
  results.classList.add("old");
  find("weak")?.remove();
  find("status").textContent = "Not answered yet; below is what was found before.";
}

function show(append) {
  const { hits, weak, browsing, gallery = facts.entries, took_ms: took, notes = [] } = answer;
  const link = (hit) => address({ ...asked, id: hit.id });
  const filtered = Object.keys(asked.set).length > 0;
  const lead = weak ? poor() : null;
  results.classList.remove("old");
  results.classList.toggle("faint", Boolean(weak));
  grid.show(results, hits, { address: link, upper: answer.upper, texts: texts(), append, lead });
  find("more").hidden = !answer.full;
  const time = took == null ? "" : ` · ${Math.max(Math.round(took), 1)} ms`;
  find("status").textContent = browsing
    ? (filtered ? "The filters apply to the next search." : "")
    : !hits.length ? (filtered ? `No ${texts() ? "sentence" : "picture"} passes these filters.` : "Nothing found.")
    : weak ? `${fair() ? "No sure match: the best" : "No good match: the nearest"} ${hits.length}${time}`
    : `The best ${hits.length} of ${noun(gallery)}${asked.like ? " by likeness" : ""}${time}`;
  find("notes").textContent = notes.length ? notes.join(" ") : "";
}

/** Open the dialog of the picture that the address names. */
async function look() {
  const { id } = asked;
  if (!id) return;
  const at = answer.hits.findIndex((hit) => hit.id === id);
  try {
    const hit = answer.hits[at] ?? (await api.entry(id));
    if (asked.id !== id) return;
    const by = asked.q && !asked.like ? "sentence" : anything(asked) ? "picture" : "";
    const sentence = by === "sentence" ? asked.q : "";
    const count = at < 0 ? 0 : answer.hits.length;
    detail.open(hit, { query: sentence, by, upper: answer.upper ?? facts.blocks.Q, at, count });
  } catch (error) {
    trouble(error, facts, () => {
      calm();
      look();
    });
  }
}

function closed() {
  const { id } = asked;
  if (!id) return;
  if (opened) history.back();
  else go({ id: null }, "replace");
  [...results.querySelectorAll("li")].find((item) => item.dataset.id === id)?.querySelector("a")?.focus();
}

function take(file) {
  if (!file) return;
  const limit = facts.limits.upload_bytes;
  if (!file.type.startsWith("image/")) return trouble(new api.Refusal("asked", "", 415), facts);
  if (limit && file.size > limit) return trouble(new api.Refusal("asked", "", 413), facts);
  pictures.push({ file, name: file.name || "Pasted picture", url: URL.createObjectURL(file) });
  const old = pictures.length - 1 - KEPT;
  if (pictures[old]) URL.revokeObjectURL(pictures[old].url);
  delete pictures[old];
  detail.close();
  go({ picture: pictures.length - 1, like: null, id: null });
}

function typed() {
  clearTimeout(timer);
  welcoming(!anything({ ...asked, q: query.value.trim() })); // with the key: nothing is to move with the answer
  timer = setTimeout(() => {
    const q = query.value.trim();
    if (q === asked.q) return;
    go({ q, id: null, like: null }, typing ? "replace" : "push");
    typing = true;
  }, PAUSE);
}

function settled() {
  clearTimeout(timer);
  const q = query.value.trim();
  if (facts && q !== asked.q) go({ q, id: null, like: null }, typing ? "replace" : "push");
  typing = false;
}

function wire() {
  query.maxLength = facts.limits.query;
  query.readOnly = texts();
  query.addEventListener("input", typed);
  query.addEventListener("change", settled);
  query.addEventListener("click", () => texts() && find("file").click());
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    settled();
  });
  find("attach").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", ({ target }) => {
    take(target.files[0]);
    target.value = "";
  });
  find("chip-drop").addEventListener("click", () => {
    query.focus();
    go({ picture: null, like: null });
  });
  find("more").addEventListener("click", () => {
    find("more").hidden = true;
    results.lastElementChild?.querySelector("a")?.focus();
    ask(true);
  });
  results.addEventListener("click", (event) => {
    const item = event.target.closest("a.card")?.parentElement;
    if (!item || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    settled();
    go({ id: item.dataset.id });
  });
  detail.wire({
    step: (by) => {
      const at = answer.hits.findIndex((hit) => hit.id === asked.id) + by;
      if (answer.hits[at]) go({ id: answer.hits[at].id }, "replace");
    },
    similar: () => go({ like: asked.id, q: "", picture: null, id: null }),
    closed,
  });
  grid.arrows(results);
  wireFilters();
  wireDocument();
}

function wireFilters() {
  const toggle = find("filters-toggle");
  toggle.hidden = !facts.fields.length;
  const rebuild = () => filters.build(find("filters"), facts.fields, asked.set, (set) => {
    go({ set });
    if (!Object.keys(set).length) rebuild();
  });
  toggle.addEventListener("click", () => {
    const open = find("filters").hidden;
    if (open) rebuild();
    find("filters").hidden = !open;
    toggle.ariaExpanded = String(open);
  });
  window.addEventListener("popstate", () => {
    typing = false;
    route();
    if (!find("filters").hidden) rebuild();
  });
}

function wireDocument() {
  document.addEventListener("keydown", (event) => {
    const writing = event.target.matches("input:not([type=checkbox], [type=radio], [type=range]), textarea");
    if (event.key === "/" && !writing && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      query.select();
      query.focus();
    }
    if (event.key === "ArrowDown" && event.target === query) {
      event.preventDefault();
      results.querySelector("a")?.focus();
    }
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    take(file);
  });
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      find("drop").hidden = kind === "drop" || (kind === "dragleave" && !event.relatedTarget);
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
}

function welcome() {
  find("collection").textContent = noun(facts.entries);
  find("empty-title").textContent = facts.entries ? `Search ${noun(facts.entries)}` : "Nothing is in this index yet";
  find("empty-text").textContent = !facts.entries ? "Add pictures with avse index, then reload."
    : texts() ? "Drop, paste or choose a picture to find the sentences for it."
    : "Say in a sentence what is to be seen, drop or paste a picture, or do both.";
  const examples = facts.entries ? facts.examples : [];
  find("examples").replaceChildren(...examples.map((example) => {
    const button = make("button", { type: "button" }, example);
    button.addEventListener("click", () => go({ q: example, id: null }));
    return make("li", {}, button);
  }));
}

function theme() {
  const button = find("theme");
  const all = ["system", "light", "dark"];
  const apply = (name) => {
    document.documentElement.dataset.theme = name;
    button.ariaLabel = button.title = `Colours: ${name === "system" ? "as the system" : name}`;
  };
  const store = (act) => {
    try {
      return act(window.localStorage);
    } catch {
      return null; // the browser keeps nothing for this page
    }
  };
  apply(all.find((name) => name === store((kept) => kept.getItem("theme"))) ?? "system");
  button.addEventListener("click", () => {
    const next = all[(all.indexOf(document.documentElement.dataset.theme) + 1) % all.length];
    store((kept) => kept.setItem("theme", next));
    apply(next);
  });
}

async function start() {
  const done = waiting(false);
  try {
    facts = await api.info();
  } catch (error) {
    return trouble(error, facts, start);
  } finally {
    done();
  }
  calm();
  welcome();
  wire();
  route();
}

theme();
start();
