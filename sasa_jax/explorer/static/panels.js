// ---- panels.js: all that stands beside the image. ----

const byId = (id) => document.getElementById(id);
const percent = (value) => (100 * value).toFixed(2);
const signed = (value) => (value > 0 ? `+${value}` : value < 0 ? `−${-value}` : "0");
const lastPart = (name) => name.slice(name.lastIndexOf("/") + 1);
const firstParts = (name) => name.slice(0, Math.max(name.lastIndexOf("/"), 0));

function describe(list, facts) {
  list.replaceChildren(...Object.entries(facts).flatMap(([name, value]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

// One row for each group, one button for each layer.
function buildLayers(layers, choose) {
  const rows = new Map();
  for (const layer of layers) {
    const group = firstParts(layer.name);
    if (!rows.has(group)) {
      rows.set(group, element("div", { className: "row" }));
      const words = group.replaceAll("/", " ");
      if (group) rows.get(group).append(element("span", { className: "group", textContent: words }));
      byId("layers").append(rows.get(group));
    }
    const button = element("button", { type: "button", onclick: () => choose(layer.name) },
      lastPart(layer.name), element("small", { textContent: `${layer.height}×${layer.width}` }));
    button.dataset.layer = layer.name;
    rows.get(group).append(button);
  }
  byId("layers").className = rows.size > 6 ? "many" : "";
}

function markLayer(name) {
  for (const button of document.querySelectorAll("#layers button, #depth button")) {
    button.setAttribute("aria-pressed", button.dataset.layer === name);
  }
}

// A small map for the mean (head -1) and for each head.
function buildHeads(heads, choose) {
  byId("heads").replaceChildren();
  for (let head = -1; head < heads; head++) {
    const button = element("button", { type: "button", onclick: () => choose(head) },
      element("canvas"), head < 0 ? "mean" : `${head + 1}`);
    button.dataset.head = head;
    button.setAttribute("role", "radio");
    byId("heads").append(button);
  }
}

function drawHeads(found, maps, largest, chosen) {
  const { size } = found;
  for (const button of byId("heads").children) {
    const head = Number(button.dataset.head), weights = maps[head + 1];
    button.setAttribute("aria-checked", head === chosen);
    paint(button.firstChild, size, size, (k) => scaled(weights[k], largest));
  }
}

// The chosen head's window, a cell for each key.
function buildWindow(size, query, point) {
  const table = byId("window"), [y, x] = query;
  table.style.maxWidth = `${26 + 64 * size}px`;
  table.className = size > 11 ? "dense" : size > 7 ? "close" : "";
  const head = element("tr", {}, element("td"));
  for (let c = 0; c < size; c++) head.append(element("th", { textContent: signed(c - x) }));
  table.replaceChildren(head);
  for (let r = 0; r < size; r++) {
    const row = element("tr", {}, element("th", { textContent: signed(r - y) }));
    for (let c = 0; c < size; c++) {
      const cell = element("td", { onpointerenter: () => point([r, c]),
        onpointerleave: () => point(null) });
      cell.classList.toggle("query", r === y && c === x);
      row.append(cell);
    }
    table.append(row);
  }
  return [...table.querySelectorAll("tr + tr td")];
}

function drawWindow(cells, found, weights, largest) {
  for (let k = 0; k < cells.length; k++) {
    const t = scaled(weights[k], largest), cell = cells[k];
    cell.textContent = percent(weights[k]);
    cell.style.backgroundColor = colour(t);
    cell.style.color = t > 0.62 ? "#000" : "#fff";
    cell.classList.toggle("out", !found.inside(Math.floor(k / found.size), k % found.size));
  }
}

// What content and position add to a head's logits, more than they add at the key of the largest
// weight: the exponential of their sum is the ratio of the two weights. Where a weight was stored
// as 0, content is at most what stands here, and `bound` says so.
function splitLogits(found, weights, head) {
  if (head < 0 || !found.position) return null;
  const all = found.position(head), best = weights.indexOf(weights.reduce((a, b) => Math.max(a, b)));
  const position = all.map((value) => value - all[best]);
  const least = found.error(head), bound = Array.from(weights, (weight) => weight === 0);
  const content = position.map((value, k) =>
    Math.log((weights[k] || least) / weights[best]) - value);
  return { content, position, bound };
}

const logit = (value, below = false) => (below ? "<" : "")
  + (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

// In place of the weights, the part of the logits that is chosen; both on one scale.
function drawPart(cells, found, split, part, layer) {
  const seen = (k) => layer.padded || found.inside(Math.floor(k / found.size), k % found.size);
  const largest = [...split.content, ...split.position].filter(Number.isFinite)
    .reduce((a, b) => Math.max(a, Math.abs(b)), 1e-6);
  cells.forEach((cell, k) => {
    const value = split[part][k], t = 0.5 + Math.min(Math.max(value / largest, -1), 1) / 2;
    cell.textContent = seen(k) ? logit(value, part === "content" && split.bound[k]) : "";
    cell.style.backgroundColor = colour(seen(k) ? t : 0.5, SIGNED);
    cell.style.color = Math.abs(t - 0.5) > 0.3 ? "#fff" : "#000";
  });
}

function drawNumbers(found, weights, layer) {
  const { size, step, query, inside } = found;
  let best = 0, padding = 0, bits = 0, distance = 0;
  for (let k = 0; k < weights.length; k++) {
    const r = Math.floor(k / size), c = k % size, w = weights[k];
    if (w > weights[best]) best = k;
    if (!inside(r, c)) padding += w;
    if (w > 0) bits -= w * Math.log(w);
    distance += w * step * Math.hypot(r - query[0], c - query[1]);
  }
  const offset = [Math.floor(best / size) - query[0], (best % size) - query[1]];
  describe(byId("numbers"), {
    "Largest weight": `${percent(weights[best])} % at (${offset.map(signed).join(", ")})`,
    "On padding": layer.stem ? "none: blocks lie in the image"
      : layer.padded ? `${percent(padding)} %` : "left out of the softmax",
    "Spread": `like ${Math.exp(bits).toFixed(1)} of ${size * size} keys, evenly`,
    "Mean distance": `${distance.toFixed(1)} pixels`,
  });
}

function drawLegend(mode, largest, slots) {
  paint(byId("legend"), 1, 128, (k) => k / 127);
  if (mode === "reach") {
    byId("top").textContent = "most of the mass";
    byId("even").hidden = true;
    return;
  }
  byId("top").textContent = `${percent(largest)} %`;
  const even = scaled(1 / slots, largest);
  byId("even").textContent = `${percent(1 / slots)} % if even`;
  byId("even").style.left = `${100 * even}%`;
  byId("even").hidden = even > 0.55; // it would run into the other
}

// Row and column tables, and |r| for each key offset.
function drawPosition(layer, head) {
  const tables = about.tables[layer.name];
  byId("position").hidden = !tables;
  if (!tables) return;
  const own = tables[0].length > 1, which = own ? Math.max(head, 0) : 0;
  const [rows, columns] = tables.map((table) => table[which]);
  byId("position-title").textContent = own ? `head ${which + 1}` : "shared by the heads";
  const size = rows.length, half = size >> 1;
  const largest = Math.max(...[rows, columns].flat(2).map(Math.abs), 1e-12);
  const offsets = (className) => element("div", { className }, ...rows.map((_, k) =>
    element("span", { textContent: size > 9 && (k - half) % 3 ? "" : signed(k - half) })));
  const table = (name, values) => {
    const canvas = element("canvas", { className: "table" }), width = values[0].length;
    paint(canvas, size, width, (k) =>
      0.5 + values[Math.floor(k / width)][k % width] / (2 * largest), { table: SIGNED });
    canvas.style.height = `${size * (size > 9 ? 9 : 16)}px`;
    canvas.style.width = `${Math.min(width * 16, 240)}px`;
    return element("figure", {}, element("figcaption", { textContent: name }),
      element("div", { className: "labelled" }, offsets("offsets"), canvas));
  };
  const norm = (values) => values.reduce((sum, value) => sum + value * value, 0);
  const lengths = rows.flatMap((row) => columns.map((column) =>
    Math.sqrt(norm(row) + norm(column))));
  const low = Math.min(...lengths), high = Math.max(...lengths);
  const square = element("canvas", { className: "table" });
  paint(square, size, size, (k) => (lengths[k] - low) / (high - low || 1));
  square.style.height = square.style.width = `${size * (size > 9 ? 9 : 16)}px`;
  byId("tables").replaceChildren(table(`row, ±${largest.toFixed(2)}`, rows),
    table("column", columns),
    element("figure", {}, element("figcaption",
      { textContent: `|r|, ${low.toFixed(2)} to ${high.toFixed(2)}` }),
      element("div", { className: "labelled" }, offsets("offsets"), square)));
}

function buildStem() {
  if (!about.stem) {
    byId("stem").replaceWith(byId("position")); // so that the columns are of like length
    return;
  }
  const { mixture } = about.stem;
  const notes = ["The matrix holds all weights of the block under the pointer, its 16 pixels row "
    + "by row: a row for each query, a column for each key."];
  if (mixture) {
    notes.unshift("p(a, b, m): how much of each of the value matrices every place of a 4×4 block "
      + "uses. It is the same for all blocks, images and heads.");
    for (let m = 0; m < mixture[0][0].length; m++) {
      const table = element("table", { className: "mixture" });
      for (const row of mixture) {
        table.append(element("tr", {}, ...row.map((place) => {
          const cell = element("td", { textContent: place[m].toFixed(2) });
          cell.style.backgroundColor = colour(place[m]);
          cell.style.color = place[m] > 0.62 ? "#000" : "#fff";
          return cell;
        })));
      }
      byId("stem-maps").append(element("figure", {},
        element("figcaption", { textContent: `p(a, b, ${m + 1})` }), table));
    }
  }
  byId("stem-maps").append(element("figure", {},
    element("figcaption", { id: "block-title" }),
    element("canvas", { id: "block", className: "table" })));
  byId("stem-note").textContent = notes.join(" ");
}

function drawBlock(stem, row, column, head) {
  const block = stem.blockAt(row >> 2, column >> 2), values = new Float32Array(256);
  const heads = head < 0 || head >= stem.heads ? [...Array(stem.heads).keys()] : [head];
  for (const h of heads) for (let k = 0; k < 256; k++) values[k] += block[256 * h + k] / heads.length;
  const largest = values.reduce((a, b) => Math.max(a, b));
  byId("block-title").textContent = `block (${row >> 2}, ${column >> 2}), `
    + (heads.length > 1 ? "mean of its heads" : `head ${head + 1}`)
    + `, to ${percent(largest)} %`;
  paint(byId("block"), 16, 16, (k) => scaled(values[k], largest));
}

// Classes with their probabilities, or boxes.
function buildGuesses(choose) {
  const boxes = about.guesses.some((guess) => guess.box);
  byId("guesses-title").textContent = boxes ? "Found" : "Prediction";
  byId("guesses").className = boxes ? "boxes" : "";
  about.guesses.forEach((guess, k) => {
    const words = [element("span", { textContent: guess.name }),
      element("span", { className: "score",
        textContent: boxes ? guess.score.toFixed(2) : `${(100 * guess.score).toFixed(1)} %` })];
    const line = boxes
      ? element("button", { type: "button", onclick: () => choose(guess) }, ...words)
      : element("div", {}, ...words);
    line.style.setProperty("--score", guess.score);
    line.dataset.guess = k;
    byId("guesses").append(line);
  });
  if (!about.guesses.length) byId("guesses").textContent = "nothing was found";
}
