"""The frame browser in a real JupyterLab and a headless Chromium: ``python -m benchmarks.explore``.

Ten thousand frames of 1280x720, each a file of its own, and a map of 100,000 points. Times are the
page's own: from the widget's start to the last thumbnail on the screen, from a key to the last
thumbnail of the next page, from the end of a lasso to the points drawn anew.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import Row, main, note, row
from docs import screenshots
from workbench.core.workspace import Workspace

_SETUP = """
import hashlib, io, os
from pathlib import Path
import numpy as np
from PIL import Image
from workbench.core.workspace import Workspace
from workbench.widgets import BrowserExtras, DrawnBox, FrameBrowser
from workbench.widgets.frames import ShownFrame

def frames(count, files):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (12, 45, 80, 3), np.uint8)
    images = []
    for one in small:
        stream = io.BytesIO()
        Image.fromarray(one).resize((1280, 720), Image.Resampling.BICUBIC).save(stream, "JPEG")
        images.append(stream.getvalue())
    made = []
    for number in range(count):
        data = images[number % 12] + str(number).encode()  # behind the image: decoders stop before
        path = Path(f"{{number}}.jpg")
        if files:
            path.write_bytes(data)
        boxes = tuple(
            DrawnBox(("car", "cyclist", "truck")[k % 3], (90 * k, 300, 90 * k + 60, 350), score,
                     origin="" if score else "imported", model="m" if score else "")
            for k in range(6) for score in (None, 0.5)
        )
        made.append(ShownFrame(hashlib.sha256(data).hexdigest(), path, f"drive {{number // 50}}",
            "day", "clear", boxes=boxes, role="pool", index=number % 50, size=(1280, 720)))
    return made

points = np.random.default_rng(1).normal(size=({count}, 2)).astype(np.float32)
browser = FrameBrowser(
    frames({count}, {shown}),
    workspace=Workspace(Path("workspace").resolve()),
    on_tag=lambda some: "done",
    extras=BrowserExtras(points=points),
)
browser
"""
_RSS = "import psutil; print(psutil.Process().memory_info().rss)"
_EXECUTE = """async (code) => {
  const { kernel } = window.jupyterapp.shell.currentWidget.sessionContext.session;
  const asked = kernel.requestExecute({ code });
  let printed = "";
  asked.onIOPub = (message) => { printed += message.content.text ?? ""; };
  await asked.done;
  return printed.trim();
}"""
_TURN = """(key) => new Promise((done) => {
  const root = document.querySelector(".wb-root"), grid = root.querySelector(".wb-grid");
  const before = grid.scrollTop, began = performance.now();
  root.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const look = () => {
    const loading = [...grid.querySelectorAll(".wb-loading")].some((one) => !one.hidden);
    if (grid.scrollTop !== before && !loading) done(performance.now() - began);
    else if (performance.now() - began > 5000) done(NaN);
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})"""


def measure(quick: bool) -> list[Row]:
    """Rows of the benchmark; ``quick`` has a fifth of the frames and of the points."""
    count, points, turns = (2000, 20_000, 12) if quick else (10_000, 100_000, 60)
    # Each in a JupyterLab of its own: a kernel that runs a second cell answers no page.
    with _opened(_SETUP.format(count=count, shown="True")) as page:
        rows = _grid(page, count, turns)
    with _opened(_SETUP.format(count=points, shown="False")) as page:
        return [*rows, *_lasso(page, points)]


@contextlib.contextmanager
def _opened(source: str) -> Iterator[Any]:
    """A page of JupyterLab with the browser that a cell shows."""
    with tempfile.TemporaryDirectory(prefix="explore-") as name:
        folder = Path(name)
        notebook = folder / "explore.ipynb"
        notebook.write_text(json.dumps(_notebook((source,))))
        workspace = Workspace(folder / ".workbench")
        with (
            screenshots.lab(workspace, notebook, servers=()) as address,
            screenshots.browser(1280, 720) as page,
        ):
            page.set_default_timeout(180_000)
            screenshots.run_all_cells(page, address)
            yield page


def _grid(page: Any, count: int, turns: int) -> list[Row]:
    root = page.locator(".wb-root")
    page.wait_for_function("document.querySelector('.wb-root').dataset.completeMs")
    first = float(root.get_attribute("data-complete-ms"))
    note(f"{count} frames on the screen after {first:.0f} ms")
    page.wait_for_timeout(1000)
    cold = [float(page.evaluate(_TURN, "PageDown")) for _ in range(turns)]
    before = _memory(page)
    warm = [float(page.evaluate(_TURN, "PageUp")) for _ in range(turns - 2)]
    for _ in range(3):
        for key in ("PageDown", "PageUp"):
            for _ in range(turns - 2):
                page.evaluate(_TURN, key)
    after = _memory(page)
    name = f"{count:,} frames"
    rows = [
        _below(f"{name}: to the last thumbnail on the screen", first, "ms", 1000),
        _below("page turn, thumbnails made (median)", statistics.median(cold), "ms", 150),
        _below("page turn, thumbnails made (95 %)", _high(cold), "ms", 150),
        _below("page turn, thumbnails on disk (median)", statistics.median(warm), "ms", 150),
        _below("page turn, thumbnails on disk (95 %)", _high(warm), "ms", 150),
    ]
    pages = 6 * (turns - 2)
    for place, (old, new) in {
        "page": (before[0], after[0]),
        "kernel": (before[1], after[1]),
    }.items():
        grown = (new - old) / 2**20
        rows.append(_below(f"memory of the {place} after {pages} more turns", grown, "MB", 25))
    return rows


def _lasso(page: Any, points: int) -> list[Row]:
    root = page.locator(".wb-root")
    root.scroll_into_view_if_needed()
    root.get_by_role("button", name="Map").click()
    chart = root.locator(".wb-map")
    chart.evaluate("(map) => map.scrollIntoView({ block: 'center' })")
    page.wait_for_timeout(1500)
    spot = chart.bounding_box()
    x, y = spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2
    times = []
    for reach in (40, 60, 80, 100, 120):
        corners = [(-reach, -reach), (reach, -reach), (reach, reach), (-reach, reach)]
        page.mouse.move(x + corners[-1][0], y + corners[-1][1])
        page.mouse.down()
        for dx, dy in corners:
            page.mouse.move(x + dx, y + dy, steps=12)
        page.mouse.up()
        page.wait_for_timeout(600)
        times.append(float(root.locator(".wb-map-panel").get_attribute("data-lasso-ms")))
        root.get_by_title("Remove (Esc)").click()
        page.wait_for_timeout(300)
    return [_below(f"lasso over {points:,} points (slowest of 5)", max(times), "ms", 200)]


def _memory(page: Any) -> tuple[float, float]:
    """Heap of the page after a collection, and resident memory of the kernel; bytes."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    return float(used), float(page.evaluate(_EXECUTE, _RSS))


def _below(name: str, value: float, unit: str, limit: float) -> Row:
    return row(name, value, unit, goal=f"≤ {limit:,.0f} {unit}", met=value <= limit)


def _high(times: list[float]) -> float:
    return sorted(times)[int(0.95 * (len(times) - 1))]


def _notebook(sources: tuple[str, ...]) -> dict[str, Any]:
    cells = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {},
            "source": source,
            "execution_count": None,
            "outputs": [],
        }
        for number, source in enumerate(sources)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


if __name__ == "__main__":
    main(measure)
