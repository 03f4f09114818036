"""Pictures of an inspection: leaking pairs, the split over time, thin cells, suspect boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation.hygiene.alike import Likeness, consecutive
from workbench.curation.hygiene.coverage import Cell
from workbench.curation.hygiene.duplicates import Cluster
from workbench.curation.hygiene.fingerprints import BITS, differing_bits
from workbench.curation.hygiene.leakage import Leak
from workbench.curation.hygiene.sides import side_of
from workbench.perception.label_errors import LabelError
from workbench.perception.preprocessing import load_rgb
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame
from workbench.workspace import Workspace

_COLOURS = {"learned": "#2e6f95", "tuned": "#e9a03b", "judged": "#d1495b", "": "#cfd4da"}
_DRIVES = 24


def pairs(place: Workspace, dataset: Dataset, leaks: Sequence[Leak], count: int = 6) -> Any:
    """Leaking pairs side by side, two pairs a row, with the side of each frame and the reason."""
    import matplotlib.pyplot as plt

    frames = {frame.id: frame for frame in dataset.frames}
    shown = _spread(leaks, count)
    rows = max(1, -(-len(shown) // 2))
    figure, grid = plt.subplots(rows, 4, figsize=(13, 2.7 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    if not shown:
        grid[0, 0].text(0, 0.5, "No pair of frames leaks.", fontsize=11)
    for number, leak in enumerate(shown):
        row, column = divmod(number, 2)
        for offset, name in enumerate((leak.first, leak.second)):
            _show(grid[row, 2 * column + offset], place, frames[name])
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
    drives = sorted(order[:_DRIVES])
    timed = all(f.timestamp_us is not None for drive in drives for f in by_drive[drive])
    figure, axes = plt.subplots(figsize=(11, 0.26 * len(drives) + 1.2))
    for line, drive in enumerate(drives):
        frames = by_drive[drive]
        start = min(_at(frame, timed) for frame in frames)
        at = [_at(frame, timed) - start for frame in frames]
        axes.scatter(at, [line] * len(at), s=22, c=[_COLOURS[side_of(f)] for f in frames])
        ringed = [a for a, frame in zip(at, frames, strict=True) if frame.id in marked]
        axes.scatter(ringed, [line] * len(ringed), s=90, facecolors="none", edgecolors="black")
    for side, colour in _COLOURS.items():
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


def likeness_across(like: Likeness, limit: int) -> Any:
    """How alike consecutive frames are, and how alike each frame is to its nearest across a side.

    Args:
        limit: Differing bits up to which a pair counts as a leak.
    """
    import matplotlib.pyplot as plt

    follows = np.array(consecutive(like.frames), np.int64).reshape(-1, 2)
    near = differing_bits(like.hashes[follows[:, 0]], like.hashes[follows[:, 1]])
    across = _nearest_across(like)
    figure, axes = plt.subplots(figsize=(8, 3.2))
    bins = list(range(0, BITS // 2 + 4, 4))
    series: tuple[tuple[NDArray[Any], str, str], ...] = (
        (near, "consecutive frames of a drive", "#9aa5b1"),
        (across, "a judged or tuned frame and its nearest on another side", "#d1495b"),
    )
    for values, label, colour in series:
        if len(values):
            axes.hist(values, bins, alpha=0.6, label=f"{label} ({len(values)})", color=colour)
    axes.axvline(limit, color="black", lw=1, ls="--")
    axes.text(limit, axes.get_ylim()[1], " leaks left of here", va="top", fontsize=8)
    axes.set(xlabel=f"differing hash bits of {BITS}", ylabel="pairs")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01))
    figure.tight_layout()
    return figure


def twins(place: Workspace, dataset: Dataset, clusters: Sequence[Cluster], count: int = 4) -> Any:
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
            _show(axes, place, frames[cluster.frames[step]])
        kind = "the same picture" if cluster.exact else "nearly the same"
        row[0].text(
            0, -0.05, f"{len(cluster.frames)} frames, {kind}", transform=row[0].transAxes,
            fontsize=8, va="top",
        )  # fmt: skip
    figure.tight_layout()
    return figure


def coverage_grid(cells: Sequence[Cell]) -> Any:
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


def label_errors(
    place: Workspace, dataset: Dataset, errors: Sequence[LabelError], count: int = 8
) -> Any:
    """The likeliest label errors, cut out with their surroundings: labels blue, the doubt red."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    frames = {frame.id: frame for frame in dataset.frames}
    shown = errors[:count]
    rows = max(1, -(-len(shown) // 4))
    figure, grid = plt.subplots(rows, 4, figsize=(13, 3.1 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    if not shown:
        grid[0, 0].text(0, 0.5, "No label looks wrong.", fontsize=11)
    for axes, error in zip(grid.flat, shown, strict=False):
        frame, box = frames[error.frame], error.box
        axes.imshow(load_rgb(media_path(place, frame)))
        for label in dataset.labels_by_frame[frame.id]:
            one = label.box
            axes.add_patch(Rectangle((one.x, one.y), one.w, one.h, fill=False, ec="#4f9bff", lw=1))
        axes.add_patch(Rectangle((box.x, box.y), box.w, box.h, fill=False, ec="#ff3b30", lw=2))
        half = max(40.0, 1.5 * max(box.w, box.h))
        x, y = box.x + box.w / 2, box.y + box.h / 2
        axes.set_xlim(max(0, x - half), min(frame.width, x + half))
        axes.set_ylim(min(frame.height, y + half), max(0, y - half))
        axes.set_title(_wrapped(f"{error.weight:.2f} {error.why}"), fontsize=7.5, loc="left")
    figure.tight_layout()
    return figure


def _show(axes: Any, place: Workspace, frame: Frame) -> None:
    axes.imshow(load_rgb(media_path(place, frame)))
    side = side_of(frame)
    about = f"{frame.role or 'no role'} · {frame.drive} #{frame.index}"
    axes.set_title(about, fontsize=7.5, loc="left", color=_COLOURS[side] if side else "black")


def _spread(leaks: Sequence[Leak], count: int) -> list[Leak]:
    """The worst of each kind in turn, so that one kind does not hide the others."""
    kinds: dict[str, list[Leak]] = {}
    for leak in leaks:
        kinds.setdefault(leak.kind, []).append(leak)
    most = max(map(len, kinds.values()), default=0)
    ordered = [theirs[n] for n in range(most) for theirs in kinds.values() if n < len(theirs)]
    return ordered[:count]


def _nearest_across(like: Likeness) -> NDArray[np.int64]:
    sides = np.array([side_of(frame) for frame in like.frames])
    nearest = []
    for row in np.flatnonzero(np.isin(sides, ("judged", "tuned"))).tolist():
        others = like.hashes[(sides != sides[row]) & (sides != "")]
        if len(others):
            nearest.append(int(differing_bits(like.hashes[row], others).min()))
    return np.array(nearest, np.int64)


def _at(frame: Frame, timed: bool) -> float:
    return (frame.timestamp_us or 0) / 1e6 if timed else float(frame.index)


def _wrapped(text: str, width: int = 46) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:3])
