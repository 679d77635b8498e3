// What the server works on: how far it is, and how to stop it.

import { ask, get, query } from "./api.js";
import { announce, badge, bytes, decibels, el, empty, failure, foreign, loading, seconds, when } from "./dom.js";

const PAGE = 50;
const PAUSE = 2000; // milliseconds between looks

export const FINAL = ["done", "failed", "cancelled"];
const KINDS = { ingest: "fit an upload", add: "add an upload", fit: "fit a video", train: "train a task", stabilize: "stabilize a task", query: "query" };
const BYTES = ["upload", "read", "copy"]; // phases whose steps are bytes

export function jobsPage(signal) {
  const place = el("div", {}, loading());
  const trouble = el("div", {});
  const shown = new Map(); // rows by job, so that focus stays where it is
  const body = el("tbody", {});
  const heads = ["Job", "What", "State", "Progress", "Since", ""];
  const board = el("div", { class: "scroll" },
    el("table", { class: "stacked" },
      el("thead", {}, el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name || el("span", { class: "unseen" }, "Actions"))))),
      body));

  async function look() {
    try {
      const found = await get(`jobs${query({ limit: PAGE })}`, { signal });
      draw(found.jobs);
      trouble.replaceChildren();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (place.firstChild !== board) place.replaceChildren();
      trouble.replaceChildren(failure(error, error.status === 401 ? look : null));
      if (error.status === 401) return; // asking for a key again and again would be a nuisance
    }
    timer = setTimeout(() => (document.hidden ? wait() : look()), PAUSE);
  }

  function draw(jobs) {
    if (!jobs.length) {
      place.replaceChildren(empty("No jobs.", el("p", {}, "Uploads, fits and trainings show up here.")));
      return;
    }
    const rows = jobs.map((job) => {
      const said = JSON.stringify(job);
      const known = shown.get(job.id);
      if (known?.said === said) return known.row;
      const row = line(job, look);
      // Whoever stands on a job's button stays there.
      const held = known?.row.contains(document.activeElement);
      shown.set(job.id, { said, row });
      if (held) queueMicrotask(() => row.querySelector("button, a")?.focus());
      return row;
    });
    body.replaceChildren(...rows);
    if (place.firstChild !== board) place.replaceChildren(board);
  }

  let timer = 0;
  const wait = () => document.addEventListener("visibilitychange", look, { once: true, signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  look();
  return [el("div", { class: "head" }, el("h1", {}, "Jobs"), el("p", { class: "hint" }, "The newest first, as they are now.")), trouble, place];
}

function line(job, look) {
  const cells = [
    ["Job", el("code", {}, job.id)],
    ["What", [KINDS[job.kind] ?? job.kind, subject(job)]],
    ["State", badge(job.cancelling && !FINAL.includes(job.state) ? "stopping" : job.state)],
    ["Progress", outcome(job)],
    ["Since", when(job.created_at)],
    ["", stopButton(job, look)],
  ];
  return el("tr", {}, cells.map(([label, value]) => el("td", { "data-label": label || null }, value)));
}

function subject(job) {
  const asked = job.request ?? {};
  const name = job.name ?? asked.name ?? asked.original_name ?? asked.uri ?? asked.video ?? asked.task ?? asked.sql;
  return name ? [": ", foreign(String(name).slice(0, 120))] : [];
}

function outcome(job) {
  if (job.state === "failed") return el("span", { class: "bad" }, foreign(job.error?.detail ?? "failed"));
  const video = job.result?.video_id;
  if (job.state === "done" && video) {
    return el("a", { href: `#/videos/${encodeURIComponent(video)}` }, "show the video");
  }
  if (job.state !== "running" || !job.progress) return "–";
  return progress(job.progress);
}

// A bar and a line: phase, share, PSNR, time left.
export function progress({ phase, done, total, psnr, eta_seconds: eta }) {
  const known = total > 0;
  const share = known ? Math.min(1, done / total) : null;
  const counted = BYTES.includes(phase) ? `${bytes(done)} of ${bytes(total)}` : `${done} of ${total}`;
  const parts = [phase];
  if (known) parts.push(`${Math.floor(100 * share)} % (${counted})`);
  if (psnr !== null && psnr !== undefined) parts.push(decibels(psnr));
  if (eta !== null && eta !== undefined) parts.push(`${seconds(eta)} left`);
  const bar = el("progress", { max: 1, value: share, "aria-label": `Progress: ${phase}` });
  if (share === null) bar.removeAttribute("value");
  return el("div", {}, bar, el("div", { class: "hint" }, parts.join(" · ")));
}

export function stopButton(job, after) {
  if (FINAL.includes(job.state)) return el("span", {});
  const button = el("button", {
    type: "button", class: "small", disabled: job.cancelling,
    onclick: async () => {
      button.disabled = true;
      try {
        await ask(`jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" });
        announce("The job was asked to stop");
        after();
      } catch (error) {
        button.replaceWith(failure(error));
      }
    },
  }, "Cancel");
  return button;
}
