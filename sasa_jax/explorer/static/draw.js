// ---- draw.js: colours and canvases. ----

const COLOURS = bytesOf(about.colours), SIGNED = bytesOf(about.signedColours);
// Okabe and Ito; a class keeps its colour.
const BOXES = ["#E69F00", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#009E73"];
const RING = 0.09; // of the image's side: room around it in which padding is seen

// 0..1 on the square-root scale: a head may look at one key or, nearly evenly, at all.
const scaled = (value, largest) => Math.sqrt(Math.min(Math.max(value / largest, 0), 1));

// Of a map of masses the 99th percentile: what shortcuts kept in one place outshines the rest.
function brightest(map) {
  const sorted = Float32Array.from(map).sort(), last = sorted.length - 1;
  return sorted[Math.floor(0.99 * last)] || sorted[last] || 1;
}

function colour(t, table = COLOURS) {
  const k = 3 * Math.round(255 * t);
  return `rgb(${table[k]} ${table[k + 1]} ${table[k + 2]})`;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A canvas with one pixel for each level, 0..1; CSS makes it larger.
function paint(canvas, height, width, level, { table = COLOURS, faint = false } = {}) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
  const { data } = picture;
  for (let k = 0; k < height * width; k++) {
    const t = level(k), from = 3 * Math.round(255 * t);
    for (let c = 0; c < 3; c++) data[4 * k + c] = table[from + c];
    data[4 * k + 3] = faint ? 255 * (0.3 + 0.55 * t) : 255;
  }
  context.putImageData(picture, 0, 0);
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

class Picture {
  constructor(pixels) {
    this.stage = document.getElementById("stage");
    this.image = document.getElementById("image");
    this.canvas = document.getElementById("overlay");
    this.context = this.canvas.getContext("2d");
    this.small = element("canvas");
    const { side } = about, picture = new ImageData(side, side), area = side * side;
    for (let k = 0; k < 4 * area; k++) {
      picture.data[k] = k % 4 < 3 ? pixels[(k % 4) * area + (k >> 2)] : 255;
    }
    Object.assign(this.image, { width: side, height: side });
    this.image.getContext("2d").putImageData(picture, 0, 0);
    this.stage.style.setProperty("--ring", `${(100 * RING) / (1 + 2 * RING)}%`);
    this.image.classList.toggle("coarse", side < 150);
    this.resize();
  }

  resize() {
    const size = Math.round(this.stage.clientWidth * devicePixelRatio);
    if (this.canvas.width !== size) Object.assign(this.canvas, { width: size, height: size });
    this.zoom = size / (about.side * (1 + 2 * RING)); // canvas pixels for one of the image
    this.ring = RING * about.side * this.zoom;
    this.hatch = this.context.createPattern(hatching(), "repeat");
  }

  // The image's pixel (row, column) under a pointer event, or null in the ring.
  pixelAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    const at = (offset) => Math.floor((offset * scale - this.ring) / this.zoom);
    const row = at(event.clientY - box.top), column = at(event.clientX - box.left);
    return Math.min(row, column) >= 0 && Math.max(row, column) < about.side ? { row, column } : null;
  }

  rectangle(top, left, height, width) {
    const { zoom, ring } = this;
    return [left * zoom + ring, top * zoom + ring, width * zoom, height * zoom];
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    // Also over what a detector's image was filled up with to be square.
    const [x, y, width, height] = this.rectangle(0, 0, ...about.shown);
    this.context.fillStyle = this.hatch;
    this.context.beginPath();
    this.context.rect(0, 0, this.canvas.width, this.canvas.height);
    this.context.rect(x, y, width, height);
    this.context.fill("evenodd");
  }

  outline(box, colour, dashed = []) {
    const { context } = this, width = 1.5 * devicePixelRatio;
    context.setLineDash([]);
    context.lineWidth = 2 * width;
    context.strokeStyle = "rgba(0,0,0,.65)";
    context.strokeRect(...box);
    context.setLineDash(dashed.map((length) => length * width));
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.strokeRect(...box);
    context.setLineDash([]);
  }

  // Weights [K, K] where their keys are; the fainter, the less.
  window(found, weights, largest) {
    const { context } = this, { size, top, left, step, query } = found;
    for (let r = 0, k = 0; r < size; r++) {
      for (let c = 0; c < size; c++, k++) {
        const t = scaled(weights[k], largest);
        context.fillStyle = colour(t);
        context.globalAlpha = 0.15 + 0.7 * t;
        context.fillRect(...this.rectangle(top + r * step, left + c * step, step, step));
      }
    }
    context.globalAlpha = 1;
    this.outline(this.rectangle(top, left, size * step, size * step), "#fff");
    this.cell(found, query, "#fff");
  }

  cell({ top, left, step }, [r, c], colour) {
    this.outline(this.rectangle(top + r * step, left + c * step, step, step), colour);
  }

  // A map of the whole image.
  map(values, height, width) {
    const largest = brightest(values);
    paint(this.small, height, width, (k) => scaled(values[k], largest), { faint: true });
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(this.small, ...this.rectangle(0, 0, about.side, about.side));
  }

  boxes(guesses, chosen) {
    const names = [...new Set(about.guesses.map((guess) => guess.name))].sort();
    for (const guess of guesses) {
      const [top, left, bottom, right] = guess.box;
      const box = this.rectangle(top, left, bottom - top, right - left);
      const hue = BOXES[names.indexOf(guess.name) % BOXES.length];
      this.context.globalAlpha = chosen && guess !== chosen ? 0.45 : 1;
      this.outline(box, hue);
      this.context.globalAlpha = 1;
      if (guess === chosen) {
        const [t, l, b, r] = guess.anchor;
        this.outline(this.rectangle(t, l, b - t, r - l), hue, [3, 3]);
        this.label(`${guess.name} ${guess.score.toFixed(2)}`, box[0], box[1], hue);
      }
    }
  }

  label(words, x, y, hue) {
    const { context } = this, size = 13 * devicePixelRatio;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const width = context.measureText(words).width + size;
    const top = Math.max(y - 1.5 * size, 0), left = Math.min(x, this.canvas.width - width);
    context.fillStyle = hue;
    context.fillRect(left, top, width, 1.5 * size);
    context.fillStyle = "#000";
    context.fillText(words, left + size / 2, top + 1.1 * size);
  }
}

function hatching() {
  const size = 6 * Math.ceil(devicePixelRatio);
  const tile = element("canvas", { width: size, height: size });
  const context = tile.getContext("2d");
  context.strokeStyle = css("--hatch");
  context.lineWidth = size / 6;
  for (const shift of [-size, 0, size]) {
    context.moveTo(shift, size);
    context.lineTo(shift + size, 0);
  }
  context.stroke();
  return tile;
}
