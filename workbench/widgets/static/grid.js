// The grid: only the cards on the screen exist, whatever the number of frames.

const GAP = 8, CAPTION = 24, SMALLEST = 168;

class Grid {
  constructor(state, thumbnails, open, complete) {
    Object.assign(this, { state, thumbnails, open, complete });
    this.wished = this.columns = 5;
    this.cards = new Map(); // frame to card
    this.spare = [];
    this.canvas = make("div", { class: "wb-cards" });
    this.empty = make("div", { class: "wb-empty", hidden: true });
    this.element = make("div", {
      class: "wb-grid", role: "listbox", "aria-label": "frames", "aria-multiselectable": "true",
      onscroll: () => this.schedule(),
    }, this.canvas, this.empty);
    thumbnails.watchers.add((frame) => {
      const card = this.cards.get(frame);
      if (card) this.paint(card, frame);
      this.ahead();
    });
    this.observer = new ResizeObserver(() => this.layout());
    this.observer.observe(this.element);
    state.addEventListener("changed", ({ detail }) => {
      if (detail === "shown") {
        if (state.shown.length && !this.keep) this.element.scrollTop = 0;
        this.layout();
      } else this.refresh();
    });
  }

  layout() {
    const width = this.element.clientWidth - 2 * GAP;
    if (width <= 0) return; // not on the screen
    const most = Math.max(1, Math.floor((width + GAP) / (SMALLEST + GAP)));
    this.columns = Math.min(this.wished, most);
    this.cardW = Math.floor((width - GAP * (this.columns - 1)) / this.columns);
    this.imageH = Math.round((this.cardW * 9) / 16);
    this.rowH = this.imageH + CAPTION + GAP;
    const rows = Math.ceil(this.state.shown.length / this.columns);
    this.canvas.style.height = `${rows * this.rowH + GAP}px`;
    const none = this.state.shown.length === 0;
    this.empty.hidden = !none;
    if (none) {
      const marked = this.state.filters.kind === "marked";
      this.empty.replaceChildren(
        make("strong", {}, marked ? "No frame is marked" : "No frame matches the filters"),
        make("span", {}, marked
          ? "Press Space on a frame to mark it." : "Remove a filter above, or press Esc."));
    }
    this.refresh();
  }

  get rowsOnScreen() {
    return Math.max(1, Math.floor(this.element.clientHeight / this.rowH));
  }

  schedule() {
    if (this.frameRequest) return;
    this.frameRequest = requestAnimationFrame(() => {
      this.frameRequest = 0;
      this.refresh();
    });
  }

  refresh() {
    if (!this.rowH) return this.element.clientWidth ? this.layout() : undefined;
    const { shown } = this.state;
    const top = this.element.scrollTop;
    const first = Math.max(0, Math.floor((top - GAP) / this.rowH)) * this.columns;
    const rows = Math.ceil(this.element.clientHeight / this.rowH) + 1;
    const last = Math.min(shown.length, first + rows * this.columns);
    const visible = shown.slice(first, last);
    const wanted = new Set(visible);
    for (const [frame, card] of this.cards) {
      if (wanted.has(frame)) continue;
      this.cards.delete(frame);
      card.root.hidden = true;
      this.spare.push(card);
    }
    visible.forEach((frame, k) => {
      const at = first + k;
      let card = this.cards.get(frame);
      if (!card) {
        card = this.spare.pop() ?? this.newCard();
        card.frame = frame;
        card.root.hidden = false;
        this.cards.set(frame, card);
      }
      const [row, column] = [Math.floor(at / this.columns), at % this.columns];
      card.root.style.transform =
        `translate(${GAP + column * (this.cardW + GAP)}px, ${GAP + row * this.rowH}px)`;
      card.root.style.width = `${this.cardW}px`;
      card.image.style.height = `${this.imageH}px`;
      this.paint(card, frame);
    });
    this.visible = visible;
    this.upcoming = shown.slice(last, last + rows * this.columns);
    this.element.setAttribute("aria-activedescendant",
      this.cards.get(this.state.focus)?.root.id ?? "");
    this.thumbnails.want(visible);
    this.ahead();
  }

  // The next page, once this one is complete.
  ahead() {
    if (!this.visible) return;
    const { thumbnails } = this;
    if (this.visible.some((one) => thumbnails.waiting.has(one))) return;
    this.complete();
    thumbnails.want(this.upcoming);
  }

  newCard() {
    const image = make("canvas");
    const caption = make("span", { class: "wb-name" });
    const badge = make("span", { class: "wb-badge" });
    const tick = make("span", { class: "wb-tick", title: "Mark (Space)" });
    const answer = make("span", { class: "wb-answer", hidden: true });
    const root = make("div", { class: "wb-card", role: "option" },
      image, tick, answer, make("div", { class: "wb-caption" }, caption, badge));
    root.id = `wb-card-${Math.random().toString(36).slice(2)}`;
    const card = { root, image, caption, badge, tick, answer };
    root.addEventListener("click", (event) => {
      const { state } = this, { frame } = card;
      if (event.shiftKey) {
        const [from, to] = [state.position[state.focus], state.position[frame]];
        const range = state.shown.slice(Math.min(from, to), Math.max(from, to) + 1);
        state.mark(range, true);
      } else if (event.target === tick || event.ctrlKey || event.metaKey) state.mark([frame]);
      else {
        state.focus = frame;
        return this.open(frame);
      }
      state.focus = frame;
      state.changed("focus");
    });
    root.addEventListener("pointerenter", () => {
      this.state.hover = card.frame;
      this.state.changed("hover");
    });
    this.canvas.append(root);
    return card;
  }

  paint(card, frame) {
    const { state } = this, { data } = state;
    const marked = state.marks.has(frame);
    card.root.classList.toggle("wb-marked", marked);
    card.root.classList.toggle("wb-focus", frame === state.focus);
    card.root.setAttribute("aria-selected", marked);
    const answer = state.answers?.get(frame);
    card.answer.hidden = !answer;
    card.answer.textContent = answer ?? "";
    card.answer.className = `wb-answer wb-${answer}`;
    const note = state.subset?.notes?.get(frame)?.text;
    const name = `${valueOf(data, "drive", frame)} · ${data.index[frame]}`;
    card.caption.textContent = note ?? name;
    card.root.title = [name, note, ...(data.reasons?.[frame] ?? [])].filter(Boolean).join("\n");
    card.root.setAttribute("aria-label", `${name}${marked ? ", marked" : ""}`);
    card.badge.textContent = this.badge(frame);
    const { pen, w, h } = sizedPen(card.image, this.cardW, this.imageH);
    const bitmap = this.thumbnails.get(frame);
    card.root.classList.toggle("wb-loading", !bitmap && !this.thumbnails.failed.has(frame));
    if (!bitmap) {
      if (this.thumbnails.failed.has(frame)) {
        pen.fillStyle = "#8e8e93";
        pen.font = "12px system-ui, sans-serif";
        pen.textAlign = "center";
        pen.fillText("image cannot be read", w / 2, h / 2);
      }
      return;
    }
    const [width, height] = [data.sizes[2 * frame], data.sizes[2 * frame + 1]];
    const scale = Math.min(w / width, h / height);
    const [left, top] = [(w - width * scale) / 2, (h - height * scale) / 2];
    pen.imageSmoothingQuality = "high";
    pen.drawImage(bitmap, left, top, width * scale, height * scale);
    const place = (x, y) => [left + x * scale, top + y * scale];
    drawBoxes(pen, state, frame, place, { line: 1.2 });
    const box = state.subset?.notes?.get(frame)?.box;
    if (box) drawMatch(pen, box, place);
  }

  badge(frame) {
    const { state } = this;
    if (!state.layers.difference || !state.data.models.length) {
      return state.data.columns.role ? valueOf(state.data, "role", frame) : "";
    }
    const counts = state.count();
    if (state.compare) {
      return [counts.gained[frame] && `+${counts.gained[frame]}`,
        counts.lost[frame] && `−${counts.lost[frame]}`].filter(Boolean).join(" ") || "=";
    }
    return [counts.missed[frame] && `${counts.missed[frame]} missed`,
      counts.wrong[frame] && `${counts.wrong[frame]} false`].filter(Boolean).join(" · ") || "✓";
  }

  move(by) {
    const { state } = this;
    const at = Math.max(0, state.position[state.focus]);
    const to = Math.max(0, Math.min(state.shown.length - 1, at + by));
    state.focus = state.shown[to];
    this.reveal();
    state.changed("focus");
  }

  reveal() {
    if (!this.rowH) return;
    const row = Math.floor(Math.max(0, this.state.position[this.state.focus]) / this.columns);
    const [top, bottom] = [row * this.rowH, (row + 1) * this.rowH + GAP];
    const { element } = this;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (bottom > element.scrollTop + element.clientHeight) {
      element.scrollTop = bottom - element.clientHeight;
    }
  }

  resize(by) {
    this.wished = Math.max(2, Math.min(9, this.columns + by));
    this.layout();
    this.reveal();
  }

  close() {
    this.observer.disconnect();
  }
}

function drawMatch(pen, [x1, y1, x2, y2], place) {
  const [left, top] = place(x1, y1);
  const [right, bottom] = place(x2, y2);
  pen.lineWidth = 4;
  pen.strokeStyle = "rgba(0, 0, 0, 0.6)";
  pen.strokeRect(left, top, right - left, bottom - top);
  pen.lineWidth = 2;
  pen.strokeStyle = "#fff";
  pen.strokeRect(left, top, right - left, bottom - top);
}
