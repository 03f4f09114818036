"""Plots of a training: live progress in the notebook, curves, predictions, sweeps."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.core.types import Progress
from workbench.core.workspace import Workspace
from workbench.data.drawing import add_legend, draw_boxes, image_grid
from workbench.detection.boxes import CONFIDENCE_THRESHOLD
from workbench.detection.predictor import Predictor
from workbench.detection.preprocessing import load_frame
from workbench.records.dataset import Dataset
from workbench.records.model_types import SweepReport
from workbench.training.checkpoint import LogMetric, TrainingResult
from workbench.training.sweeps import describe_settings

__all__ = ["LivePlot", "plot_curves", "plot_predictions", "plot_sweep", "plot_validation"]

_DRAW_EVERY_S = 0.5
_WIDTH, _HEIGHT, _MARGIN = 640, 200, 34
_MAX_POINTS = 400
_COLORS = ("#2563eb", "#c2410c", "#2f855a", "#7c3aed", "#b7791f", "#0e7490")
_HIDDEN_CURVES = ("train/lr",)


class LivePlot:
    """Passes on a training's progress and curves, and shows them in the notebook.

    Args:
        progress: Called with the steps done and their total, such as ``step.progress``.
        log: Called with a curve's name, value and step, such as ``step.metric``.
        shown: Whether to draw; ``not step.headless`` in a step's notebook.

    Attributes:
        curves: Points ``(step, value)`` of each curve so far, by name.
    """

    def __init__(self, progress: Progress, log: LogMetric, *, shown: bool) -> None:
        self._progress, self._log = progress, log
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self._drawn_at = 0.0
        self._began = time.monotonic()
        self._bar: Any = None
        self._plot: Any = None
        self._status = ""
        if shown:
            self._show()

    def progress(self, done: int, total: int) -> None:
        """Pass on and show the progress."""
        self._progress(done, total)
        if self._bar is not None:
            self._bar.max, self._bar.value = total, done
            elapsed = time.monotonic() - self._began
            remaining = elapsed / done * (total - done) if done else 0.0
            self._bar.description = f"{done} of {total}"
            self._status = f"{elapsed:.0f} s, about {remaining:.0f} s left"
            self._draw(last=done == total)

    def log(self, name: str, value: float, step: int) -> None:
        """Pass on a curve's value and add it to the plot."""
        self._log(name, value, step)
        if self._plot is not None and name not in _HIDDEN_CURVES:
            self.curves.setdefault(name, []).append((step, value))
            if 0 < self._bar.max == self._bar.value:  # the last validation follows the last step
                self._draw(last=True)

    def _show(self) -> None:
        import IPython.display
        import ipywidgets

        display: Any = IPython.display.display
        self._bar = ipywidgets.IntProgress(0, 0, 1, description="", layout={"width": "640px"})
        self._plot = ipywidgets.HTML()
        display(ipywidgets.VBox([self._bar, self._plot]))

    def _draw(self, *, last: bool) -> None:
        now = time.monotonic()
        if last or now - self._drawn_at >= _DRAW_EVERY_S:
            self._drawn_at = now
            self._plot.value = f"{_curves_svg(self.curves)}<div>{html.escape(self._status)}</div>"


def _curves_svg(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Losses on a logarithmic axis, validation metrics from 0 to 1 beside them, as one SVG."""
    losses = {name: points for name, points in curves.items() if not name.startswith("watched/")}
    metrics = {name: points for name, points in curves.items() if name.startswith("watched/")}
    panels = [_panel(losses, 0, logarithmic=True)] if losses else []
    if metrics:
        panels.append(_panel(metrics, _WIDTH if losses else 0, logarithmic=False))
    width = _WIDTH * max(1, len(panels))
    return (
        f"<svg viewBox='0 0 {width} {_HEIGHT}' width='{width}' "
        f"style='max-width: 100%; height: auto' role='img' aria-label='training curves'>"
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
        color = _COLORS[number % len(_COLORS)]
        every = max(1, len(curve) // _MAX_POINTS)
        shown = [*curve[::every], curve[-1]]
        path = " ".join(
            f"{left + _MARGIN + step / last * (_WIDTH - 2 * _MARGIN):.1f},"
            f"{_HEIGHT - 22 - (height(value) - low) / span * (_HEIGHT - 40):.1f}"
            for step, value in shown
            if math.isfinite(value)
        )
        parts.append(f"<polyline fill='none' stroke='{color}' stroke-width='1.4' points='{path}'/>")
        if len(curve) == 1 and path:
            x, _, y = path.split()[0].partition(",")
            parts.append(f"<circle cx='{x}' cy='{y}' r='2.5' fill='{color}'/>")
        legend = html.escape(f"{name.partition('/')[2] or name} {curve[-1][1]:.3g}")
        across = left + _MARGIN + 8 + 145 * (number % 4)
        down = 12 + 12 * (number // 4)
        parts.append(f"<text x='{across}' y='{down}' font-size='11' fill='{color}'>{legend}</text>")
    return "".join(parts)


def _axis(left: int, low: float, high: float, last: int, *, logarithmic: bool) -> str:
    bottom, right = _HEIGHT - 22, left + _WIDTH - _MARGIN
    top_label, low_label = (f"{10**high:.2g}", f"{10**low:.2g}") if logarithmic else ("1", "0")
    return (
        f"<path d='M{left + _MARGIN} 18 V{bottom} H{right}' stroke='#9aa4b5' fill='none'/>"
        f"<g font-size='10' fill='#667084'><text x='{left + 2}' y='24'>{top_label}</text>"
        f"<text x='{left + 2}' y='{bottom}'>{low_label}</text>"
        f"<text x='{right - 46}' y='{_HEIGHT - 8}'>step {last}</text></g>"
    )


def plot_curves(result: TrainingResult) -> Any:
    """Plot the loss and its parts by step; returns the matplotlib figure."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    for name, values in result.curves.items():
        if name != "lr":
            axes.plot(values, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log", title=f"{result.frames} frames")
    axes.legend(frameon=False)
    return figure


def plot_validation(result: TrainingResult) -> Any:
    """Plot each validation metric by step, with the stop reason; returns the matplotlib figure."""
    import matplotlib.pyplot as plt

    checks = result.facts["watched"]
    figure, axes = plt.subplots(figsize=(7, 3))
    for name in sorted({name for check in checks for name in check["figures"]}):
        points = [(c["step"], c["figures"][name]) for c in checks if name in c["figures"]]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name, linewidth=2 if name == "all" else 1, marker=".")
    title = "validation"
    if ended := result.facts.get("ended"):
        title += f"; stop reason: {ended['why']}"
    axes.set(xlabel="step", ylim=(0, 1), title=title)
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_sweep(report: SweepReport) -> Any:
    """Plot a row for each setting: a dot for each seed, the mean with its interval.

    Returns:
        The matplotlib figure.
    """
    import matplotlib.pyplot as plt

    settings = report.settings
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.45 * len(settings)))
    for row, setting in enumerate(settings):
        values = [model.value for model in report.models if model.settings == setting.settings]
        axes.plot(values, [row] * len(values), "o", color="#9aa4b5", markersize=4)
        axes.plot([setting.mean], [row], "|", color="#c2410c", markersize=16, markeredgewidth=2)
        if setting.low is not None and setting.high is not None:
            axes.hlines(row, setting.low, setting.high, color="#c2410c", linewidth=1.5)
    names = [describe_settings(setting) for setting in settings]
    axes.set_yticks(range(len(settings)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{report.figure}{', simulated' if report.simulated else ''}", fontsize=8)
    axes.set_title(report.summary.partition(": ")[2], fontsize=9)
    figure.tight_layout()
    return figure


def plot_predictions(
    workspace: Workspace, predictor: Predictor, dataset: Dataset, *, count: int = 6, seed: int = 0
) -> Any:
    """Plot random frames with their labels (white) and the model's confident boxes (orange).

    Args:
        workspace: Where the images are.
        predictor: The model.
        dataset: Frames and labels.
        count: Number of frames.
        seed: Of the choice.

    Returns:
        The matplotlib figure.
    """
    chosen = np.random.default_rng(seed).permutation(len(dataset.frames))[:count]
    figure, grid = image_grid(len(chosen))
    for axis, index in zip(grid, chosen, strict=False):
        frame = dataset.frames[index]
        image = load_frame(workspace, frame)
        axis.imshow(image)
        labels = dataset.labels_by_frame[frame.id]
        draw_boxes(axis, (label.box.xyxy for label in labels), "white")
        detections = predictor.predict([image])[0]
        draw_boxes(axis, detections.above(CONFIDENCE_THRESHOLD).boxes, "orange")
        axis.set_title(f"{frame.drive} #{frame.index}, {frame.conditions.light}", fontsize=8)
    figure.tight_layout()
    add_legend(figure, {"label": "white", "prediction": "orange"})
    return figure
