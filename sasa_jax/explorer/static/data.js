// ---- data.js: what Python stored (explorer/packing.py, explorer/page.py). ----

const about = JSON.parse(document.getElementById("about").textContent);

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return bytes;
}

// Python's base 85, with "/" for "<": five characters for four bytes, the last group cut short.
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
  + "!#$%&()*+-;/=>?@^_`{|}~";
const DIGIT = new Uint8Array(128);
for (let k = 0; k < 85; k++) DIGIT[DIGITS.charCodeAt(k)] = k;

function bytesOf85(text) {
  const bytes = new Uint8Array(4 * Math.ceil(text.length / 5)), view = new DataView(bytes.buffer);
  for (let k = 0, at = 0; k < text.length; k += 5, at += 4) {
    let number = 0;
    for (let d = k; d < k + 5; d++) {
      number = 85 * number + (d < text.length ? DIGIT[text.charCodeAt(d)] : 84);
    }
    view.setUint32(at, number);
  }
  return bytes.subarray(0, Math.floor((4 * text.length) / 5));
}

async function inflate(name) {
  const element = document.querySelector(`script[data-name="${name}"]`);
  const packed = new Blob([bytesOf85(element.textContent)]).stream();
  element.remove();
  const stream = packed.pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// An array of `packing.pack`: the differences along its last axis summed up again.
async function unpack(name, width) {
  const bytes = await inflate(name);
  for (let row = 0; row < bytes.length; row += width) {
    for (let k = row + 1; k < row + width; k++) bytes[k] += bytes[k - 1]; // modulo 256
  }
  return bytes;
}

// Codes of `packing.pack_codes`, [N, K, K, H W]: what was predicted is added again.
async function unpackCodes(name, size, area) {
  const codes = await inflate(name);
  const own = new Int32Array(area), their = new Int32Array(area);
  const above = Array.from({ length: size }, () => new Int32Array(area));
  for (let at = 0; at < codes.length;) {
    for (const sums of above) sums.fill(0);
    for (let a = 0; a < size; a++) {
      own.fill(0);
      their.fill(0);
      for (let b = 0; b < size; b++) {
        const sums = above[b];
        for (let p = 0; p < area; p++, at++) {
          let guess = 0;
          if (a && b) {
            guess = their[p] ? Math.floor((own[p] * sums[p]) / their[p]) : own[p];
          } else if (a || b) {
            guess = codes[at - (b ? 1 : size) * area];
          }
          codes[at] += Math.min(guess, 255); // modulo 256
          own[p] += codes[at];
          their[p] += sums[p];
          sums[p] += codes[at];
        }
      }
    }
  }
  return codes;
}

// A layer whose queries see the K x K places around them.
class WindowLayer {
  constructor(entry) {
    Object.assign(this, entry); // name, height, width, heads, window, pixels, padded
    this.bases = about.bases[this.name];
    this.values = new Float32Array(entry.heads * entry.window ** 2);
    this.loading = null;
    this.codes = null;
    this.largest = 0;
  }

  load() {
    this.loading ??= (async () => {
      const [codes, tops, position] = await Promise.all(
        [unpackCodes(`${this.name} codes`, this.window, this.height * this.width),
          unpack(`${this.name} tops`, this.width),
          this.bases && unpack(`${this.name} position`, this.width)]);
      this.coordinates = this.bases && new Int8Array(position.buffer);
      this.steps = new Float32Array(tops.length / 2);
      for (let k = 0; k < this.steps.length; k++) {
        this.steps[k] = (tops[k] + 256 * tops[k + this.steps.length]) / (65535 * about.levels);
        this.largest = Math.max(this.largest, this.steps[k] * about.levels);
      }
      this.codes = codes;
    })();
    return this.loading;
  }

  get ready() { return this.codes !== null; }

  // The window of the place that pixel (row, column) lies in; weights [N, K, K].
  at(row, column) {
    const { height, width, heads, window: size, pixels, values } = this;
    const i = Math.min(Math.floor(row / pixels), height - 1);
    const j = Math.min(Math.floor(column / pixels), width - 1);
    const place = i * width + j, area = height * width, slots = size * size;
    for (let head = 0, k = 0; head < heads; head++) {
      const step = this.steps[head * area + place];
      for (let slot = 0; slot < slots; slot++, k++) values[k] = this.codes[k * area + place] * step;
    }
    const half = size >> 1;
    return { size, i, j, values, step: pixels, top: (i - half) * pixels,
      left: (j - half) * pixels, query: [half, half],
      inside: (r, c) => i + r >= half && i + r < height + half
        && j + c >= half && j + c < width + half,
      error: (head) => this.steps[head * area + place] / 2,
      position: this.bases && ((head) => this.positionOf(head, place)) };
  }

  // q . r of one head, [K, K], less its mean; see `position_logits` in explorer/network.py.
  positionOf(head, place) {
    const area = this.height * this.width, step = about.positionSteps[this.name][head];
    const [rows, columns] = this.bases.map((bases, axis) => {
      const basis = bases[bases.length > 1 ? head : 0], rank = basis[0].length;
      const coordinate = (r) => step * this.coordinates[((2 * head + axis) * rank + r) * area + place];
      return basis.map((each) => each.reduce((sum, x, r) => sum + x * coordinate(r), 0));
    });
    return Float32Array.from(rows.flatMap((row) => columns.map((column) => row + column)));
  }

  // Mean over the heads, [H, W, K, K]; for the reach.
  get mean() {
    if (this.meanValues) return this.meanValues;
    const { heads, height, width, window: size } = this;
    const area = height * width, slots = size * size;
    const mean = new Float32Array(area * slots);
    for (let head = 0; head < heads; head++) {
      for (let slot = 0; slot < slots; slot++) {
        const codes = (head * slots + slot) * area;
        for (let place = 0; place < area; place++) {
          mean[place * slots + slot] +=
            this.codes[codes + place] * this.steps[head * area + place] / heads;
        }
      }
    }
    return (this.meanValues = mean);
  }
}

// The attention stem: every pixel sees the 16 of its 4 x 4 block. Computed from the pixels.
class StemLayer {
  constructor(entry, pixels) {
    Object.assign(this, entry);
    this.image = pixels;
    this.block = new Float32Array(this.heads * 256);
    this.values = new Float32Array(this.heads * 16);
    this.largest = 1;
    this.ready = true;
  }

  load() { return Promise.resolve(); }

  // The pixels of block (i, j) as the network sees them: [16, 3].
  pixelsAt(i, j) {
    const { side, mean, deviation } = about;
    return Array.from({ length: 16 }, (_, p) => {
      const at = (4 * i + (p >> 2)) * side + 4 * j + (p & 3);
      return [0, 1, 2].map((c) => (this.image[c * side * side + at] - mean[c]) / deviation[c]);
    });
  }

  // All weights of block (i, j): [N, 16, 16].
  blockAt(i, j) {
    const { content, relative } = about.stem, x = this.pixelsAt(i, j);
    for (let head = 0; head < this.heads; head++) {
      for (let p = 0; p < 16; p++) {
        const row = this.block.subarray(head * 256 + p * 16, head * 256 + p * 16 + 16);
        const query = [0, 1, 2].map((e) =>
          x[p].reduce((sum, value, c) => sum + value * content[head][c][e], 0));
        let largest = -Infinity, sum = 0;
        for (let key = 0; key < 16; key++) {
          const r = relative[head][p][key];
          let logit = 0;
          for (let c = 0; c < 3; c++) logit += query[c] * x[key][c] + x[p][c] * r[c];
          row[key] = logit;
          largest = Math.max(largest, logit);
        }
        for (let key = 0; key < 16; key++) sum += row[key] = Math.exp(row[key] - largest);
        for (let key = 0; key < 16; key++) row[key] /= sum;
      }
    }
    return this.block;
  }

  // q . r of one head and query pixel, [4, 4].
  positionOf(head, i, j, p) {
    const x = this.pixelsAt(i, j)[p], keys = about.stem.relative[head][p];
    return Float32Array.from(keys, (r) => r.reduce((sum, value, c) => sum + x[c] * value, 0));
  }

  at(row, column) {
    const i = row >> 2, j = column >> 2, query = [row & 3, column & 3];
    const block = this.blockAt(i, j), p = 4 * query[0] + query[1];
    for (let head = 0; head < this.heads; head++) {
      this.values.set(block.subarray(head * 256 + p * 16, head * 256 + p * 16 + 16), head * 16);
    }
    return { size: 4, i, j, values: this.values, step: 1, top: 4 * i, left: 4 * j, query,
      inside: () => true, error: () => 0,
      position: about.tables[this.name] && ((head) => this.positionOf(head, i, j, p)) };
  }
}
