"""Pictures of a training: its curves, and what the model sees on some frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.perception.predictor import Predictor
from workbench.perception.preprocessing import load_rgb
from workbench.records.dataset import Dataset, media_path
from workbench.training.trained import Trained
from workbench.workspace import Workspace

_SHOWN_ABOVE = 0.3


def curves(trained: Trained) -> Any:
    """Loss and its parts by step, as a matplotlib figure."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    for name, values in trained.curves.items():
        if name != "lr":
            axes.plot(values, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=f"{trained.frames} frames")
    axes.legend(frameon=False)
    return figure


def predictions(
    place: Workspace, predictor: Predictor, dataset: Dataset, *, count: int = 6, seed: int = 0
) -> Any:
    """Some frames with labels (white) and the model's boxes above a score of 0.3 (orange)."""
    import matplotlib.pyplot as plt

    chosen = np.random.default_rng(seed).permutation(len(dataset.frames))[:count]
    columns = min(3, max(1, len(chosen)))
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, index in zip(axes.flat, chosen, strict=False):
        frame = dataset.frames[index]
        image = load_rgb(media_path(place, frame))
        axis.imshow(image)
        for label in dataset.labels_by_frame[frame.id]:
            _rectangle(axis, label.box.xyxy, "white")
        found = predictor.predict([image])[0]
        for box, score in zip(found.boxes, found.scores, strict=True):
            if score >= _SHOWN_ABOVE:
                _rectangle(axis, tuple(box), "orange")
        axis.set_title(f"{frame.drive} #{frame.index}, {frame.conditions.light}", fontsize=8)
    figure.tight_layout()
    return figure


def _rectangle(axis: Any, xyxy: tuple[float, ...], colour: str) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = xyxy
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1))
