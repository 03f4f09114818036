"""Colours of classes and legends."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from workbench import data
from workbench.data.drawing import add_legend, class_colours, draw_box_on_image, image_grid
from workbench.records.frames import ANY_CLASS

# Linear RGB as people with a colour vision deficiency see it: Machado, Oliveira, Fernandes 2009,
# "A Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(colour: str, vision: str) -> NDArray[np.float64]:
    """CIELAB of ``#rrggbb`` as it is seen."""
    rgb = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(VISION[vision] @ linear, 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", list(VISION))
def test_classes_are_told_apart_by_everyone(vision: str) -> None:
    """Okabe and Ito's own colours are 16 apart at the least; 2.3 is just noticeable."""
    names = [*data.FRONT_CAMERA.classes, *(f"class {number}" for number in range(6))]
    seen = {name: lab(colour, vision) for name, colour in class_colours(names).items()}
    for one, other in itertools.combinations(names, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= 16, (one, other)


def test_a_class_keeps_its_colour_in_another_schema() -> None:
    whole = class_colours(data.FRONT_CAMERA.classes)
    part = class_colours(("tram", "cyclist", "scooter", "car"))
    assert {name: part[name] for name in ("car", "cyclist")} == {
        name: whole[name] for name in ("car", "cyclist")
    }
    assert len(set(part.values())) == 4
    assert class_colours(("tram", "scooter")) == class_colours(("tram", "scooter"))
    assert class_colours((ANY_CLASS, "ignore")) == {ANY_CLASS: "#8e8e93", "ignore": "#8e8e93"}


def test_many_classes_have_a_colour_each() -> None:
    colours = class_colours(f"class {number}" for number in range(40))
    assert len(set(colours.values())) == 40
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours.values())


def test_a_legend_lies_below_the_pictures() -> None:
    figure, (axes, *_) = image_grid(4, columns=2)
    axes.set_axis_on()
    figure.tight_layout()
    figure.tight_layout()
    before = axes.get_position().height * figure.get_figheight()
    add_legend(figure, {"car": "#56b4e9", "not scored": ("white", ":")})
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["car", "not scored"]
    top = legend.get_window_extent().y1
    assert top <= min(one.get_window_extent().y0 for one in figure.axes)
    after = axes.get_position().height * figure.get_figheight()
    assert after == pytest.approx(before, rel=0.02)  # pictures do not shrink


def test_text_on_a_dark_colour_is_white(tmp_path: Path) -> None:
    for colour, text in (("#0072b2", (255, 255, 255)), ("#f0e442", (0, 0, 0))):
        image = Image.new("RGB", (90, 60), "#777777")
        draw_box_on_image(image, (5, 30, 60, 50), colour, text="car", font_size=20)
        assert text in set(image.getdata())


def test_plots_have_no_background_and_text_for_light_and_dark_pages() -> None:
    """In a process of its own, as pytest has imported matplotlib long before."""
    script = """
import io, json, sys
from workbench.data.drawing import use_neutral_style
if "late" in sys.argv:
    import matplotlib.pyplot
use_neutral_style()
import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import _fetch_figure_metadata
from PIL import Image
figure, axes = plt.subplots()
axes.plot([0, 1], label="x")
axes.legend()
title = axes.set_title("title")
stream = io.BytesIO()
figure.savefig(stream)
alpha = np.asarray(Image.open(stream))[..., 3]
texts = [title, *axes.get_legend().get_texts(), *axes.get_xticklabels(), *axes.get_yticklabels()]
slab = _fetch_figure_metadata(figure)
print(json.dumps([int(alpha[0, 0]), sorted({text.get_color() for text in texts}), slab]))
"""
    for order in ("early", "late"):
        ran = subprocess.run(
            [sys.executable, "-c", script, order],
            capture_output=True,
            text=True,
            env={**os.environ, "MPLBACKEND": "agg"},
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        alpha, colours, slab = json.loads(ran.stdout)
        assert alpha == 0
        assert slab is None, "JupyterLab would put a background behind it"
        for colour in colours:
            # WCAG 2.2, 1.4.11: 3 to 1, on white and on JupyterLab's dark background.
            lightness = luminance(f"#{colour}" if colour[0] != "#" else colour)
            assert 1.05 / (lightness + 0.05) >= 3
            assert (lightness + 0.05) / (luminance("#111111") + 0.05) >= 3


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` as WCAG defines it."""
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
