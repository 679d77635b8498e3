// One video: a player that says whose pictures it shows, figures, segments and routes.

import { ask, blobUrl, get, picture, post, query, save } from "./api.js";
import { announce, badge, bytes, clock, decibels, el, failure, fill, foreign, loading, plain, seconds, when } from "./dom.js";
import { key } from "./keys.js";
import { table } from "./tables.js";
import { thumbnail } from "./videos.js";

const ORIGINALS = { copy: "copied into the archive", reference: "where it was read" };
const LONGEST = 60; // seconds that are decoded without being asked for

export function videoPage(signal, id) {
  const place = el("div", {});
  fill(place, async () => page(await get(`videos/${encodeURIComponent(id)}`, { signal }), signal));
  return place;
}

function page(video, signal) {
  document.title = `${plain(video.name)} – nvpstore`;
  return [
    el("div", { class: "head" }, el("h1", {}, foreign(video.name)), badge(video.state)),
    el("div", { class: "split" },
      el("div", {}, player(video, signal)),
      el("div", {},
        el("div", { class: "panel" }, el("h2", {}, "Figures"), facts(video)),
        el("div", { class: "panel" }, el("h2", {}, "Actions"), actions(video)))),
    segments(video),
    routes(video),
  ];
}

// ------------------------------------------------------------ the player

// Whoever sees the pictures must be able to tell what they are.
function mark(video) {
  return video.state === "added" ? "Original, encoded again" : `Reconstruction · ${decibels(video.psnr)}`;
}

function caption(video) {
  const source = el("code", {}, video.sha256);
  if (video.state === "added") {
    return ["The original's own pictures, encoded again for the browser: the video is not fitted yet. Source SHA-256 ", source];
  }
  return [
    `Reconstructed from a neural representation (preset ${video.preset}, ${decibels(video.psnr)} PSNR over all frames), `,
    "not the original pictures. Source SHA-256 ", source,
  ];
}

function player(video, signal) {
  const end = Math.min(video.duration ?? LONGEST, LONGEST);
  const from = el("input", { id: "from", type: "number", min: 0, step: "any", value: "0" });
  const to = el("input", { id: "to", type: "number", min: 0, step: "any", value: String(Math.ceil(end * 100) / 100) });
  const screen = el("div", { class: "screen" });
  const trouble = el("div", {});
  const clip = () => clipPath(video, Number(from.value), Number(to.value));

  function idle() {
    screen.replaceChildren(
      el("span", { class: "mark" }, mark(video)),
      picture(thumbnail(video, 960), `A frame of ${plain(video.name)}`),
      el("button", { type: "button", class: "play", "aria-label": "Play", onclick: play }, "▶"));
    trouble.replaceChildren();
  }

  async function play() {
    const wait = el("span", { class: "wait loading" }, "Decoding …");
    const film = el("video", { controls: true, playsinline: true, "aria-label": `${plain(video.name)}, ${mark(video)}` });
    trouble.replaceChildren();
    announce("Decoding the clip");
    screen.replaceChildren(el("span", { class: "mark" }, mark(video)), film, wait);
    film.addEventListener("loadeddata", () => { wait.remove(); announce("The clip plays"); });
    try {
      film.src = key() ? await blobUrl(clip(), { signal }) : `v1/${clip()}`;
      await new Promise((resolve, reject) => {
        film.addEventListener("loadeddata", resolve, { once: true });
        film.addEventListener("error", () => reject(film.error), { once: true });
      });
      await film.play().catch(() => {}); // some browsers want another click
    } catch (error) {
      if (error.name === "AbortError") return;
      idle();
      trouble.replaceChildren(failure(await reason(clip(), error), play));
    }
  }

  const again = el("form", { class: "filters range", onsubmit: (event) => { event.preventDefault(); play(); } },
    el("div", { class: "field" }, el("label", { for: "from" }, "From, s"), from),
    el("div", { class: "field" }, el("label", { for: "to" }, "To, s"), to),
    el("button", { type: "submit" }, "Show this part"));
  idle();
  return el("figure", { class: "player" }, screen, trouble,
    el("figcaption", {}, caption(video)), again);
}

function clipPath(video, start, end) {
  const whole = start <= 0 && video.duration !== null && end >= video.duration;
  return `videos/${encodeURIComponent(video.video_id)}/clip.mp4${whole ? "" : query({ start, end })}`;
}

// A <video> does not tell what the server said.
async function reason(path, error) {
  if (error?.status !== undefined) return error;
  try {
    const response = await ask(path, { accept: "*/*", more: { Range: "bytes=0-0" } });
    response.body?.cancel();
    return "The browser cannot play this clip.";
  } catch (said) {
    return said;
  }
}

// ------------------------------------------------------------ figures

function facts(video) {
  const rows = [
    ["Id", el("code", {}, video.video_id)],
    ["Size", `${video.width} × ${video.height}, ${video.frames} frames, ${round(video.fps)} fps, ${clock(video.duration)}`],
    ["PSNR", video.psnr === null ? "not fitted" : `${decibels(video.psnr)}, 5th percentile ${decibels(video.psnr_p5)}`],
    ["Stored", stored(video)],
    ["Original", `${bytes(video.source_bytes)}, ${ORIGINALS[video.original] ?? "not kept"}`],
    ["Preset", video.preset || "–"],
    ["Fitted in", seconds(video.fit_seconds)],
    ["Recorded", when(video.recorded_at)],
    ["Tags", tags(video.tags)],
  ];
  if (video.hold) rows.push(["Hold", "on: it cannot be erased"]);
  return el("dl", { class: "facts" }, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function stored(video) {
  const share = video.source_bytes ? `, ${(100 * video.stored_bytes / video.source_bytes).toFixed(0)} % of the original` : "";
  return video.bpp === null ? bytes(video.stored_bytes) : `${bytes(video.stored_bytes)} (${video.bpp.toFixed(3)} bpp${share})`;
}

function tags(given) {
  const pairs = Object.entries(given ?? {});
  if (!pairs.length) return "–";
  return el("div", { class: "tags" }, pairs.map(([name, value]) => el("span", { class: "badge" }, foreign(`${name}=${value}`))));
}

const round = (value) => (value === null || value === undefined ? "–" : String(Math.round(value * 100) / 100));

// ------------------------------------------------------------ actions

function actions(video) {
  const said = el("div", { "aria-live": "polite" });
  const id = encodeURIComponent(video.video_id);
  const button = (text, work) => el("button", { type: "button", onclick: (event) => busy(event.currentTarget, said, work) }, text);
  const download = (path, name) => async () => {
    said.replaceChildren(loading("Preparing …"));
    const response = await ask(path, { accept: "*/*" });
    save(await response.blob(), name);
  };
  const buttons = [button("Download as MP4", download(`videos/${id}/clip.mp4`, `${video.video_id}.mp4`))];
  if (video.original) buttons.push(button("Download the original", download(`videos/${id}/original`, video.name)));
  if (video.state === "added") {
    buttons.push(button("Fit it now", async () => {
      const job = await post(`videos/${id}/fit`, {});
      location.hash = "#/jobs";
      announce(`Job ${job.id} was queued`);
    }));
  }
  buttons.push(el("a", { class: "button", href: `#/query?video=${id}` }, "Query it"));
  return [el("div", { class: "actions" }, buttons), said];
}

async function busy(button, said, work) {
  button.disabled = true;
  try {
    await work();
    said.replaceChildren();
  } catch (error) {
    if (error.name !== "AbortError") said.replaceChildren(failure(error));
  } finally {
    button.disabled = false;
  }
}

// ------------------------------------------------------------ tables

function segments(video) {
  const columns = ["segment", "scene", "start_ts", "end_ts", "frames", "psnr", "stored_bytes"];
  const shown = (video.segments ?? []).map((row) => [
    row.segment, row.scene, round(row.start_ts), round(row.end_ts), row.frames, decibels(row.psnr) ?? "–", bytes(row.stored_bytes),
  ]);
  const names = ["segment", "scene", "from, s", "to, s", "frames", "PSNR", "stored"];
  return [el("h2", {}, "Segments"), table(names, shown, { numbers: columns.map(() => true), caption: "Segments of the video" })];
}

function routes(video) {
  if (!video.routes?.length) return [];
  const names = ["task", "segment", "route", "stages → cut", "fidelity", "GFLOPs a frame", "bytes"];
  const shown = video.routes.map((row) => [
    row.task, row.segment, row.route, [row.stages?.join(" + "), row.cut].filter(Boolean).join(" → ") || "–",
    row.fidelity === null ? "–" : row.fidelity.toFixed(3), row.gflops === null ? "–" : row.gflops.toPrecision(3), bytes(row.bytes),
  ]);
  const numbers = [false, true, false, false, true, true, true];
  return [el("h2", {}, "Routes"), table(names, shown, { numbers, caption: "How tasks are answered on each segment" })];
}
