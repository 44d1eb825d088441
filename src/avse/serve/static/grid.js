// The list of results: pictures on mats that keep their place while they load, or lines of text; arrows move in it.

import { thumbnail } from "./api.js";
import { judged, make, title } from "./dom.js";

const SKELETONS = 12;

/** An item; `address(hit)` is where its link leads, `upper` the highest score. */
function item(hit, { address, upper, texts }) {
  const said = judged(hit, upper);
  const words = [make("span", { class: "name" }, title(hit)), said ? make("span", { class: "fit" }, said) : null];
  if (texts) return make("li", { class: hit.weak ? "line weak" : "line", "data-id": hit.id }, ...words);
  const { width, height } = hit.payload ?? {};
  const image = make("img", {
    src: thumbnail(hit.id, 320), alt: "", loading: "lazy", decoding: "async", width: width || 4, height: height || 3,
  });
  image.style.setProperty("--ratio", width && height ? width / height : 4 / 3);
  const settle = (state) => () => image.classList.add(state);
  image.addEventListener("load", settle("there"));
  image.addEventListener("error", settle("gone"));
  const link = make("a", { class: "card", href: address(hit) }, make("span", { class: "mat" }, image), ...words);
  return make("li", { class: hit.weak ? "weak" : null, "data-id": hit.id }, link);
}

/** Show hits. Items that stay in front keep their elements, so that more of the same answer moves nothing. */
export function show(list, hits, options) {
  skeletons(list, 0);
  list.classList.toggle("lines", Boolean(options.texts));
  let kept = 0;
  const there = [...list.querySelectorAll("li[data-id]")];
  if (options.append) while (kept < there.length && there[kept].dataset.id === hits[kept]?.id) kept += 1;
  if (!kept) list.replaceChildren(...(options.lead ? [options.lead] : []));
  else for (const old of there.slice(kept)) old.remove();
  const strong = hits.findIndex((hit) => hit.weak);
  hits.forEach((hit, at) => {
    if (at < kept) return;
    if (at === strong && at > 0) list.append(make("li", { class: "divider" }, "From here on, weak matches"));
    list.append(item(hit, options));
  });
}

/** Put grey mats after what is there, or take them away (0). */
export function skeletons(list, count = SKELETONS) {
  for (const old of list.querySelectorAll(".skeleton")) old.remove();
  const parts = () => ["mat", "name"].map((part) => make("span", { class: part }));
  const mat = () => make("li", { class: "skeleton", "aria-hidden": "true" }, ...parts());
  list.append(...Array.from({ length: count }, mat));
}

/** Let arrows, Home and End move the focus between the links of a list. */
export function arrows(list) {
  list.addEventListener("keydown", (event) => {
    const links = [...list.querySelectorAll("a.card")];
    const at = links.indexOf(document.activeElement);
    if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const rows = Math.max(links.findIndex((link) => link.offsetTop !== links[0].offsetTop), 0) || links.length;
    const steps = {
      ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - rows, ArrowDown: at + rows, Home: 0, End: links.length - 1,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    links[steps[event.key]]?.focus();
  });
}
