// One frame, large: zoom, pan, its objects and why some were missed, and its drive as a strip.

class FrameView {
  constructor(state, images, thumbnails, { like, why, nearest }) {
    Object.assign(this, { state, images, thumbnails, like, why, nearest });
    this.canvas = make("canvas", {
      class: "wb-image", role: "img",
      ondblclick: () => this.fit(),
      onwheel: (event) => this.wheel(event),
      onpointerdown: (event) => this.press(event),
      onpointermove: (event) => this.point(event),
      onpointerup: (event) => this.release(event),
    });
    this.facts = make("div", { class: "wb-facts" });
    this.objects = make("div", { class: "wb-objects", role: "list", "aria-label": "objects" });
    this.strip = make("canvas", {
      class: "wb-strip", title: "The drive: click to go to a moment, p plays",
      onpointerdown: (event) => this.seek(event),
      onpointermove: (event) => event.buttons && this.seek(event),
    });
    this.stripText = make("span", { class: "wb-strip-text" });
    this.hint = make("div", { class: "wb-hint", hidden: true });
    this.element = make("div", { class: "wb-frame", hidden: true },
      make("div", { class: "wb-main" },
        make("div", { class: "wb-picture" }, this.canvas, this.hint),
        make("aside", { class: "wb-side" }, this.facts, this.objects)),
      make("div", { class: "wb-drive" }, this.strip, this.stripText));
    this.reasons = new Map(); // frame to the cause of each missed label
    this.alike = new Map(); // frame/label to what training has that is like it
    this.redraw = (frame) => {
      if (frame === undefined || frame === this.frame) this.draw();
    };
    images.watchers.add(this.redraw);
    thumbnails.watchers.add(this.redraw);
    this.observer = new ResizeObserver(() => {
      this.fit();
      this.drawStrip();
    });
    this.observer.observe(this.canvas);
    state.addEventListener("changed", ({ detail }) => {
      if (this.element.hidden || detail === "hover") return;
      this.list();
      this.draw();
      this.drawStrip();
    });
  }

  show(frame) {
    const same = frame === this.frame;
    this.frame = frame;
    this.element.hidden = false;
    if (!same) {
      this.selected = -1;
      this.box = null;
      const [w, h] = [this.state.data.sizes[2 * frame], this.state.data.sizes[2 * frame + 1]];
      if (w !== this.width || h !== this.height) this.view = null;
      [this.width, this.height] = [w, h];
    }
    this.images.want([frame]);
    this.thumbnails.want([frame]);
    if (!this.view) this.fit();
    this.list();
    this.draw();
    this.drawStrip();
    if (!this.playing) {
      this.askWhy();
      const at = Math.max(0, this.state.position[frame]);
      const near = [at + 1, at - 1].map((one) => this.state.shown[one]);
      this.images.want(near.filter((one) => one !== undefined));
    }
  }

  hide() {
    this.element.hidden = true;
    this.play(false);
    this.drawing(false);
  }

  askWhy() {
    if (!this.state.data.can_explain || this.reasons.has(this.frame)) return;
    const counts = this.state.count();
    if (counts.missed[this.frame]) this.why(this.frame, this.state.model, this.state.score);
  }

  explain(frame, misses) {
    this.reasons.set(frame, misses);
    if (frame === this.frame) this.list();
  }

  tellNearest(frame, label, lines) {
    this.alike.set(`${frame}/${label}`, lines);
    if (frame === this.frame) this.list();
  }

  fit() {
    const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!w || !this.width) return;
    const scale = Math.min(w / this.width, h / this.height);
    this.fitted = scale;
    this.view = { scale, x: (w - this.width * scale) / 2, y: (h - this.height * scale) / 2 };
    this.draw();
  }

  place = (x, y) => [this.view.x + x * this.view.scale, this.view.y + y * this.view.scale];

  toFrame(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return [(event.clientX - left - this.view.x) / this.view.scale,
      (event.clientY - top - this.view.y) / this.view.scale];
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const { view } = this;
    const scale = Math.max(this.fitted, Math.min(16, view.scale * factor));
    if (scale === this.fitted) return this.fit();
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    this.draw();
  }

  pan(dx, dy) {
    this.view.x += dx;
    this.view.y += dy;
    this.draw();
  }

  get zoomed() {
    return this.view && this.view.scale > this.fitted * 1.001;
  }

  wheel(event) {
    event.preventDefault();
    const { left, top } = this.canvas.getBoundingClientRect();
    this.zoom(Math.exp(-event.deltaY / 400), event.clientX - left, event.clientY - top);
  }

  drawing(on) {
    this.draws = on;
    this.hint.hidden = !on;
    this.hint.textContent = "Draw a box around what to look for · l searches for the whole frame";
    this.canvas.style.cursor = on ? "crosshair" : "";
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.start = { at: this.toFrame(event), x: event.clientX, y: event.clientY, moved: false };
  }

  point(event) {
    if (!this.start || !event.buttons) return;
    const [dx, dy] = [event.clientX - this.start.x, event.clientY - this.start.y];
    if (Math.hypot(dx, dy) > 3) this.start.moved = true;
    if (this.draws) {
      const [x1, y1] = this.start.at, [x2, y2] = this.toFrame(event);
      const inside = (value, most) => Math.max(0, Math.min(most, value));
      this.box = [inside(Math.min(x1, x2), this.width), inside(Math.min(y1, y2), this.height),
        inside(Math.max(x1, x2), this.width), inside(Math.max(y1, y2), this.height)];
      this.draw();
    } else if (this.start.moved) {
      this.pan(event.movementX, event.movementY);
    }
  }

  release(event) {
    const { start } = this;
    this.start = null;
    if (!start) return;
    if (this.draws) {
      const { box } = this;
      if (!box || box[2] - box[0] < 4 || box[3] - box[1] < 4) return;
      this.drawing(false);
      this.like(this.frame, box, "");
    } else if (!start.moved) {
      this.choose(this.at(...this.toFrame(event)));
    }
  }

  // The smallest box under a point.
  at(x, y) {
    const { boxes } = this.state.data;
    let best = -1, smallest = Infinity;
    for (const one of this.listed) {
      const i = one.at * FLOATS;
      const inside = x >= boxes[i] && x <= boxes[i + 2] && y >= boxes[i + 1] && y <= boxes[i + 3];
      const area = (boxes[i + 2] - boxes[i]) * (boxes[i + 3] - boxes[i + 1]);
      if (inside && area < smallest) [best, smallest] = [one.at, area];
    }
    return best;
  }

  choose(at) {
    this.selected = at;
    const label = at - this.state.data.offsets[this.frame], key = `${this.frame}/${label}`;
    const missed = this.listed.some((one) => one.at === at && one.verdict === VERDICT.missed);
    if (missed && this.state.data.can_compare_training && !this.alike.has(key)) {
      this.alike.set(key, ["looking for the nearest training objects …"]);
      this.nearest(this.frame, label);
    }
    this.list();
    this.draw();
    this.objects.querySelector(".wb-chosen")?.scrollIntoView({ block: "nearest" });
  }

  step(by) {
    if (!this.listed.length) return;
    const now = this.listed.findIndex((one) => one.at === this.selected);
    const next = now < 0 ? (by > 0 ? 0 : this.listed.length - 1)
      : (now + by + this.listed.length) % this.listed.length;
    this.choose(this.listed[next].at);
  }

  lookCloser() {
    if (this.selected < 0 || this.zoomed) return this.selected < 0 && !this.zoomed
      ? this.zoom(2) : this.fit();
    const i = this.selected * FLOATS, { boxes } = this.state.data;
    const [w, h] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const size = Math.max(boxes[i + 2] - boxes[i], (boxes[i + 3] - boxes[i + 1]) * 1.6, 40);
    const scale = Math.max(this.fitted, Math.min(8, w / size / 5));
    this.view = {
      scale, x: w / 2 - ((boxes[i] + boxes[i + 2]) / 2) * scale,
      y: h / 2 - ((boxes[i + 1] + boxes[i + 3]) / 2) * scale,
    };
    this.draw();
  }

  searchSelected() {
    if (this.selected < 0) return this.like(this.frame, null, "");
    const i = this.selected * FLOATS, { data } = this.state;
    this.like(this.frame, [...data.boxes.slice(i, i + 4)],
      data.classes[data.codes[this.selected * CODES]]);
  }

  list() {
    const { state } = this, { data } = state, { frame } = this;
    const value = (name) => (data.columns[name] ? valueOf(data, name, frame) : "");
    const facts = ["role", "light", "weather", "arm"].map(value)
      .filter((one) => one && one !== "unknown" && one !== "none");
    this.facts.replaceChildren(
      make("div", { class: "wb-title" }, `${value("drive")} · ${data.index[frame]}`,
        make("span", { class: "wb-mark-state" }, state.marks.has(frame) ? "✓ marked" : "")),
      make("div", { class: "wb-quiet" }, facts.join(" · ") || "conditions unknown"),
      make("code", { class: "wb-quiet", title: frameId(data, frame) },
        frameId(data, frame).slice(0, 12)),
      ...(data.reasons?.[frame] ?? []).slice(0, 3).map((one) => make("p", {}, one)));
    const verdicts = judge(data, frame, state.model, state.score);
    const flipped = state.compare ? flips(data, frame, state.score) : null;
    const first = data.offsets[frame];
    this.listed = [];
    for (let at = first; at < data.offsets[frame + 1]; at++) {
      const label = data.codes[at * CODES + 1] === LABEL;
      if (!state.present(at) || (flipped && !label)) continue;
      const verdict = verdicts[at - first];
      // With a model, a found object stands once.
      if (data.models.length && !label && verdict === VERDICT.hit) continue;
      if (state.filters.cls && data.classes[data.codes[at * CODES]] !== state.filters.cls) continue;
      this.listed.push({ at, label, verdict, flip: flipped?.[at - first] });
    }
    const order = [3, 2, 0, 1];
    this.listed.sort((a, b) => order[b.verdict] - order[a.verdict] || a.at - b.at);
    this.listed.sort((a, b) =>
      (b.verdict === VERDICT.missed) - (a.verdict === VERDICT.missed));
    const misses = this.reasons.get(frame);
    this.objects.replaceChildren(...this.listed.map((one) => this.row(one, misses)));
    if (!this.listed.length) {
      this.objects.append(make("div", { class: "wb-quiet" }, "No objects in this frame."));
    }
    this.canvas.setAttribute("aria-label",
      `${value("drive")}, frame ${data.index[frame]}, ${plural(this.listed.length, "object")}`);
  }

  row({ at, label, verdict, flip }, misses) {
    const { data } = this.state;
    const name = data.classes[data.codes[at * CODES]].replaceAll("_", " ");
    const judged = data.models.length > 0;
    const words = flip ? FLIP_NAMES[flip] : judged ? VERDICT_NAMES[verdict] : "";
    const score = data.boxes[at * FLOATS + 4];
    const facts = [];
    if (!Number.isNaN(score)) facts.push(score.toFixed(2));
    for (const [k, word] of [[5, "occluded"], [6, "truncated"]]) {
      const share = data.boxes[at * FLOATS + k];
      if (share > 0) facts.push(`${Math.round(share * 100)} % ${word}`);
    }
    const origin = label ? data.origins[data.codes[at * CODES + 2]] : "";
    if (data.origins.length > 1) facts.push(origin.replaceAll("_", " "));
    const found = misses?.[at - data.offsets[this.frame]];
    const chosen = at === this.selected;
    const swatch = make("i", { class: label ? "wb-line" : "wb-line wb-dashed" });
    swatch.style.borderTopColor = data.colours[data.codes[at * CODES]];
    return make("div", {
      class: `wb-object${chosen ? " wb-chosen" : ""}`, role: "listitem",
      onclick: () => this.choose(at),
    },
    make("div", {}, swatch, make("b", {}, name),
      make("span", { class: "wb-quiet" }, facts.filter(Boolean).join(" · ")),
      make("span", { class: `wb-verdict wb-v${verdict}` }, words)),
    ...(found && chosen ? [
      make("p", { class: "wb-why" }, found),
      ...(this.alike.get(`${this.frame}/${at - data.offsets[this.frame]}`) ?? [])
        .map((one) => make("p", { class: "wb-why wb-quiet" }, one)),
    ] : found ? [make("div", { class: "wb-why wb-short" }, found)] : []));
  }

  draw() {
    if (this.element.hidden || !this.view) return;
    const { pen, w, h } = sizedPen(this.canvas);
    const bitmap = this.images.get(this.frame);
    const rough = bitmap ?? this.thumbnails.get(this.frame);
    const failed = this.images.failed.get(this.frame);
    const [left, top] = this.place(0, 0);
    if (rough) {
      pen.imageSmoothingEnabled = this.view.scale < 3 || !bitmap;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(rough, left, top, this.width * this.view.scale, this.height * this.view.scale);
    } else {
      pen.fillStyle = "rgba(128, 128, 128, 0.18)";
      pen.fillRect(left, top, this.width * this.view.scale, this.height * this.view.scale);
      pen.fillStyle = "#8e8e93";
      pen.font = "13px system-ui, sans-serif";
      pen.textAlign = "center";
      pen.fillText(failed ?? "Loading …", w / 2, h / 2);
      pen.textAlign = "left";
    }
    drawBoxes(pen, this.state, this.frame, this.place, {
      line: 2, selected: this.selected, text: this.zoomed,
    });
    if (this.selected >= 0) {
      const i = this.selected * FLOATS, { data } = this.state;
      tag(pen, describeBox(data, this.selected),
        ...this.place(data.boxes[i], data.boxes[i + 1]), data.colours[data.codes[this.selected * CODES]]);
    }
    if (this.box) drawMatch(pen, this.box, this.place);
  }

  // The drive as a strip: a column a frame, at its time; gaps stay empty and hatched.
  drawStrip() {
    const { state } = this, { data } = state;
    if (this.element.hidden) return;
    const frames = state.drive(this.frame);
    this.strip.hidden = frames.length < 2;
    if (frames.length < 2) {
      this.stripText.textContent = "the only frame of this drive here";
      return;
    }
    const { pen, w, h } = sizedPen(this.strip);
    if (!w) return;
    const timed = frames.every((one) => !Number.isNaN(data.time[one]));
    const times = frames.map((one, k) => (timed ? data.time[one] / 1e6 : k));
    const start = times[0], span = Math.max(times.at(-1) - start, 1e-9);
    const steps = times.slice(1).map((one, k) => one - times[k]).sort((a, b) => a - b);
    const usual = steps[Math.floor(steps.length / 2)] || 1;
    const width = frames.length > 1 ? w / (span / usual + 1) : Math.min(w, 24);
    const x = (k) => ((times[k] - start) / span) * (w - width) || 0;
    this.columnsOfStrip = frames.map((one, k) => [x(k), one]);
    const style = getComputedStyle(this.element);
    const quiet = style.getPropertyValue("--wb-quiet").trim() || "#8e8e93";
    const counts = data.models.length ? state.count() : null;
    const number = (frame, kind) => {
      let sum = 0;
      for (let at = data.offsets[frame]; at < data.offsets[frame + 1]; at++) {
        const label = data.codes[at * CODES + 1] === LABEL;
        if (kind === "labels" ? label : !label && state.present(at)) sum++;
      }
      return sum;
    };
    const tally = frames.map((one) => [number(one, "labels"), number(one, "predictions")]);
    const most = Math.max(1, ...tally.flat());
    const half = (h - 8) / 2;
    const column = Math.max(1, Math.min(width - 1, 14));
    frames.forEach((one, k) => {
      const left = x(k) + (width - column) / 2;
      const [labels, predictions] = tally[k];
      pen.fillStyle = quiet;
      pen.globalAlpha = 0.35;
      pen.fillRect(left, half - 1, column, 2);
      pen.globalAlpha = 1;
      pen.fillStyle = "#0072b2";
      pen.fillRect(left, half - (labels / most) * (half - 2), column, (labels / most) * (half - 2));
      pen.fillStyle = "#56b4e9";
      pen.fillRect(left, half, column, (predictions / most) * (half - 2));
      if (counts && counts.missed[one]) {
        pen.fillStyle = VERDICT_COLOURS[VERDICT.missed];
        pen.fillRect(left, h - 5, column, 4);
      }
      if (state.marks.has(one)) {
        pen.fillStyle = style.getPropertyValue("--wb-accent").trim() || "#1976d2";
        pen.fillRect(left, 0, column, 3);
      }
      if (k && times[k] - times[k - 1] > 2 * usual) {
        pen.fillStyle = quiet;
        pen.globalAlpha = 0.16;
        pen.fillRect(x(k - 1) + width, 0, x(k) - x(k - 1) - width, h);
        pen.globalAlpha = 1;
      }
    });
    const here = frames.indexOf(this.frame);
    pen.strokeStyle = style.getPropertyValue("--wb-ink").trim() || "#000";
    pen.lineWidth = 1.5;
    pen.strokeRect(x(here) + 0.75, 0.75, Math.max(4, width) - 1.5, h - 1.5);
    const gaps = times.filter((one, k) => k && one - times[k - 1] > 2 * usual).length;
    this.stripText.textContent = `${here + 1} of ${frames.length}${timed ? ` · ${(times[here] - start).toFixed(1)} s` : ""}` +
        `${gaps ? ` · ${plural(gaps, "gap")}` : ""} · bars: labels up, predictions down` +
        `${counts ? ", missed below" : ""}`;
  }

  seek(event) {
    const x = event.clientX - this.strip.getBoundingClientRect().left;
    let best = this.columnsOfStrip[0];
    for (const one of this.columnsOfStrip) if (one[0] <= x) best = one;
    this.goTo(best[1]);
  }

  goTo(frame) {
    this.state.focus = frame;
    this.show(frame);
  }

  neighbour(by) {
    const frames = this.state.drive(this.frame);
    const next = frames[frames.indexOf(this.frame) + by];
    if (next !== undefined) this.goTo(next);
    return next !== undefined;
  }

  play(on = !this.playing) {
    clearInterval(this.playing);
    this.playing = 0;
    if (!on) return;
    this.playing = setInterval(() => {
      const frames = this.state.drive(this.frame), at = frames.indexOf(this.frame);
      this.images.want(frames.slice(at + 1, at + 4));
      if (!this.neighbour(1)) this.play(false);
    }, 120);
  }

  close() {
    this.play(false);
    this.observer.disconnect();
  }
}
