"""Plots of an evaluation: precision-recall curves, slices, gates and worst frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.core.text import counted
from workbench.core.workspace import Workspace
from workbench.data.drawing import FOUND, MISSED, NEUTRAL, add_legend, draw_boxes, image_grid
from workbench.detection.preprocessing import load_frame
from workbench.evaluation.matching import RECALL_THRESHOLDS
from workbench.evaluation.misses import FrameMisses, worst_frames
from workbench.evaluation.results import ALL_CLASSES, Estimate, MetricName, SliceMetrics
from workbench.records.base import GateResult, Verdict

if TYPE_CHECKING:
    from workbench.evaluation.comparison import Comparison, FlippedFrame
    from workbench.evaluation.gates import GateDecision
    from workbench.evaluation.metrics import Evaluation
    from workbench.evaluation.safety import SafetyMetrics

__all__ = [
    "flipped_frames",
    "gate_intervals",
    "metrics_by_slice",
    "miss_rates",
    "pr_curves",
    "reliability",
    "worst_misses",
]

_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#777777"
_MODEL_STYLES = ((_BLUE, "-"), (_ORANGE, "--"), (FOUND, ":"), (_GREY, "-."))
_MAX_NAMED_BOXES = 4
"""Number of missed boxes of a frame with a class name, the largest first."""
_MISS_STYLES = {
    "missed": (MISSED, "-"),
    "found": (FOUND, "-"),
    "false positive": (_ORANGE, "--"),
    "ignored": (_GREY, ":"),
}
_VERDICT_COLOURS = {Verdict.PASS: FOUND, Verdict.FAIL: MISSED, Verdict.INSUFFICIENT: _ORANGE}


def pr_curves(models: Sequence[Evaluation], part: str = "all", *, panels: int = 6) -> Any:
    """Precision-recall curves at IoU 0.5: one panel per class, one line per model.

    The dot marks the operating point. Classes with the most boxes come first.

    Args:
        models: Evaluations on the same frames.
        part: Name of the slice.
        panels: Maximum number of classes.

    Returns:
        The matplotlib figure.
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
        axis.set_title(
            f"{row.cls}: {counted(row.boxes, 'box', 'boxes')}, "
            f"{counted(row.drives_with_boxes, 'drive')}",
            fontsize=9,
        )
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
    """One metric with its interval on every slice with ground truth.

    Hollow points have too few drives, so their intervals are only descriptive.

    Args:
        candidate: Evaluation of a model.
        reference: Evaluation of another model, drawn beside it.
        metric: Name of the metric.

    Returns:
        The matplotlib figure.
    """
    import matplotlib.pyplot as plt

    models = [candidate] if reference is None else [candidate, reference]
    shown = [part for part in candidate.tables if candidate.metrics.at(part).boxes]
    figure, axis = plt.subplots(figsize=(7.5, 1.1 + 0.34 * max(1, len(shown))))
    for position, part in enumerate(shown):
        for offset, (model, (colour, _)) in enumerate(zip(models, _MODEL_STYLES, strict=False)):
            row = model.metrics.at(part)
            height = position + 0.16 * (2 * offset - len(models) + 1)
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


def gate_intervals(decision: GateDecision) -> Any:
    """Interval of every gate with its bound; the shaded side passes."""
    import matplotlib.pyplot as plt

    kinds = {gate.name: gate.kind for gate in decision.rules.gates}
    count = len(decision.gates)
    figure, axes = plt.subplots(count, 1, figsize=(7.5, 0.62 * count + 0.9), squeeze=False)
    for axis, gate in zip(axes.flat, decision.gates, strict=True):
        _draw_gate(
            axis, gate, at_least=kinds.get(gate.name) not in ("int8_loss", "ceiling", "no_leaks")
        )
    figure.suptitle(
        f"{decision.verdict}{', simulated' if decision.simulated else ''}",
        fontsize=11,
        weight="bold",
    )
    legend = "shaded: passes · line: bound · point and bar: value and interval"
    figure.supxlabel(legend, fontsize=7)
    figure.tight_layout()
    return figure


def miss_rates(safety: SafetyMetrics) -> Any:
    """Share of labels missed by distance, size and occlusion, with intervals over drives.

    Hollow points have too few drives, so their intervals are only descriptive.

    Args:
        safety: Such as that of a `GateDecision`.

    Returns:
        The matplotlib figure.
    """
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(rate.by for rate in safety.miss_rates))
    counts = [sum(rate.by == kind for rate in safety.miss_rates) for kind in kinds] or [1]
    figure, axes = plt.subplots(
        len(counts),
        1,
        figsize=(7.5, 1.1 + 0.3 * sum(counts) + 0.3 * len(counts)),
        squeeze=False,
        sharex=True,
        height_ratios=counts,
    )
    for axis, kind in zip(axes.flat, kinds, strict=False):
        rows = [rate for rate in safety.miss_rates if rate.by == kind]
        for position, rate in enumerate(rows):
            _draw_interval(axis, rate.rate, position, _BLUE, solid=rate.usable)
        names = [
            f"{rate.bin} ({counted(rate.boxes, 'label')}, {counted(rate.drives, 'drive')})"
            for rate in rows
        ]
        axis.set_yticks(range(len(rows)), names, fontsize=8)
        axis.set(xlim=(-0.01, 1.01), ylim=(len(rows) - 0.5, -0.5))
        axis.set_title(f"by {kind}", fontsize=9, loc="left", pad=2)
        axis.grid(axis="x", alpha=0.3)
    axes.flat[-1].set_xlabel(f"share missed at a threshold of {safety.threshold:.3g}")
    figure.suptitle("Missed labels", fontsize=10)
    figure.tight_layout()
    return figure


def reliability(safety: SafetyMetrics, part: str = "all") -> Any:
    """Precision against confidence, with the number of boxes in each bin.

    Points below the diagonal are boxes that the model is too sure of.

    Args:
        safety: Such as that of a `GateDecision`.
        part: Name of the slice.

    Returns:
        The matplotlib figure.
    """
    import matplotlib.pyplot as plt

    found = next((one for one in safety.calibration if one.slice == part), None)
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=(4.6, 5.2), sharex=True, height_ratios=(3, 1)
    )
    axis.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1, label="calibrated")
    for one in found.bins if found else ():
        low, high = one.precision.low, one.precision.high
        if low is not None and high is not None:
            axis.plot([one.confidence] * 2, [low, high], color=_BLUE, linewidth=1.6)
        axis.plot(one.confidence, one.precision.value, "o", color=_BLUE, markersize=4.5)
        below.bar((one.low + one.high) / 2, one.boxes, 0.09, color=_BLUE, alpha=0.6)
    axis.axvline(safety.threshold, color=_ORANGE, linestyle="--", linewidth=1, label="threshold")
    axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="precision at IoU 0.5")
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    below.set(xlabel="confidence", ylabel="boxes", yscale="log")
    title = f"expected calibration error {found.error}" if found else "no boxes"
    figure.suptitle(f"Reliability on {part}: {title}", fontsize=10)
    figure.tight_layout()
    return figure


def worst_misses(
    workspace: Workspace, evaluation: Evaluation, *, count: int = 6, part: str = "all"
) -> Any:
    """The frames with the most misses: missed red, found green, false positives dashed orange.

    Args:
        workspace: Holds the images.
        evaluation: Of the model.
        count: Maximum number of frames.
        part: Name of the slice.

    Returns:
        The matplotlib figure.
    """
    chosen = worst_frames(evaluation, count, part=part)
    figure, grid = image_grid(len(chosen), cell=(5.0, 3.4))
    for axis, misses in zip(grid, chosen, strict=False):
        _draw_misses(axis, workspace, misses)
    title = "Worst misses" if chosen else "No misses"
    figure.suptitle(_title(f"{title} of {evaluation.name}, {part}", evaluation), fontsize=10)
    figure.tight_layout()
    if chosen:
        add_legend(figure, _MISS_STYLES)
    return figure


def flipped_frames(workspace: Workspace, comparison: Comparison, *, count: int = 6) -> Any:
    """Frames with labels that only one of two models finds: lost red, gained green.

    Args:
        workspace: Holds the images.
        comparison: Of the two models.
        count: Maximum number of frames, those with the most lost labels first, one of a drive.

    Returns:
        The matplotlib figure; None where no frame changed.
    """
    chosen: dict[str, FlippedFrame] = {}
    for one in comparison.flipped():
        chosen.setdefault(one.frame.drive, one)
    shown = list(chosen.values())[:count]
    if not shown:
        return None
    figure, grid = image_grid(len(shown), cell=(5.0, 3.4))
    styles = {"lost": (MISSED, "-"), "gained": (FOUND, "-")}
    for axis, one in zip(grid, shown, strict=False):
        axis.imshow(load_frame(workspace, one.frame))
        for name, labels in (("gained", one.gained), ("lost", one.lost)):
            draw_boxes(axis, (label.box.xyxy for label in labels), styles[name][0], width=1.4)
        axis.set_title(
            f"{one.frame.drive} #{one.frame.index}: {len(one.lost)} lost, {len(one.gained)} gained",
            fontsize=8,
        )
    second, first = comparison.second, comparison.first
    figure.suptitle(_title(f"{second.name} beside {first.name}", second), fontsize=10)
    figure.tight_layout()
    add_legend(figure, styles)
    return figure


def _draw_curve(axis: Any, model: Evaluation, part: str, cls: str, style: tuple[str, str]) -> None:
    row = model.metrics.at(part, cls)
    position = model.tables[part].classes.index(cls)
    precision = model.curves[part].precision[0, :, position]
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


def _draw_interval(
    axis: Any, estimate: Estimate, height: float, colour: str, *, solid: bool
) -> None:
    if estimate.value is None:
        return
    if estimate.low is not None and estimate.high is not None:
        style = "-" if solid else ":"
        axis.plot(
            [estimate.low, estimate.high], [height, height], style, color=colour, linewidth=1.6
        )
    axis.plot(estimate.value, height, "o", color=colour, mfc=colour if solid else "white", ms=4.5)


def _draw_gate(axis: Any, gate: GateResult, *, at_least: bool) -> None:
    colour = _VERDICT_COLOURS[gate.verdict]
    numbers = [gate.bound, *(x for x in (gate.value, gate.low, gate.high) if x is not None)]
    margin = max(0.15 * (max(numbers) - min(numbers)), 0.01)
    low, high = min(numbers) - margin, max(numbers) + margin
    axis.set(xlim=(low, high), ylim=(-1, 1), yticks=[])
    axis.axvspan(gate.bound if at_least else low, high if at_least else gate.bound, alpha=0.12)
    axis.axvline(gate.bound, color=NEUTRAL, linewidth=1)
    shown = Estimate(value=gate.value, low=gate.low, high=gate.high)
    _draw_interval(axis, shown, 0, colour, solid=True)
    suffix = "" if gate.required else ", not required"
    axis.set_title(
        f"{gate.name} on {gate.slice}: {gate.verdict}{suffix}", fontsize=8, loc="left", pad=2
    )
    axis.tick_params(labelsize=7)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _draw_misses(axis: Any, workspace: Workspace, misses: FrameMisses) -> None:
    axis.imshow(load_frame(workspace, misses.frame))
    for name, boxes in (
        ("ignored", misses.ignored),
        ("found", misses.hit),
        ("false positive", misses.false_positives),
    ):
        colour, style = _MISS_STYLES[name]
        draw_boxes(axis, (one.box.xyxy for one in boxes), colour, style=style, width=0.9)
    largest_first = sorted(misses.missed, key=lambda label: -label.box.w * label.box.h)
    for order, label in enumerate(largest_first):
        draw_boxes(axis, [label.box.xyxy], MISSED, width=1.4)
        if order < _MAX_NAMED_BOXES:  # more names would cover the boxes
            axis.text(
                label.box.x,
                label.box.y - 2,
                label.cls,
                color="white",
                fontsize=6,
                bbox={"facecolor": MISSED, "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
            )
    frame = misses.frame
    axis.set_title(
        f"{frame.drive} #{frame.index}, {frame.conditions.light}, {frame.conditions.weather}: "
        f"{len(misses.missed)} missed",
        fontsize=8,
    )


def _slice_label(row: SliceMetrics) -> str:
    cls = "" if row.cls == ALL_CLASSES else f", {row.cls}"
    return (
        f"{row.slice}{cls} ({counted(row.boxes, 'box', 'boxes')}, {counted(row.drives, 'drive')})"
    )


def _title(title: str, evaluation: Evaluation) -> str:
    return f"{title} [simulated]" if evaluation.metrics.simulated else title
