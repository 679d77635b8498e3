// Files in: bytes as they leave this machine, then what the server makes of them.

import { ask, follow, get } from "./api.js";
import { announce, badge, bytes, el, failure, foreign, plain } from "./dom.js";
import { FINAL, progress } from "./jobs.js";
import { askForKey, headers, key } from "./keys.js";

const PRESETS = ["demo", "micro"];

export function uploadPage(signal) {
  const list = el("ul", { class: "task-list", "aria-label": "Uploads" });
  const files = el("input", { id: "files", type: "file", multiple: true, required: true, accept: "video/*,.mkv,.ts,.y4m,.avi,.flv" });
  const name = el("input", { id: "name", type: "text", maxlength: 255, autocomplete: "off", placeholder: "the file's own" });
  const tags = el("input", { id: "tags", type: "text", autocomplete: "off", placeholder: "camera=gate, site=north", "aria-describedby": "tags-hint" });
  const preset = el("input", { id: "preset", type: "text", value: PRESETS[0], list: "presets", autocomplete: "off", "aria-describedby": "preset-hint" });
  const tasks = el("input", { id: "tasks", type: "text", value: "labels", list: "known-tasks", autocomplete: "off", "aria-describedby": "tasks-hint" });
  const known = el("datalist", { id: "known-tasks" });
  const trouble = el("div", {});
  const drop = dropPlace(files);
  let turn = Promise.resolve(); // one file after another: the line is shared anyway

  get("tasks", { signal }).then((found) => {
    known.append(...found.tasks.map((task) => el("option", { value: task.name })));
  }).catch(() => {}); // only suggestions

  function submit(event) {
    event.preventDefault();
    trouble.replaceChildren();
    let fields;
    try {
      fields = { ...form(event.currentTarget), tags: pairs(tags.value), name: name.value.trim(), preset: preset.value.trim(), tasks: words(tasks.value) };
      if (!files.files.length) throw new Error("Choose a file first.");
      if (fields.name && files.files.length > 1) throw new Error("One name for several files: upload them one at a time, or leave the name empty.");
    } catch (error) {
      trouble.replaceChildren(failure(error));
      return;
    }
    for (const file of files.files) {
      const item = entry(file);
      list.prepend(item.node);
      turn = turn.then(() => item.begin(fields, signal));
    }
    files.value = "";
  }

  return [
    el("div", { class: "head" }, el("h1", {}, "Upload")),
    el("form", { class: "panel", onsubmit: submit },
      drop,
      el("fieldset", { class: "field" }, el("legend", {}, "What becomes of it"),
        el("label", { class: "choice" }, el("input", { type: "radio", name: "mode", value: "ingest", checked: true }), "fit it now"),
        el("label", { class: "choice" }, el("input", { type: "radio", name: "mode", value: "add" }), "only add it: its original answers until it is fitted")),
      el("div", { class: "two" },
        field("name", "Name", name),
        field("tags", "Tags", tags, "key=value, separated by commas"),
        field("tasks", "Tasks", tasks, "names, separated by commas"),
        field("preset", "Preset", preset, "how it is fitted")),
      el("datalist", { id: "presets" }, PRESETS.map((value) => el("option", { value }))),
      known, trouble,
      el("button", { type: "submit", class: "main" }, "Upload")),
    list,
  ];
}

const field = (id, label, input, hint = null) =>
  el("div", { class: "field" }, el("label", { for: id }, label), input, hint && el("span", { class: "hint", id: `${id}-hint` }, hint));

const form = (node) => ({ mode: new FormData(node).get("mode") });
const words = (text) => text.split(",").map((word) => word.trim()).filter(Boolean);

function pairs(text) {
  return Object.fromEntries(words(text).map((word) => {
    const [name, ...value] = word.split("=");
    if (!name.trim() || !value.length) throw new Error(`Tag “${word}”: key=value is needed.`);
    return [name.trim(), value.join("=").trim()];
  }));
}

function dropPlace(files) {
  const place = el("div", { class: "drop" }, el("label", { for: "files" }, "Video files"), files, el("span", { class: "hint" }, "or drop them here"));
  place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("over"); });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    files.files = event.dataTransfer.files;
  });
  return place;
}

// ------------------------------------------------------------ one file

function entry(file) {
  const state = el("span", {}, badge("waiting"));
  const below = el("div", { class: "hint" }, bytes(file.size));
  const stop = el("button", { type: "button", class: "small" }, "Cancel");
  const node = el("li", { class: "panel" },
    el("div", { class: "head" }, foreign(file.name, { class: "name" }), el("span", { class: "actions" }, state, stop)), below);
  const own = new AbortController();
  let job = null;

  stop.addEventListener("click", async () => {
    stop.disabled = true;
    if (job === null) own.abort();
    else await ask(`jobs/${encodeURIComponent(job.id)}`, { method: "DELETE" }).catch((error) => below.replaceChildren(failure(error)));
  });

  function show(kind, data) {
    if (kind === "progress") below.replaceChildren(progress(data));
    if (kind === "log") announce(data.text);
    if (kind !== "state") return;
    state.replaceChildren(badge(data.state));
    if (data.state === "queued") below.replaceChildren("The server has it; it waits for a worker.");
    if (FINAL.includes(data.state)) stop.remove();
    if (data.state === "done") finished(below, data.result ?? {});
    if (data.state === "failed") below.replaceChildren(failure(data.error?.detail ?? "It failed."));
    if (data.state === "cancelled") below.replaceChildren("Cancelled.");
    announce(`${plain(file.name)}: ${data.state}`);
  }

  async function begin(fields, signal) {
    if (own.signal.aborted) return cancelled();
    state.replaceChildren(badge("uploading"));
    try {
      job = await send(file, fields, own.signal, (done, total) => below.replaceChildren(progress({ phase: "upload", done, total })));
    } catch (error) {
      if (error.name === "AbortError") return cancelled();
      stop.remove();
      state.replaceChildren(badge("failed"));
      below.replaceChildren(failure(error, () => node.remove()));
      below.querySelector("button").textContent = "Dismiss";
      return undefined;
    }
    // The next file need not wait for this one's fit.
    follow(job.id, show, signal).catch((error) => error.name !== "AbortError" && below.replaceChildren(failure(error)));
    return undefined;
  }

  function cancelled() {
    stop.remove();
    state.replaceChildren(badge("cancelled"));
    below.replaceChildren("Cancelled before it was sent.");
  }

  return { node, begin };
}

function finished(below, result) {
  const quality = result.psnr === null || result.psnr === undefined ? "added" : `${result.psnr.toFixed(2)} dB`;
  const known = result.already_stored ? ", was stored already" : "";
  below.replaceChildren(
    el("span", { class: "good" }, `Done: ${quality}, ${bytes(result.stored_bytes)}${known}. `),
    el("a", { href: `#/videos/${encodeURIComponent(result.video_id)}` }, "Show the video"));
}

// fetch() does not tell how much it has sent.
async function send(file, fields, signal, onProgress) {
  const once = crypto.getRandomValues(new Uint32Array(4)).join("-"); // randomUUID is only there on HTTPS
  for (;;) {
    const used = key();
    const answer = await sendOnce(file, fields, once, signal, onProgress);
    if (answer.status === 202) return answer.body;
    const detail = answer.body?.detail ?? `The server answered with ${answer.status}.`;
    if (answer.status !== 401 || !(key() !== used || await askForKey(detail))) throw new Error(detail);
  }
}

function sendOnce(file, fields, once, signal, onProgress) {
  const request = new XMLHttpRequest();
  request.open("POST", "v1/videos");
  request.responseType = "json";
  for (const [name, value] of Object.entries({ ...headers(), "Idempotency-Key": once, Accept: "application/json" })) {
    request.setRequestHeader(name, value);
  }
  const stop = () => request.abort();
  signal.addEventListener("abort", stop, { once: true });
  return new Promise((resolve, reject) => {
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded, event.total));
    request.addEventListener("load", () => resolve({ status: request.status, body: request.response }));
    request.addEventListener("error", () => reject(new Error("The connection broke off. The server may have refused the file, or be gone.")));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    request.send(multipart(file, fields));
  }).finally(() => signal.removeEventListener("abort", stop));
}

function multipart(file, { mode, name, tags, tasks, preset }) {
  const parts = new FormData();
  parts.append("mode", mode);
  if (name) parts.append("name", name);
  if (Object.keys(tags).length) parts.append("tags", JSON.stringify(tags));
  for (const task of tasks) parts.append("tasks", task);
  if (mode === "ingest" && preset) parts.append("preset", preset);
  parts.append("file", file, file.name); // last: what it is comes before its bytes
  return parts;
}
