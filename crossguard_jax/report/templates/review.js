"use strict";
// Decisions on the rows of one page, kept by the browser until they are saved.
const PER_PAGE = 20;
const STEPS = { n: 1, ArrowDown: 1, p: -1, ArrowUp: -1 };

// What `crossguard review --decisions` takes in. A row with a note alone is skipped.
function payload(entries, who) {
  const decisions = [];
  for (const [key, { decision, note, when }] of entries) {
    if (decision || note) decisions.push({ key, decision: decision || "skip", note, who, when });
  }
  return { decisions };
}

// Goes with the page: `kept` is like localStorage, `download(name, text)` hands over a file.
function start(page, kept, download) {
  const rows = [...page.querySelectorAll("form.row")];
  const bar = page.querySelector("#bar").elements;
  const choices = JSON.parse(page.body.dataset.choices); // by the key that says so
  const name = `crossguard review ${page.body.dataset.page}`;
  let entries = new Map();
  let at = 0;
  let unsaved = false;

  function show(index, focus) {
    rows[at]?.classList.remove("current");
    at = Math.max(0, Math.min(rows.length - 1, index));
    const first = at - (at % PER_PAGE);
    rows.forEach((row, i) => { row.hidden = i < first || i >= first + PER_PAGE; });
    rows[at]?.classList.add("current");
    if (focus && rows[at]) {
      rows[at].focus({ preventScroll: true });
      rows[at].scrollIntoView({ block: "nearest" });
    }
    const last = Math.min(first + PER_PAGE, rows.length);
    bar.where.value = rows.length ? `${first + 1} to ${last} of ${rows.length}` : "no rows";
    const done = [...entries.values()].filter((entry) => entry.decision).length;
    bar.progress.value = `${done} decided${unsaved ? ", not saved" : ""}`;
  }

  function changed(row) {
    const { decision, note } = row.elements;
    const when = new Date().toISOString();
    entries.set(row.dataset.key, { decision: decision.value, note: note.value, when });
    row.dataset.decision = decision.value;
    keep(true);
  }

  function keep(isUnsaved) {
    unsaved = isUnsaved;
    try {
      kept.setItem(name, JSON.stringify({ unsaved, entries: [...entries] }));
    } catch { /* a browser that keeps nothing still saves */ }
  }

  function keyed(event) {
    const typing = event.target.name === "note" || event.target.name === "who";
    if (typing && ["Escape", "Enter"].includes(event.key)) return event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !rows.length) return;
    const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (pressed in choices) {
      if (event.repeat) return; // a key held down decides one row
      rows[at].elements.decision.value = choices[pressed];
      changed(rows[at]);
      show(at + 1, true);
    } else if (pressed in STEPS) show(at + STEPS[pressed], true);
    else if (pressed === "e") rows[at].elements.note.focus();
    else return;
    event.preventDefault();
  }

  try {
    const before = JSON.parse(kept.getItem(name));
    if (before) [entries, unsaved] = [new Map(before.entries), before.unsaved];
  } catch { /* nothing is kept, or nothing of ours */ }
  for (const [i, row] of rows.entries()) {
    const entry = entries.get(row.dataset.key);
    if (entry) {
      row.elements.decision.value = row.dataset.decision = entry.decision;
      row.elements.note.value = entry.note;
    }
    row.addEventListener("focusin", () => { if (i !== at) show(i, false); });
    row.addEventListener("change", () => { changed(row); show(i, false); });
  }
  page.addEventListener("submit", (event) => event.preventDefault());
  page.addEventListener("keydown", keyed);
  bar.previous.addEventListener("click", () => show(at - (at % PER_PAGE) - PER_PAGE, true));
  bar.next.addEventListener("click", () => show(at - (at % PER_PAGE) + PER_PAGE, true));
  bar.save.addEventListener("click", () => {
    download("decisions.json", JSON.stringify(payload(entries, bar.who.value), null, 1));
    keep(false);
    show(at, false);
  });
  show(0, false);
  return { leaving: (event) => { if (unsaved) event.preventDefault(); } };
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
}

if (typeof document !== "undefined") {
  let kept = { getItem: () => null, setItem: () => {} };
  try { kept = window.localStorage; } catch { /* forbidden to files by some browsers */ }
  window.addEventListener("beforeunload", start(document, kept, download).leaving);
}
