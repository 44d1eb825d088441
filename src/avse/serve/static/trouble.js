// What is said when the server refuses or is gone, and the waiting until it can be asked again.

import * as api from "./api.js";
import { find, make } from "./dom.js";

let waiting = 0; // timer of the next try
let attempt = 0;

const inWords = (seconds) => (seconds === 1 ? "in a second" : `in ${seconds} seconds`);
const megabytes = (bytes) => `${Math.max(Math.floor(bytes / 2 ** 20), 1)} MiB`;

function say(text, kind, ...more) {
  const banner = find("banner");
  banner.className = `banner ${kind}`;
  if (banner.hidden || banner.firstChild?.textContent !== text) banner.replaceChildren(make("span", {}, text), ...more);
  banner.hidden = false;
}

/** All is well again. */
export function calm() {
  clearTimeout(waiting);
  attempt = 0;
  find("banner").hidden = true;
}

/** Say what is wrong; try again by itself where waiting helps, after the token where one is wanted. */
export function trouble(error, facts, again = () => {}) {
  clearTimeout(waiting);
  const { kind, status, message, seconds } = error;
  if (kind === "gone") return lost(message, again);
  if (kind === "token") return token(again);
  if (kind === "wait") return countDown(seconds, again);
  const limits = facts?.limits ?? {};
  const most = limits.upload_bytes ? `: at most ${megabytes(limits.upload_bytes)}` : "";
  if (status === 413) return say(`The picture is too large${most}. A smaller copy does as well.`, "wrong", dismiss());
  if (status === 415) return say("This is no picture that can be read here. JPEG and PNG are.", "wrong", dismiss());
  if (kind) return say(message, "wrong", kind === "broken" ? button("Try again", again) : dismiss());
  console.error(error);
  say("Something in this page went wrong; its console says what.", "wrong", button("Try again", again));
}

function button(name, act) {
  const made = make("button", { type: "button" }, name);
  made.addEventListener("click", () => {
    calm();
    act();
  });
  return made;
}

const dismiss = () => button("Close", () => find("query").focus());

function lost(message, again) {
  say(`${message} What is here stays; trying again …`, "gone");
  const next = async () => {
    try {
      if ((await api.health())?.status === "ok") return again();
    } catch (error) {
      if (error.kind !== "gone") return again();
    }
    attempt += 1;
    waiting = setTimeout(next, Math.min(500 * 2 ** attempt, 8000));
  };
  waiting = setTimeout(next, 500);
}

function countDown(seconds, again) {
  const ticking = make("small", { "aria-hidden": "true" }); // or each second would be read out
  say("The server has too many questions at once.", "wait", ticking);
  const tick = (left) => {
    if (left <= 0) return again();
    find("banner").lastChild.textContent = ` Trying again ${inWords(left)} …`;
    waiting = setTimeout(tick, 1000, left - 1);
  };
  tick(seconds);
}

function token(again) {
  const dialog = find("token");
  find("token-form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await api.session(find("token-input").value);
    } catch (error) {
      find("token-wrong").textContent = error.kind === "token" ? "This is not the token." : error.message;
      find("token-input").select();
      return;
    }
    find("token-wrong").textContent = find("token-input").value = "";
    dialog.onclose = null;
    dialog.close();
    calm();
    again();
  };
  const later = () => button("Give it", () => token(again));
  dialog.onclose = () => say("Without the token the server does not answer.", "wrong", later());
  if (!dialog.open) dialog.showModal();
}
