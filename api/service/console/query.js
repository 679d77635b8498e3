// Questions in SQL: rows as they come, the plan, and answers as files.

import { ask, get, lines, save } from "./api.js";
import { announce, el, empty, failure, foreign, loading, seconds } from "./dom.js";
import { cell, table } from "./tables.js";

const MOST_ROWS = 500; // shown; files have all
const FILES = { CSV: ["text/csv", "csv"], Parquet: ["application/vnd.apache.parquet", "parquet"] };
const FIRST = "SELECT video_id, name, state, duration, psnr, bpp, stored_bytes\nFROM videos ORDER BY name LIMIT 50";

export function queryPage(signal) {
  const sql = el("textarea", { id: "sql", class: "code", rows: 7, spellcheck: "false", autocapitalize: "off", "aria-describedby": "sql-hint" });
  sql.value = asked() ?? sessionStorage.getItem("nvp-sql") ?? FIRST;
  const run = el("button", { type: "submit", class: "main" }, "Run");
  const stop = el("button", { type: "button", disabled: true, onclick: () => current?.abort() }, "Stop");
  const downloads = Object.keys(FILES).map((kind) => el("button", { type: "button", onclick: () => download(kind) }, `Download ${kind}`));
  const rows = el("div", {}, empty("No question asked yet.", el("p", {}, "Ctrl+Enter runs it.")));
  const plan = el("div", {});
  const trouble = el("div", {});
  let current = null;
  signal.addEventListener("abort", () => current?.abort());

  async function during(work) {
    current?.abort();
    const own = new AbortController();
    current = own;
    sessionStorage.setItem("nvp-sql", sql.value);
    [run, ...downloads].forEach((button) => { button.disabled = true; });
    stop.disabled = false;
    trouble.replaceChildren();
    try {
      await work(own.signal);
    } finally {
      if (current === own) {
        [run, ...downloads].forEach((button) => { button.disabled = false; });
        stop.disabled = true;
      }
    }
  }

  const runRows = () => during(async (own) => {
    const began = performance.now();
    rows.replaceChildren(loading("Running …"));
    try {
      const answer = await read(sql.value, own);
      rows.replaceChildren(...show(answer, (performance.now() - began) / 1000));
      announce(`${answer.rows.length} rows`);
    } catch (error) {
      rows.replaceChildren(error.name === "AbortError" ? empty("Stopped.") : failure(error));
    }
  });

  const showPlan = () => during(async (own) => {
    plan.replaceChildren(loading("Planning …"));
    try {
      const response = await ask("query/explain", { json: { sql: sql.value }, accept: "text/plain", signal: own });
      plan.replaceChildren(el("pre", { class: "plan", tabindex: "0" }, await response.text()));
    } catch (error) {
      plan.replaceChildren(error.name === "AbortError" ? empty("Stopped.") : failure(error));
    }
  });

  const download = (kind) => during(async (own) => {
    const [accept, suffix] = FILES[kind];
    trouble.replaceChildren(loading(`Making ${kind} …`));
    try {
      const response = await ask("query", { json: { sql: sql.value }, accept, signal: own });
      save(await response.blob(), `answer.${suffix}`);
      trouble.replaceChildren();
      announce(`${kind} was downloaded`);
    } catch (error) {
      trouble.replaceChildren(error.name === "AbortError" ? "" : failure(error));
    }
  });

  const choose = tabs([["Rows", rows, null], ["Plan", plan, showPlan]]);
  const submit = (event) => { event.preventDefault(); choose.show("Rows"); runRows(); };
  sql.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  });
  return [
    el("div", { class: "head" }, el("h1", {}, "Query")),
    el("form", { class: "panel", onsubmit: submit },
      el("div", { class: "field" }, el("label", { for: "sql" }, "SQL: one SELECT"), sql, tables(signal)),
      el("div", { class: "actions" }, run, stop, downloads)),
    trouble, choose.node,
  ];
}

// A question that another page of ours asks.
function asked() {
  const id = new URLSearchParams(location.hash.split("?")[1] ?? "").get("video");
  return id === null ? null : `SELECT frame, ts, label, score\nFROM labels(every := 1.0)\nWHERE video_id = '${id.replaceAll("'", "''")}' AND rank = 1\nORDER BY frame`;
}

function tables(signal) {
  const hint = el("span", { class: "hint", id: "sql-hint" }, "Tables: videos, segments, tasks, routes, frames");
  get("tasks", { signal }).then((found) => {
    for (const task of found.tasks) hint.append(", ", foreign(task.name));
  }).catch(() => {}); // the query itself will say
  return hint;
}

// ------------------------------------------------------------ reading an answer

// JSON as this server writes it: a row a line. So no more is read than shown, and the query stops with us.
async function read(sql, signal) {
  const response = await ask("query", { json: { sql }, signal });
  const answer = { columns: [], rows: [], skipped: [], warnings: [], whole: false };
  let ending = "";
  for await (const line of lines(response)) {
    if (line.startsWith('{"columns": ')) answer.columns = JSON.parse(line.slice('{"columns": '.length, -1));
    else if (line === '"rows": [' || line === "" || line === "],") continue;
    else if (line.startsWith('"')) ending += line;
    else if (answer.rows.length === MOST_ROWS) return answer;
    else answer.rows.push(JSON.parse(line.endsWith(",") ? line.slice(0, -1) : line));
  }
  if (!ending) throw new Error("The answer broke off before its end.");
  const { error, skipped = [], warnings = [] } = JSON.parse(`{${ending}`);
  if (error) throw new Error(error.detail);
  return { ...answer, skipped, warnings, whole: true };
}

function show({ columns, rows, skipped, warnings, whole }, took) {
  const notes = warnings.map((text) => el("p", { class: "note" }, foreign(text)));
  if (skipped.length) {
    const reasons = [...new Set(skipped.map((skip) => skip.reason))].slice(0, 3).join("; ");
    notes.push(el("p", { class: "note" }, `${skipped.length} segments were left out: `, foreign(reasons)));
  }
  const count = whole ? `${rows.length} ${rows.length === 1 ? "row" : "rows"}` : `The first ${rows.length} rows; a download has all`;
  const said = el("p", { class: "hint" }, `${count}, ${seconds(took)}`);
  if (!rows.length) return [...notes, empty("No rows."), said];
  const shown = rows.map((row) => columns.map(({ name }) => cell(row[name], { image: name === "image", route: row.route })));
  const numbers = columns.map(({ type }) => /^u?int|^float|^double|^decimal|^half/.test(type));
  return [...notes, table(columns.map(({ name }) => name), shown, { numbers, caption: "Rows of the query", tall: true }), said];
}

// ------------------------------------------------------------ tabs

// Panels by name, one of which is shown; `enter` is called whenever people choose it.
function tabs(panels) {
  const list = el("div", { role: "tablist", "aria-label": "Answer" });
  const buttons = panels.map(([name, , enter], place) => el("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`,
    onclick: () => { show(name); enter?.(); },
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      const next = buttons[(place + step + buttons.length) % buttons.length];
      next.focus();
      next.click();
    },
  }, name));
  const bodies = panels.map(([name, body]) => el("div", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}` }, body));
  function show(chosen) {
    panels.forEach(([name], place) => {
      buttons[place].setAttribute("aria-selected", String(name === chosen));
      buttons[place].tabIndex = name === chosen ? 0 : -1;
      bodies[place].hidden = name !== chosen;
    });
  }
  list.append(...buttons);
  show(panels[0][0]);
  return { node: el("div", {}, list, bodies), show };
}
