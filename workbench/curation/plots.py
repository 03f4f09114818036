"""Plots of selections, mining reports and inspections.

Each function returns a matplotlib figure; those of findings return None where there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.text import counted
from workbench.core.workspace import Workspace
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.hygiene.coverage import CoverageCell
from workbench.curation.hygiene.duplicates import DuplicateCluster, FrameFeatures, consecutive_pairs
from workbench.curation.hygiene.fingerprints import HASH_BITS, hamming_distance
from workbench.curation.hygiene.leakage import Leak, split_side
from workbench.curation.selection.mining import condition_of
from workbench.curation.vectors import principal_components, unit_vectors
from workbench.data.drawing import NEUTRAL, add_legend, draw_boxes, image_grid
from workbench.detection.label_errors import LabelError
from workbench.detection.preprocessing import load_frame
from workbench.records.base import Verdict
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Role
from workbench.records.types import ArmComparison, MiningReport, Prediction, Selection

__all__ = [
    "arm_comparison",
    "chosen_frames",
    "condition_coverage",
    "coverage_by_class",
    "coverage_grid",
    "duplicate_clusters",
    "leaking_pairs",
    "likely_label_errors",
    "pool_map",
    "similarity_across_sides",
    "split_over_time",
]

_GREY, _MINED, _RANDOM, _GOOD = "#b9c0c8", "#d1495b", "#2e6f95", "#3a7d44"
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_ARM_STYLES = (("mined", _MINED, "o"), ("random", _RANDOM, "s"), ("control", _RANDOM, "D"))
_SIDE_COLOURS = {"learned": "#2e6f95", "tuned": "#e9a03b", "judged": "#d1495b", "": "#cfd4da"}
_MAX_DRIVES = 24


def pool_map(pool: Embeddings, selection: Selection, dataset: Dataset | None = None) -> Any:
    """Plot the pool in two dimensions with the chosen frames on top.

    Args:
        pool: Embeddings of the pool.
        selection: The selection.
        dataset: Gives the conditions to colour by.
    """
    import matplotlib.pyplot as plt

    points = principal_components(unit_vectors(pool.vectors))
    known = {frame.id: condition_of(frame) for frame in dataset.frames} if dataset else {}
    conditions = np.array([known.get(name, "pool") for name in pool.frames])
    arms = {choice.frame: choice.arm for choice in selection.chosen}
    figure, axes = plt.subplots(figsize=(8, 5))
    for condition in sorted(set(conditions)):
        rows = conditions == condition
        axes.scatter(
            points[rows, 0], points[rows, 1], s=14, alpha=0.5, label=f"{condition} ({rows.sum()})"
        )
    for arm, colour, marker in _ARM_STYLES:
        rows = np.array([arms.get(name) == arm for name in pool.frames])
        if not rows.any():
            continue
        axes.scatter(
            points[rows, 0],
            points[rows, 1],
            s=48,
            facecolors="none",
            edgecolors=colour,
            linewidths=1.6,
            marker=marker,
            label=f"{arm} ({rows.sum()})",
        )
    axes.set(xticks=[], yticks=[], title=f"Embeddings of the pool: {len(points)} frames")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def chosen_frames(
    workspace: Workspace,
    dataset: Dataset,
    selection: Selection,
    predictions: Sequence[Prediction] = (),
    *,
    count: int = 8,
) -> Any:
    """Plot the first choices with the model's boxes and the first reasons.

    Args:
        workspace: Holds the images.
        dataset: The dataset version.
        selection: The selection.
        predictions: Boxes to draw.
        count: Number of frames.
    """
    frames = {frame.id: frame for frame in dataset.frames}
    shown = selection.chosen[:count]
    figure, grid = image_grid(len(shown), columns=4, cell=(3.25, 2.5))
    for axes, choice in zip(grid, shown, strict=False):
        axes.imshow(load_frame(workspace, frames[choice.frame]))
        boxes = (one.box.xyxy for one in predictions if one.frame == choice.frame)
        draw_boxes(axes, boxes, _MINED, width=1.2)
        reason = "\n".join(choice.reasons[:2])
        axes.set_title(f"{choice.rank}. {reason}", fontsize=7, loc="left")
    figure.tight_layout()
    if any(one.frame in {choice.frame for choice in shown} for one in predictions):
        add_legend(figure, {"prediction": _MINED})
    return figure


def condition_coverage(dataset: Dataset, selection: Selection) -> Any:
    """Plot the share of each condition in the pool and in the selection, side by side."""
    import matplotlib.pyplot as plt

    chosen = {choice.frame for choice in selection.chosen}
    pool = [frame for frame in dataset.frames if frame.role == "pool"]
    names = sorted({condition_of(frame) for frame in pool})
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(names) + 1.4))
    for offset, colour, label, group in (
        (0.2, _GREY, "pool", pool),
        (-0.2, _MINED, "chosen", [frame for frame in pool if frame.id in chosen]),
    ):
        counts = [sum(condition_of(frame) == name for frame in group) for name in names]
        shares = [count / max(1, len(group)) for count in counts]
        axes.barh(np.arange(len(names)) + offset, shares, 0.38, color=colour, label=label)
        for row, (share, count) in enumerate(zip(shares, counts, strict=True)):
            axes.text(share, row + offset, f" {count}", va="center", fontsize=8)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_xlabel("share of frames (count beside)")
    axes.legend(frameon=False)
    return figure


def coverage_by_class(
    dataset: Dataset, selection: Selection, predictions: Sequence[Prediction] = ()
) -> Any:
    """Plot labelled boxes by condition and class, before and after the selection is labelled.

    Args:
        dataset: The dataset version.
        selection: The selection.
        predictions: Boxes on chosen frames; counted where there are no labels yet, which the title
            says.
    """
    import matplotlib.pyplot as plt

    chosen = {choice.frame for choice in selection.chosen}
    frames = {frame.id: frame for frame in dataset.frames}
    known = {f.id for f in dataset.role(Role.SEED, Role.TRAIN).frames}
    rows = sorted({condition_of(frames[name]) for name in known | (chosen & frames.keys())})
    classes = list(dataset.label_schema.classes)
    before, added = np.zeros((2, len(rows), len(classes)), int)

    def count(table: NDArray[np.int_], frame: str, cls: str) -> None:
        if cls in classes:
            table[rows.index(condition_of(frames[frame])), classes.index(cls)] += 1

    for label in dataset.labels:
        if label.frame in known and not label.ignore:
            count(added if label.frame in chosen else before, label.frame, label.cls)
    expected = [one for one in predictions if one.frame in chosen - known and one.frame in frames]
    for one in expected:
        count(added, one.frame, one.cls)
    after = "after, with predicted boxes" if expected else "after"
    figure, grid = plt.subplots(
        1, 2, figsize=(1.5 * len(classes) + 4, 0.4 * len(rows) + 2.2), sharey=True
    )
    most = max(1, int((before + added).max()))
    for axes, table, title in ((grid[0], before, "before"), (grid[1], before + added, after)):
        axes.imshow(np.log1p(table), cmap="Blues", vmin=0, vmax=np.log1p(most), aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            colour = "white" if np.log1p(value) > 0.6 * np.log1p(most) else "black"
            axes.text(column, row, value or "-", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_title(f"Labelled boxes {title}", fontsize=9, loc="left")
    figure.tight_layout()
    return figure


def arm_comparison(report: MiningReport) -> Any:
    """Plot the mined arm compared with the control arm, each metric with its interval.

    Ratios on a logarithmic axis, where 1 is random selection; differences between retrained models
    below, where 0 is equal.
    """
    import matplotlib.pyplot as plt

    ratios = [one for one in report.beaten if one.change == "ratio"]
    changes = [one for one in report.beaten if one.change == "difference"]
    groups = [group for group in (ratios, changes) if group]
    heights = [0.45 * len(group) + 0.9 for group in groups]
    figure, grid = plt.subplots(
        len(groups), 1, figsize=(11, sum(heights)), height_ratios=heights, squeeze=False
    )
    for axes, group in zip(grid[:, 0], groups, strict=True):
        _style_axis(axes, group, ratio=group is ratios)
        for row, one in enumerate(group):
            _draw_interval(axes, row, one)
    sentences = report.headline.split(". ")
    grid[0, 0].set_title(
        "\n".join(sentences[: 2 if report.simulated else 1]), fontsize=9, loc="left"
    )
    figure.tight_layout()
    return figure


def leaking_pairs(
    workspace: Workspace, dataset: Dataset, leaks: Sequence[Leak], count: int = 6
) -> Any:
    """Plot leaking pairs side by side, two pairs per row, with sides and reason; None without any.

    Args:
        workspace: Holds the images.
        dataset: The dataset version.
        leaks: Findings of an inspection.
        count: Largest number of pairs.
    """
    frames = {frame.id: frame for frame in dataset.frames}
    shown = _worst_of_each_kind(leaks, count)
    if not shown:
        return None
    figure, grid = image_grid(2 * len(shown), columns=4, cell=(3.25, 2.7))
    for number, leak in enumerate(shown):
        left, right = grid[2 * number : 2 * number + 2]
        _show_frame(left, workspace, frames[leak.first])
        _show_frame(right, workspace, frames[leak.second])
        left.text(
            0, -0.06, f"{leak.kind}: {leak.why}", transform=left.transAxes, fontsize=7.5, va="top"
        )
    figure.tight_layout(h_pad=2.2)
    return figure


def split_over_time(dataset: Dataset, leaks: Sequence[Leak] = ()) -> Any:
    """Plot each drive as a line, frames coloured by side, leaking frames circled."""
    import matplotlib.pyplot as plt

    by_drive: dict[str, list[Frame]] = {}
    for frame in dataset.frames:
        by_drive.setdefault(frame.drive, []).append(frame)
    leaking_frames = {name for leak in leaks for name in (leak.first, leak.second)}
    # Drives with leaks first, because not all may fit.
    order = sorted(
        by_drive, key=lambda d: (not any(f.id in leaking_frames for f in by_drive[d]), d)
    )
    drives = sorted(order[:_MAX_DRIVES])
    timed = all(f.timestamp_us is not None for drive in drives for f in by_drive[drive])
    figure, axes = plt.subplots(figsize=(11, 0.26 * len(drives) + 1.2))
    for line, drive in enumerate(drives):
        frames = by_drive[drive]
        start = min(_time_or_index(frame, timed) for frame in frames)
        positions = [_time_or_index(frame, timed) - start for frame in frames]
        axes.scatter(
            positions,
            [line] * len(positions),
            s=22,
            c=[_SIDE_COLOURS[split_side(f)] for f in frames],
        )
        leaking = [
            a for a, frame in zip(positions, frames, strict=True) if frame.id in leaking_frames
        ]
        axes.scatter(leaking, [line] * len(leaking), s=90, facecolors="none", edgecolors=NEUTRAL)
    for side, colour in _SIDE_COLOURS.items():
        axes.scatter([], [], s=22, c=colour, label=side or "no role")
    axes.scatter([], [], s=90, facecolors="none", edgecolors=NEUTRAL, label="leaks")
    axes.set_yticks(range(len(drives)), drives, fontsize=7)
    axes.set_xlabel("seconds into the drive" if timed else "frame number in the drive")
    axes.invert_yaxis()
    hidden = len(by_drive) - len(drives)
    axes.set_title(
        counted(len(drives), "drive") + (f" ({hidden} more not shown)" if hidden else "")
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def similarity_across_sides(features: FrameFeatures, limit: int) -> Any:
    """Histogram of hash distances: consecutive frames, and each frame's nearest on another side.

    Args:
        features: Features of the frames.
        limit: Hamming distance up to which a pair is a leak.
    """
    import matplotlib.pyplot as plt

    pairs = np.array(consecutive_pairs(features.frames), np.int64).reshape(-1, 2)
    consecutive = hamming_distance(features.hashes[pairs[:, 0]], features.hashes[pairs[:, 1]])
    across = _nearest_across(features)
    figure, axes = plt.subplots(figsize=(8, 3.2))
    bins = list(range(0, HASH_BITS // 2 + 4, 4))
    series: tuple[tuple[NDArray[Any], str, str], ...] = (
        (consecutive, "consecutive frames of a drive", "#9aa5b1"),
        (across, "judged or tuned frame and its nearest on another side", "#d1495b"),
    )
    for values, label, colour in series:
        if len(values):
            axes.hist(values, bins, alpha=0.6, label=f"{label} ({len(values)})", color=colour)
    axes.axvline(limit, color=NEUTRAL, lw=1, ls="--")
    axes.text(limit, axes.get_ylim()[1], " leaks to the left", va="top", fontsize=8)
    axes.set(xlabel=f"differing hash bits of {HASH_BITS}", ylabel="pairs")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01))
    figure.tight_layout()
    return figure


def duplicate_clusters(
    workspace: Workspace, dataset: Dataset, clusters: Sequence[DuplicateCluster], count: int = 4
) -> Any:
    """Plot the largest clusters of duplicates, one per row, up to six each; None without any.

    Args:
        workspace: Holds the images.
        dataset: The dataset version.
        clusters: Findings of an inspection, largest first.
        count: Largest number of clusters.
    """
    frames = {frame.id: frame for frame in dataset.frames}
    shown = clusters[:count]
    if not shown:
        return None
    figure, grid = image_grid(6 * len(shown), columns=6, cell=(13 / 6, 1.9))
    for number, cluster in enumerate(shown):
        row = grid[6 * number : 6 * number + 6]
        steps = np.linspace(0, len(cluster.frames) - 1, min(6, len(cluster.frames))).astype(int)
        for axes, step in zip(row, steps.tolist(), strict=False):
            _show_frame(axes, workspace, frames[cluster.frames[step]])
        kind = "equal pixels" if cluster.exact else "near duplicates"
        text = f"{len(cluster.frames)} frames, {kind}"
        row[0].text(0, -0.05, text, transform=row[0].transAxes, fontsize=8, va="top")
    figure.tight_layout()
    return figure


def coverage_grid(cells: Sequence[CoverageCell]) -> Any:
    """Plot conditions by classes, for both sides: boxes, drives, and how far the target is met.

    Dark red cells hold nothing of what is required, white ones all of it.
    """
    import matplotlib.pyplot as plt

    sides = [s for s in ("learned", "judged") if any(cell.side == s for cell in cells)]
    classes = list(dict.fromkeys(sorted(cell.cls for cell in cells)))
    conditions = sorted({cell.condition for cell in cells})
    size = (1.5 + 0.85 * len(classes) * max(1, len(sides)), 1.6 + 0.42 * len(conditions))
    figure, grid = plt.subplots(1, max(1, len(sides)), figsize=size, squeeze=False, sharey=True)
    for axes, side in zip(grid[0], sides, strict=False):
        filled = np.full((len(conditions), len(classes)), np.nan)
        for cell in cells:
            if cell.side == side:
                row, column = conditions.index(cell.condition), classes.index(cell.cls)
                filled[row, column] = cell.filled
                text = f"{cell.boxes}\n{counted(cell.drives, 'drive')}"
                colour = "white" if cell.filled < 0.35 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.imshow(filled, cmap="Reds_r", vmin=0, vmax=1, aspect="auto")
        names = [name.replace("_", " ") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(conditions)), conditions, fontsize=8)
        axes.set_title("learned from" if side == "learned" else "judged by", fontsize=10)
    figure.suptitle("Boxes and their drives; red is furthest from the target", fontsize=10)
    figure.tight_layout()
    return figure


def likely_label_errors(
    workspace: Workspace, dataset: Dataset, errors: Sequence[LabelError], count: int = 8
) -> Any:
    """Plot the likeliest label errors, cropped: labels in blue, the suspected box in red.

    None without any.

    Args:
        workspace: Holds the images.
        dataset: The dataset version.
        errors: Findings of an inspection, likeliest first.
        count: Number of errors.
    """
    frames = {frame.id: frame for frame in dataset.frames}
    shown = errors[:count]
    if not shown:
        return None
    figure, grid = image_grid(len(shown), columns=4, cell=(3.25, 3.1))
    for axes, error in zip(grid, shown, strict=False):
        frame, box = frames[error.frame], error.box
        axes.imshow(load_frame(workspace, frame))
        labels = (label.box.xyxy for label in dataset.labels_by_frame[frame.id])
        draw_boxes(axes, labels, "#4f9bff")
        draw_boxes(axes, [box.xyxy], "#ff3b30", width=2)
        half = max(40.0, 1.5 * max(box.w, box.h))
        x, y = box.x + box.w / 2, box.y + box.h / 2
        axes.set_xlim(max(0, x - half), min(frame.width, x + half))
        axes.set_ylim(min(frame.height, y + half), max(0, y - half))
        axes.set_title(_wrap(f"{error.weight:.2f} {error.why}"), fontsize=7.5, loc="left")
    figure.tight_layout()
    add_legend(figure, {"label": "#4f9bff", "suspected": "#ff3b30"})
    return figure


def _style_axis(axes: Any, group: Sequence[ArmComparison], *, ratio: bool) -> None:
    ends = [end for one in group for end in (one.low, one.value, one.high) if end is not None]
    if ratio:
        axes.set_xscale("log")
        ends = [max(end, 0.05) for end in ends]
        axes.set_xlim(min([0.5, *ends]) / 1.3, max([2.0, *ends]) * 1.6)
        ticks = [tick for tick in _TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        axes.minorticks_off()
    axes.axvline(1.0 if ratio else 0.0, color=NEUTRAL, lw=0.8)
    what = "mined / control (1 is random)" if ratio else "mined - control"
    axes.set_xlabel(what, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_yticks(range(len(group)), [one.figure for one in group], fontsize=8)
    axes.set_ylim(len(group) - 0.4, -0.6)


def _draw_interval(axes: Any, row: int, one: ArmComparison) -> None:
    """One metric as a point and a line, or as text without a value."""
    style = {"transform": _blended_transform(axes), "fontsize": 7, "va": "center"}
    if one.value is None:
        axes.text(1.01, row, f"{one.verdict}\n{one.why}", **style)
        return
    colour = {Verdict.PASS: _GOOD, Verdict.FAIL: _MINED}.get(one.verdict, "#7a828a")
    low = axes.get_xlim()[0] if one.low is None else one.low
    high = axes.get_xlim()[1] if one.high is None else one.high
    axes.plot([low, high], [row, row], color=colour, lw=2)
    axes.plot([one.value], [row], "o", color=colour)
    if one.high is None:
        axes.plot(
            [0.995], [row], ">", color=colour, transform=_blended_transform(axes), clip_on=False
        )
    low_end = "" if one.low is None else f"{one.low:.3g}"
    high_end = "…" if one.high is None else f"{one.high:.3g}"
    text = f"{one.value:.3g} [{low_end}, {high_end}] {one.verdict}\n{one.why or one.unit}"
    axes.text(1.01, row, text, **style)


def _blended_transform(axes: Any) -> Any:
    """Coordinates with x from 0 to 1 across the axes and y in data."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transAxes, axes.transData)


def _show_frame(axes: Any, workspace: Workspace, frame: Frame) -> None:
    axes.imshow(load_frame(workspace, frame))
    side = split_side(frame)
    title = f"{frame.role or 'no role'} · {frame.drive} #{frame.index}"
    axes.set_title(title, fontsize=7.5, loc="left", color=_SIDE_COLOURS[side] if side else NEUTRAL)


def _worst_of_each_kind(leaks: Sequence[Leak], count: int) -> list[Leak]:
    """The worst of each kind in turn, so that no kind hides the others."""
    kinds: dict[str, list[Leak]] = {}
    for leak in leaks:
        kinds.setdefault(leak.kind, []).append(leak)
    longest = max(map(len, kinds.values()), default=0)
    ordered = [group[n] for n in range(longest) for group in kinds.values() if n < len(group)]
    return ordered[:count]


def _nearest_across(features: FrameFeatures) -> NDArray[np.int64]:
    sides = np.array([split_side(frame) for frame in features.frames])
    nearest = []
    for row in np.flatnonzero(np.isin(sides, ("judged", "tuned"))).tolist():
        others = features.hashes[(sides != sides[row]) & (sides != "")]
        if len(others):
            nearest.append(int(hamming_distance(features.hashes[row], others).min()))
    return np.array(nearest, np.int64)


def _time_or_index(frame: Frame, timed: bool) -> float:
    return (frame.timestamp_us or 0) / 1e6 if timed else float(frame.index)


def _wrap(text: str, width: int = 46) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:3])
