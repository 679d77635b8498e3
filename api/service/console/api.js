// Requests to the server that this page came from, and what is drawn of its answers.

import { askForKey, headers, key } from "./keys.js";
import { el } from "./dom.js";

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.name = "Problem";
    this.status = status;
  }
}

// The answer, if it is a good one. Where a key is wanted, people are asked, and the request is made again.
export async function ask(path, options = {}) {
  for (;;) {
    const used = key();
    const response = await send(path, options);
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (problem.status !== 401) throw problem;
    // Another request may have got a key meanwhile.
    if (key() === used && !(await askForKey(used ? `The key was refused: ${problem.message}` : problem.message))) {
      throw new Problem(401, "This server wants a key.");
    }
  }
}

async function send(path, { json, method = json === undefined ? "GET" : "POST", accept = "application/json", more = {}, signal } = {}) {
  const sent = { Accept: accept, ...headers(), ...more };
  if (json !== undefined) sent["Content-Type"] = "application/json";
  try {
    return await fetch(`v1/${path}`, {
      method, headers: sent, signal, body: json === undefined ? undefined : JSON.stringify(json),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server cannot be reached.");
  }
}

export const get = async (path, options) => (await ask(path, options)).json();
export const post = async (path, json) => (await ask(path, { json })).json();

async function problemOf(response) {
  let detail = `${response.status} ${response.statusText}`.trim();
  try {
    detail = (await response.json()).detail || detail;
  } catch {
    // Not every proxy speaks problem documents.
  }
  return new Problem(response.status, detail);
}

export const query = (parameters) => {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
};

// Lines of a streamed text, as they arrive. Leaving the loop ends the request.
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) yield part.replace(/\r$/, "");
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// The events of a job until its last one; a connection that breaks is taken up where it broke.
// Not an EventSource: that can send no Authorization header.
export async function follow(job, onEvent, signal) {
  let last = null;
  for (let failures = 0; failures < 8; failures += 1) {
    try {
      const more = last === null ? {} : { "Last-Event-ID": last };
      const response = await ask(`jobs/${encodeURIComponent(job)}/events`, { accept: "text/event-stream", more, signal });
      if (response.status === 204) { // it is over, and nothing happened since
        onEvent("state", await get(`jobs/${encodeURIComponent(job)}`, { signal }));
        return;
      }
      for await (const event of events(response)) {
        if (event.id) last = event.id;
        failures = 0;
        onEvent(event.kind, event.data);
        if (event.kind === "state" && ["done", "failed", "cancelled"].includes(event.data.state)) return;
      }
    } catch (error) {
      if (error.name === "AbortError" || (error.status >= 400 && error.status < 500 && error.status !== 429)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, Math.min(10000, 300 * 2 ** failures)));
  }
  throw new Problem(0, "The job cannot be followed: the server does not answer. It goes on; look under Jobs.");
}

async function* events(response) {
  let event = { kind: "message", id: null, text: "" };
  for await (const line of lines(response)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (line === "") {
      if (event.text) yield { kind: event.kind, id: event.id, data: JSON.parse(event.text) };
      event = { kind: "message", id: null, text: "" };
    } else if (name === "event") event.kind = value;
    else if (name === "id") event.id = value;
    else if (name === "data") event.text += value;
  }
}

// ------------------------------------------------------------ pictures

let waiting = Promise.resolve();
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    // One after another: each is a decode on the server.
    waiting = waiting.then(() => target.isConnected && fetchInto(target)).catch(() => {});
  }
}, { rootMargin: "200px" });

// An image of the server's. With a key it is fetched, since an <img> sends no Authorization header.
export function picture(path, alt, properties = {}) {
  const image = el("img", { alt, class: "pending", loading: "lazy", decoding: "async", ...properties });
  image.addEventListener("load", () => {
    image.classList.remove("pending");
    if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  });
  image.addEventListener("error", () => {
    image.replaceWith(el("span", { class: "none" }, "no picture"));
  });
  if (key()) {
    image.dataset.path = path;
    near.observe(image);
  } else image.src = `v1/${path}`;
  return image;
}

async function fetchInto(image) {
  try {
    image.src = await blobUrl(image.dataset.path);
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}

export async function blobUrl(path, options = {}) {
  const response = await ask(path, { accept: "*/*", ...options });
  return URL.createObjectURL(await response.blob());
}

export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
