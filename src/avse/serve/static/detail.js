// The dialog of one picture: the picture, why it was found, what is known of it, and the way to its neighbours.

import * as api from "./api.js";
import { find, judged, make, percent, title, wordy } from "./dom.js";
import { draw } from "./heat.js";

const dialog = find("detail");
const stage = find("detail-image");
const canvas = find("heat");
let reason = null; // what /api/explain answered for the picture that is shown
let part = -1; // whose heat is drawn: a text block, or all of them
let asking = null;

const shown = () => !canvas.hidden;

function paint() {
  canvas.hidden = !reason || !find("heat-on").checked;
  if (shown()) draw(canvas, reason, part < 0 ? reason.heat : reason.heats[part], find("heat-strength").value / 100);
}

/** How large the largest of some parts of the score is, up or down. */
const largest = (parts) => Math.max(...parts.map(({ score }) => Math.abs(score)), 1e-9);

/** Whether percent of the score say something: it is above 0, and no part is more than twice as large. */
const inShares = ({ score, matches, words }) => score > 0 && largest([...matches, ...words]) <= 2 * score;

const told = (part) => inShares(reason) ? percent(part / reason.score) : `${part < 0 ? "" : "+"}${part.toFixed(3)}`;

/** Shade by a part's size among its kind: warm what raised the score, cool what lowered it. */
function shade(element, score, top) {
  element.classList.toggle("lowers", score < 0);
  element.style.setProperty("--share", `${Math.round((100 * Math.abs(score)) / top)}%`);
}

/** The sentence, each word shaded by its part; spans count characters, not the UTF-16 units of strings here. */
function sentence({ text, words }) {
  const letters = Array.from(text);
  const pieces = [];
  let at = 0;
  for (const { start, end, score } of words) {
    const said = make("span", { class: "unseen" }, ` (${told(score)})`);
    const attributes = { class: "word", title: `${told(score)} of the score` };
    const word = make("span", attributes, letters.slice(start, end).join(""), said);
    shade(word, score, largest(words));
    pieces.push(letters.slice(at, start).join(""), word);
    at = end;
  }
  find("words").replaceChildren(...pieces, letters.slice(at).join(""));
}

function choose(chosen) {
  part = chosen;
  for (const row of find("matches").tBodies[0].rows) row.classList.toggle("chosen", Number(row.dataset.part) === part);
  paint();
}

function explainParts() {
  const option = (value, name) => {
    const radio = make("input", { type: "radio", name: "part", value });
    radio.checked = value === -1;
    radio.addEventListener("change", () => choose(value));
    return make("label", {}, radio, make("span", {}, name));
  };
  const count = reason.matches.length;
  find("parts-text").textContent = count < 2 ? "" :
    `The sentence is compared in ${count} parts; each is answered by the block of the picture that fits it best.`;
  find("parts").hidden = count < 2;
  find("parts").replaceChildren(make("legend", { class: "unseen" }, "Heat of"), option(-1, "All"),
    ...reason.matches.map((match) => option(match.text_block, `Part ${match.text_block + 1}`)));
  find("matches").tBodies[0].replaceChildren(...reason.matches.map((match) => {
    const bar = make("span", { class: "share" }, inShares(reason) ? told(match.score) : "\u00a0");
    shade(bar, match.score, largest(reason.matches));
    const cells = [`View ${match.view + 1}, block ${match.image_block + 1}`, match.score.toFixed(3), bar];
    return make("tr", { "data-part": match.text_block }, make("th", { scope: "row" }, match.text_block + 1),
      ...cells.map((cell) => make("td", {}, cell)));
  }));
  find("beyond").textContent = [
    count > 1 ? `The parts add up to ${reason.score.toFixed(3)} of at most ${reason.upper}.` : "",
    Math.abs(reason.beyond) < 0.01 * Math.abs(reason.score) ? "" :
      `${told(reason.beyond)} of the score belongs to no place; the map shows what spoke for the picture in the rest.`,
    reason.method === "gradient" ? "For this kind of model the heat is an estimate." : "",
  ].join(" ");
}

async function explain(hit, query, by) {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  reason = null;
  find("why").hidden = true;
  paint();
  const likeness = "Found by its likeness to a picture; reasons are given for sentences.";
  find("why-state").textContent = by === "picture" ? likeness : "";
  if (!query) return;
  const slow = setTimeout(() => (find("why-state").textContent = "Looking for the reason …"), 150);
  try {
    const answer = await api.explain(hit.id, query, signal);
    reason = answer;
    find("why-state").textContent = "";
    find("why").hidden = false;
    if (hit.score == null) judge(answer, answer.upper);
    sentence(answer);
    explainParts();
    choose(-1);
  } catch (error) {
    if (error.name !== "AbortError") find("why-state").textContent = `There is no explanation: ${error.message}`;
  } finally {
    clearTimeout(slow);
  }
}

function facts(payload) {
  const known = ["paths", "width", "height", "title"];
  const told = ([name, value]) => value !== "" && value != null && !known.includes(name);
  const rows = Object.entries(payload).filter(told);
  if (payload.width) rows.unshift(["size", `${payload.width} × ${payload.height}`]);
  find("facts").replaceChildren(...rows.flatMap(([name, value]) => {
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    return [make("dt", {}, wordy(name)), make("dd", {}, text)];
  }));
}

function judge(hit, upper) {
  const said = judged(hit, upper);
  const sure = hit.confidence == null || hit.weak ? "" : ` · ${percent(hit.confidence)} sure`;
  find("judged").textContent = hit.score == null ? ""
    : `${said[0].toUpperCase()}${said.slice(1)}${sure} · score ${hit.score.toFixed(3)} of ${upper}`;
  find("judged").classList.toggle("weak", Boolean(hit.weak));
}

/**
 * Show a hit.
 * @param {object} hit as the API gives it; without a score where it was only looked up
 * @param {object} how the sentence as `query`; found `by` a "sentence", a "picture" or "" (not at all); the highest
 *   score as `upper`; its place `at` of `count` results, count 0: it is none of them
 */
export function open(hit, { query, by, upper, at, count }) {
  find("detail-title").textContent = title(hit);
  judge(hit, upper);
  const { width = 4, height = 3 } = hit.payload;
  find("detail-missing").hidden = true;
  stage.hidden = false;
  Object.assign(stage, { width, height, src: api.thumbnail(hit.id, 1280), alt: title(hit) });
  stage.parentElement.style.setProperty("--ratio", width / height);
  find("place").textContent = count ? `${at + 1} of ${count}` : "";
  find("previous").disabled = !count || at === 0;
  find("next").disabled = !count || at === count - 1;
  if (document.activeElement?.disabled) find("close").focus();
  facts(hit.payload);
  if (!dialog.open) dialog.showModal();
  dialog.querySelector(".side").scrollTop = 0;
  explain(hit, query, by);
}

export const close = () => dialog.open && dialog.close();

/** Tell what the dialog's controls do: `step(-1 | 1)`, `similar()`, `closed()`. */
export function wire({ step, similar, closed }) {
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  find("close").addEventListener("click", close);
  find("similar").addEventListener("click", similar);
  dialog.addEventListener("close", () => {
    asking?.abort();
    closed();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft" && !find("previous").disabled) step(-1);
    if (event.key === "ArrowRight" && !find("next").disabled) step(1);
  });
  find("heat-on").addEventListener("change", paint);
  find("heat-strength").addEventListener("input", paint);
  stage.addEventListener("error", () => {
    stage.hidden = canvas.hidden = true;
    find("detail-missing").hidden = false;
  });
  stage.addEventListener("load", paint);
  new ResizeObserver(paint).observe(stage);
}
