"""Plots of a dataset: a contact sheet, coverage by class and light, and the quarantine table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.core.workspace import Workspace
from workbench.data.drawing import add_legend, class_colours, draw_boxes, image_grid
from workbench.data.images import open_media
from workbench.records.dataset import Dataset, media_path
from workbench.records.types import Quarantined

__all__ = ["plot_contact_sheet", "plot_coverage", "quarantine_table"]


def plot_contact_sheet(
    workspace: Workspace, dataset: Dataset, *, count: int = 12, seed: int = 0
) -> Any:
    """Random frames with their labels, coloured by class; ignore regions are dotted.

    Args:
        count: Number of frames.
        seed: Of the random choice.
    """
    indices = np.random.default_rng(seed).permutation(len(dataset.frames))[:count]
    figure, grid = image_grid(len(indices), columns=4, cell=(3.4, 2.3))
    colours = class_colours(dataset.label_schema.classes)
    shown: set[str] = set()
    for axis, index in zip(grid, indices, strict=False):
        frame = dataset.frames[index]
        axis.imshow(open_media(media_path(workspace, frame), frame.id))
        for label in dataset.labels_by_frame[frame.id]:
            style, name = (":", "not scored") if label.ignore else ("-", label.cls)
            colour = colours.get(label.cls, "white")
            draw_boxes(axis, [label.box.xyxy], colour, width=0.8, style=style)
            shown.add(name)
        conditions = f"{frame.conditions.light}, {frame.conditions.weather}"
        role = frame.role.value if frame.role else "no role"
        axis.set_title(f"{frame.drive} #{frame.index}: {conditions}, {role}", fontsize=7)
    figure.suptitle(f"{dataset.name}{', simulated' if dataset.simulated else ''}", fontsize=10)
    figure.tight_layout()
    entries: dict[str, str | tuple[str, str]] = {**colours, "not scored": ("white", ":")}
    add_legend(figure, {name: entry for name, entry in entries.items() if name in shown})
    return figure


def plot_coverage(dataset: Dataset) -> Any:
    """Number of labels by class and light, as a heat map (a matplotlib figure)."""
    import matplotlib.pyplot as plt

    light_of = {frame.id: frame.conditions.light.value for frame in dataset.frames}
    labels = [label for label in dataset.labels if not label.ignore]
    counts = Counter((label.cls, light_of[label.frame]) for label in labels)
    classes = list(dataset.label_schema.classes)
    lights = sorted(set(light_of.values()))
    table = np.array([[counts[cls, light] for light in lights] for cls in classes], np.int64)
    table = table.reshape(len(classes), len(lights))
    figure, axis = plt.subplots(figsize=(1.6 + 1.1 * len(lights), 0.9 + 0.3 * len(classes)))
    axis.imshow(np.log1p(table), cmap="Blues", aspect="auto")
    axis.set_xticks(range(len(lights)), lights)
    axis.set_yticks(range(len(classes)), classes)
    dark = table.max(initial=0) ** 0.5
    for (row, column), count in np.ndenumerate(table):
        colour = "white" if count > dark else "black"
        axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axis.set_title("labels by class and light", fontsize=10)
    figure.tight_layout()
    return figure


def quarantine_table(quarantine: Sequence[Quarantined], *, examples: int = 3) -> Any:
    """Quarantined inputs by reason, with some files, as a DataFrame.

    Args:
        examples: Number of files listed per reason.
    """
    import pandas as pd

    rows = []
    for reason, count in Counter(entry.reason for entry in quarantine).most_common():
        listed = [entry for entry in quarantine if entry.reason == reason][:examples]
        shown = "; ".join(f"{entry.file}: {entry.detail}" for entry in listed)
        rows.append({"reason": reason, "count": count, "for example": shown})
    return pd.DataFrame(rows, columns=["reason", "count", "for example"])
