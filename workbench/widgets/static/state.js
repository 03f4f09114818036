// What the kernel sent about the frames, and what is worked out from it on the page.

const LABEL = 0xffff; // in place of a model's number: the box is a label
const FLOATS = 7, CODES = 4; // numbers of one box in `boxes` and in `codes`
const MATCH_IOU = 0.5;

const VERDICT = { none: 0, hit: 1, missed: 2, wrong: 3 };
// Found and missed are the colors of workbench/data/drawing.py.
const VERDICT_COLOURS = ["#8e8e93", "#009e73", "#d55e00", "#e69f00"];
const VERDICT_NAMES = ["does not count", "found", "missed", "false box"];
const FLIP_NAMES = { both: "both find it", gained: "only the second", lost: "only the first", neither: "neither" };
const FLIP_COLOURS = { both: "#009e73", gained: "#0072b2", lost: "#d55e00", neither: "#8e8e93" };

function unpack(header, buffers) {
  // A buffer may start anywhere in the message, so its bytes are copied to be aligned.
  const bytes = buffers.map((one) =>
    one instanceof ArrayBuffer
      ? one.slice(0)
      : one.buffer.slice(one.byteOffset, one.byteOffset + one.byteLength));
  const array = (name, Kind) => new Kind(bytes[header.buffers.indexOf(name)]);
  return {
    ...header,
    ids: array("ids", Uint8Array),
    offsets: array("offsets", Uint32Array),
    boxes: array("boxes", Float32Array),
    codes: array("codes", Uint16Array),
    sizes: array("sizes", Uint16Array),
    index: array("index", Int32Array),
    time: array("time", Float64Array),
    slices: array("slices", Uint32Array),
    points: header.buffers.includes("points") ? array("points", Float32Array) : null,
    columns: Object.fromEntries(
      header.columns.map(({ name, values }) => [name, { values, codes: array(name, Uint16Array) }])),
  };
}

function frameId(data, frame) {
  let text = "";
  for (const byte of data.ids.subarray(frame * 32, frame * 32 + 32)) {
    text += byte.toString(16).padStart(2, "0");
  }
  return text;
}

function valueOf(data, column, frame) {
  const { values, codes } = data.columns[column];
  return values[codes[frame]];
}

function overlap(boxes, a, b) {
  const i = a * FLOATS, j = b * FLOATS;
  const w = Math.min(boxes[i + 2], boxes[j + 2]) - Math.max(boxes[i], boxes[j]);
  const h = Math.min(boxes[i + 3], boxes[j + 3]) - Math.max(boxes[i + 1], boxes[j + 1]);
  if (w <= 0 || h <= 0) return { iou: 0, inside: 0 };
  const areaA = (boxes[i + 2] - boxes[i]) * (boxes[i + 3] - boxes[i + 1]);
  const areaB = (boxes[j + 2] - boxes[j]) * (boxes[j + 3] - boxes[j + 1]);
  return { iou: (w * h) / (areaA + areaB - w * h), inside: (w * h) / areaA };
}

// The verdict on every box of a frame at a score: the best scored box takes the label of its class
// with the largest overlap, from IoU 0.5 on. Boxes in ignore regions do not count.
function judge(data, frame, model, score) {
  const { boxes, codes, offsets } = data;
  const first = offsets[frame], last = offsets[frame + 1];
  const verdicts = new Uint8Array(last - first);
  const labels = [], ignored = [];
  for (let at = first; at < last; at++) {
    if (codes[at * CODES + 1] !== LABEL) continue;
    (codes[at * CODES + 3] & 1 ? ignored : labels).push(at);
  }
  for (const at of labels) verdicts[at - first] = VERDICT.missed;
  for (let at = first; at < last; at++) { // predictions lie in order of falling score
    if (codes[at * CODES + 1] !== model || boxes[at * FLOATS + 4] < score) continue;
    const cls = codes[at * CODES];
    let best = -1, most = MATCH_IOU;
    for (const label of labels) {
      if (codes[label * CODES] !== cls || verdicts[label - first] === VERDICT.hit) continue;
      const { iou } = overlap(boxes, at, label);
      if (iou >= most) [best, most] = [label, iou];
    }
    if (best >= 0) {
      verdicts[best - first] = verdicts[at - first] = VERDICT.hit;
    } else {
      const excused = ignored.some((region) =>
        (codes[region * CODES] === cls || data.classes[codes[region * CODES]] === "*") &&
        overlap(boxes, at, region).inside >= MATCH_IOU);
      if (!excused) verdicts[at - first] = VERDICT.wrong;
    }
  }
  return verdicts;
}

// For each box of a frame that is a label: what two models make of it.
function flips(data, frame, score) {
  const first = data.offsets[frame], count = data.offsets[frame + 1] - first;
  const [before, after] = [0, 1].map((model) => judge(data, frame, model, score));
  const found = new Array(count).fill("");
  for (let k = 0; k < count; k++) {
    if (data.codes[(first + k) * CODES + 1] !== LABEL || before[k] === VERDICT.none) continue;
    const [a, b] = [before[k] === VERDICT.hit, after[k] === VERDICT.hit];
    found[k] = a && b ? "both" : b ? "gained" : a ? "lost" : "neither";
  }
  return found;
}

// Filters, order, marks: one state that all views of the widget share.
class State extends EventTarget {
  constructor(data) {
    super();
    this.data = data;
    this.filters = { cls: "", slice: "", drive: "", origin: "", role: "", arm: "", kind: "" };
    this.model = 0;
    this.compare = false;
    this.score = data.score;
    this.layers = {
      labels: true, predictions: data.models.length > 0, difference: false,
    };
    this.order = "given";
    this.marks = new Set();
    this.subset = null; // {frames, title, notes}: what a lasso, a search or the kernel chose
    this.focus = 0; // a frame
    this.counts = null;
    this.update();
  }

  changed(what) {
    this.dispatchEvent(new CustomEvent("changed", { detail: what }));
  }

  // Misses, false boxes and flips of every frame, at this score, of this model, in this class.
  count() {
    const key = [this.model, this.score, this.filters.cls, this.compare].join("|");
    if (this.counts && this.counts.key === key) return this.counts;
    const { data } = this, n = data.n;
    const counts = {
      key, missed: new Uint16Array(n), wrong: new Uint16Array(n),
      gained: new Uint16Array(n), lost: new Uint16Array(n),
    };
    const wanted = data.classes.indexOf(this.filters.cls);
    for (let frame = 0; frame < n; frame++) {
      const first = data.offsets[frame];
      const tally = (k, name) => {
        if (wanted < 0 || data.codes[(first + k) * CODES] === wanted) counts[name][frame]++;
      };
      if (this.compare) {
        flips(data, frame, this.score).forEach((flip, k) => {
          if (flip === "gained" || flip === "lost") tally(k, flip);
        });
      }
      judge(data, frame, this.model, this.score).forEach((verdict, k) => {
        if (verdict === VERDICT.missed) tally(k, "missed");
        else if (verdict === VERDICT.wrong) tally(k, "wrong");
      });
    }
    this.counts = counts;
    return counts;
  }

  // Whether a box is there at all: a label of the model's class list, or a box above the score.
  present(at) {
    const model = this.data.codes[at * CODES + 1];
    if (model === LABEL) return true;
    if (this.compare ? model > 1 : model !== this.model) return false;
    return this.data.boxes[at * FLOATS + 4] >= this.score;
  }

  update() {
    const { data, filters } = this;
    const columns = ["drive", "role", "arm"].filter((name) => filters[name] && data.columns[name])
      .map((name) => [data.columns[name].codes, data.columns[name].values.indexOf(filters[name])]);
    const bit = data.slice_names.indexOf(filters.slice);
    const cls = data.classes.indexOf(filters.cls);
    const origin = data.origins.indexOf(filters.origin);
    const { kind } = filters;
    const wants = kind && kind !== "marked";
    const counts = wants || this.order !== "given" ? this.count() : null;
    const passes = (frame) => {
      for (const [codes, value] of columns) if (codes[frame] !== value) return false;
      if (bit >= 0 && !(data.slices[frame] & (1 << bit))) return false;
      if (kind === "marked" && !this.marks.has(frame)) return false;
      if (kind === "flipped" && !(counts.gained[frame] || counts.lost[frame])) return false;
      if (wants && kind !== "flipped" && !counts[kind][frame]) return false;
      if (cls < 0 && origin < 0) return true;
      if (cls >= 0 && origin < 0 && wants) return true; // counted within the class already
      for (let at = data.offsets[frame]; at < data.offsets[frame + 1]; at++) {
        if (cls >= 0 && data.codes[at * CODES] !== cls) continue;
        if (origin >= 0 && (data.codes[at * CODES + 1] !== LABEL ||
            data.codes[at * CODES + 2] !== origin)) continue;
        if (this.present(at)) return true;
      }
      return false;
    };
    const all = this.subset ? this.subset.frames : Uint32Array.from({ length: data.n }, (_, f) => f);
    const unfiltered = !columns.length && bit < 0 && !kind && cls < 0 && origin < 0;
    this.shown = unfiltered ? all.slice() : all.filter(passes);
    if (this.order === "missed" || this.order === "wrong") {
      const by = counts[this.order];
      this.shown.sort((a, b) => by[b] - by[a]);
    } else if (this.order === "time") {
      const drives = data.columns.drive.codes;
      this.shown.sort((a, b) => drives[a] - drives[b] || data.index[a] - data.index[b]);
    }
    this.position = new Int32Array(data.n).fill(-1); // of a frame among those shown
    for (let at = 0; at < this.shown.length; at++) this.position[this.shown[at]] = at;
    if (this.position[this.focus] < 0) this.focus = this.shown[0] ?? 0;
    this.changed("shown");
  }

  mark(frames, on) {
    for (const frame of frames) {
      if (on ?? !this.marks.has(frame)) this.marks.add(frame);
      else this.marks.delete(frame);
    }
    this.changed("marks");
  }

  // Frames of the same drive, in time.
  drive(frame) {
    const { codes } = this.data.columns.drive;
    if (!this.byDrive) {
      this.byDrive = new Map();
      for (let f = 0; f < this.data.n; f++) {
        if (!this.byDrive.has(codes[f])) this.byDrive.set(codes[f], []);
        this.byDrive.get(codes[f]).push(f);
      }
      for (const frames of this.byDrive.values()) {
        frames.sort((a, b) => this.data.index[a] - this.data.index[b]);
      }
    }
    return this.byDrive.get(codes[frame]);
  }
}

// Boxes of a frame on a canvas. `place` maps pixels of the frame to pixels of the canvas.
function drawBoxes(pen, state, frame, place, { line = 1.5, selected = -1, text = false } = {}) {
  const { data, layers } = state;
  const wanted = data.classes.indexOf(state.filters.cls);
  const first = data.offsets[frame];
  const verdicts = layers.difference && !state.compare
    ? judge(data, frame, state.model, state.score) : null;
  const flipped = layers.difference && state.compare ? flips(data, frame, state.score) : null;
  for (let at = first; at < data.offsets[frame + 1]; at++) {
    const [cls, model] = [data.codes[at * CODES], data.codes[at * CODES + 1]];
    const label = model === LABEL;
    if (!state.present(at)) continue;
    if (!layers.difference && !(label ? layers.labels : layers.predictions)) continue;
    let colour = data.colours[cls];
    if (verdicts) {
      // A found object is drawn once, by its label.
      if (!label && verdicts[at - first] !== VERDICT.wrong) continue;
      colour = VERDICT_COLOURS[verdicts[at - first]];
    }
    if (flipped) {
      if (!label) continue;
      colour = FLIP_COLOURS[flipped[at - first]] ?? VERDICT_COLOURS[0];
    }
    const [x1, y1] = place(data.boxes[at * FLOATS], data.boxes[at * FLOATS + 1]);
    const [x2, y2] = place(data.boxes[at * FLOATS + 2], data.boxes[at * FLOATS + 3]);
    pen.globalAlpha = wanted >= 0 && cls !== wanted ? 0.25 : 1;
    const width = at === selected ? line * 2 : line;
    pen.setLineDash([]);
    pen.lineWidth = width + 1.5;
    pen.strokeStyle = "rgba(0, 0, 0, 0.55)"; // a rim, so that every colour is seen on every image
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    pen.setLineDash(label ? [] : [5, 3]);
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    if (text && (at === selected || x2 - x1 > 46)) {
      tag(pen, describeBox(data, at), x1, y1, colour);
    }
  }
  pen.setLineDash([]);
  pen.globalAlpha = 1;
}

function describeBox(data, at) {
  const name = data.classes[data.codes[at * CODES]].replaceAll("_", " ");
  const score = data.boxes[at * FLOATS + 4];
  return Number.isNaN(score) ? name : `${name} ${score.toFixed(2)}`;
}

function tag(pen, words, x, y, colour) {
  pen.font = "11px system-ui, sans-serif";
  const width = pen.measureText(words).width + 8;
  const top = y >= 15 ? y - 15 : y;
  pen.fillStyle = "rgba(18, 20, 24, 0.82)";
  pen.fillRect(x, top, width, 15);
  pen.fillStyle = colour;
  pen.fillRect(x, top, 2, 15);
  pen.fillStyle = "#fff";
  pen.fillText(words, x + 5, top + 11);
}

// Images by frame: encoded bytes of many, decoded ones of few, the longest unused leave first.
class Images {
  constructor(ask, kind, { encoded, decoded, batch }) {
    Object.assign(this, { ask, kind, batch });
    this.limits = { encoded, decoded };
    this.blobs = new Map();
    this.bitmaps = new Map();
    this.waiting = new Set();
    this.failed = new Map();
    this.watchers = new Set();
  }

  get(frame) {
    const bitmap = this.bitmaps.get(frame);
    if (bitmap) {
      this.bitmaps.delete(frame);
      this.bitmaps.set(frame, bitmap);
    }
    return bitmap;
  }

  // Ask for what is not here, the first of `frames` first.
  want(frames) {
    const missing = [];
    for (const frame of frames) {
      if (this.bitmaps.has(frame) || this.waiting.has(frame) || this.failed.has(frame)) continue;
      const blob = this.blobs.get(frame);
      this.waiting.add(frame);
      if (blob) this.decode(frame, blob);
      else missing.push(frame);
    }
    for (let at = 0; at < missing.length; at += this.batch) {
      this.ask({ type: "images", kind: this.kind, frames: missing.slice(at, at + this.batch) });
    }
  }

  async receive(frame, bytes, error) {
    if (error) {
      this.waiting.delete(frame);
      this.failed.set(frame, error);
      this.tell(frame);
      return;
    }
    const blob = new Blob([bytes]);
    this.blobs.delete(frame);
    this.blobs.set(frame, blob);
    if (this.blobs.size > this.limits.encoded) this.blobs.delete(this.blobs.keys().next().value);
    await this.decode(frame, blob);
  }

  async decode(frame, blob) {
    try {
      // Boxes are in pixels as stored: an orientation tag must not turn the image.
      this.bitmaps.set(frame, await createImageBitmap(blob, { imageOrientation: "none" }));
    } catch (problem) {
      this.failed.set(frame, String(problem));
    }
    this.waiting.delete(frame);
    while (this.bitmaps.size > this.limits.decoded) {
      const [oldest, bitmap] = this.bitmaps.entries().next().value;
      bitmap.close();
      this.bitmaps.delete(oldest);
    }
    this.tell(frame);
  }

  tell(frame) {
    for (const watcher of this.watchers) watcher(frame);
  }

  close() {
    for (const bitmap of this.bitmaps.values()) bitmap.close();
    this.bitmaps.clear();
    this.blobs.clear();
    this.watchers.clear();
  }
}

function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

// A canvas as large as its element, in device pixels; the pen works in CSS pixels.
// Asking an element for its size makes the browser lay out the whole page: pass a size that is known.
function sizedPen(canvas, w = canvas.clientWidth, h = canvas.clientHeight) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(w * ratio)) canvas.width = Math.round(w * ratio);
  if (canvas.height !== Math.round(h * ratio)) canvas.height = Math.round(h * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, w, h);
  return { pen, w, h, ratio };
}
