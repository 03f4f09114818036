"""The frame browser in a real JupyterLab and a headless Chromium, by keyboard only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from docs import screenshots
from workbench.core.workspace import Workspace

SOURCE = """
from pathlib import Path
import numpy as np
from tests.widgets.conftest import drawn_frames
from workbench.widgets import BrowserExtras, FrameBrowser
browser = FrameBrowser(
    drawn_frames(Path.cwd()),
    on_tag=lambda chosen: f"{len(chosen)} tagged",
    extras=BrowserExtras(points=np.array([(n % 5, n // 5) for n in range(20)], np.float32)),
)
browser
"""

pytestmark = pytest.mark.skipif(screenshots.chromium() is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """JupyterLab with the browser shown by the first cell, and a second cell below."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {},
            "source": source,
            "execution_count": None,
            "outputs": [],
        }
        for number, source in enumerate((SOURCE, "'below'"))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    body = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    notebook = folder / "keys.ipynb"
    notebook.write_text(json.dumps(body))
    workspace = Workspace(folder / ".workbench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(screenshots.PROJECT))
        with (
            screenshots.lab(workspace, notebook, servers=()) as address,
            screenshots.browser(1280, 720) as shown,
        ):
            screenshots.run_all_cells(shown, address)
            shown.locator(".wb-card").first.wait_for()
            yield shown


def count(page: Any) -> int:
    """Cells of the notebook, also those that are not on the screen."""
    script = "window.jupyterapp.shell.currentWidget.content.model.cells.length"
    return int(page.evaluate(script))


def kernel_says(page: Any, code: str) -> str:
    """What the kernel prints; messages of the widget that were sent before are done by then."""
    return str(
        page.evaluate(
            """async (code) => {
              const { kernel } = window.jupyterapp.shell.currentWidget.sessionContext.session;
              const asked = kernel.requestExecute({ code });
              let printed = "";
              asked.onIOPub = (message) => { printed += message.content.text ?? ""; };
              await asked.done;
              return printed.trim();
            }""",
            code,
        )
    )


def test_keys_open_mark_and_act_and_jupyterlab_never_sees_them(page: Any) -> None:
    page.locator(".wb-count").click()
    for key in ("b", "d", "d", "x", "m", "m", "Enter", "0", "0", "Escape"):
        page.keyboard.press(key)
    assert count(page) == 2
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.mode") == "command"
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.get_by_text("2 frames marked").wait_for()
    page.keyboard.press("t")
    page.get_by_text("Tag in FiftyOne: 2 marked frames?").wait_for()
    page.keyboard.press("t")
    page.get_by_text("2 tagged").wait_for()
    # Lists in the widget keep their keys.
    page.get_by_label("cls").focus()
    page.keyboard.press("d")
    page.keyboard.press("d")
    assert count(page) == 2
    assert kernel_says(page, "print(len(browser.marked), len(browser.picked))") == "2 0"


def test_a_lasso_reaches_the_kernel(page: Any) -> None:
    page.locator(".wb-count").click()
    page.keyboard.press("m")
    page.locator(".wb-map").evaluate("(map) => map.scrollIntoView({ block: 'center' })")
    page.wait_for_timeout(300)
    spot = page.locator(".wb-map").bounding_box()
    side = min(spot["width"], spot["height"]) - 24
    left, top = (spot["x"] + (spot["width"] - side) / 2, spot["y"] + (spot["height"] - side) / 2)
    # Twenty points in five columns; the lasso takes the first column.
    corners = [(-0.02, 1.02), (-0.02, -0.02), (0.12, -0.02), (0.12, 1.02)]
    page.mouse.move(left + corners[0][0] * side, top + corners[0][1] * side)
    page.mouse.down()
    for x, y in corners[1:]:
        page.mouse.move(left + x * side, top + y * side, steps=4)
    page.mouse.up()
    page.locator(".wb-chip", has_text="lasso · 4").wait_for()
    rows = "print(sorted(browser._rows[one] for one in browser.picked))"
    assert kernel_says(page, rows) == "[0, 5, 10, 15]"


def test_outside_the_widget_the_keys_are_jupyterlabs_again(page: Any) -> None:
    page.locator(".jp-Cell").nth(1).locator(".jp-InputPrompt").click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.content.model.cells.length === 3")
