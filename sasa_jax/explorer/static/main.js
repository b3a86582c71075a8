// ---- main.js: what is chosen, and what has to be drawn again when it changes. ----

const state = { layer: null, head: -1, row: 0, column: 0, held: false, mode: "weights",
  scale: "place", part: "weights", slot: null, guess: null, least: 0.3 };
let drawn = {}, picture, reach, pending = false, later = 0, cells = [];
const layers = new Map();

function change(changes) {
  Object.assign(state, changes);
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; draw(); });
}

const differs = (...keys) => keys.some((key) => state[key] !== drawn[key]);

function headMaps(layer, { values, size }) {
  const slots = size * size, mean = new Float32Array(slots);
  const maps = [mean];
  for (let head = 0; head < layer.heads; head++) {
    const map = values.subarray(head * slots, (head + 1) * slots);
    for (let k = 0; k < slots; k++) mean[k] += map[k] / layer.heads;
    maps.push(map);
  }
  return maps;
}

// Everything that follows the pointer is drawn here, within a frame; the rest by `drawLater`.
function draw() {
  const layer = layers.get(state.layer);
  if (!layer.ready) {
    layer.load().then(() => change({}));
    return;
  }
  state.head = Math.min(state.head, layer.heads - 1);
  if (state.head < 0) state.part = "weights"; // the mean of the heads has no logits
  const found = layer.at(state.row, state.column), maps = headMaps(layer, found);
  const weights = maps[state.head + 1], split = splitLogits(found, weights, state.head);
  const largest = state.scale === "layer" ? layer.largest
    : found.values.reduce((a, b) => Math.max(a, b), 1e-12);
  const queryKey = `${found.size} ${found.query}`;
  if (differs("layer")) {
    markLayer(state.layer);
    buildHeads(layer.heads, (head) => change({ head }));
    drawPosition(layer, state.head);
  } else if (differs("head")) {
    drawPosition(layer, state.head);
  }
  if (drawn.queryKey !== queryKey) {
    cells = buildWindow(found.size, found.query, (slot) => change({ slot }));
  }
  const placeKey = [found.i, found.j, queryKey].join();
  if (differs("layer", "head", "scale", "part") || drawn.placeKey !== placeKey) {
    drawHeads(found, maps, largest, state.head);
    drawWindow(cells, found, weights, largest);
    byId("part").hidden = !found.position;
    byId("part").querySelector(`[value="${state.part}"]`).checked = true;
    if (split && state.part !== "weights") drawPart(cells, found, split, state.part, layer);
    drawNumbers(found, weights, layer);
    byId("window-title").textContent = `${found.size}×${found.size}, `
      + (state.head < 0 ? `mean of ${layer.heads} heads` : `head ${state.head + 1} of ${layer.heads}`);
  }
  if (differs("layer", "scale", "mode") || drawn.placeKey !== placeKey) {
    drawLegend(state.mode, largest, found.size ** 2);
  }
  drawPicture(layer, found, weights, largest);
  drawWords(layer, found, weights, split);
  if (differs("guess")) markGuess();
  if (differs("layer", "head", "row", "column")) {
    clearTimeout(later);
    later = setTimeout(drawLater, 60);
  }
  drawn = { ...state, queryKey, placeKey };
}

function drawPicture(layer, found, weights, largest) {
  picture.clear();
  if (state.mode === "weights") picture.window(found, weights, largest);
  if (state.mode === "reach" && reachable()) {
    const { height, width } = about.stages[0];
    picture.map(reach.from(state.layer, found.i, found.j).map, height, width);
    picture.cell(found, found.query, "#fff");
  }
  if (state.slot && state.mode !== "none") picture.cell(found, state.slot, "#D55E00");
  picture.boxes(about.guesses.filter((guess) => guess.box
    && (guess.score >= state.least || guess === state.guess)), state.guess);
  picture.canvas.classList.toggle("held", state.held);
}

function drawWords(layer, found, weights, split) {
  const place = layer.stem ? `block (${found.i}, ${found.j})` : `place (${found.i}, ${found.j})`;
  byId("where").textContent = `Pixel (${state.row}, ${state.column}), ${place} of `
    + `${layer.height}×${layer.width} in ${layer.name}${state.held ? ", held" : ""}`;
  let words = "";
  if (state.slot) {
    const [r, c] = state.slot, offset = [r - found.query[0], c - found.query[1]];
    const k = r * found.size + c;
    words = `Key offset (${offset.map(signed).join(", ")}): weight ${percent(weights[k])} %`
      + (split ? `, content ${logit(split.content[k], split.bound[k])}, `
        + `position ${logit(split.position[k])}` : "")
      + (found.inside(r, c) ? "" : ", on padding");
  }
  byId("slot").textContent = words;
}

const reachable = () => reach.through(state.layer).every((layer) => layer.ready);

// What need not keep up with the pointer.
function drawLater() {
  const layer = layers.get(state.layer), { row, column } = state;
  const stem = layers.get(about.stages[0].name);
  if (stem && about.stem) drawBlock(stem, row, column, state.head);
  if (!reachable()) {
    byId("reach-title").textContent = "unpacking …";
    Promise.all(reach.through(state.layer).map((each) => each.load())).then(drawLater);
    return;
  }
  const { height, width } = about.stages[0];
  const through = reach.through(state.layer);
  byId("reach-title").textContent = `from ${state.layer} to the stem's map`;
  const canvases = new Map([[layer.name, [byId("reach")]]]);
  const strip = through.map((each) => {
    const canvas = element("canvas");
    canvases.set(each.name, [...(canvases.get(each.name) ?? []), canvas]);
    const button = element("button", { type: "button", title: each.name,
      onclick: () => change({ layer: each.name }) }, canvas,
      each.name.split("/").slice(-2).join(" "));
    button.dataset.layer = each.name;
    return button;
  });
  byId("depth").replaceChildren(...strip);
  markLayer(layer.name);
  for (const each of through) {
    const found = each.at(row, column), { map, lost } = reach.from(each.name, found.i, found.j);
    const largest = brightest(map);
    for (const canvas of canvases.get(each.name)) {
      paint(canvas, height, width, (k) => scaled(map[k], largest));
    }
    if (each !== layer) continue;
    const { distance, share } = reach.measure(map, row, column);
    describe(byId("reach-numbers"), {
      "Distance (RMS)": `${distance.toFixed(1)} pixels`,
      "90 % of it within": `${(100 * share).toFixed(1)} % of the image`,
      "Lost to padding": `${percent(lost)} %`,
    });
  }
}

function markGuess() {
  for (const line of byId("guesses").children) {
    const guess = about.guesses[line.dataset.guess];
    if (guess.box) line.setAttribute("aria-pressed", guess === state.guess);
  }
}

// The layer nearest to a box's class logits that has attention, and the place that gave them.
function chooseGuess(guess) {
  let stage = about.stages.find(({ name }) => name === `class_head/last/p${guess.level}`);
  while (stage && !layers.has(stage.name)) {
    stage = about.stages.find(({ name }) => name === stage.source);
  }
  const [row, column] = guess.place.map((k) =>
    Math.min(Math.floor((k + 0.5) * 2 ** guess.level), about.side - 1));
  change({ guess, row, column, held: true, ...(stage && { layer: stage.name }) });
}

function smallestBox({ row, column }) {
  const area = ([top, left, bottom, right]) => (bottom - top) * (right - left);
  return about.guesses.filter(({ box, score }) => box && score >= state.least
    && box[0] <= row && row < box[2] && box[1] <= column && column < box[3])
    .sort((a, b) => area(a.box) - area(b.box))[0];
}

function listenToPointer(canvas) {
  const follow = (event) => {
    const pixel = picture.pixelAt(event);
    if (pixel) change(pixel);
  };
  canvas.addEventListener("pointermove", (event) => {
    if (!state.held || event.buttons) follow(event);
  });
  canvas.addEventListener("pointerdown", (event) => {
    const pixel = picture.pixelAt(event);
    if (!pixel) return;
    const box = smallestBox(pixel);
    if (box && box !== state.guess) return chooseGuess(box);
    const same = state.held && pixel.row === state.row && pixel.column === state.column;
    change({ ...pixel, guess: null, held: event.pointerType === "mouse" ? !same : true });
  });
}

function listenToKeys() {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const keep = (value) => Math.min(Math.max(value, 0), about.side - 1);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input")) return;
    const names = [...layers.keys()], layer = layers.get(state.layer);
    if (event.key in moves && event.target === picture.canvas) {
      // A place at a time; with Shift a pixel.
      const step = event.shiftKey || layer.stem ? 1 : layer.pixels;
      const [y, x] = moves[event.key];
      change({ row: keep(state.row + y * step), column: keep(state.column + x * step), held: true });
      event.preventDefault();
    } else if (event.key === "Escape") {
      change({ held: false, guess: null });
    } else if (event.key === "[" || event.key === "]") {
      const next = names.indexOf(state.layer) + (event.key === "]" ? 1 : -1);
      change({ layer: names[Math.min(Math.max(next, 0), names.length - 1)] });
    } else if (/^[0-9]$/.test(event.key) && Number(event.key) <= layer.heads) {
      change({ head: Number(event.key) - 1 });
    } else {
      return;
    }
    clearTimeout(listenToKeys.timer);
    listenToKeys.timer = setTimeout(() => {
      const facts = [...byId("numbers").children].slice(0, 4).map((each) => each.textContent);
      byId("spoken").textContent = [byId("where").textContent, ...facts].join(" ");
    }, 400);
  });
}

function listenToChoices() {
  for (const name of ["mode", "scale"]) {
    byId(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
  }
  byId("part").addEventListener("change", ({ target: { value } }) =>
    change({ part: value, head: value === "weights" ? state.head : Math.max(state.head, 0) }));
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    picture.resize();
    change({});
  });
  new ResizeObserver(() => { picture.resize(); change({}); }).observe(byId("stage"));
}

async function start() {
  byId("network").textContent = `${about.network}, step ${about.step.toLocaleString("en")}; `
    + `as the network saw it, ${about.side}×${about.side} pixels`;
  const pixels = await unpack("image", about.side);
  for (const entry of about.layers) {
    layers.set(entry.name, entry.stem ? new StemLayer(entry, pixels) : new WindowLayer(entry));
  }
  reach = new Reach(layers);
  picture = new Picture(pixels);
  buildLayers(about.layers, (layer) => change({ layer }));
  buildStem();
  buildGuesses(chooseGuess);
  listenToPointer(picture.canvas);
  listenToKeys();
  listenToChoices();
  const [row, column] = about.query;
  state.layer = (about.layers.find((layer) => !layer.stem) ?? about.layers[0]).name;
  if (about.guesses[0]?.box) chooseGuess(about.guesses[0]);
  else change({ row, column });
  await layers.get(state.layer).load();
  // The rest one by one, so that the page answers meanwhile.
  for (const layer of layers.values()) {
    await layer.load();
    await new Promise((resolve) => setTimeout(resolve));
  }
  document.documentElement.dataset.unpacked = "";
}

start();
