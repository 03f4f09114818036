// The widget: filters above, grid or frame in the middle, panels beside, actions and keys below.

const KEYS_GRID = "← ↑ ↓ → move · Enter open · Space mark · a all · c clear · 1 2 3 layers · [ ] score · − + size";
const KEYS_FRAME = "← → next · , . in the drive · p play · z closer · n object · b box to search · l like this · Space mark · Esc grid";

function render({ model, el }) {
  const root = make("div", { class: "wb-root", tabIndex: 0, role: "region", "aria-label": "frame browser" });
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  const loading = make("div", { class: "wb-start" }, make("div", { class: "wb-spinner" }),
    "Loading frames …");
  root.append(loading);
  el.append(root);
  let view = null;
  const began = performance.now();
  const receive = (message, buffers) => {
    if (message.type === "frames") {
      if (view) view.close();
      loading.remove();
      view = new Browser(root, model, unpack(message, buffers), () => {
        root.dataset.completeMs ??= (performance.now() - began).toFixed(0); // for benchmarks
      });
    } else if (view) view.receive(message, buffers);
  };
  model.on("msg:custom", receive);
  model.send({ type: "ready" });
  const slow = setTimeout(() => {
    if (!view) loading.lastChild.textContent = "The kernel is busy or gone. Frames appear when it answers; else run the cell again.";
  }, 8000);
  const release = ownKeys(root, (event) => view?.key(event) ?? false);
  return () => {
    clearTimeout(slow);
    release();
    model.off("msg:custom", receive);
    view?.close();
  };
}

// Keys of this widget reach nothing else. Listening on the window comes before JupyterLab, which
// listens on the document; JupyterLab also moves the focus to the cell of what was clicked.
function ownKeys(root, act) {
  let clicked = false;
  const mine = (target) => target instanceof Element && (root.contains(target) ||
    (clicked && target.matches(".jp-Cell, .jp-Notebook, body") && target.contains(root)));
  const field = (target) => target.closest("input[type=text], textarea, select, [contenteditable=true]");
  const press = (event) => {
    clicked = event.target instanceof Element && root.contains(event.target);
    if (clicked && !event.target.closest("select, input, button, canvas.wb-map")) {
      setTimeout(() => root.focus({ preventScroll: true }), 0);
    }
  };
  const key = (event) => {
    if (!mine(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Tab") return;
    if (field(event.target)) {
      if (event.key === "Escape") root.focus({ preventScroll: true });
      event.stopImmediatePropagation();
      if (event.key === "Escape") event.preventDefault();
      return;
    }
    const slider = event.target.closest("input[type=range]");
    const button = event.target.closest("button");
    event.stopImmediatePropagation();
    if (slider && /^(Arrow|Home|End|Page)/.test(event.key)) return;
    if (button && (event.key === "Enter" || event.key === " ")) return;
    if (act(event)) event.preventDefault();
  };
  window.addEventListener("pointerdown", press, true);
  window.addEventListener("keydown", key, true);
  return () => {
    window.removeEventListener("pointerdown", press, true);
    window.removeEventListener("keydown", key, true);
  };
}

class Browser {
  constructor(root, model, data, complete) {
    Object.assign(this, { root, model, data });
    this.state = new State(data);
    const ask = (message) => model.send(message);
    this.thumbnails = new Images(ask, "thumbnail", { encoded: 1500, decoded: 160, batch: 10 });
    this.images = new Images(ask, "image", { encoded: 16, decoded: 6, batch: 1 });
    this.grid = new Grid(this.state, this.thumbnails, (frame) => this.open(frame), complete);
    this.frame = new FrameView(this.state, this.images, this.thumbnails, {
      like: (frame, box, cls) => this.like(frame, box, cls),
      nearest: (frame, label) => ask({ type: "nearest", frame, label }),
      why: (frame, number, score) => ask({ type: "why", frame, model: number, score }),
    });
    this.panels = make("div", { class: "wb-panels", hidden: true });
    if (data.points) {
      this.map = new EmbeddingMap(this.state, {
        pick: (frames, title) => this.narrow(frames, title),
        open: (frame) => {
          this.state.focus = frame;
          if (this.single) this.open(frame);
          else this.grid.reveal();
          this.state.changed("focus");
        },
      });
    }
    this.build();
    this.readTraits();
    this.changes = [["change:_marks", () => this.readMarks()], ["change:_picked", () => this.readPicked()]];
    for (const [name, act] of this.changes) model.on(name, act);
    this.state.addEventListener("changed", ({ detail }) => {
      if (detail === "marks") this.writeMarks();
      if (detail !== "hover") this.refresh();
    });
    this.refresh();
    this.grid.layout();
  }

  build() {
    const { data, state } = this;
    const options = (name, values, all) => {
      const select = make("select", {
        "aria-label": name, title: name,
        onchange: () => {
          state.filters[name] = select.value;
          select.classList.toggle("wb-set", Boolean(select.value));
          state.update();
        },
      }, make("option", { value: "" }, all),
      ...values.map(([value, words]) => make("option", { value }, words ?? value.replaceAll("_", " "))));
      this.selects[name] = select;
      return select;
    };
    this.selects = {};
    const names = (values) => values.map((one) => [one]);
    const filters = [options("cls", names(data.used_classes), "all classes")];
    if (data.slice_names.length) filters.push(options("slice", names(data.slice_names), "all slices"));
    const column = (name) => data.columns[name]?.values.filter(Boolean) ?? [];
    if (column("role").length > 1) filters.push(options("role", names(column("role")), "all roles"));
    if (column("arm").length > 1) filters.push(options("arm", names(column("arm")), "all arms"));
    if (column("drive").length > 1) filters.push(options("drive", names(column("drive")), "all drives"));
    if (data.origins.length > 1) filters.push(options("origin", names(data.origins), "all origins"));
    const kinds = [["marked", "marked"]];
    if (data.models.length && data.has_labels) kinds.push(["missed", "with misses"], ["wrong", "with false boxes"]);
    if (data.models.length > 1) kinds.push(["flipped", "flipped"], ["gained", "only the second finds"], ["lost", "only the first finds"]);
    filters.push(options("kind", kinds, "all frames"));
    this.selects.kind.addEventListener("change", () => {
      if (["flipped", "gained", "lost"].includes(state.filters.kind)) this.setModel("compare");
    });
    this.clearButton = make("button", { class: "wb-link", title: "Remove all filters (Esc)", onclick: () => this.clearFilters() }, "clear");
    filters.push(this.clearButton);
    const tools = [];
    if (data.models.length) {
      this.modelSelect = make("select", { "aria-label": "model", title: "Model", onchange: () => this.setModel(this.modelSelect.value) },
        ...data.models.map((name, k) => make("option", { value: String(k) }, name)));
      if (data.models.length > 1) this.modelSelect.append(make("option", { value: "compare" }, "first against second"));
      this.scoreInput = make("input", {
        type: "range", min: "0", max: "0.95", step: "0.05", value: String(state.score), "aria-label": "lowest score",
        oninput: () => this.setScore(Number(this.scoreInput.value)),
      });
      this.scoreText = make("output");
      tools.push(this.modelSelect, make("label", { class: "wb-score" }, "score ≥", this.scoreInput, this.scoreText));
    }
    const toggle = (layer, words, key) => {
      const button = make("button", { class: "wb-toggle", title: `${words} (${key})`, onclick: () => this.toggle(layer) }, words);
      this.toggles[layer] = button;
      return button;
    };
    this.toggles = {};
    const layers = make("div", { class: "wb-group", role: "group", "aria-label": "layers" });
    if (data.has_labels) layers.append(toggle("labels", "Labels", "1"));
    if (data.models.length) layers.append(toggle("predictions", "Predictions", "2"));
    if (data.has_labels && data.models.length) layers.append(toggle("difference", "Difference", "3"));
    tools.push(layers);
    this.orderSelect = make("select", { "aria-label": "order", title: "Order", onchange: () => {
      state.order = this.orderSelect.value;
      state.update();
    } }, make("option", { value: "given" }, data.order || "as given"), make("option", { value: "time" }, "by drive and time"));
    if (data.models.length && data.has_labels) {
      this.orderSelect.append(make("option", { value: "missed" }, "most missed first"), make("option", { value: "wrong" }, "most false first"));
    }
    tools.push(this.orderSelect);
    const views = make("div", { class: "wb-group wb-right" });
    this.viewButtons = {};
    if (this.map) {
      this.viewButtons.map = make("button", { class: "wb-toggle", title: "Embedding map (m)", onclick: () => this.panel("map") }, "Map");
      views.append(this.viewButtons.map);
    }
    if (data.comparison.length) {
      this.viewButtons.slices = make("button", { class: "wb-toggle", title: "Slices (v)", onclick: () => this.panel("slices") }, "Slices");
      views.append(this.viewButtons.slices);
    }
    if (views.childElementCount) tools.push(views);
    this.chip = make("span", { class: "wb-chip", hidden: true });
    this.count = make("span", { class: "wb-count", "aria-live": "polite" });
    this.legend = make("div", { class: "wb-legend" });
    this.markedText = make("b");
    this.markAll = make("button", { class: "wb-link", title: "Mark all shown (a)", onclick: () => this.markShown() }, "mark all shown");
    this.clearMarks = make("button", { class: "wb-link", title: "Clear marks (c)", onclick: () => state.mark([...state.marks], false) }, "clear");
    this.actionButtons = data.actions.map(({ name, key }) => make("button", {
      class: "wb-action", title: key ? `${name} (${key})` : name, onclick: () => this.confirm(name),
    }, name));
    if (data.can_refine) {
      this.refineButton = make("button", { class: "wb-action", title: "Search again with the answers (r)", hidden: true, onclick: () => this.refine() }, "Search again");
      this.actionButtons.unshift(this.refineButton);
    }
    this.status = make("div", { class: "wb-status", role: "status" });
    this.help = make("div", { class: "wb-help" });
    this.root.append(
      make("div", { class: "wb-bar" }, ...filters),
      make("div", { class: "wb-bar" }, ...tools),
      make("div", { class: "wb-bar wb-thin" }, this.count, this.chip, this.legend),
      make("div", { class: "wb-stage" },
        make("div", { class: "wb-view" }, this.grid.element, this.frame.element), this.panels),
      make("div", { class: "wb-bar wb-actions" }, this.markedText, this.markAll, this.clearMarks,
        make("span", { class: "wb-space" }), ...this.actionButtons),
      this.status, this.help);
  }

  refresh() {
    const { state, data } = this;
    const { shown, marks } = state;
    this.count.textContent = shown.length === data.n ? plural(data.n, "frame")
      : `${shown.length.toLocaleString("en")} of ${plural(data.n, "frame")}`;
    this.clearButton.hidden = !Object.values(state.filters).some(Boolean);
    this.chip.hidden = !state.subset;
    if (state.subset) {
      this.chip.replaceChildren(state.subset.title,
        make("button", { title: "Remove (Esc)", "aria-label": "remove", onclick: () => this.narrow(null) }, "×"));
    }
    for (const [layer, button] of Object.entries(this.toggles)) {
      button.setAttribute("aria-pressed", state.layers[layer]);
    }
    if (this.scoreText) this.scoreText.textContent = state.score.toFixed(2);
    this.markedText.textContent = marks.size ? `${plural(marks.size, "frame")} marked` : "No frame marked";
    this.markedText.className = marks.size ? "" : "wb-quiet";
    this.clearMarks.hidden = !marks.size;
    for (const button of this.actionButtons) if (button !== this.refineButton) button.disabled = !marks.size || Boolean(this.busy);
    if (this.refineButton) this.refineButton.hidden = !state.answers;
    this.help.textContent = `Click here, then: ${this.single ? KEYS_FRAME : KEYS_GRID}` +
      (this.map ? " · m map" : "") + (data.can_refine && state.subset?.search ? " · y n answer · r search again" : "") +
      data.actions.filter((one) => one.key).map((one) => ` · ${one.key} ${one.name[0].toLowerCase()}${one.name.slice(1)}`).join("");
    this.drawLegend();
  }

  drawLegend() {
    const { state, data } = this;
    const entry = (colour, words, dashed = false) => {
      const line = make("i", { class: dashed ? "wb-line wb-dashed" : "wb-line" });
      line.style.borderTopColor = colour;
      return make("span", {}, line, words);
    };
    let entries;
    if (state.layers.difference && state.compare) {
      entries = Object.keys(FLIP_NAMES).map((one) => entry(FLIP_COLOURS[one], FLIP_NAMES[one]));
    } else if (state.layers.difference) {
      entries = [1, 2, 3, 0].map((one) => entry(VERDICT_COLOURS[one], VERDICT_NAMES[one], one === 3));
    } else {
      entries = data.used_classes.map((one) => entry(data.colours[data.classes.indexOf(one)], one.replaceAll("_", " ")));
      if (data.has_labels && data.models.length) {
        entries.push(entry("var(--wb-quiet)", "label"), entry("var(--wb-quiet)", "prediction", true));
      }
    }
    const key = entries.map((one) => one.textContent).join();
    if (key !== this.legendKey) this.legend.replaceChildren(...entries);
    this.legendKey = key;
  }

  get single() {
    return !this.frame.element.hidden;
  }

  open(frame) {
    this.state.focus = frame;
    this.grid.element.hidden = true;
    this.frame.show(frame);
    this.refresh();
  }

  back() {
    this.frame.hide();
    this.grid.element.hidden = false;
    this.grid.layout();
    this.grid.reveal();
    this.grid.refresh();
    this.refresh();
  }

  turn(by) {
    const { state } = this;
    const at = Math.max(0, state.position[state.focus]) + by;
    if (at >= 0 && at < state.shown.length) this.frame.goTo(state.shown[at]);
    this.refresh();
  }

  toggle(layer) {
    const { layers } = this.state;
    if (!this.toggles[layer]) return;
    layers[layer] = !layers[layer];
    this.state.changed("layers");
  }

  setScore(score) {
    if (!this.scoreInput) return;
    this.state.score = Math.max(0, Math.min(0.95, Math.round(score * 20) / 20));
    this.scoreInput.value = String(this.state.score);
    clearTimeout(this.scoring);
    this.frame.reasons.clear();
    this.state.changed("score");
    this.scoring = setTimeout(() => {
      this.grid.keep = true; // the same place in the grid
      this.state.update();
      this.grid.keep = false;
      this.map?.by.value === "missed" && this.map.recolour();
    }, 60);
  }

  setModel(value) {
    const { state } = this;
    state.compare = value === "compare";
    state.model = state.compare ? 1 : Number(value);
    this.modelSelect.value = value;
    if (state.compare) state.layers.difference = true;
    this.frame.reasons.clear();
    state.update();
    if (this.single) this.frame.show(state.focus);
  }

  clearFilters() {
    for (const [name, select] of Object.entries(this.selects)) {
      select.value = this.state.filters[name] = "";
      select.classList.remove("wb-set");
    }
    this.state.update();
  }

  // Show only these frames: of a lasso, of a search, or chosen in the kernel.
  narrow(frames, title = "", notes = null, tell = true) {
    const { state } = this;
    state.subset = frames && { frames, title: `${title} · ${frames.length.toLocaleString("en")}`, notes, search: Boolean(notes) };
    if (!notes) state.answers = null;
    state.update();
    if (tell) {
      this.model.set("_picked_title", frames ? title : "");
      this.model.set("_picked", new DataView(Uint32Array.from(frames ?? []).buffer));
      this.model.save_changes();
    }
  }

  markShown() {
    const { state } = this;
    state.mark(state.shown, true);
  }

  writeMarks() {
    this.cancelConfirm();
    this.model.set("_marks", new DataView(Uint32Array.from(this.state.marks).buffer));
    this.model.save_changes();
  }

  numbers(name) {
    const view = this.model.get(name);
    if (!view?.byteLength) return [];
    const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
    return [...new Uint32Array(bytes)].filter((one) => one < this.data.n);
  }

  readMarks() {
    const marks = this.numbers("_marks"), { state } = this;
    if (marks.length === state.marks.size && marks.every((one) => state.marks.has(one))) return;
    state.marks = new Set(marks);
    state.changed("marks");
  }

  readPicked() {
    const picked = this.numbers("_picked");
    const now = this.state.subset?.frames ?? [];
    if (picked.length === now.length && picked.every((one, k) => one === now[k])) return;
    this.narrow(picked.length ? picked : null, this.model.get("_picked_title") || "from the kernel", null, false);
  }

  readTraits() {
    this.readMarks();
    this.readPicked();
  }

  panel(name) {
    const open = this.shownPanel !== name;
    this.shownPanel = open ? name : "";
    this.panels.hidden = !open;
    for (const [key, button] of Object.entries(this.viewButtons)) {
      button.setAttribute("aria-pressed", key === this.shownPanel);
    }
    this.panels.replaceChildren(...(open ? [name === "map" ? this.map.element : this.slices()] : []));
  }

  slices() {
    const rows = this.data.comparison;
    const low = Math.min(...rows.map((one) => one.low)), high = Math.max(...rows.map((one) => one.high));
    const reach = Math.max(0.02, Math.abs(low), Math.abs(high));
    const x = (value) => 50 + (value / reach) * 48;
    const list = make("div", { class: "wb-slices", role: "list" });
    for (const row of rows) {
      const sure = row.low > 0 ? "wb-up" : row.high < 0 ? "wb-down" : "";
      const plot = make("div", { class: `wb-whisker ${sure}` });
      const bar = make("i", { class: "wb-interval" }), dot = make("i", { class: "wb-estimate" });
      bar.style.left = `${x(row.low)}%`;
      bar.style.width = `${x(row.high) - x(row.low)}%`;
      dot.style.left = `${x(row.value)}%`;
      plot.append(make("i", { class: "wb-zero" }), bar, dot);
      list.append(make("button", {
        class: "wb-slice", title: `${row.slice}: recall ${row.first.toFixed(3)} → ${row.second.toFixed(3)}, ` +
          `difference ${row.value.toFixed(3)} [${row.low.toFixed(3)}, ${row.high.toFixed(3)}]. Click: its frames that flipped.`,
        onclick: () => this.showFlips(row.slice),
      }, make("span", {}, row.slice.replace("=", " ")),
      make("span", { class: "wb-quiet" }, row.boxes.toLocaleString("en")), plot,
      make("span", { class: "wb-number" }, `${row.value >= 0 ? "+" : "−"}${Math.abs(row.value).toFixed(3)}`)));
    }
    return make("div", { class: "wb-panel" },
      make("div", { class: "wb-panel-head" }, make("b", {}, "Recall, second − first"),
        make("span", { class: "wb-quiet" }, "95 % intervals over drives; click for its flipped frames")), list);
  }

  showFlips(slice) {
    const { state } = this;
    state.filters.slice = state.data.slice_names.includes(slice) ? slice : "";
    state.filters.kind = "flipped";
    for (const name of ["slice", "kind"]) {
      if (this.selects[name]) {
        this.selects[name].value = state.filters[name];
        this.selects[name].classList.toggle("wb-set", Boolean(state.filters[name]));
      }
    }
    if (this.single) this.back();
    this.setModel("compare");
  }

  like(frame, box, cls) {
    if (!this.data.can_search) {
      return this.say("This browser was opened without a search: pass `search=`, or open it with embeddings.");
    }
    this.searched = { frame, box };
    this.say(box ? "Searching for what is in the box …" : "Searching for frames like this …", "busy");
    this.model.send({ type: "like", frame, box: box && box.map((one) => Math.round(one * 10) / 10), cls });
  }

  refine() {
    const { answers } = this.state;
    if (!answers?.size) return this.say("No answers yet: press y or n on some of the frames.");
    const of = (word) => [...answers].filter(([, one]) => one === word).map(([frame]) => frame);
    this.say("Searching again …", "busy");
    this.model.send({ type: "refine", yes: of("yes"), no: of("no") });
  }

  answer(word) {
    const { state } = this;
    if (!this.data.can_refine || !state.subset?.search) return;
    state.answers ??= new Map();
    if (state.answers.get(state.focus) === word) state.answers.delete(state.focus);
    else state.answers.set(state.focus, word);
    if (this.single) state.changed("marks");
    else this.grid.move(1);
  }

  // Nothing is done with frames before their number was read and confirmed.
  confirm(name) {
    const { marks } = this.state;
    if (!marks.size || this.busy) return;
    if (this.asked === name) return this.act(name);
    this.asked = name;
    this.status.className = "wb-status wb-ask";
    const { fields } = this.data.actions.find((one) => one.name === name);
    this.fields = Object.entries(fields).map(([field, words]) => make("input", {
      type: "text", name: field, placeholder: words, "aria-label": words,
    }));
    const submit = (event) => {
      event.preventDefault();
      this.act(name);
    };
    this.status.replaceChildren(make("form", { onsubmit: submit },
      make("span", {}, `${name}: ${plural(marks.size, "marked frame")}?`), ...this.fields,
      make("button", { class: "wb-action wb-primary" }, `Yes, ${plural(marks.size, "frame")}`),
      make("button", { type: "button", class: "wb-link", onclick: () => this.cancelConfirm() }, "cancel")));
    this.fields[0]?.focus();
  }

  cancelConfirm() {
    if (!this.asked) return;
    if (this.status.contains(document.activeElement)) this.root.focus({ preventScroll: true });
    this.asked = "";
    this.say("");
  }

  act(name) {
    const frames = [...this.state.marks], { state, data } = this;
    const empty = this.fields.find((one) => !one.value.trim());
    if (empty) return empty.focus();
    const answers = Object.fromEntries(this.fields.map((one) => [one.name, one.value.trim()]));
    if (this.fields.length) Object.assign(answers, { model: data.models[state.model] ?? "", score: state.score });
    if (this.status.contains(document.activeElement)) this.root.focus({ preventScroll: true });
    this.asked = "";
    this.busy = name;
    this.say(`${name}: ${plural(frames.length, "frame")} …`, "busy");
    this.model.send({ type: "act", action: name, frames, answers });
    this.refresh();
  }

  say(words, kind = "", hint = "", link = null) {
    this.status.className = `wb-status ${kind && `wb-${kind}`}`;
    this.status.replaceChildren(...(kind === "busy" ? [make("div", { class: "wb-spinner" })] : []), words,
      ...(hint ? [make("span", { class: "wb-quiet" }, hint)] : []),
      ...(link ? [make("a", { href: link.href, target: "_blank", rel: "noopener" }, link.text)] : []));
  }

  receive(message, buffers) {
    if (message.type === "images") {
      const images = message.kind === "image" ? this.images : this.thumbnails;
      message.frames.forEach((frame, k) => images.receive(frame, buffers[k], message.errors[k]));
    } else if (message.type === "status") {
      this.busy = "";
      const link = /^https?:/.test(message.link?.href ?? "") ? message.link : null;
      this.say(message.text, message.error ? "error" : "done", message.hint, link);
      this.refresh();
    } else if (message.type === "like") {
      const notes = new Map(message.frames.map((frame, k) => [frame, { text: message.notes[k], box: message.boxes[k] }]));
      this.state.answers = null;
      if (this.single) this.back();
      this.narrow(message.frames, message.title, notes);
      this.say("");
    } else if (message.type === "why") this.frame.explain(message.frame, message.misses);
    else if (message.type === "nearest") this.frame.tellNearest(message.frame, message.label, message.lines);
  }

  escape() {
    const { state } = this;
    if (this.asked) this.cancelConfirm();
    else if (this.frame.draws) this.frame.drawing(false);
    else if (this.single && this.frame.zoomed) this.frame.fit();
    else if (this.single) this.back();
    else if (state.subset) this.narrow(null);
    else this.clearFilters();
  }

  key(event) {
    const { state, grid, frame } = this;
    const action = this.data.actions.find((one) => one.key === event.key);
    const shared = {
      " ": () => {
        state.mark([state.focus]);
        if (!this.single && event.shiftKey) grid.move(1);
      },
      Escape: () => this.escape(),
      1: () => this.toggle("labels"),
      2: () => this.toggle("predictions"),
      3: () => this.toggle("difference"),
      "[": () => this.setScore(state.score - 0.05),
      "]": () => this.setScore(state.score + 0.05),
      a: () => this.markShown(),
      c: () => state.mark([...state.marks], false),
      m: () => this.map && this.panel("map"),
      v: () => this.viewButtons.slices && this.panel("slices"),
      g: () => this.map && this.map.circle(),
      y: () => this.answer("yes"),
      n: () => this.answer("no"),
      r: () => this.data.can_refine && this.refine(),
      l: () => this.like(state.focus, null, ""),
      "/": () => this.selects.cls.focus(),
    };
    const pan = (dx, dy) => () => frame.pan(dx, dy);
    const own = this.single ? {
      ArrowLeft: event.shiftKey ? pan(60, 0) : () => this.turn(-1),
      ArrowRight: event.shiftKey ? pan(-60, 0) : () => this.turn(1),
      ArrowUp: pan(0, 60), ArrowDown: pan(0, -60),
      ",": () => frame.neighbour(-1), ".": () => frame.neighbour(1),
      p: () => frame.play(), z: () => frame.lookCloser(), 0: () => frame.fit(),
      "+": () => frame.zoom(1.5), "=": () => frame.zoom(1.5), "-": () => frame.zoom(1 / 1.5),
      n: () => frame.step(1), N: () => frame.step(-1),
      b: () => frame.drawing(!frame.draws), l: () => frame.searchSelected(),
      Enter: () => this.back(),
    } : {
      ArrowLeft: () => grid.move(-1), ArrowRight: () => grid.move(1),
      ArrowUp: () => grid.move(-grid.columns), ArrowDown: () => grid.move(grid.columns),
      PageUp: () => grid.move(-grid.columns * grid.rowsOnScreen),
      PageDown: () => grid.move(grid.columns * grid.rowsOnScreen),
      Home: () => grid.move(-state.shown.length), End: () => grid.move(state.shown.length),
      Enter: () => state.shown.length && this.open(state.focus),
      z: () => state.shown.length && this.open(state.focus),
      "+": () => grid.resize(-1), "=": () => grid.resize(-1), "-": () => grid.resize(1),
    };
    const act = own[event.key] ?? (action ? () => this.confirm(action.name) : shared[event.key]);
    if (!act) return false;
    act();
    return true;
  }

  close() {
    for (const [name, act] of this.changes) this.model.off(name, act);
    this.grid.close();
    this.frame.close();
    this.map?.close();
    this.images.close();
    this.thumbnails.close();
    this.root.replaceChildren();
  }
}

export default { render };
