// The embedding map: a point a frame, drawn pixel by pixel; a lasso picks, the wheel zooms.

class EmbeddingMap {
  constructor(state, { pick, open }) {
    Object.assign(this, { state, pick, open });
    this.view = { scale: 1, x: 0, y: 0 };
    this.by = make("select", { title: "Colour by", "aria-label": "colour by", onchange: () => this.recolour() });
    for (const name of ["role", "light", "weather", "arm"]) {
      if (state.data.columns[name]?.values.length > 1) this.by.append(make("option", {}, name));
    }
    if (state.data.models.length) this.by.append(make("option", {}, "missed"));
    if (!this.by.options.length) this.by.append(make("option", {}, "drive"));
    this.canvas = make("canvas", {
      class: "wb-map", tabIndex: 0, role: "img", "aria-label": "embedding map",
      onwheel: (event) => this.wheel(event),
      onpointerdown: (event) => this.press(event),
      onpointermove: (event) => this.point(event),
      onpointerup: (event) => this.release(event),
      ondblclick: () => this.reset(),
    });
    this.legend = make("div", { class: "wb-legend" });
    this.element = make("div", { class: "wb-panel wb-map-panel" },
      make("div", { class: "wb-panel-head" }, make("b", {}, "Map"),
        make("span", { class: "wb-quiet" }, "draw a lasso · wheel zooms · Shift drags"), this.by),
      this.canvas, this.legend);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
    state.addEventListener("changed", ({ detail }) => {
      if (detail === "layers") return;
      if (detail === "hover" || detail === "focus") return this.overlay();
      this.schedule();
    });
    this.recolour();
  }

  recolour() {
    const { data } = this.state, name = this.by.value;
    let codes, values;
    if (name === "missed") {
      const { missed } = this.state.count();
      codes = Uint16Array.from(missed, (one) => Math.min(one, 3));
      values = ["0", "1", "2", "3 or more"];
    } else {
      ({ codes, values } = data.columns[name]);
    }
    const ramp = ["#9aa0a6", "#f0c27a", "#e69f00", "#d55e00"];
    const known = values.filter((one) => one && one !== "unknown");
    const colours = values.map((one) => (name === "missed" ? ramp[values.indexOf(one)]
      : known.includes(one) ? data.palette[known.indexOf(one) % data.palette.length] : "#8e8e93"));
    this.colours = colours.map((colour) => {
      return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    });
    this.codes = codes;
    this.legend.replaceChildren(...values.slice(0, 8).map((value, k) => {
      const dot = make("i", { class: "wb-dot" });
      dot.style.background = colours[k];
      return make("span", {}, dot, value || "none");
    }));
    this.draw();
  }

  place(frame) {
    const { points } = this.state.data, { view, size } = this;
    return [(points[2 * frame] * view.scale + view.x) * size.side + size.left,
      (points[2 * frame + 1] * view.scale + view.y) * size.side + size.top];
  }

  schedule() {
    cancelAnimationFrame(this.request);
    this.request = requestAnimationFrame(() => this.draw());
  }

  draw() {
    const { pen, w, h, ratio } = sizedPen(this.canvas);
    if (!w || !this.colours) return;
    const side = Math.min(w, h) - 24;
    this.size = { side, left: (w - side) / 2, top: (h - side) / 2 };
    cancelAnimationFrame(this.request);
    const { data, position, shown: frames } = this.state;
    const [width, height] = [this.canvas.width, this.canvas.height];
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const pack = ([r, g, b], alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
    const strong = this.colours.map((one) => pack(one, 235));
    const weak = this.colours.map((one) => pack(one, 45));
    const dot = Math.max(2, Math.round((data.n > 20000 ? 1.5 : data.n > 3000 ? 3 : 5) * ratio));
    const half = dot >> 1;
    const rows = Array.from({ length: dot }, (_, y) => { // of a disc: first column and length
      const reach = Math.sqrt(Math.max(0, (dot / 2) ** 2 - (y + 0.5 - dot / 2) ** 2));
      const first = Math.max(0, Math.round(dot / 2 - reach));
      return [first, dot - 2 * first];
    });
    const all = frames.length === data.n;
    const { points } = data, { view, size } = this;
    const kx = view.scale * side * ratio, ky = kx;
    const ox = (view.x * side + size.left) * ratio, oy = (view.y * side + size.top) * ratio;
    const pass = (shown) => {
      for (let f = 0; f < data.n; f++) {
        if (!all && position[f] >= 0 !== shown) continue;
        const colour = (shown ? strong : weak)[this.codes[f]];
        const x0 = Math.round(points[2 * f] * kx + ox) - half;
        const y0 = Math.round(points[2 * f + 1] * ky + oy) - half;
        if (x0 < 0 || y0 < 0 || x0 + dot > width || y0 + dot > height) continue;
        for (let y = 0; y < dot; y++) {
          const from = (y0 + y) * width + x0 + rows[y][0];
          for (let at = from; at < from + rows[y][1]; at++) pixels[at] = colour;
        }
      }
    };
    if (!all) pass(false);
    pass(true);
    pen.putImageData(image, 0, 0);
    this.picture = image;
    this.overlay(false);
  }

  // The ring of the focused frame and the lasso, above the points.
  overlay(restore = true) {
    if (!this.size) return;
    const { pen } = { pen: this.canvas.getContext("2d") };
    if (restore && this.picture) pen.putImageData(this.picture, 0, 0);
    const style = getComputedStyle(this.element);
    const ink = style.getPropertyValue("--wb-ink").trim() || "#000";
    const accent = style.getPropertyValue("--wb-accent").trim() || "#1976d2";
    for (const frame of this.state.marks.size < 5000 ? this.state.marks : []) {
      const [x, y] = this.place(frame);
      pen.strokeStyle = accent;
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.arc(x, y, 4, 0, 7);
      pen.stroke();
    }
    for (const [frame, radius] of [[this.state.hover, 5], [this.state.focus, 8]]) {
      if (frame === undefined) continue;
      const [x, y] = this.place(frame);
      pen.strokeStyle = ink;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.stroke();
    }
    if (this.lasso?.length > 1) {
      pen.beginPath();
      this.lasso.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
      pen.closePath();
      pen.fillStyle = accent;
      pen.globalAlpha = 0.12;
      pen.fill();
      pen.globalAlpha = 1;
      pen.strokeStyle = accent;
      pen.lineWidth = 1.5;
      pen.stroke();
    }
  }

  spot(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  wheel(event) {
    event.preventDefault();
    const [x, y] = this.spot(event), { view, size } = this;
    const factor = Math.exp(-event.deltaY / 300);
    const scale = Math.max(1, Math.min(80, view.scale * factor));
    if (scale === 1) return this.reset();
    const [px, py] = [(x - size.left) / size.side, (y - size.top) / size.side];
    view.x = px - ((px - view.x) * scale) / view.scale;
    view.y = py - ((py - view.y) * scale) / view.scale;
    view.scale = scale;
    this.schedule();
  }

  reset() {
    this.view = { scale: 1, x: 0, y: 0 };
    this.draw();
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.moves = event.shiftKey;
    this.lasso = [this.spot(event)];
  }

  point(event) {
    if (!this.lasso || !event.buttons) return;
    if (this.moves) {
      this.view.x += event.movementX / this.size.side;
      this.view.y += event.movementY / this.size.side;
      this.schedule();
    } else {
      this.lasso.push(this.spot(event));
      this.overlay();
    }
  }

  release(event) {
    const { lasso } = this;
    this.lasso = null;
    if (!lasso || this.moves) return;
    if (lasso.length < 4) {
      const frame = this.nearest(...this.spot(event));
      if (frame >= 0) this.open(frame);
      return;
    }
    const began = performance.now();
    this.pick(this.inside(lasso), "lasso");
    this.draw();
    this.lassoMs = performance.now() - began;
    this.element.dataset.lassoMs = this.lassoMs.toFixed(1);
  }

  inside(lasso) {
    const { data } = this.state, { view, size } = this;
    // The lasso in coordinates of the map, so that points need no arithmetic.
    const ring = lasso.map(([x, y]) => [((x - size.left) / size.side - view.x) / view.scale,
      ((y - size.top) / size.side - view.y) / view.scale]);
    const xs = ring.map((one) => one[0]), ys = ring.map((one) => one[1]);
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    // Of a long ring, a point meets only the edges that pass its height.
    const STRIPS = 128, strip = (y) => Math.min(STRIPS - 1, Math.floor(((y - y0) / (y1 - y0)) * STRIPS));
    const edges = Array.from({ length: STRIPS }, () => []);
    for (let a = 0, b = ring.length - 1; a < ring.length; b = a++) {
      if (ys[a] === ys[b]) continue;
      const [low, high] = ys[a] < ys[b] ? [a, b] : [b, a];
      for (let s = strip(ys[low]); s <= strip(ys[high]); s++) edges[s].push(a, b);
    }
    const found = [], { points } = data;
    for (let f = 0; f < data.n; f++) {
      const x = points[2 * f], y = points[2 * f + 1];
      if (x < x0 || x > x1 || y < y0 || y > y1) continue;
      let odd = false;
      const near = edges[strip(y)];
      for (let k = 0; k < near.length; k += 2) {
        const a = near[k], b = near[k + 1];
        if ((ys[a] > y) !== (ys[b] > y) &&
            x < ((xs[b] - xs[a]) * (y - ys[a])) / (ys[b] - ys[a]) + xs[a]) odd = !odd;
      }
      if (odd) found.push(f);
    }
    return found;
  }

  nearest(x, y) {
    let best = -1, least = 100;
    for (const frame of this.state.shown) {
      const [px, py] = this.place(frame);
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) [best, least] = [frame, far];
    }
    return best;
  }

  // By keyboard: all within a circle around the focused frame.
  circle() {
    const [x, y] = this.place(this.state.focus);
    const ring = Array.from({ length: 24 }, (_, k) =>
      [x + 40 * Math.cos((k * Math.PI) / 12), y + 40 * Math.sin((k * Math.PI) / 12)]);
    this.pick(this.inside(ring), "near the focused frame");
  }

  close() {
    this.observer.disconnect();
  }
}
