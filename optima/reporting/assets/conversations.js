// The conversation browser: filters, a list of any length, and a reader.

const ROW_HEIGHT = 58;
const view = { rows: new Uint32Array(0), at: -1, matches: null, search: 0, mode: "one" };

function selectedFilters() {
  const form = document.getElementById("filters");
  return Object.fromEntries(new FormData(form).entries());
}

function sourceName(index) {
  const source = given.sources[index];
  return given.runs.length > 1 ? `${given.runs[source.run].name}: ${source.label}` : source.label;
}

function fillFilters() {
  const source = document.getElementById("f-source");
  given.sources.forEach((_, i) => source.append(el("option", { value: i }, sourceName(i))));
  const outcome = document.getElementById("f-outcome");
  for (const [key, text] of Object.entries(OUTCOMES)) outcome.append(el("option", { value: key }, text));
  const stop = document.getElementById("f-stop");
  given.stops.forEach((name, i) => stop.append(el("option", { value: i }, STOPS[name] ?? name)));
  for (const [name, value] of new URLSearchParams(location.hash.split("?")[1] ?? "")) {
    const field = document.getElementById(`f-${name}`);
    if (field && field.type === "checkbox") field.checked = true;
    else if (field) field.value = value;
  }
}

const ORDERS = {
  problem: null,
  shortest: (a, b) => data.columns.tokens[a] - data.columns.tokens[b],
  longest: (a, b) => data.columns.tokens[b] - data.columns.tokens[a],
  best: (a, b) => known(data.columns.reward[b]) - known(data.columns.reward[a]),
  worst: (a, b) => known(data.columns.reward[a], Infinity) - known(data.columns.reward[b], Infinity),
};
function known(value, otherwise = -Infinity) { return Number.isNaN(value) ? otherwise : value; }

function applyFilters() {
  const { source, outcome, stop, order, chosen, faulty } = selectedFilters();
  const { columns, n } = data;
  const found = [];
  for (let row = 0; row < n; row++) {
    if (view.matches && !view.matches[row]) continue;
    if (source !== "" && columns.source[row] !== +source) continue;
    if (stop !== "" && columns.stop[row] !== +stop) continue;
    if (chosen && !(columns.flags[row] & CHOSEN)) continue;
    if (faulty && !(columns.flags[row] & FAULTY)) continue;
    if (outcome !== "" && outcomeOf(row) !== outcome) continue;
    found.push(row);
  }
  if (ORDERS[order]) found.sort((a, b) => ORDERS[order](a, b) || a - b);
  const current = view.rows[view.at];
  view.rows = Uint32Array.from(found);
  view.at = view.rows.indexOf(current);
  const left = given.n_left_out ? ` (${given.n_left_out.toLocaleString()} more are not in this page)` : "";
  document.getElementById("count").textContent =
    `${found.length.toLocaleString()} of ${n.toLocaleString()} conversations${left}`;
  document.getElementById("rows").style.height = `${found.length * ROW_HEIGHT}px`;
  document.getElementById("list").scrollTop = 0;
  drawList();
  keepAddress();
}

// Text search reads every chunk once, a few milliseconds at a time, and shows what it has found.
async function searchText(text) {
  const ticket = ++view.search;
  const bar = document.getElementById("search-progress");
  const query = text.trim().toLowerCase();
  if (query === "") {
    view.matches = null;
    bar.hidden = true;
    applyFilters();
    return;
  }
  const matches = new Uint8Array(data.n);
  const escaped = JSON.stringify(query).slice(1, -1);
  bar.hidden = false;
  bar.max = given.chunks.length;
  let shown = 0;
  for (let number = 0; number < given.chunks.length; number++) {
    let text;
    try {
      text = await readBlob("chunk", number);
    } catch (error) {
      document.getElementById("count").textContent = error.message;
      bar.hidden = true;
      return;
    }
    if (ticket !== view.search) return;
    if (text.toLowerCase().includes(escaped)) markMatches(number, JSON.parse(text), query, matches);
    bar.value = number + 1;
    if (performance.now() - shown > 400) {
      shown = performance.now();
      view.matches = matches;
      applyFilters();
      await new Promise((done) => setTimeout(done));
    }
  }
  if (ticket !== view.search) return;
  view.matches = matches;
  bar.hidden = true;
  applyFilters();
}

function markMatches(number, chunk, query, matches) {
  chunk.rows.forEach(({ c }, i) => {
    const row = given.chunks[number] + i;
    const problem = chunk.problems[data.columns.problem[row]];
    const texts = [problem.question, ...problem.golds, ...c.turns.map((turn) => turn.text)];
    if (texts.some((text) => text.toLowerCase().includes(query))) matches[row] = 1;
  });
}

function drawList() {
  const list = document.getElementById("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
  const last = Math.min(view.rows.length, first + Math.ceil(list.clientHeight / ROW_HEIGHT) + 9);
  const drawn = [];
  for (let i = first; i < last; i++) drawn.push(listLine(i));
  document.getElementById("rows").replaceChildren(...drawn);
  if (view.at >= 0) list.setAttribute("aria-activedescendant", `row-${view.at}`);
  else list.removeAttribute("aria-activedescendant");
  document.getElementById("nothing").hidden = view.rows.length > 0;
}

function listLine(i) {
  const row = view.rows[i];
  const { columns } = data;
  const outcome = outcomeOf(row);
  const line = el(
    "div",
    {
      class: columns.flags[row] & CHOSEN ? "line with-badge" : "line", id: `row-${i}`, role: "option", "aria-selected": i === view.at ? "true" : "false",
      "aria-posinset": i + 1, "aria-setsize": view.rows.length, onclick: () => openAt(i),
    },
    el("span", { class: `dot ${outcome}`, title: OUTCOMES[outcome] }),
    el("span", { class: "title" }, data.titles[columns.problem[row]] || "(no question)"),
    el(
      "span", { class: "facts" },
      `${sourceName(columns.source[row])}${columns.n[row] ? ` · sample ${columns.n[row]}` : ""} · `,
      `${counted(columns.turns[row], "turn")} · ${counted(columns.tokens[row], "token")} · `,
      Number.isNaN(columns.reward[row]) ? OUTCOMES[outcome] : `R ${figure(columns.reward[row])}`,
    ),
  );
  if (columns.flags[row] & CHOSEN) line.append(el("span", { class: "badge" }, "selected"));
  line.style.top = `${i * ROW_HEIGHT}px`;
  return line;
}

function moveTo(i) {
  if (view.rows.length === 0) return;
  const target = Math.max(0, Math.min(view.rows.length - 1, i));
  const list = document.getElementById("list");
  const top = target * ROW_HEIGHT;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
  openAt(target, false);
}

function openAt(i, isPicked = true) {
  view.at = i;
  drawList();
  showRow(view.rows[i], isPicked);
}

async function showRow(row, isPicked = true) {
  view.row = row;
  const reader = document.getElementById("reader");
  const parts = await readRow(row).then(readerParts).catch((error) => [trouble(error)]);
  if (view.row !== row) return; // another one was picked meanwhile
  reader.replaceChildren(...parts);
  if (isPicked) document.getElementById("browser").classList.add("reading");
  reader.scrollTop = 0;
  keepAddress();
}

function closeReader() {
  document.getElementById("browser").classList.remove("reading");
  document.getElementById("list").focus();
}

function setMode(mode) {
  view.mode = mode;
  if (view.row !== undefined) showRow(view.row);
}

async function readerParts(found) {
  const { row, problem } = found;
  const siblings = rowsOfProblem(row);
  const mode = (name, text) =>
    el("button", { type: "button", class: "mode", "aria-pressed": String(view.mode === name), onclick: () => setMode(name) }, text);
  return [
    el(
      "div", { class: "bar" },
      el("button", { type: "button", class: "back", onclick: closeReader }, "‹ List"),
      mode("one", "This conversation"), mode("side", "Across iterations"),
    ),
    el("h2", {}, problem.question || "(no question)"),
    el("p", { class: "gold" }, "Gold answer: ", el("strong", {}, problem.golds.join(" | ") || "–")),
    contextParts(problem, given.sources[data.columns.source[row]].run),
    ...(view.mode === "side" ? [await sideBySide(siblings)] : oneConversation(found, siblings)),
  ];
}

function contextParts(problem, run) {
  const version = problem.versions[problem.version_by_run[run] ?? 0];
  const contexts = version ? version.contexts : [];
  if (contexts.length === 0) return el("p", { class: "note" }, "All agents are told the question only.");
  const names = given.runs[run].agents;
  const parts = contexts.map((context, agent) =>
    el("details", { class: `context agent-${agent % 4}` },
      el("summary", {}, `What ${names[agent] ?? `agent ${agent + 1}`} is told`), el("div", { class: "said" }, context)));
  return el("div", { class: "contexts" }, ...parts);
}

function oneConversation(found, siblings) {
  const { conversation: c, reward, losses, row } = found;
  const place = siblings.indexOf(row);
  const step = (by, text, key) => {
    const target = siblings[place + by];
    return el("button", { type: "button", disabled: target === undefined, title: key, onclick: () => showRow(target) }, text);
  };
  return [
    el(
      "div", { class: "where" },
      step(-1, "‹", "previous about this problem: ["), step(1, "›", "next about this problem: ]"),
      el("span", {}, `${sourceName(data.columns.source[row])}, sample ${c.n}; ${place + 1} of ${siblings.length} about this problem`),
    ),
    el("p", { class: "facts" }, facts(row, c).join(" · ")),
    dialogue(c, losses),
    rewardTable(row, c, reward),
  ];
}

function facts(row, c) {
  const parts = [OUTCOMES[outcomeOf(row)], `ended by ${STOPS[c.stop_reason] ?? c.stop_reason}`, `answer: ${c.answer ?? "none"}`];
  if (c.format_id) parts.push(`format ${c.format_id}`);
  if (c.faults.length) parts.push(`fault: ${c.faults.join(", ").replaceAll("_", " ")}`);
  if (data.columns.flags[row] & CHOSEN) parts.push("selected for training");
  if (c.error) parts.push(`error: ${c.error}`);
  return parts;
}

function dialogue(c, losses, isBrief = false) {
  const turns = c.turns.map((turn, t) => {
    const loss = losses ? losses.losses[t] : null;
    const about = turn.n_tokens ? [counted(turn.n_tokens, "token")] : []; // scripts have none
    if (loss !== null && loss !== undefined) about.push(`loss ${figure(loss)} nats/token`);
    if (turn.seconds && !isBrief) about.push(`${figure(turn.seconds)} s`);
    if (turn.finish_reason === "length") about.push("cut at its limit");
    return el(
      "li", { class: `turn agent-${turn.agent % 4}` },
      el("span", { class: "name" }, turn.name), said(turn.text, turn.answer), el("span", { class: "facts" }, about.join(" · ")),
    );
  });
  return el("ol", { class: "dialogue" }, ...turns);
}

// The text as it is, its marked answer set off.
function said(text, answer) {
  const body = el("div", { class: "said" });
  text = text.trim();
  const at = answer ? markedAt(text, answer) : -1;
  if (at < 0) body.append(text === "" ? "(nothing)" : text);
  else body.append(text.slice(0, at), el("mark", {}, answer), text.slice(at + answer.length));
  return body;
}

function markedAt(text, answer) {
  for (const before of ["<A>", "{", ""]) {
    const at = text.lastIndexOf(before + answer);
    if (at >= 0) return at + before.length;
  }
  return -1;
}

function rewardTable(row, c, reward) {
  if (!reward) return el("p", { class: "note" }, "This conversation has not been judged.");
  const run = given.runs[given.sources[data.columns.source[row]].run];
  const weighted = -run.lambda_token * reward.token;
  const ofTokens = reward.token_term ?? weighted; // runs of before it was kept have the weighted one
  const isPlain = Math.abs(ofTokens - weighted) < 1e-9;
  const line = (name, value, how) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value), el("td", { class: "how" }, how));
  return el(
    "table", { class: "reward" },
    el("caption", {}, "Reward"),
    el(
      "tbody", {},
      line("task", figure(reward.task, 3), "score against the gold answer"),
      line("− tokens", figure(ofTokens, 3), isPlain ? `${run.lambda_token} × ${figure(reward.token, 3)}, the share of the longest` : "by a rule of the recipe's reward"),
      line("+ readable", figure(reward.loss_term, 3), reward.loss === null ? "no loss needed" : `from the worst turn, ${figure(reward.loss, 3)} nats/token`),
      line("total", figure(reward.total, 3), reward.error ? reward.error : reward.is_eligible ? "" : "not eligible: it has a fault"),
    ),
  );
}

async function sideBySide(siblings) {
  const groups = new Map();
  for (const row of siblings) {
    const source = data.columns.source[row];
    if (!groups.has(source)) groups.set(source, []);
    groups.get(source).push(row);
  }
  const most = Math.max(...siblings.map((row) => data.columns.tokens[row]), 1);
  const columns = [];
  for (const [source, rows] of groups) columns.push(await iterationColumn(source, rows, most));
  return el("div", { class: "side", tabindex: "0", role: "group", "aria-label": "the same problem across iterations" }, ...columns);
}

async function iterationColumn(source, rows, most) {
  const column = el("section", { class: "column" });
  const fill = async (row) => {
    const { conversation, losses } = await readRow(row);
    const bar = el("span", { class: "length" });
    bar.style.width = `${Math.max(2, (100 * data.columns.tokens[row]) / most)}%`;
    const pick = el("select", { "aria-label": "sample", onchange: (event) => fill(+event.target.value) });
    rows.forEach((r) => {
      const option = el("option", { value: r }, `sample ${data.columns.n[r]}`);
      option.selected = r === row;
      pick.append(option);
    });
    column.replaceChildren(
      el("h3", {}, sourceName(source)),
      rows.length > 1 ? pick : "",
      el("p", { class: "facts" }, `${OUTCOMES[outcomeOf(row)]} · ${counted(data.columns.tokens[row], "token")} · R ${figure(data.columns.reward[row])}`),
      el("div", { class: "track" }, bar),
      dialogue(conversation, losses, true),
    );
  };
  const chosen = rows.find((row) => data.columns.flags[row] & CHOSEN);
  const best = rows.reduce((a, b) => (known(data.columns.reward[b]) > known(data.columns.reward[a]) ? b : a));
  await fill(chosen ?? best);
  return column;
}

function openConversations() {
  fillFilters();
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => { if (event.target.id !== "f-q") applyFilters(); });
  form.addEventListener("reset", () => setTimeout(() => searchText("")));
  let typing = 0;
  document.getElementById("f-q").addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => searchText(event.target.value), 250);
  });
  const list = document.getElementById("list");
  list.addEventListener("scroll", drawList, { passive: true });
  list.addEventListener("keydown", (event) => {
    const page = Math.floor(list.clientHeight / ROW_HEIGHT);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps) moveTo(view.at + steps[event.key]);
    else if (event.key === "Enter" && view.at >= 0) {
      openAt(view.at);
      document.getElementById("reader").focus();
    } else return;
    event.preventDefault();
  });
  new ResizeObserver(drawList).observe(list);
  const parameters = new URLSearchParams(location.hash.split("?")[1] ?? "");
  view.mode = parameters.get("mode") === "side" ? "side" : "one";
  if (parameters.get("q")) searchText(parameters.get("q")); else applyFilters();
  const row = rowOfKey(parameters.get("row"));
  if (row >= 0) {
    view.at = view.rows.indexOf(row);
    if (view.at > 0) list.scrollTop = Math.max(0, (view.at - 2) * ROW_HEIGHT);
    showRow(row);
  }
}

// A conversation's address: source, problem, sample; it stays the same while a run grows.
function keyOfRow(row) {
  return [data.columns.source[row], data.columns.problem[row], data.columns.n[row]].join(".");
}
function rowOfKey(key) {
  if (!key) return -1;
  const [source, problem, n] = key.split(".").map(Number);
  const { columns } = data;
  for (let row = 0; row < data.n; row++) {
    if (columns.problem[row] === problem && columns.source[row] === source && columns.n[row] === n) return row;
  }
  return -1;
}

function keepAddress() {
  if (!location.hash.startsWith("#conversations")) return;
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(selectedFilters())) {
    if (value !== "" && !(name === "order" && value === "problem")) parameters.set(name, value);
  }
  if (view.row !== undefined) parameters.set("row", keyOfRow(view.row));
  if (view.mode !== "one") parameters.set("mode", view.mode);
  const text = parameters.toString();
  history.replaceState(null, "", `#conversations${text ? `?${text}` : ""}`);
}
