"""Pictures of a choice: the map of a pool, the chosen frames, what they cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.one_pass import Embeddings
from workbench.curation.neighbours import directions
from workbench.curation.selecting.mining import condition_of
from workbench.perception.preprocessing import load_rgb
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Role
from workbench.records.types import Beaten, MiningReport, Prediction, Selection, Verdict
from workbench.workspace import Workspace

_GREY, _MINED, _RANDOM, _GOOD = "#b9c0c8", "#d1495b", "#2e6f95", "#3a7d44"

_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

_ARMS = (("mined", _MINED, "o"), ("random", _RANDOM, "s"), ("control", _RANDOM, "D"))


def project(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Two principal components of directions, float32 ``[n, 2]``; signs are fixed."""
    unit = directions(vectors)
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

    points = project(pool.vectors)
    known = {frame.id: condition_of(frame) for frame in dataset.frames} if dataset else {}
    conditions = np.array([known.get(name, "pool") for name in pool.frames])
    arms = {choice.frame: choice.arm for choice in selection.chosen}
    figure, axes = plt.subplots(figsize=(8, 5))
    for condition in sorted(set(conditions)):
        rows = conditions == condition
        axes.scatter(
            points[rows, 0], points[rows, 1], s=14, alpha=0.5, label=f"{condition} ({rows.sum()})"
        )
    for arm, colour, marker in _ARMS:
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
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    frames = {frame.id: frame for frame in dataset.frames}
    shown = selection.chosen[:count]
    rows = max(1, -(-len(shown) // 4))
    figure, grid = plt.subplots(rows, 4, figsize=(13, 2.5 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, choice in zip(grid.flat, shown, strict=False):
        axes.imshow(load_rgb(media_path(place, frames[choice.frame])))
        for one in predictions:
            if one.frame == choice.frame:
                corner = (one.box.x, one.box.y)
                axes.add_patch(
                    Rectangle(corner, one.box.w, one.box.h, fill=False, ec=_MINED, lw=1.2)
                )
        reason = "\n".join(choice.reasons[:2])
        axes.set_title(f"{choice.rank}. {reason}", fontsize=7, loc="left")
    figure.tight_layout()
    return figure


def coverage(dataset: Dataset, selection: Selection) -> Any:
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
    known = {f.id for f in dataset.with_roles(Role.SEED, Role.TRAIN).frames}
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


def arms(report: MiningReport) -> Any:
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
        _axis(axes, group, ratio=group is ratios)
        for row, one in enumerate(group):
            _interval(axes, row, one)
    said = report.headline.split(". ")
    grid[0, 0].set_title("\n".join(said[: 2 if report.simulated else 1]), fontsize=9, loc="left")
    figure.tight_layout()
    return figure


def _axis(axes: Any, group: Sequence[Beaten], *, ratio: bool) -> None:
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


def _interval(axes: Any, row: int, one: Beaten) -> None:
    """One figure as a point and a line; in words where there is none."""
    where = {"transform": _across(axes), "fontsize": 7, "va": "center"}
    if one.value is None:
        axes.text(1.01, row, f"{one.verdict}\n{one.why}", **where)
        return
    colour = {Verdict.PASS: _GOOD, Verdict.FAIL: _MINED}.get(one.verdict, "#7a828a")
    low = axes.get_xlim()[0] if one.low is None else one.low
    high = axes.get_xlim()[1] if one.high is None else one.high
    axes.plot([low, high], [row, row], color=colour, lw=2)
    axes.plot([one.value], [row], "o", color=colour)
    if one.high is None:
        axes.plot([0.995], [row], ">", color=colour, transform=_across(axes), clip_on=False)
    low_end = "" if one.low is None else f"{one.low:.3g}"
    high_end = "…" if one.high is None else f"{one.high:.3g}"
    told = f"{one.value:.3g} [{low_end}, {high_end}] {one.verdict}\n{one.why or one.unit}"
    axes.text(1.01, row, told, **where)


def _across(axes: Any) -> Any:
    """Coordinates with x from 0 to 1 across the picture and y in data."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transAxes, axes.transData)
