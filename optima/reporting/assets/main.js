// Sections, keys, theme, and the state of a run that is going on.

const SECTIONS = ["overview", "conversations", "trees", "setup"];
const opened = new Set();

async function showSection() {
  const name = location.hash.slice(1).split(/[/?]/)[0];
  const current = SECTIONS.includes(name) && document.getElementById(name) ? name : "overview";
  for (const section of SECTIONS) {
    const part = document.getElementById(section);
    if (part) part.hidden = section !== current;
    const link = document.querySelector(`nav a[href="#${section}"]`);
    if (link) link.toggleAttribute("aria-current", section === current);
  }
  document.body.dataset.section = current;
  if (opened.has(current)) return;
  opened.add(current);
  if (current === "conversations") {
    await ready;
    openConversations();
  }
  if (current === "trees") openTrees();
}

const KEYS = {
  "/": () => { location.hash = "#conversations"; showSection().then(() => document.getElementById("f-q").focus()); },
  "?": () => document.getElementById("help").showModal(),
  j: () => moveTo(view.at + 1),
  k: () => moveTo(view.at - 1),
  s: () => setMode(view.mode === "side" ? "one" : "side"),
  "[": () => stepInProblem(-1),
  "]": () => stepInProblem(1),
  Escape: () => closeReader(),
};

function stepInProblem(by) {
  if (view.row === undefined) return;
  const rows = rowsOfProblem(view.row);
  const target = rows[rows.indexOf(view.row) + by];
  if (target !== undefined) showRow(target);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (isTyping && event.key !== "Escape") return;
  if (isTyping) event.target.blur();
  const isBrowsing = document.body.dataset.section === "conversations";
  if (!(event.key in KEYS) || (!isBrowsing && !"/?".includes(event.key))) return;
  event.preventDefault();
  KEYS[event.key]();
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  try {
    if (name) localStorage.setItem("optima-theme", name);
    else document.documentElement.dataset.theme = localStorage.getItem("optima-theme") ?? "";
  } catch { /* a page from disk may have no storage */ }
}

function toggleTheme() {
  const chosen = document.documentElement.dataset.theme;
  const isDark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(isDark ? "light" : "dark");
}

// A live page asks how far the run is; new figures and conversations come with a reload.
async function followRun() {
  const strip = document.getElementById("live");
  let wait = 2000;
  for (;;) {
    try {
      const answer = await fetch("status");
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const state = await answer.json();
      document.getElementById("live-text").textContent = state.text;
      const bar = document.getElementById("live-bar");
      bar.hidden = state.share === null;
      if (state.share !== null) bar.value = state.share;
      document.getElementById("live-reload").hidden = state.version === given.version;
      strip.classList.remove("lost");
      wait = 2000;
    } catch {
      document.getElementById("live-text").textContent = "the server of this page has ended; what is shown stays";
      strip.classList.add("lost");
      wait = Math.min(60000, 2 * wait);
    }
    await new Promise((done) => setTimeout(done, wait));
  }
}

setTheme(null);
const ready = openData();
document.addEventListener("keydown", onKey);
window.addEventListener("hashchange", showSection);
document.getElementById("theme").addEventListener("click", toggleTheme);
document.getElementById("keys").addEventListener("click", KEYS["?"]);
showSection();
if (given.live) {
  document.getElementById("live-reload").addEventListener("click", () => location.reload());
  followRun();
}
