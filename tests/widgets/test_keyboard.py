"""The frame browser in a real JupyterLab and a headless Chromium, by keyboard only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs import screenshots
from workbench.core.workspace import Workspace

SOURCE = """
from pathlib import Path
from PIL import Image
from workbench.core import digest
from workbench.widgets import FrameBrowser
from workbench.widgets.frames import DrawnBox, ShownFrame
frames = []
for number in range(20):
    path = Path(f"{number}.png")
    Image.new("RGB", (240, 120), (number * 10, 40, 40)).save(path)
    box = DrawnBox(("car", "cyclist", "truck")[number % 3], (10, 10, 40, 30), 0.7)
    frames.append(ShownFrame(digest.of_file(path), path, "drive", "day", "clear", boxes=(box,)))
pressed = []
browser = FrameBrowser(
    frames,
    on_tag=lambda chosen: pressed.append(chosen) or f"{len(chosen)} tagged",
    on_send=lambda chosen: f"{len(chosen)} sent",
)
browser
"""

pytestmark = pytest.mark.skipif(screenshots.chromium() is None, reason="there is no Chromium")


@pytest.fixture
def page(workspace: Workspace, tmp_path: Path) -> Iterator[Any]:
    """JupyterLab with the browser shown by the first cell, and a second cell below."""
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
    notebook = tmp_path / "keys.ipynb"
    notebook.write_text(json.dumps(body))
    with (
        screenshots.lab(workspace, notebook, servers=()) as address,
        screenshots.browser(1280, 900) as shown,
    ):
        screenshots.run_all_cells(shown, address)
        shown.wait_for_timeout(1000)
        yield shown


def count(page: Any) -> int:
    """Cells of the notebook, also those that are not on the screen."""
    script = "window.jupyterapp.shell.currentWidget.content.model.cells.length"
    return int(page.evaluate(script))


def test_keys_turn_zoom_and_tag_and_jupyterlab_never_sees_them(page: Any) -> None:
    page.locator(".workbench-keys img").first.click()
    page.wait_for_timeout(500)
    for key in ("b", "a", "d", "d", "x", "m", "y", "Enter", "0", "0"):
        page.keyboard.press(key)
    assert count(page) == 2
    state = "window.jupyterapp.shell.currentWidget.content.mode"
    assert page.evaluate(state) == "command"
    page.keyboard.press("ArrowRight")
    page.get_by_text("Frames 9 to 16 of 20").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Frames 1 to 8 of 20").wait_for()
    page.keyboard.press("z")
    page.get_by_text("Frame 1 of 20").wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_text("Frame 2 of 20").wait_for()
    page.keyboard.press("t")
    page.get_by_text("1 tagged").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Frames 1 to 8 of 20").wait_for()
    page.keyboard.press("s")
    page.get_by_text("Send 20 frames to labelers?").wait_for()
    page.keyboard.press("s")
    page.get_by_text("20 sent").wait_for()
    assert count(page) == 2
    # Outside the widget the keys are JupyterLab's again.
    page.locator(".jp-Cell").nth(1).locator(".jp-InputPrompt").click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.content.model.cells.length === 3")


def test_lists_in_the_widget_keep_their_keys(page: Any) -> None:
    choice = page.locator(".workbench-keys select").nth(2)  # class
    choice.select_option("car")
    choice.focus()
    page.get_by_text("of 7 (20 in total)").wait_for()
    page.keyboard.press("d")
    page.keyboard.press("d")
    assert count(page) == 2
