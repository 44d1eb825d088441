// Small help with elements and words. Text goes in as text, never as markup.

export const find = (id) => document.getElementById(id);

/** Make an element; attributes that are null are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A name in a file or a payload as words: "signs_and-marks/red" -> "signs and marks / red". */
export const wordy = (name) =>
  String(name).replace(/_+|(?<=\p{L})-(?=\p{L})/gu, " ").replaceAll("/", " / ").trim() || String(name);

export const percent = (share) => `${Math.round(share * 100)} %`;

export const title = ({ id, payload = {} }) =>
  String(payload.title || payload.text || wordy(String(payload.name || id).replace(/\.\w{2,5}$/, "")));

/** How good a hit is, in words; `upper` is the highest score there can be. */
export function judged({ score, confidence, weak }, upper) {
  if (weak) return `weak match${confidence == null ? "" : `, ${percent(confidence)}`}`;
  if (confidence == null) return score == null ? "" : `${percent(Math.max(score / (upper || 1), 0))} of a full match`;
  return confidence >= 0.8 ? "very likely" : confidence >= 0.5 ? "likely" : "possible";
}
