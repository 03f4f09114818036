"""Plots of a training: live progress in the notebook, curves, predictions, sweeps."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.core.workspace import Workspace
from workbench.data.drawing import draw_boxes, image_grid
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.predictor import Predictor
from workbench.detection.preprocessing import load_rgb
from workbench.records.dataset import Dataset, media_path
from workbench.records.model_types import SweepReport
from workbench.training.checkpoint import TrainingResult

_DRAW_EVERY_S = 0.5
_WIDTH, _HEIGHT, _MARGIN = 640, 200, 34
_MAX_POINTS = 400
_COLORS = ("#2563eb", "#c2410c", "#2f855a", "#7c3aed", "#b7791f", "#0e7490")
_HIDDEN_CURVES = ("train/lr",)


class LivePlot:
    """Passes on what a training tells, and shows it when there is somebody to see.

    Args:
        progress: Told steps done and in all, such as ``step.progress``.
        log: Told a curve's name, value and step, such as ``step.metric``.
        shown: Whether to draw; ``not step.headless`` in a step's notebook.

    Attributes:
        curves: Every curve so far, name to its points (step, value).
    """

    def __init__(
        self,
        progress: Callable[[int, int], None],
        log: Callable[[str, float, int], None],
        *,
        shown: bool,
    ) -> None:
        self._progress, self._log = progress, log
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self._drawn_at = 0.0
        self._began = time.monotonic()
        self._bar: Any = None
        self._picture: Any = None
        if shown:
            self._show()

    def progress(self, done: int, total: int) -> None:
        self._progress(done, total)
        if self._bar is not None:
            self._bar.max, self._bar.value = total, done
            spent = time.monotonic() - self._began
            left = spent / done * (total - done) if done else 0.0
            self._bar.description = f"{done} of {total}"
            self._words = f"{spent:.0f} s, about {left:.0f} s left"
            self._draw(last=done == total)

    def log(self, name: str, value: float, step: int) -> None:
        self._log(name, value, step)
        if self._picture is not None and name not in _HIDDEN_CURVES:
            self.curves.setdefault(name, []).append((step, value))
            if 0 < self._bar.max == self._bar.value:  # the last look comes after the last step
                self._draw(last=True)

    def _show(self) -> None:
        import IPython.display
        import ipywidgets

        display: Any = IPython.display.display
        self._words = ""
        self._bar = ipywidgets.IntProgress(0, 0, 1, description="", layout={"width": "640px"})
        self._picture = ipywidgets.HTML()
        display(ipywidgets.VBox([self._bar, self._picture]))

    def _draw(self, *, last: bool) -> None:
        now = time.monotonic()
        if last or now - self._drawn_at >= _DRAW_EVERY_S:
            self._drawn_at = now
            self._picture.value = f"{curves_svg(self.curves)}<div>{html.escape(self._words)}</div>"


def curves_svg(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Losses on a logarithmic axis, watched figures from 0 to 1 beside them, as one SVG."""
    losses = {name: points for name, points in curves.items() if not name.startswith("watched/")}
    watched = {name: points for name, points in curves.items() if name.startswith("watched/")}
    panels = [_panel(losses, 0, logarithmic=True)] if losses else []
    if watched:
        panels.append(_panel(watched, _WIDTH if losses else 0, logarithmic=False))
    width = _WIDTH * max(1, len(panels))
    return (
        f"<svg viewBox='0 0 {width} {_HEIGHT}' width='{width}' "
        f"style='max-width: 100%; height: auto' role='img' aria-label='curves of the training'>"
        f"{''.join(panels)}</svg>"
    )


def _panel(
    curves: Mapping[str, Sequence[tuple[int, float]]], left: int, *, logarithmic: bool
) -> str:
    def height(value: float) -> float:
        return math.log10(max(value, 1e-6)) if logarithmic else value

    points = [point for curve in curves.values() for point in curve]
    last = max(1, *(step for step, _ in points))
    heights = [height(value) for _, value in points if math.isfinite(value)] or [0.0]
    low, high = (min(heights), max(heights)) if logarithmic else (0.0, 1.0)
    span = (high - low) or 1.0
    parts = [_axis(left, low, high, last, logarithmic=logarithmic)]
    for number, (name, curve) in enumerate(sorted(curves.items())):
        colour = _COLORS[number % len(_COLORS)]
        every = max(1, len(curve) // _MAX_POINTS)
        shown = [*curve[::every], curve[-1]]
        path = " ".join(
            f"{left + _MARGIN + step / last * (_WIDTH - 2 * _MARGIN):.1f},"
            f"{_HEIGHT - 22 - (height(value) - low) / span * (_HEIGHT - 40):.1f}"
            for step, value in shown
            if math.isfinite(value)
        )
        parts.append(
            f"<polyline fill='none' stroke='{colour}' stroke-width='1.4' points='{path}'/>"
        )
        if len(curve) == 1 and path:
            x, _, y = path.split()[0].partition(",")
            parts.append(f"<circle cx='{x}' cy='{y}' r='2.5' fill='{colour}'/>")
        words = html.escape(f"{name.partition('/')[2] or name} {curve[-1][1]:.3g}")
        across = left + _MARGIN + 8 + 145 * (number % 4)
        down = 12 + 12 * (number // 4)
        parts.append(f"<text x='{across}' y='{down}' font-size='11' fill='{colour}'>{words}</text>")
    return "".join(parts)


def _axis(left: int, low: float, high: float, last: int, *, logarithmic: bool) -> str:
    bottom, right = _HEIGHT - 22, left + _WIDTH - _MARGIN
    top_word, low_word = (f"{10**high:.2g}", f"{10**low:.2g}") if logarithmic else ("1", "0")
    return (
        f"<path d='M{left + _MARGIN} 18 V{bottom} H{right}' stroke='#9aa4b5' fill='none'/>"
        f"<g font-size='10' fill='#667084'><text x='{left + 2}' y='24'>{top_word}</text>"
        f"<text x='{left + 2}' y='{bottom}'>{low_word}</text>"
        f"<text x='{right - 46}' y='{_HEIGHT - 8}'>step {last}</text></g>"
    )


# ---- Pictures of a training: its curves, and what the model sees on some frames.


def plot_curves(trained: TrainingResult) -> Any:
    """Loss and its parts by step, as a matplotlib figure."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    for name, values in trained.curves.items():
        if name != "lr":
            axes.plot(values, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=f"{trained.frames} frames")
    axes.legend(frameon=False)
    return figure


def plot_validation(trained: TrainingResult) -> Any:
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


def plot_sweep(report: SweepReport) -> Any:
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
    axes.set_title(report.summary.partition(": ")[2], fontsize=9)
    figure.tight_layout()
    return figure


def plot_predictions(
    place: Workspace, predictor: Predictor, dataset: Dataset, *, count: int = 6, seed: int = 0
) -> Any:
    """Some frames with labels (white) and the model's confident boxes (orange)."""
    chosen = np.random.default_rng(seed).permutation(len(dataset.frames))[:count]
    figure, grid = image_grid(len(chosen))
    for axis, index in zip(grid, chosen, strict=False):
        frame = dataset.frames[index]
        image = load_rgb(media_path(place, frame))
        axis.imshow(image)
        labels = dataset.labels_by_frame[frame.id]
        draw_boxes(axis, (label.box.xyxy for label in labels), "white")
        detections = predictor.predict([image])[0]
        draw_boxes(axis, detections.above(CONFIDENCE_THRESHOLD).boxes, "orange")
        axis.set_title(f"{frame.drive} #{frame.index}, {frame.conditions.light}", fontsize=8)
    figure.tight_layout()
    return figure
