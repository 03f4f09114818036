"""Pictures of a training: its curves, and what the model sees on some frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.perception.predictor import Predictor
from workbench.perception.preprocessing import load_rgb
from workbench.records.dataset import Dataset, media_path
from workbench.records.types import SweepReport
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


def watched(trained: Trained) -> Any:
    """Each watched figure by step; where it was stopped, a line says why."""
    import matplotlib.pyplot as plt

    looks = trained.facts["watched"]
    figure, axes = plt.subplots(figsize=(7, 3))
    for name in sorted({name for look in looks for name in look["figures"]}):
        points = [(look["step"], look["figures"].get(name)) for look in looks]
        steps, values = zip(
            *((at, value) for at, value in points if value is not None), strict=True
        )
        axes.plot(steps, values, label=name, linewidth=2 if name == "all" else 1, marker=".")
    ended = trained.facts.get("ended")
    title = "on frames that are not learned from"
    axes.set(
        xlabel="step", ylim=(0, 1), title=f"{title}; ended: {ended['why']}" if ended else title
    )
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def sweep(report: SweepReport) -> Any:
    """A row a setting: a dot a seed, the mean with its interval."""
    import matplotlib.pyplot as plt

    rows = report.settings
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.45 * len(rows)))
    for row, setting in enumerate(rows):
        dots = [model.value for model in report.models if model.settings == setting.settings]
        axes.plot(dots, [row] * len(dots), "o", color="#9aa4b5", markersize=4)
        axes.plot([setting.mean], [row], "|", color="#c2410c", markersize=16, markeredgewidth=2)
        if setting.low is not None and setting.high is not None:
            axes.hlines(row, setting.low, setting.high, color="#c2410c", linewidth=1.5)
    names = [
        ", ".join(f"{name} {value}" for name, value in one.settings.items()) or "as it is"
        for one in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{report.figure}{', simulated' if report.simulated else ''}", fontsize=8)
    axes.set_title(report.words.partition(": ")[2], fontsize=9)
    figure.tight_layout()
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
