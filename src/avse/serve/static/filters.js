// Filters made from the fields that the server tells of, and the `where` expression that they mean.

import { make, wordy } from "./dom.js";

const OPEN = 8; // choices shown before the rest is folded away
const quote = (text) => `"${text.replace(/[\\"]/g, "\\$&")}"`;
const literal = (text) => (/^(true|false|-?\d+(\.\d+)?)$/.test(text) ? text : quote(text)); // bare: 2019 and "2019"
const FEW = 2; // entries that a value has on average, below which it is as good as a name
/** Whether a bound of a range can be asked for; a day after a date must be a date, too. */
const sound = (kind, text) => (kind === "date"
  ? /^(?!0000)\d{4}-\d\d-\d\d$/.test(text) && Date.parse(text) < Date.parse("9999-12-31")
  : Boolean(text) && Number.isFinite(Number(text)));
const nextDay = (day) => new Date(Date.parse(day) + 86_400_000).toISOString().slice(0, 10);

/** What is set: {field: {least, most}} or {field: {any: [values as text]}}; read from and written into an address. */
export function read(params, fields) {
  const set = {};
  for (const { name, kind } of fields) {
    const key = `f.${name}`;
    if (kind === "text") {
      if (params.has(key)) set[name] = { any: params.getAll(key) };
    } else if (params.has(key)) {
      const [least = "", most = ""] = params.get(key).split("..").map((text) => (sound(kind, text) ? text : ""));
      if (least || most) set[name] = { least, most };
    }
  }
  return set;
}

export function write(params, set) {
  for (const [name, { any, least = "", most = "" }] of Object.entries(set)) {
    if (any) for (const value of any) params.append(`f.${name}`, value);
    else if (least || most) params.set(`f.${name}`, `${least}..${most}`);
  }
}

/** The expression in the language of avse's `where`; "" where nothing is set. */
export function where(set, fields) {
  const parts = [];
  for (const { name, kind } of fields) {
    const chosen = set[name];
    if (!chosen) continue;
    const field = quote(name);
    if (kind === "text") {
      if (chosen.any.length) parts.push(`${field} in (${chosen.any.map(literal).join(", ")})`);
      continue;
    }
    const { least, most } = chosen;
    if (least) parts.push(`${field} >= ${kind === "date" ? least : Number(least)}`);
    if (most) parts.push(kind === "date" ? `${field} < ${nextDay(most)}` : `${field} <= ${Number(most)}`);
  }
  return parts.join(" and ");
}

/** Fill `panel` with controls; `changed(set)` is called with what is set after each change. */
export function build(panel, fields, set, changed) {
  const differs = ({ values, min, max }) => values?.length > 1 || min !== max;
  const sayable = ({ name }) => !/["\\]/.test(name); // `where` takes no quotes in a field's name
  const usable = fields.filter((field) => differs(field) && sayable(field) && (set[field.name] || shared(field)));
  const groups = usable.map((field) => (field.kind === "text" ? choices(field, set) : range(field, set)));
  const clear = make("button", { type: "button", class: "quiet clear" }, "Clear the filters");
  clear.addEventListener("click", () => changed({}));
  panel.replaceChildren(...groups, clear);
  panel.onchange = () => {
    const now = {};
    for (const { name, kind } of usable) {
      const inputs = [...panel.querySelectorAll("input")].filter((input) => input.dataset.field === name);
      if (kind === "text") {
        const any = inputs.filter((input) => input.checked).map((input) => input.value);
        if (any.length) now[name] = { any };
      } else {
        const wrong = inputs.find((input) => input.value && !sound(kind, input.value));
        for (const input of inputs) input.setCustomValidity(input === wrong ? "A year from 1 to 9999 is wanted." : "");
        if (wrong) return wrong.reportValidity();
        if (inputs.some((input) => input.value)) now[name] = { least: inputs[0].value, most: inputs[1].value };
      }
    }
    changed(now);
  };
}

/** Whether the values of a text are shared by several entries each, as a folder's name is and a title is not. */
function shared({ kind, values, count }) {
  const told = kind === "text" ? values.reduce((sum, value) => sum + value.count, 0) : 0;
  return kind !== "text" || (told >= FEW * values.length && told >= count / 10);
}

function choices({ name, values }, set) {
  const chosen = new Set(set[name]?.any);
  const item = ({ value, count }) => {
    const box = make("input", { type: "checkbox", value });
    box.dataset.field = name;
    box.checked = chosen.has(value);
    const said = make("span", {}, value === "" ? "(none)" : wordy(value));
    return make("label", { class: "choice" }, box, said, make("small", {}, count.toLocaleString()));
  };
  const [first, rest] = [values.slice(0, OPEN), values.slice(OPEN)];
  const group = make("fieldset", {}, make("legend", {}, wordy(name)), ...first.map(item));
  if (rest.length) {
    const more = make("details", {}, make("summary", {}, `${rest.length} more`), ...rest.map(item));
    more.open = rest.some(({ value }) => chosen.has(value));
    group.append(more);
  }
  return group;
}

function range({ name, kind, min, max }, set) {
  const ends = ["least", "most"].map((end, at) => {
    const bound = [min, max][at];
    const input = make("input", {
      type: kind === "date" ? "date" : "number", "aria-label": `${wordy(name)}, at ${end}`,
      ...(kind === "date" ? { min: min?.slice(0, 10), max: max?.slice(0, 10) } : { step: "any", placeholder: bound }),
    });
    input.dataset.field = name;
    input.value = set[name]?.[end] ?? "";
    return input;
  });
  const between = make("span", {}, "to");
  return make("fieldset", { class: "range" }, make("legend", {}, wordy(name)), ends[0], between, ends[1]);
}
