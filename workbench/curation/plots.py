"""Plots of selections, mining reports and inspections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.workspace import Workspace
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.hygiene.coverage import CoverageCell
from workbench.curation.hygiene.duplicates import DuplicateCluster, FrameFeatures, consecutive_pairs
from workbench.curation.hygiene.fingerprints import HASH_BITS, hamming_distance
from workbench.curation.hygiene.leakage import Leak, split_side
from workbench.curation.selection.mining import condition_of
from workbench.curation.vectors import unit_vectors
from workbench.data.drawing import draw_boxes, image_grid
from workbench.detection.label_errors import LabelError
from workbench.detection.preprocessing import load_rgb
from workbench.records.base import Verdict
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame, Role
from workbench.records.types import ArmComparison, MiningReport, Prediction, Selection

_GREY, _MINED, _RANDOM, _GOOD = "#b9c0c8", "#d1495b", "#2e6f95", "#3a7d44"

_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

_ARM_STYLES = (("mined", _MINED, "o"), ("random", _RANDOM, "s"), ("control", _RANDOM, "D"))


def project_vectors(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Two principal components of directions, float32 ``[n, 2]``; signs are fixed."""
    unit = unit_vectors(vectors)
    if len(unit) < 3:
        return np.zeros((len(unit), 2), np.float32)
    # The small d x d matrix instead of n x n: a pool is much longer than a vector.
    values, axes = np.linalg.eigh(unit.T @ unit)
    first = axes[:, np.argsort(values)[::-1][:2]]
    signs = np.sign(first[np.abs(first).argmax(axis=0), [0, 1]])
    points: NDArray[np.float32] = (unit @ (first * signs)).astype(np.float32)
    return points


def pool_map(pool: Embeddings, selection: Selection, dataset: Dataset | None = None) -> Any:
    """The pool's frames in two dimensions, the chosen ones on top; coloured by condition when
    ``dataset`` tells it."""
    import matplotlib.pyplot as plt

    points = project_vectors(pool.vectors)
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
    axes.set(xticks=[], yticks=[], title=f"The pool as the model sees it: {len(points)} frames")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def chosen_frames(
    place: Workspace,
    dataset: Dataset,
    selection: Selection,
    predictions: Sequence[Prediction] = (),
    *,
    count: int = 8,
) -> Any:
    """The first choices with the model's boxes, and the first reason for each."""
    frames = {frame.id: frame for frame in dataset.frames}
    shown = selection.chosen[:count]
    figure, grid = image_grid(len(shown), columns=4, cell=(3.25, 2.5))
    for axes, choice in zip(grid, shown, strict=False):
        axes.imshow(load_rgb(media_path(place, frames[choice.frame])))
        boxes = (one.box.xyxy for one in predictions if one.frame == choice.frame)
        draw_boxes(axes, boxes, _MINED, width=1.2)
        reason = "\n".join(choice.reasons[:2])
        axes.set_title(f"{choice.rank}. {reason}", fontsize=7, loc="left")
    figure.tight_layout()
    return figure


def condition_coverage(dataset: Dataset, selection: Selection) -> Any:
    """Share of each condition in the pool and in the choice, side by side."""
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
    axes.set_xlabel("share of frames (number beside)")
    axes.legend(frameon=False)
    return figure


def coverage_by_class(
    dataset: Dataset, selection: Selection, predictions: Sequence[Prediction] = ()
) -> Any:
    """Labelled boxes by condition and class, before and after the selection is labelled.

    Args:
        predictions: What the model sees on chosen frames; counted where they have no labels yet,
            and the picture says so.
    """
    import matplotlib.pyplot as plt

    chosen = {choice.frame for choice in selection.chosen}
    frames = {frame.id: frame for frame in dataset.frames}
    known = {f.id for f in dataset.role(Role.SEED, Role.TRAIN).frames}
    rows = sorted({condition_of(frames[name]) for name in known | (chosen & frames.keys())})
    classes = list(dataset.label_schema.classes)
    before, gained = np.zeros((2, len(rows), len(classes)), int)

    def count(table: NDArray[np.int_], frame: str, cls: str) -> None:
        if cls in classes:
            table[rows.index(condition_of(frames[frame])), classes.index(cls)] += 1

    for label in dataset.labels:
        if label.frame in known and not label.ignore:
            count(gained if label.frame in chosen else before, label.frame, label.cls)
    expected = [one for one in predictions if one.frame in chosen - known and one.frame in frames]
    for one in expected:
        count(gained, one.frame, one.cls)
    after = "after, by the model's own boxes" if expected else "after"
    figure, grid = plt.subplots(
        1, 2, figsize=(1.5 * len(classes) + 4, 0.4 * len(rows) + 2.2), sharey=True
    )
    most = max(1, int((before + gained).max()))
    for axes, table, title in ((grid[0], before, "before"), (grid[1], before + gained, after)):
        axes.imshow(np.log1p(table), cmap="Blues", vmin=0, vmax=np.log1p(most), aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            light = "white" if np.log1p(value) > 0.6 * np.log1p(most) else "black"
            axes.text(column, row, value or "-", ha="center", va="center", fontsize=8, color=light)
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_title(f"Labelled boxes {title}", fontsize=9, loc="left")
    figure.tight_layout()
    return figure


def arm_comparison(report: MiningReport) -> Any:
    """What the mined arm found against the control arm, each figure with its interval.

    Ratios on a logarithmic axis, 1 is chance; differences of retrained models below, 0 is equal.
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
    said = report.headline.split(". ")
    grid[0, 0].set_title("\n".join(said[: 2 if report.simulated else 1]), fontsize=9, loc="left")
    figure.tight_layout()
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
    axes.axvline(1.0 if ratio else 0.0, color="black", lw=0.8)
    what = "mined over control (1 is chance)" if ratio else "mined less control"
    axes.set_xlabel(what, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_yticks(range(len(group)), [one.figure for one in group], fontsize=8)
    axes.set_ylim(len(group) - 0.4, -0.6)


def _draw_interval(axes: Any, row: int, one: ArmComparison) -> None:
    """One figure as a point and a line; in words where there is none."""
    where = {"transform": _blended_transform(axes), "fontsize": 7, "va": "center"}
    if one.value is None:
        axes.text(1.01, row, f"{one.verdict}\n{one.why}", **where)
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
    told = f"{one.value:.3g} [{low_end}, {high_end}] {one.verdict}\n{one.why or one.unit}"
    axes.text(1.01, row, told, **where)


def _blended_transform(axes: Any) -> Any:
    """Coordinates with x from 0 to 1 across the picture and y in data."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transAxes, axes.transData)


# ---- Pictures of an inspection: leaking pairs, the split over time, thin cells, suspect boxes.


_SIDE_COLOURS = {"learned": "#2e6f95", "tuned": "#e9a03b", "judged": "#d1495b", "": "#cfd4da"}
_MAX_DRIVES = 24


def leaking_pairs(place: Workspace, dataset: Dataset, leaks: Sequence[Leak], count: int = 6) -> Any:
    """Leaking pairs side by side, two pairs a row, with the side of each frame and the reason."""
    import matplotlib.pyplot as plt

    frames = {frame.id: frame for frame in dataset.frames}
    shown = _worst_of_each_kind(leaks, count)
    rows = max(1, -(-len(shown) // 2))
    figure, grid = plt.subplots(rows, 4, figsize=(13, 2.7 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    if not shown:
        grid[0, 0].text(0, 0.5, "No pair of frames leaks.", fontsize=11)
    for number, leak in enumerate(shown):
        row, column = divmod(number, 2)
        for offset, name in enumerate((leak.first, leak.second)):
            _show_frame(grid[row, 2 * column + offset], place, frames[name])
        grid[row, 2 * column].text(
            0, -0.06, f"{leak.kind}: {leak.why}", transform=grid[row, 2 * column].transAxes,
            fontsize=7.5, va="top",
        )  # fmt: skip
    figure.tight_layout(h_pad=2.2)
    return figure


def split_over_time(dataset: Dataset, leaks: Sequence[Leak] = ()) -> Any:
    """Each drive a line, each frame a mark in the colour of its side; leaking frames ringed."""
    import matplotlib.pyplot as plt

    by_drive: dict[str, list[Frame]] = {}
    for frame in dataset.frames:
        by_drive.setdefault(frame.drive, []).append(frame)
    marked = {name for leak in leaks for name in (leak.first, leak.second)}
    # Drives with leaks first, for there may be more drives than fit.
    order = sorted(by_drive, key=lambda d: (not any(f.id in marked for f in by_drive[d]), d))
    drives = sorted(order[:_MAX_DRIVES])
    timed = all(f.timestamp_us is not None for drive in drives for f in by_drive[drive])
    figure, axes = plt.subplots(figsize=(11, 0.26 * len(drives) + 1.2))
    for line, drive in enumerate(drives):
        frames = by_drive[drive]
        start = min(_time_or_index(frame, timed) for frame in frames)
        at = [_time_or_index(frame, timed) - start for frame in frames]
        axes.scatter(at, [line] * len(at), s=22, c=[_SIDE_COLOURS[split_side(f)] for f in frames])
        ringed = [a for a, frame in zip(at, frames, strict=True) if frame.id in marked]
        axes.scatter(ringed, [line] * len(ringed), s=90, facecolors="none", edgecolors="black")
    for side, colour in _SIDE_COLOURS.items():
        axes.scatter([], [], s=22, c=colour, label=side or "no role")
    axes.scatter([], [], s=90, facecolors="none", edgecolors="black", label="leaks")
    axes.set_yticks(range(len(drives)), drives, fontsize=7)
    axes.set_xlabel("seconds into the drive" if timed else "frame number in the drive")
    axes.invert_yaxis()
    left = len(by_drive) - len(drives)
    axes.set_title(f"{len(drives)} drives" + (f" ({left} more not shown)" if left else ""))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def similarity_across_sides(like: FrameFeatures, limit: int) -> Any:
    """How alike consecutive frames are, and how alike each frame is to its nearest across a side.

    Args:
        limit: Differing bits up to which a pair counts as a leak.
    """
    import matplotlib.pyplot as plt

    follows = np.array(consecutive_pairs(like.frames), np.int64).reshape(-1, 2)
    near = hamming_distance(like.hashes[follows[:, 0]], like.hashes[follows[:, 1]])
    across = _nearest_across(like)
    figure, axes = plt.subplots(figsize=(8, 3.2))
    bins = list(range(0, HASH_BITS // 2 + 4, 4))
    series: tuple[tuple[NDArray[Any], str, str], ...] = (
        (near, "consecutive frames of a drive", "#9aa5b1"),
        (across, "a judged or tuned frame and its nearest on another side", "#d1495b"),
    )
    for values, label, colour in series:
        if len(values):
            axes.hist(values, bins, alpha=0.6, label=f"{label} ({len(values)})", color=colour)
    axes.axvline(limit, color="black", lw=1, ls="--")
    axes.text(limit, axes.get_ylim()[1], " leaks left of here", va="top", fontsize=8)
    axes.set(xlabel=f"differing hash bits of {HASH_BITS}", ylabel="pairs")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01))
    figure.tight_layout()
    return figure


def duplicate_clusters(
    place: Workspace, dataset: Dataset, clusters: Sequence[DuplicateCluster], count: int = 4
) -> Any:
    """The largest clusters of duplicates, a row each, up to six frames of it."""
    import matplotlib.pyplot as plt

    frames = {frame.id: frame for frame in dataset.frames}
    shown = clusters[:count]
    figure, grid = plt.subplots(
        max(1, len(shown)), 6, figsize=(13, 1.9 * max(1, len(shown))), squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    if not shown:
        grid[0, 0].text(0, 0.5, "No frame copies another.", fontsize=11)
    for row, cluster in zip(grid, shown, strict=False):
        steps = np.linspace(0, len(cluster.frames) - 1, min(6, len(cluster.frames))).astype(int)
        for axes, step in zip(row, steps.tolist(), strict=False):
            _show_frame(axes, place, frames[cluster.frames[step]])
        kind = "the same picture" if cluster.exact else "nearly the same"
        row[0].text(
            0, -0.05, f"{len(cluster.frames)} frames, {kind}", transform=row[0].transAxes,
            fontsize=8, va="top",
        )  # fmt: skip
    figure.tight_layout()
    return figure


def coverage_grid(cells: Sequence[CoverageCell]) -> Any:
    """Conditions against classes, learned from and judged by: boxes, and how far a cell is filled.

    Dark red holds nothing of what is asked for, white all of it.
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
                text = f"{cell.boxes}\n{cell.drives} drives"
                dark = "white" if cell.filled < 0.35 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=dark)
        axes.imshow(filled, cmap="Reds_r", vmin=0, vmax=1, aspect="auto")
        names = [name.replace("_", " ") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(conditions)), conditions, fontsize=8)
        axes.set_title("learned from" if side == "learned" else "judged by", fontsize=10)
    figure.suptitle("Boxes and the drives they are from; red lacks most of the target", fontsize=10)
    figure.tight_layout()
    return figure


def likely_label_errors(
    place: Workspace, dataset: Dataset, errors: Sequence[LabelError], count: int = 8
) -> Any:
    """The likeliest label errors, cut out with their surroundings: labels blue, the doubt red."""
    frames = {frame.id: frame for frame in dataset.frames}
    shown = errors[:count]
    figure, grid = image_grid(len(shown), columns=4, cell=(3.25, 3.1))
    if not shown:
        grid[0].text(0, 0.5, "No label looks wrong.", fontsize=11)
    for axes, error in zip(grid, shown, strict=False):
        frame, box = frames[error.frame], error.box
        axes.imshow(load_rgb(media_path(place, frame)))
        labels = (label.box.xyxy for label in dataset.labels_by_frame[frame.id])
        draw_boxes(axes, labels, "#4f9bff")
        draw_boxes(axes, [box.xyxy], "#ff3b30", width=2)
        half = max(40.0, 1.5 * max(box.w, box.h))
        x, y = box.x + box.w / 2, box.y + box.h / 2
        axes.set_xlim(max(0, x - half), min(frame.width, x + half))
        axes.set_ylim(min(frame.height, y + half), max(0, y - half))
        axes.set_title(_wrap(f"{error.weight:.2f} {error.why}"), fontsize=7.5, loc="left")
    figure.tight_layout()
    return figure


def _show_frame(axes: Any, place: Workspace, frame: Frame) -> None:
    axes.imshow(load_rgb(media_path(place, frame)))
    side = split_side(frame)
    about = f"{frame.role or 'no role'} · {frame.drive} #{frame.index}"
    axes.set_title(about, fontsize=7.5, loc="left", color=_SIDE_COLOURS[side] if side else "black")


def _worst_of_each_kind(leaks: Sequence[Leak], count: int) -> list[Leak]:
    """The worst of each kind in turn, so that one kind does not hide the others."""
    kinds: dict[str, list[Leak]] = {}
    for leak in leaks:
        kinds.setdefault(leak.kind, []).append(leak)
    most = max(map(len, kinds.values()), default=0)
    ordered = [theirs[n] for n in range(most) for theirs in kinds.values() if n < len(theirs)]
    return ordered[:count]


def _nearest_across(like: FrameFeatures) -> NDArray[np.int64]:
    sides = np.array([split_side(frame) for frame in like.frames])
    nearest = []
    for row in np.flatnonzero(np.isin(sides, ("judged", "tuned"))).tolist():
        others = like.hashes[(sides != sides[row]) & (sides != "")]
        if len(others):
            nearest.append(int(hamming_distance(like.hashes[row], others).min()))
    return np.array(nearest, np.int64)


def _time_or_index(frame: Frame, timed: bool) -> float:
    return (frame.timestamp_us or 0) / 1e6 if timed else float(frame.index)


def _wrap(text: str, width: int = 46) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:3])
