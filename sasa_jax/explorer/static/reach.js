// ---- reach.js: attention rollout, as explorer/network.py defines it. ----

class Reach {
  constructor(layers) {
    this.layers = layers;
    this.stages = about.stages;
    this.index = new Map(this.stages.map((stage, k) => [stage.name, k]));
  }

  // The layers that the reach of this one passes through, itself the last, in the network's order.
  through(name) {
    const found = [];
    const visit = (stage) => {
      if (!stage || found.includes(stage.name)) return;
      found.push(stage.name);
      visit(this.stages[this.index.get(stage.source)]);
      visit(this.stages[this.index.get(stage.above)]);
    };
    visit(this.stages[this.index.get(name)]);
    return [...this.layers.values()].filter((layer) => found.includes(layer.name));
  }

  // Mass at the stem's map, and what padding took, of one unit at a query (i, j) of a layer.
  from(name, i, j) {
    const mass = new Map();
    const at = (stage) => {
      if (!mass.has(stage)) {
        const { height, width } = this.stages[this.index.get(stage)];
        mass.set(stage, new Float32Array(height * width));
      }
      return mass.get(stage);
    };
    const first = this.index.get(name), { source, kept, kind } = this.stages[first];
    if (kind === "stem") {
      at(name)[i * this.stages[first].width + j] = 1;
    } else {
      // The query itself, at the resolution of the layer's input: before the pool.
      const layer = this.layers.get(name);
      at(source)[i * layer.width + j] += kept;
      this.attend(layer, i, j, 1 - kept, at(source));
    }
    for (let k = first - 1; k > 0; k--) {
      const stage = this.stages[k];
      if (mass.has(stage.name) && stage.kind !== "stem") this.back(stage, at);
    }
    const map = at(this.stages[0].name);
    return { map, lost: Math.max(0, 1 - map.reduce((sum, value) => sum + value, 0)) };
  }

  back(stage, at) {
    const { name, height, width, source, above, stride, kept, kind } = stage;
    const mass = at(name), target = at(source), coarser = above && at(above);
    const from = this.stages[this.index.get(source)];
    const layer = this.layers.get(name);
    const half = above && this.stages[this.index.get(above)].width;
    for (let i = 0, k = 0; i < height; i++) {
      for (let j = 0; j < width; j++, k++) {
        const m = mass[k];
        if (m < 1e-9) continue;
        if (kind === "sum") {
          target[k] += above ? m / 2 : m;
          if (above) coarser[(i >> 1) * half + (j >> 1)] += m / 2;
          continue;
        }
        const y = i * stride, x = j * stride;
        if (kept) target[y * from.width + x] += m * kept;
        const rest = m * (1 - kept);
        if (kind === "convolution") {
          this.spread(from, y, x, rest / 9, target);
        } else if (stride === 1) {
          this.attend(layer, y, x, rest, target);
        } else {
          for (const r of [y, Math.min(y + 1, from.height - 1)]) {
            for (const c of [x, Math.min(x + 1, from.width - 1)]) {
              this.attend(layer, r, c, rest / 4, target);
            }
          }
        }
      }
    }
  }

  attend(layer, i, j, m, target) {
    const { height, width, window: size } = layer, half = size >> 1;
    let k = (i * width + j) * size * size;
    for (let y = i - half; y <= i + half; y++) {
      if (y < 0 || y >= height) { k += size; continue; }
      for (let x = j - half; x <= j + half; x++, k++) {
        if (x >= 0 && x < width) target[y * width + x] += m * layer.mean[k];
      }
    }
  }

  spread({ height, width }, i, j, m, target) {
    for (let y = Math.max(i - 1, 0); y <= Math.min(i + 1, height - 1); y++) {
      for (let x = Math.max(j - 1, 0); x <= Math.min(j + 1, width - 1); x++) {
        target[y * width + x] += m;
      }
    }
  }

  // Root mean square distance in pixels, and the smallest share of the image that holds 90 %.
  measure(map, row, column) {
    const { width, pixels } = this.stages[0];
    let total = 0, squares = 0;
    for (let k = 0; k < map.length; k++) {
      const y = (Math.floor(k / width) + 0.5) * pixels, x = (k % width + 0.5) * pixels;
      total += map[k];
      squares += map[k] * ((y - row - 0.5) ** 2 + (x - column - 0.5) ** 2);
    }
    const sorted = Float32Array.from(map).sort();
    let places = 0;
    for (let sum = 0; places < sorted.length && sum < 0.9 * total; places++) {
      sum += sorted[sorted.length - 1 - places];
    }
    return { distance: Math.sqrt(squares / total), share: places / map.length };
  }
}
