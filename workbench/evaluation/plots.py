"""Plots of an evaluation: precision-recall curves, slices, gates and worst frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.core.workspace import Workspace
from workbench.data.drawing import draw_boxes, image_grid
from workbench.detection.preprocessing import load_rgb
from workbench.evaluation.gates import GateDecision
from workbench.evaluation.matching import RECALL_THRESHOLDS
from workbench.evaluation.metrics import ALL_CLASSES, Estimate, Evaluation, MetricName, SliceMetrics
from workbench.evaluation.misses import FrameMisses, worst_frames
from workbench.records.base import GateResult, Verdict
from workbench.records.dataset import media_path

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
_MODEL_STYLES = ((_BLUE, "-"), (_ORANGE, "--"), (_GREEN, ":"), (_GREY, "-."))
_MAX_NAMED_BOXES = 4
"""Missed boxes of a frame that are named, the largest first."""
_VERDICT_COLOURS = {Verdict.PASS: _GREEN, Verdict.FAIL: _RED, Verdict.INSUFFICIENT: _ORANGE}


def pr_curves(models: Sequence[Evaluation], part: str = "all", *, panels: int = 6) -> Any:
    """COCO's interpolated precision over recall at IoU 0.5, a panel a class, a line a model.

    The dot is the operating point: what a vehicle would see of it.
    """
    import matplotlib.pyplot as plt

    first = models[0]
    rows = [first.metrics.at(part, cls) for cls in first.tables[part].classes]
    shown = sorted((row for row in rows if row.boxes), key=lambda row: -row.boxes)[:panels]
    columns = min(3, max(1, len(shown)))
    height = max(1, -(-len(shown) // columns))
    figure, axes = plt.subplots(
        height, columns, figsize=(3.1 * columns, 2.7 * height), squeeze=False, sharex=True
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, shown, strict=False):
        for model, style in zip(models, _MODEL_STYLES, strict=False):
            _draw_curve(axis, model, part, row.cls, style)
        axis.set(xlim=(0, 1.02), ylim=(0, 1.05))
        axis.set_title(f"{row.cls}: {row.boxes} boxes, {row.drives_with_boxes} drives", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("recall")
    for axis in axes[:, 0]:
        axis.set_ylabel("precision")
    if shown:
        axes.flat[0].legend(frameon=False, fontsize=8, loc="lower left")
    figure.suptitle(_title(f"Precision and recall at IoU 0.5, {part}", first), fontsize=10)
    figure.tight_layout()
    return figure


def metrics_by_slice(
    candidate: Evaluation, reference: Evaluation | None = None, *, metric: MetricName = "recall"
) -> Any:
    """One metric with its interval on every slice with truth; hollow where only descriptive."""
    import matplotlib.pyplot as plt

    models = [candidate] if reference is None else [candidate, reference]
    shown = [part for part in candidate.tables if candidate.metrics.at(part).boxes]
    figure, axis = plt.subplots(figsize=(7.5, 1.1 + 0.34 * max(1, len(shown))))
    for place, part in enumerate(shown):
        for offset, (model, (colour, _)) in enumerate(zip(models, _MODEL_STYLES, strict=False)):
            row = model.metrics.at(part)
            height = place + 0.16 * (2 * offset - len(models) + 1)
            _draw_interval(axis, getattr(row, metric), height, colour, solid=row.usable)
    labels = [_slice_label(candidate.metrics.at(part)) for part in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(-0.01, 1.01)
    axis.set_xlabel(f"{metric}, {candidate.metrics.settings.confidence:.0%} interval")
    axis.grid(axis="x", alpha=0.3)
    for model, (colour, _) in zip(models, _MODEL_STYLES, strict=False):
        axis.plot([], [], "o-", color=colour, markersize=4, label=model.name)
    axis.plot(
        [], [], "o", mfc="white", color=_GREY, markersize=4, label="too few drives: descriptive"
    )
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    figure.suptitle(_title(f"{metric} by slice", candidate), fontsize=10)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


def gate_intervals(judged: GateDecision) -> Any:
    """Every gate's interval against its bound; the shaded side is the one that passes."""
    import matplotlib.pyplot as plt

    kinds = {gate.name: gate.kind for gate in judged.rules.gates}
    count = len(judged.gates)
    figure, axes = plt.subplots(count, 1, figsize=(7.5, 0.62 * count + 0.9), squeeze=False)
    for axis, gate in zip(axes.flat, judged.gates, strict=True):
        _draw_gate(axis, gate, at_least=kinds[gate.name] not in ("int8_loss", "no_leaks"))
    figure.suptitle(
        f"{judged.verdict}{', simulated' if judged.simulated else ''}", fontsize=11, weight="bold"
    )
    figure.tight_layout()
    return figure


def worst_misses(
    place: Workspace, evaluated: Evaluation, *, count: int = 6, part: str = "all"
) -> Any:
    """The frames with the gravest misses: missed red, found green, false alarms dashed orange."""
    chosen = worst_frames(evaluated, count, part=part)
    figure, grid = image_grid(len(chosen), cell=(5.0, 3.4))
    for axis, misses in zip(grid, chosen, strict=False):
        _draw_misses(axis, place, misses)
    title = "Worst misses" if chosen else "Nothing was missed"
    key = "red missed, green found, orange dashed false alarm, grey dotted ignored"
    figure.suptitle(_title(f"{title} of {evaluated.name}, {part} ({key})", evaluated), fontsize=10)
    figure.tight_layout()
    return figure


def _draw_curve(axis: Any, model: Evaluation, part: str, cls: str, style: tuple[str, str]) -> None:
    row = model.metrics.at(part, cls)
    place = model.tables[part].classes.index(cls)
    precision = model.curves[part].precision[0, :, place]
    reached = precision > 0
    colour, line = style
    axis.plot(
        RECALL_THRESHOLDS[reached],
        precision[reached],
        line,
        color=colour,
        linewidth=1.4,
        label=model.name,
    )
    if row.recall.value is not None and row.precision.value is not None:
        axis.plot(row.recall.value, row.precision.value, "o", color=colour, markersize=5)


def _draw_interval(axis: Any, figure: Estimate, height: float, colour: str, *, solid: bool) -> None:
    if figure.value is None:
        return
    if figure.low is not None and figure.high is not None:
        style = "-" if solid else ":"
        axis.plot([figure.low, figure.high], [height, height], style, color=colour, linewidth=1.6)
    axis.plot(figure.value, height, "o", color=colour, mfc=colour if solid else "white", ms=4.5)


def _draw_gate(axis: Any, gate: GateResult, *, at_least: bool) -> None:
    colour = _VERDICT_COLOURS[gate.verdict]
    numbers = [gate.bound, *(x for x in (gate.value, gate.low, gate.high) if x is not None)]
    margin = max(0.15 * (max(numbers) - min(numbers)), 0.01)
    low, high = min(numbers) - margin, max(numbers) + margin
    axis.set(xlim=(low, high), ylim=(-1, 1), yticks=[])
    axis.axvspan(gate.bound if at_least else low, high if at_least else gate.bound, alpha=0.12)
    axis.axvline(gate.bound, color="black", linewidth=1)
    shown = Estimate(value=gate.value, low=gate.low, high=gate.high)
    _draw_interval(axis, shown, 0, colour, solid=True)
    advice = "" if gate.required else ", advice only"
    axis.set_title(
        f"{gate.name} on {gate.slice}: {gate.verdict}{advice}", fontsize=8, loc="left", pad=2
    )
    axis.tick_params(labelsize=7)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _draw_misses(axis: Any, place: Workspace, misses: FrameMisses) -> None:
    axis.imshow(load_rgb(media_path(place, misses.frame)))
    for label in misses.ignored:
        draw_boxes(axis, [label.box.xyxy], _GREY, style=":", width=0.8)
    for label in misses.hit:
        draw_boxes(axis, [label.box.xyxy], _GREEN, width=0.9)
    for found in misses.found:
        if not found.right:
            draw_boxes(axis, [found.box.xyxy], _ORANGE, style="--", width=0.9)
    largest_first = sorted(misses.missed, key=lambda label: -label.box.w * label.box.h)
    for order, label in enumerate(largest_first):
        draw_boxes(axis, [label.box.xyxy], _RED, width=1.4)
        if order < _MAX_NAMED_BOXES:  # more names would cover what they name
            axis.text(
                label.box.x,
                label.box.y - 2,
                label.cls,
                color="white",
                fontsize=6,
                bbox={"facecolor": _RED, "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
            )
    frame = misses.frame
    axis.set_title(
        f"{frame.drive} #{frame.index}, {frame.conditions.light}, {frame.conditions.weather}: "
        f"{len(misses.missed)} missed",
        fontsize=8,
    )


def _slice_label(row: SliceMetrics) -> str:
    cls = "" if row.cls == ALL_CLASSES else f", {row.cls}"
    return f"{row.slice}{cls} ({row.boxes} boxes, {row.drives} drives)"


def _title(title: str, evaluated: Evaluation) -> str:
    return f"{title} [simulated]" if evaluated.metrics.simulated else title
