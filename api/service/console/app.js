// Which page is shown: the part of the address after #.

import { failure } from "./dom.js";
import { askForKey, key, showState } from "./keys.js";
import { jobsPage } from "./jobs.js";
import { queryPage } from "./query.js";
import { uploadPage } from "./upload.js";
import { videoPage } from "./video.js";
import { videosPage } from "./videos.js";

const PAGES = [
  { at: /^\/?$/, name: "videos", title: "Videos", page: videosPage },
  { at: /^\/videos\/([^/]+)$/, name: "videos", title: "Video", page: videoPage },
  { at: /^\/query(?:\?.*)?$/, name: "query", title: "Query", page: queryPage },
  { at: /^\/upload$/, name: "upload", title: "Upload", page: uploadPage },
  { at: /^\/jobs$/, name: "jobs", title: "Jobs", page: jobsPage },
];

const main = document.getElementById("page");
let leave = null; // ends what the page before had going

function show({ focus }) {
  leave?.abort();
  leave = new AbortController();
  const path = location.hash.replace(/^#/, "");
  const found = PAGES.find(({ at }) => at.test(path));
  for (const link of document.querySelectorAll("nav a")) {
    if (found && link.dataset.page === found.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${found ? found.title : "Not found"} – nvpstore`;
  const parts = found ? path.match(found.at).slice(1).map(decodeURIComponent) : [];
  main.replaceChildren(...[found ? found.page(leave.signal, ...parts) : failure("There is no such page.")].flat());
  if (focus) main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

document.getElementById("key-button").addEventListener("click", async () => {
  const why = key() ? "A key is set. Another one takes its place." : "None is set.";
  const before = key();
  await askForKey(why);
  if (key() !== before) show({ focus: false });
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // its # is no page's
  main.focus();
});
window.addEventListener("hashchange", () => show({ focus: true }));
showState();
show({ focus: false });
