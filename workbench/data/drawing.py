"""Boxes and image grids: drawn on matplotlib axes for plots, and on Pillow images for files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["class_colour", "draw_box_on_image", "draw_boxes", "image_grid"]

_CLASS_COLOURS = (
    "#e6443c", "#3cb44b", "#ffc928", "#4f83ff", "#f58231",
    "#c35bff", "#42d4f4", "#f032e6", "#bfef45", "#ffd8b1",
)  # fmt: skip


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
    pen.text(corner, text, fill="black", font=font)


def class_colour(cls: str) -> str:
    """A colour for a class name, the same everywhere, as ``#rrggbb``."""
    return _CLASS_COLOURS[sum(cls.encode()) % len(_CLASS_COLOURS)]
