// Nodes, and values as people read them. Text only ever becomes text nodes: names of videos come from anybody.

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// A text of somebody else's: it must not turn the direction of what stands beside it, nor its own so that it
// reads as another one.
export const foreign = (text, properties = {}) => el("bdi", { dir: "auto", ...properties }, plain(text));
export const plain = (text) => String(text).replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

// For those who cannot see that something changed.
export function announce(text) {
  document.getElementById("status").textContent = text;
}

// ------------------------------------------------------------ states of a page

export const loading = (text = "Loading …") => el("p", { class: "loading" }, text);

export function empty(title, ...more) {
  return el("div", { class: "empty" }, el("strong", {}, title), ...more);
}

export function failure(error, again = null) {
  const text = error instanceof Error ? error.message : String(error);
  const button = again && el("button", { type: "button", class: "small", onclick: again }, "Try again");
  return el("div", { class: "failure", role: "alert" }, el("div", {}, text), button && el("div", {}, button));
}

// What `load` gives in `place`; meanwhile that it loads, and what went wrong if it does.
export async function fill(place, load) {
  place.replaceChildren(loading());
  place.setAttribute("aria-busy", "true");
  try {
    place.replaceChildren(...[await load()].flat(Infinity));
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(failure(error, () => fill(place, load)));
  } finally {
    place.removeAttribute("aria-busy");
  }
}

// ------------------------------------------------------------ values

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let value = count;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000) return unit === "B" ? `${value} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} TB`;
}

export function seconds(count) {
  if (count === null || count === undefined) return "–";
  const whole = Math.max(0, Math.round(count));
  if (whole < 60) return `${count < 10 ? Math.max(0, count).toFixed(1) : whole} s`;
  const pad = (value) => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} min`;
}

export function clock(count) {
  if (count === null || count === undefined) return "";
  const whole = Math.max(0, Math.round(count));
  const parts = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, place) => (place ? String(part).padStart(2, "0") : String(part))).join(":");
}

export const decibels = (value) => (value === null || value === undefined ? null : `${value.toFixed(2)} dB`);

export function when(value) {
  if (value === null || value === undefined) return "–";
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  return Number.isNaN(date.getTime()) ? String(value) : date.toLocaleString();
}

export const STATES = { added: "added", ready: "ready", below_target: "below target", fitting: "fitting" };

export const badge = (state) => el("span", { class: `badge ${/^[a-z_]+$/.test(state) ? state : ""}` }, STATES[state] ?? state);
