// The list of videos: pictures and figures, a page at a time.

import { get, picture, query } from "./api.js";
import { announce, badge, bytes, clock, decibels, el, empty, failure, foreign, loading, plain } from "./dom.js";

const PAGE = 24;

export function videosPage(signal) {
  const cards = el("ul", { class: "cards" });
  const below = el("div", {});
  const name = el("input", { id: "by-name", type: "search", placeholder: "any", autocomplete: "off" });
  const tag = el("input", { id: "by-tag", type: "search", placeholder: "camera:gate", autocomplete: "off" });
  const state = el("select", { id: "by-state" },
    el("option", { value: "" }, "any"),
    el("option", { value: "ready" }, "ready"),
    el("option", { value: "below_target" }, "below target"),
    el("option", { value: "added" }, "added"));
  let turn = 0; // answers to older filters are dropped

  async function more(cursor) {
    const mine = turn;
    below.replaceChildren(loading());
    try {
      const asked = { limit: PAGE, cursor, name: name.value.trim(), state: state.value, tag: tag.value.trim() };
      const found = await get(`videos${query(asked)}`, { signal });
      if (mine !== turn) return;
      cards.append(...found.videos.map(card));
      below.replaceChildren(...rest(found));
      announce(`${cards.childElementCount} videos are shown`);
    } catch (error) {
      if (mine === turn && error.name !== "AbortError") below.replaceChildren(failure(error, () => more(cursor)));
    }
  }

  function rest(found) {
    if (found.next) {
      return [el("button", { type: "button", onclick: () => more(found.next) }, "Show more")];
    }
    if (cards.childElementCount) return [];
    const filtered = name.value || state.value || tag.value;
    return [filtered
      ? empty("No video fits.", el("p", {}, "Try another name, state or tag."))
      : empty("No videos yet.", el("p", {}, "The archive is empty: ", el("a", { href: "#/upload" }, "upload a video"), "."))];
  }

  function begin() {
    turn += 1;
    cards.replaceChildren();
    more(null);
  }

  let pause = 0;
  const soon = () => { clearTimeout(pause); pause = setTimeout(begin, 250); };
  signal.addEventListener("abort", () => clearTimeout(pause));
  const filters = el("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); begin(); } },
    el("div", { class: "field" }, el("label", { for: "by-name" }, "Name"), name),
    el("div", { class: "field" }, el("label", { for: "by-tag" }, "Tag"), tag),
    el("div", { class: "field" }, el("label", { for: "by-state" }, "State"), state));
  name.addEventListener("input", soon);
  tag.addEventListener("input", soon);
  state.addEventListener("change", begin);
  begin();
  return [el("div", { class: "head" }, el("h1", {}, "Videos"), filters), cards, below];
}

function card(video) {
  const figures = [
    badge(video.state),
    video.psnr === null ? null : el("span", { title: "PSNR over all frames" }, decibels(video.psnr)),
    video.bpp === null ? null : el("span", { title: "stored bits a pixel" }, `${video.bpp.toFixed(3)} bpp`),
    el("span", { title: video.state === "added" ? "size of the original" : "stored bytes" }, bytes(sizeOf(video))),
  ];
  return el("li", {}, el("a", { class: "card", href: `#/videos/${encodeURIComponent(video.video_id)}` },
    el("span", { class: "thumb" },
      picture(thumbnail(video, 480), ""),
      el("span", { class: "length" }, clock(video.duration))),
    el("span", { class: "about" },
      foreign(video.name, { class: "name", title: plain(video.name) }),
      el("span", { class: "figures" }, figures))));
}

const sizeOf = (video) => (video.state === "added" ? video.source_bytes : video.stored_bytes);

// A frame from the middle: the first ones are often black.
export const thumbnail = (video, width) =>
  `videos/${encodeURIComponent(video.video_id)}/frames/${Math.floor((video.frames - 1) / 2)}.webp?width=${width}`;
