// Tables of values, and cells of query rows.

import { el, foreign } from "./dom.js";

const LONGEST = 300; // characters of one cell
const PICTURES = [
  ["iVBORw0KGgo", "image/png"],
  ["/9j/", "image/jpeg"],
  ["UklGR", "image/webp"],
];

// `rows` hold texts, numbers or nodes.
export function table(names, rows, { numbers = [], caption, tall = false } = {}) {
  const kind = (place) => (numbers[place] ? "number" : null);
  return el("div", { class: tall ? "scroll tall" : "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("thead", {}, el("tr", {}, names.map((name, place) => el("th", { scope: "col", class: kind(place) }, foreign(name))))),
      el("tbody", {}, rows.map((row) => el("tr", {},
        row.map((value, place) => el("td", { class: kind(place) }, value instanceof Node ? value : foreign(value))))))));
}

// A value of a query's row as JSON has it. Bytes are base64: those of a picture are shown as one.
export function cell(value, { image = false, route = null } = {}) {
  if (value === null || value === undefined) return el("span", { class: "null" }, "NULL");
  if (image && typeof value === "string") {
    const shown = pictureOf(value, route);
    if (shown) return shown;
  }
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return foreign(text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);
}

function pictureOf(encoded, route) {
  const type = PICTURES.find(([head]) => encoded.startsWith(head))?.[1];
  if (!type) return null;
  const content = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([content], { type }));
  const said = route === "source" ? "original" : "reconstruction";
  const image = el("img", { alt: said, title: said, src: url });
  image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
  return image;
}
