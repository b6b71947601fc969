// Dialogue trees, drawn left to right: a node is an utterance, its colour its value.

const SVG = "http://www.w3.org/2000/svg";
const NODE_WIDTH = 150, NODE_HEIGHT = 34, COLUMN = 194, LINE = 44;

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function openTrees() {
  const pick = document.getElementById("tree-pick");
  given.trees.forEach((tree, i) => {
    const run = given.runs.length > 1 ? `${given.runs[tree.run].name}: ` : "";
    pick.append(el("option", { value: i },
      `${run}${tree.label} · best R ${figure(tree.best)} · ${counted(tree.pairs, "pair")} · ${tree.title.slice(0, 70)}`));
  });
  pick.addEventListener("change", () => showTree(+pick.value));
  const number = +(location.hash.match(/^#trees\/(\d+)/)?.[1] ?? 0);
  pick.value = Math.min(number, given.trees.length - 1);
  showTree(+pick.value);
}

async function showTree(number) {
  if (location.hash.startsWith("#trees")) history.replaceState(null, "", `#trees/${number}`);
  const tree = await readBlob("tree", number).then(JSON.parse).catch((error) => {
    document.getElementById("tree-about").replaceChildren(trouble(error));
  });
  if (!tree) return;
  const line = given.trees[number];
  const golds = tree.problem ? tree.problem.golds.join(" | ") : "–";
  document.getElementById("tree-about").replaceChildren(
    el("h2", {}, tree.problem ? tree.problem.question : line.title),
    el("p", { class: "gold" }, "Gold answer: ", el("strong", {}, golds)),
    el("p", { class: "facts" }, [counted(line.rounds, "round"), counted(tree.rollouts.length, "rollout"), counted(line.nodes, "utterance"),
      `${counted(line.pairs, "pair")} trained on`].join(", ")),
  );
  const drawing = drawTree(tree);
  document.getElementById("tree-canvas").replaceChildren(drawing);
  showNode(tree, tree.nodes.find((node) => node.id !== 0 && isInPair(tree, node.id)) ?? tree.nodes[0]);
}

function isInPair(tree, id) {
  return tree.pairs.some((pair) => pair.is_trained && (pair.chosen === id || pair.rejected === id));
}

// Leaves stand on lines of their own; a parent stands in the middle of its children.
function layOut(tree) {
  const children = new Map(tree.nodes.map((node) => [node.id, []]));
  for (const node of tree.nodes) if (node.parent !== null) children.get(node.parent).push(node.id);
  const places = new Map();
  let line = 0, deepest = 0;
  const place = (id, depth) => {
    deepest = Math.max(deepest, depth);
    const below = children.get(id);
    below.forEach((child) => place(child, depth + 1));
    const ys = below.map((child) => places.get(child).y);
    const y = ys.length ? (ys[0] + ys[ys.length - 1]) / 2 : LINE * line++;
    places.set(id, { x: depth * COLUMN, y });
  };
  place(0, 0);
  return { places, width: deepest * COLUMN + NODE_WIDTH + 8, height: Math.max(1, line) * LINE };
}

function drawTree(tree) {
  const { places, width, height } = layOut(tree);
  const values = tree.nodes.map((node) => node.value).filter((value) => value !== null);
  const low = Math.min(...values), high = Math.max(...values);
  const root = svg("svg", { class: "tree", width, height, viewBox: `-4 -4 ${width} ${height + 8}`, role: "group", "aria-label": "dialogue tree" });
  for (const node of tree.nodes) {
    if (node.parent === null) continue;
    const a = places.get(node.parent), b = places.get(node.id);
    const pair = tree.pairs.find((p) => p.chosen === node.id || p.rejected === node.id);
    const role = !pair ? "" : `${pair.chosen === node.id ? " chosen" : " rejected"}${pair.is_trained ? " trained" : ""}`;
    const x = a.x + NODE_WIDTH, middle = (x + b.x) / 2, y = NODE_HEIGHT / 2;
    root.append(svg("path", { class: `edge${role}`, d: `M${x},${a.y + y} C${middle},${a.y + y} ${middle},${b.y + y} ${b.x},${b.y + y}` }));
  }
  for (const node of tree.nodes) root.append(drawNode(tree, node, places.get(node.id), (node.value - low) / (high - low || 1)));
  root.addEventListener("keydown", (event) => moveInTree(tree, event));
  return root;
}

function drawNode(tree, node, { x, y }, share) {
  const words = node.id === 0 ? "start" : `${node.name}: ${node.text.trim() || "(nothing)"}`;
  const short = words.length > 21 ? `${words.slice(0, 20)}…` : words;
  const about = [`value ${figure(node.value)}`, counted(node.n_rollouts, "rollout")];
  if (node.rounds.length) about.push(`expanded in round ${node.rounds.map((r) => r + 1).join(", ")}`);
  const box = svg("rect", { width: NODE_WIDTH, height: NODE_HEIGHT, rx: 7 });
  const fill = svg("rect", { class: "value", width: 5, height: NODE_HEIGHT, rx: 2 });
  fill.style.fillOpacity = node.value === null ? 0 : 0.15 + 0.85 * share;
  const mark = node.rounds.length ? " expanded" : "";
  const group = svg(
    "g", {
      class: `node agent-${node.agent < 0 ? "none" : node.agent % 4}${mark}`, transform: `translate(${x},${y})`, tabindex: node.id === 0 ? 0 : -1,
      role: "button", "data-node": node.id, "aria-label": `${words}; ${about.join("; ")}`, onclick: () => showNode(tree, node),
      onfocus: () => showNode(tree, node),
    },
    box, fill, svg("text", { x: 11, y: 14 }, short),
    svg("text", { x: 11, y: 27, class: "facts" }, `V ${figure(node.value)} · ${node.n_rollouts}×${node.rounds.length ? " · expanded" : ""}`),
  );
  return group;
}

// Arrows: right to the first child, left to the parent, up and down among siblings and cousins.
function moveInTree(tree, event) {
  const id = +(event.target.closest("[data-node]")?.dataset.node ?? 0);
  const node = tree.nodes[id];
  const depth = (n) => (n.parent === null ? 0 : 1 + depth(tree.nodes[n.parent]));
  const { places } = layOut(tree);
  const level = tree.nodes.filter((n) => depth(n) === depth(node)).sort((a, b) => places.get(a.id).y - places.get(b.id).y);
  const at = level.indexOf(node);
  const target = {
    ArrowRight: tree.nodes.find((n) => n.parent === id), ArrowLeft: tree.nodes[node.parent ?? 0],
    ArrowUp: level[at - 1], ArrowDown: level[at + 1],
  }[event.key];
  if (!(event.key in { ArrowRight: 1, ArrowLeft: 1, ArrowUp: 1, ArrowDown: 1 })) return;
  event.preventDefault();
  if (target) document.querySelector(`#tree-canvas [data-node="${target.id}"]`).focus();
}

function showNode(tree, node) {
  document.querySelectorAll("#tree-canvas .node").forEach((group) => group.classList.toggle("picked", +group.dataset.node === node.id));
  const path = [];
  for (let n = node; n.parent !== null; n = tree.nodes[n.parent]) path.unshift(n);
  const turns = path.map((n) => el(
    "li", { class: `turn agent-${n.agent % 4}` },
    el("span", { class: "name" }, n.name), said(n.text, n.answer),
    el("span", { class: "facts" }, `${counted(n.n_tokens, "token")} · value ${figure(n.value)} over ${counted(n.n_rollouts, "rollout")}`),
  ));
  const notes = [];
  for (const pair of tree.pairs) {
    const trained = pair.is_trained ? "trained on" : "not trained on";
    const gap = figure(tree.nodes[pair.chosen].value - tree.nodes[pair.rejected].value);
    if (pair.chosen === node.id) notes.push(`Chosen of its siblings, ${gap} above the rejected one; the pair was ${trained}.`);
    if (pair.rejected === node.id) notes.push(`Rejected, ${gap} below the chosen sibling; the pair was ${trained}.`);
  }
  for (const rollout of tree.rollouts.filter((r) => r.node === node.id)) {
    notes.push(`Rollout ${rollout.n + 1} ended here by ${STOPS[rollout.stop_reason] ?? rollout.stop_reason}: task ${figure(rollout.task)}, reward ${figure(rollout.total)}.`);
  }
  if (node.faults.length) notes.push(`Fault: ${node.faults.join(", ").replaceAll("_", " ")}.`);
  document.getElementById("tree-node").replaceChildren(
    el("h3", {}, path.length ? `The dialogue to this utterance, ${counted(path.length, "turn")}` : "Before anything was said"),
    el("ol", { class: "dialogue" }, ...turns), ...notes.map((note) => el("p", { class: "note" }, note)),
  );
}
