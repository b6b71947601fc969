// What the page was given: a header at once, chunks of conversations and trees when asked for.
// Without a server both stand in the page as base64 of gzip; a live page fetches them.

const given = JSON.parse(document.getElementById("payload").textContent);
const KEPT_CHUNKS = 24;
const ANSWERED = 1, CHOSEN = 2, FAULTY = 4, FAILED = 8, JUDGED = 16;
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function unpackText(packed) {
  return new TextDecoder().decode(await gunzip(fromBase64(packed)));
}

// The part of the document that holds a blob may not have arrived yet.
function wholePage() {
  if (document.readyState !== "loading") return Promise.resolve();
  return new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
}

async function readBlob(kind, number) {
  if (given.live) {
    const answer = await fetch(`${kind}/${number}?v=${given.version}`);
    if (answer.status === 410) throw new Error("The run has gone on since this page was made; reload the page.");
    if (!answer.ok) throw new Error(`The server answered ${answer.status} for ${kind} ${number}; reload the page.`);
    return new TextDecoder().decode(await answer.arrayBuffer());
  }
  const id = `${kind}-${number}`;
  if (!document.getElementById(id)) await wholePage();
  return unpackText(document.getElementById(id).textContent);
}

const data = { n: given.n, columns: {}, titles: [], chunks: new Map() };

async function openData() {
  for (const [name, [kind, packed]] of Object.entries(given.columns)) {
    data.columns[name] = new ARRAYS[kind](await gunzip(fromBase64(packed)));
  }
  data.titles = JSON.parse(await unpackText(given.titles));
}

function chunkOf(row) {
  let low = 0, high = given.chunks.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (given.chunks[middle] <= row) low = middle; else high = middle - 1;
  }
  return low;
}

function readChunk(number) {
  if (!data.chunks.has(number)) {
    const read = readBlob("chunk", number).then(JSON.parse);
    read.catch(() => data.chunks.delete(number)); // may be had when it is asked for again
    data.chunks.set(number, read);
    if (data.chunks.size > KEPT_CHUNKS) data.chunks.delete(data.chunks.keys().next().value);
  }
  return data.chunks.get(number);
}

// One conversation with its reward, its losses and its problem.
async function readRow(row) {
  const number = chunkOf(row);
  const chunk = await readChunk(number);
  const { c, r, l } = chunk.rows[row - given.chunks[number]];
  return { row, conversation: c, reward: r, losses: l, problem: chunk.problems[data.columns.problem[row]] };
}

// All rows about the problem of a row; they stand together.
function rowsOfProblem(row) {
  const problem = data.columns.problem;
  let first = row, last = row;
  while (first > 0 && problem[first - 1] === problem[row]) first--;
  while (last + 1 < data.n && problem[last + 1] === problem[row]) last++;
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}

function outcomeOf(row) {
  const flags = data.columns.flags[row], task = data.columns.task[row];
  if (flags & FAILED) return "failed";
  if (!(flags & ANSWERED)) return "unanswered";
  if (!(flags & JUDGED)) return "unjudged";
  return task >= 0.999 ? "right" : task > 0 ? "partly" : "wrong";
}

// el("p", {class: "note"}, "text", child): every text becomes a text node, never markup.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// What cannot be shown is said where it would stand.
function trouble(error) {
  return el("p", { class: "note", role: "alert" }, error.message);
}

const OUTCOMES = {
  right: "right", partly: "partly right", wrong: "wrong", unanswered: "no answer",
  failed: "failed", unjudged: "not judged",
};
const STOPS = {
  agreement: "agreement", alone: "spoke alone", max_turns: "out of turns",
  context_overflow: "context full", error: "error",
};

function counted(n, noun) {
  return `${n.toLocaleString()} ${noun}${n === 1 ? "" : "s"}`;
}

function figure(value, digits = 2) {
  return value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);
}
