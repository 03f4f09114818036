"""Colours of classes, boxes and image grids: on matplotlib axes, and on Pillow images."""

from __future__ import annotations

import colorsys
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont

from workbench.data.schema import FRONT_CAMERA, IGNORE
from workbench.records.frames import ANY_CLASS

__all__ = ["draw_boxes", "image_grid"]

FOUND, MISSED = "#009e73", "#d55e00"
"""What a model finds, gains or passes, and what it misses, loses or fails."""

NEUTRAL = "#7e7e7e"
"""Of lines and text that have to be seen on light and on dark pages."""

_PALETTE = (
    "#56b4e9", "#e69f00", "#0072b2", "#d55e00", "#f0e442", "#cc79a7", "#884422", "#009e73",
    "#8800ff", "#ccffcc", "#99bb66", "#bb55ff", "#00ffff", "#774466", "#5544bb", "#ddaaaa",
)  # fmt: skip
"""The seven chromatic colours of Okabe and Ito (2008), and nine that lie farthest from them.

Chosen one by one, each the colour with the largest smallest distance (CIE76) to all before it under
normal vision, protanopia, deuteranopia and tritanopia (matrices of Machado et al. 2009), neither
dark nor grey.
"""
_GREY = "#8e8e93"


def palette() -> tuple[str, ...]:
    """Sixteen colours that are told apart with every colour vision, as ``#rrggbb``."""
    return _PALETTE


def use_neutral_style() -> None:
    """Make matplotlib's plots readable on light and dark pages, in this process and its children.

    It does not import matplotlib, which takes a while and which few programs need.
    """
    path = str(Path(__file__).with_name("matplotlibrc"))
    os.environ["MATPLOTLIBRC"] = path
    if "matplotlib" in sys.modules:
        import matplotlib as mpl

        mpl.rc_file(path)


def image_grid(
    count: int, *, columns: int = 3, cell: tuple[float, float] = (4.0, 2.6)
) -> tuple[Any, list[Any]]:
    """A matplotlib figure with a grid of axes for images, without ticks and frames.

    Args:
        count: Number of images; without any the figure has one empty cell.
        columns: Most images in a row.
        cell: Width and height of one cell in inches.

    Returns:
        The figure and at least ``count`` axes, row by row.
    """
    import matplotlib.pyplot as plt

    columns = min(columns, max(1, count))
    rows = max(1, -(-count // columns))
    size = (cell[0] * columns, cell[1] * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, list(grid.flat)


def draw_boxes(
    axes: Any,
    boxes: Iterable[Sequence[float]],
    colour: str,
    *,
    width: float = 1.0,
    style: str = "-",
) -> None:
    """Outline boxes on matplotlib axes.

    Args:
        boxes: Each ``(x1, y1, x2, y2)`` in pixels of the image shown.
        width: Line width in points.
        style: Line style of matplotlib, such as ``"--"`` or ``":"``.
    """
    from matplotlib.patches import Rectangle

    for x1, y1, x2, y2 in boxes:
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width, ls=style)
        )


def draw_box_on_image(
    image: Image.Image,
    box: Sequence[float],
    colour: str,
    *,
    width: int = 1,
    text: str = "",
    font_size: int = 10,
) -> None:
    """Outline a box on a Pillow image, with an optional text on a filled background above it.

    Args:
        image: Changed in place.
        box: ``(x1, y1, x2, y2)`` in pixels of ``image``; may be inverted by rounding.
        width: Line width in pixels.
        font_size: Height of the text in pixels.
    """
    x1, y1, x2, y2 = box
    pen = ImageDraw.Draw(image)
    pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=width)
    if not text:
        return
    font = ImageFont.load_default(size=font_size)
    corner = (x1, max(0, y1 - 1.25 * font_size))
    left, top, right, bottom = pen.textbbox(corner, text, font)
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
    pen.text(corner, text, fill="white" if _is_dark(colour) else "black", font=font)


def class_colours(classes: Iterable[str]) -> dict[str, str]:
    """The colour of each class as ``#rrggbb``: the same in widgets, plots, FiftyOne, Label Studio.

    A class of the front camera's schema has the same colour in every schema; others take the
    colours that are left, in the order given. Beyond sixteen classes colours are only told apart by
    their hue. Names that are no class, such as an ignore region's, are grey.
    """
    names = list(dict.fromkeys(classes))
    fixed = dict(zip(FRONT_CAMERA.classes, _PALETTE, strict=False))
    found = {name: fixed[name] for name in names if name in fixed}
    others = [name for name in names if name not in fixed and name not in (ANY_CLASS, IGNORE)]
    free = [colour for colour in _PALETTE if colour not in found.values()]
    free += [_hue(position) for position in range(len(others) - len(free))]
    found |= dict(zip(others, free, strict=False))
    return {name: found.get(name, _GREY) for name in names}


def add_legend(figure: Any, entries: Mapping[str, str | tuple[str, str]]) -> None:
    """A legend of lines below a matplotlib figure.

    Args:
        figure: Laid out by `tight_layout`; its height grows by the legend.
        entries: Colour, or colour and line style, by name.
    """
    from matplotlib.lines import Line2D

    lines = []
    for name, entry in entries.items():
        colour, style = (entry, "-") if isinstance(entry, str) else entry
        # matplotlib's stubs want the styles as literals.
        lines.append(Line2D([], [], color=colour, label=name, linestyle=style))  # type: ignore[arg-type]
    if not lines:
        return
    columns = max(1, int(figure.get_figwidth() / 1.5))
    rows = -(-len(lines) // columns)
    # A second time: the first leaves no room for titles, as images take their shape only then.
    figure.tight_layout()
    before = figure.get_figheight()
    figure.set_figheight(before + 0.22 * rows + 0.05)
    share = before / figure.get_figheight()
    margins = figure.subplotpars
    figure.subplots_adjust(
        bottom=1 - (1 - margins.bottom) * share, top=1 - (1 - margins.top) * share
    )
    # Light lines, such as yellow ones, are seen on grey.
    figure.legend(
        handles=lines,
        loc="lower center",
        ncols=columns,
        fontsize=7,
        facecolor="#b9bec6",
        labelcolor="black",
        framealpha=1,
        edgecolor="none",
    )


def _hue(position: int) -> str:
    # Steps of the golden angle keep hues apart.
    parts = colorsys.hsv_to_rgb(position * 0.61803398875 % 1.0, 0.75, 0.9)
    return "#" + "".join(f"{round(part * 255):02x}" for part in parts)


def _is_dark(colour: str) -> bool:
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue < 120
