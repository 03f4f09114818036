"""Frames of a pool with what a model sees in them, and where on them something was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.records.dataset import Dataset, media_path
from workbench.widgets.pictured import DrawnBox, PicturedFrame
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.curation import Embeddings
    from workbench.curation.finding import Likeness


def seen_frames(place: Workspace, dataset: Dataset, seen: Embeddings) -> list[PicturedFrame]:
    """Every embedded frame with the boxes that have a vector, surest first."""
    frames = {frame.id: frame for frame in dataset.frames}
    boxes: list[list[DrawnBox]] = [[] for _ in seen.frames]
    for owner, box, cls, score in zip(
        seen.owner.tolist(),
        seen.boxes.tolist(),
        seen.classes.tolist(),
        seen.scores.tolist(),
        strict=True,
    ):
        boxes[owner].append(DrawnBox(seen.class_names[cls], tuple(box), score))
    shown = []
    for name, found in zip(seen.frames, boxes, strict=True):
        frame = frames[name]
        shown.append(
            PicturedFrame(
                frame=name,
                image=media_path(place, frame),
                drive=frame.drive,
                light=str(frame.conditions.light),
                weather=str(frame.conditions.weather),
                boxes=tuple(sorted(found, key=lambda box: -(box.score or 0))),
            )
        )
    return shown


def alike_frames(
    shown: Sequence[PicturedFrame],
    seen: Embeddings,
    like: Likeness,
    count: int,
    *,
    per_drive: int = 2,
) -> list[PicturedFrame]:
    """The ``count`` most alike, with what matched drawn in and why in words.

    Args:
        shown: Of `seen_frames`, in the order of ``seen``.
        per_drive: At most so many of one drive, because its frames are like each other anyway.
    """
    taken: Counter[str] = Counter()
    found = []
    for row in like.order.tolist():
        one = shown[row]
        if taken[one.drive] >= per_drive:
            continue
        taken[one.drive] += 1
        found.append(replace(one, boxes=_where(seen, like, row), reasons=(like.why(row),)))
        if len(found) == count:
            break
    return found


def contact_sheet(
    exemplar: PicturedFrame, box: DrawnBox | None, found: Sequence[PicturedFrame]
) -> Any:
    """The exemplar and what is like it, four a row, what matched drawn in red."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle
    from PIL import Image

    cards = [(replace(exemplar, boxes=(box,) if box else ()), "the exemplar")]
    cards += [(one, one.reasons[0]) for one in found]
    rows = -(-len(cards) // 4)
    figure, grid = plt.subplots(rows, 4, figsize=(13, 2.5 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, (axes, (one, told)) in enumerate(zip(grid.flat, cards, strict=False)):
        with Image.open(one.image) as image:
            axes.imshow(image.convert("RGB"))
        for drawn in one.boxes:
            x1, y1, x2, y2 = drawn.xyxy
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="#ff3b30", lw=1.6))
        weight = "bold" if number == 0 else "normal"
        axes.set_title(f"{one.drive}\n{told}", fontsize=8, loc="left", fontweight=weight)
    figure.tight_layout()
    return figure


def _where(seen: Embeddings, like: Likeness, row: int) -> tuple[DrawnBox, ...]:
    """The object or tile of a frame that matched; nothing where it was the frame as a whole."""
    place = int(like.row[row])
    if like.kind[row] == "object":
        cls = seen.class_names[int(seen.classes[place])]
        return (DrawnBox(cls, tuple(seen.boxes[place].tolist())),)
    if like.kind[row] == "tile":
        return (DrawnBox("here", tuple(seen.tiles.boxes[place].tolist())),)
    return ()
