"use strict";
(() => {
  const { nodes, edges, root } = JSON.parse(document.getElementById("data").textContent);
  const svg = document.querySelector("svg.lineage");
  const stage = document.getElementById("stage");
  const details = document.getElementById("details");
  const boxes = new Map([...svg.querySelectorAll(".node")].map((one) => [one.dataset.id, one]));
  const paths = [...svg.querySelectorAll(".edges path")];
  const whole = svg.viewBox.baseVal;
  const full = { x: 0, y: 0, width: whole.width, height: whole.height };
  let view = { ...full };

  const applyView = () => svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
  const scale = () => Math.max(view.width / stage.clientWidth, view.height / stage.clientHeight);

  // A large picture opens at a readable size, centred on the root; a small one is not enlarged.
  const openAtReadableSize = () => {
    const by = scale();
    if (by >= 1 && by <= 1.25) return;
    const width = stage.clientWidth * (by < 1 ? 1 : 1.1);
    const height = stage.clientHeight * (by < 1 ? 1 : 1.1);
    const at = boxes.get(root)?.transform.baseVal[0]?.matrix ?? { e: 0, f: 0 };
    const clamp = (value, size, of) => of <= size ? (of - size) / 2 : Math.min(Math.max(value, 0), of - size);
    view = { width, height, x: clamp(at.e + 102 - width / 2, width, full.width),
             y: clamp(at.f + 23 - height / 2, height, full.height) };
    applyView();
  };

  const reach = (from, forward) => {
    const reached = new Set([from]), waiting = [from];
    while (waiting.length) {
      const here = waiting.pop();
      for (const [start, end] of edges) {
        const [near, far] = forward ? [start, end] : [end, start];
        if (near === here && !reached.has(far)) { reached.add(far); waiting.push(far); }
      }
    }
    return reached;
  };

  const focus = (name) => {
    for (const box of boxes.values()) box.classList.remove("on", "chosen");
    for (const path of paths) path.classList.remove("on");
    svg.classList.toggle("focused", name !== null);
    details.classList.toggle("open", name !== null);
    if (name === null) return;
    const back = reach(name, false), forth = reach(name, true);
    for (const one of [...back, ...forth]) boxes.get(one)?.classList.add("on");
    for (const path of paths) {
      const { from, to } = path.dataset;
      if ((back.has(from) && back.has(to)) || (forth.has(from) && forth.has(to))) path.classList.add("on");
    }
    boxes.get(name).classList.add("chosen");
    showDetails(name);
  };

  const element = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };

  const plain = (value) => {
    if (value !== null && typeof value === "object") return element("pre", JSON.stringify(value, null, 1));
    return element(/^[0-9a-f]{40,}$/.test(value) ? "code" : "span", String(value));
  };

  const list = (facts) => {
    const terms = element("dl");
    for (const [key, value] of Object.entries(facts)) {
      if (key === "with" || value === null) continue;
      const definition = element("dd");
      definition.append(plain(value));
      terms.append(element("dt", key.replaceAll("_", " ")), definition);
    }
    return terms;
  };

  const showDetails = (name) => {
    const node = nodes[name];
    const title = node.name ?? node.step ?? node.model ?? node.kind;
    details.replaceChildren(element("h2", String(title)), element("p", node.kind, "of"), list(node));
    for (const one of node.with ?? []) {
      details.append(element("h2", one.name ?? one.kind), element("p", `the run's ${one.kind}`, "of"), list(one));
    }
    details.scrollTop = 0;
  };

  const zoom = (factor, x, y) => {
    const at = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM().inverse());
    const wide = Math.min(Math.max(view.width * factor, 200), full.width * 4);
    const by = wide / view.width;
    view = { x: at.x - (at.x - view.x) * by, y: at.y - (at.y - view.y) * by,
             width: view.width * by, height: view.height * by };
    applyView();
  };

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, event.clientX, event.clientY);
  }, { passive: false });

  let drag = null;
  stage.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, moved: false }; });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    const by = scale();
    view.x -= dx * by;
    view.y -= dy * by;
    drag = { x: event.clientX, y: event.clientY, moved: true };
    applyView();
  });
  window.addEventListener("pointerup", (event) => {
    const moved = drag?.moved;
    const inside = drag && stage.contains(event.target);
    drag = null;
    if (moved || !inside) return;
    const box = event.target.closest(".node");
    focus(box ? box.dataset.id : null);
  });
  window.addEventListener("keydown", (event) => {
    if (event.key === "Escape") focus(null);
    const box = event.key === "Enter" && document.activeElement?.closest?.(".node");
    if (box) focus(box.dataset.id);
  });

  document.getElementById("fit").addEventListener("click", () => { view = { ...full }; applyView(); });
  document.getElementById("search").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const path of paths) path.classList.remove("on");
    svg.classList.toggle("focused", wanted !== "");
    for (const [name, box] of boxes) {
      const text = `${name} ${box.textContent}`.toLowerCase();
      box.classList.remove("chosen");
      box.classList.toggle("on", wanted !== "" && text.includes(wanted));
    }
  });

  // In a notebook's frame the stage has no size yet when this runs.
  const sized = new ResizeObserver(() => {
    if (!stage.clientWidth || !stage.clientHeight) return;
    sized.disconnect();
    openAtReadableSize();
  });
  sized.observe(stage);
})();
