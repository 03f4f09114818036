"""Frames as the widgets show them: image, boxes, reasons."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, UnidentifiedImageError

from workbench.core.workspace import Workspace
from workbench.data.drawing import class_colour, draw_box_on_image, draw_boxes, image_grid
from workbench.records.dataset import Dataset, media_path
from workbench.records.types import Prediction, Selection

if TYPE_CHECKING:
    from workbench.curation import Embeddings
    from workbench.curation.signals.similarity import SimilarityScores


@dataclass(frozen=True)
class DrawnBox:
    """A box in pixels of the frame; ``score`` is None for a label."""

    cls: str
    xyxy: tuple[float, float, float, float]
    score: float | None = None


@dataclass(frozen=True)
class ShownFrame:
    """One frame as shown: where its image lies, what it is, why it was chosen."""

    frame: str
    image: Path
    drive: str
    light: str
    weather: str
    arm: str = ""
    rank: int = 0
    reasons: tuple[str, ...] = ()
    boxes: tuple[DrawnBox, ...] = ()

    @property
    def classes(self) -> frozenset[str]:
        return frozenset(box.cls for box in self.boxes)


def selected_frames(
    place: Workspace,
    dataset: Dataset,
    selection: Selection,
    predictions: Sequence[Prediction] = (),
) -> list[ShownFrame]:
    """The chosen frames in order of rank, with the model's boxes, or labels where it has none."""
    frames = {frame.id: frame for frame in dataset.frames}
    found: dict[str, list[DrawnBox]] = {}
    for one in predictions:
        found.setdefault(one.frame, []).append(DrawnBox(one.cls, one.box.xyxy, one.score))
    shown = []
    for choice in selection.chosen:
        if choice.frame not in frames:
            continue
        frame = frames[choice.frame]
        labels = [DrawnBox(one.cls, one.box.xyxy) for one in dataset.labels_by_frame[frame.id]]
        shown.append(
            ShownFrame(
                frame=frame.id,
                image=media_path(place, frame),
                drive=frame.drive,
                light=str(frame.conditions.light),
                weather=str(frame.conditions.weather),
                arm=choice.arm,
                rank=choice.rank,
                reasons=choice.reasons,
                boxes=tuple(found.get(frame.id, labels)),
            )
        )
    return shown


def draw_frame(shown: ShownFrame, width: int) -> bytes:
    """PNG bytes, ``width`` pixels wide, boxes drawn; a grey card where the image is unreadable."""
    try:
        with Image.open(shown.image) as source:
            image = source.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return _png(_placeholder(width))
    scale = width / image.width
    image = image.resize((width, max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    for box in shown.boxes:
        text = box.cls if box.score is None else f"{box.cls} {box.score:.2f}"
        draw_box_on_image(
            image,
            [value * scale for value in box.xyxy],
            class_colour(box.cls),
            width=1 + width // 400,
            text=text if width >= 400 else "",
            font_size=max(9, width // 50),
        )
    return _png(image)


def _placeholder(width: int) -> Image.Image:
    image = Image.new("RGB", (width, width * 9 // 16), "#555555")
    ImageDraw.Draw(image).text((8, 8), "image cannot be read", fill="white")
    return image


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


# ---- Frames of a pool with what a model sees in them, and where on them something was found.


def embedded_frames(place: Workspace, dataset: Dataset, seen: Embeddings) -> list[ShownFrame]:
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
            ShownFrame(
                frame=name,
                image=media_path(place, frame),
                drive=frame.drive,
                light=str(frame.conditions.light),
                weather=str(frame.conditions.weather),
                boxes=tuple(sorted(found, key=lambda box: -(box.score or 0))),
            )
        )
    return shown


def similar_frames(
    shown: Sequence[ShownFrame],
    seen: Embeddings,
    like: SimilarityScores,
    count: int,
    *,
    per_drive: int = 2,
) -> list[ShownFrame]:
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
        found.append(replace(one, boxes=_matched_box(seen, like, row), reasons=(like.why(row),)))
        if len(found) == count:
            break
    return found


def contact_sheet(exemplar: ShownFrame, box: DrawnBox | None, found: Sequence[ShownFrame]) -> Any:
    """The exemplar and what is like it, four a row, what matched drawn in red."""
    cards = [(replace(exemplar, boxes=(box,) if box else ()), "the exemplar")]
    cards += [(one, one.reasons[0]) for one in found]
    figure, grid = image_grid(len(cards), columns=4, cell=(3.25, 2.5))
    for number, (axes, (one, told)) in enumerate(zip(grid, cards, strict=False)):
        with Image.open(one.image) as image:
            axes.imshow(image.convert("RGB"))
        draw_boxes(axes, (drawn.xyxy for drawn in one.boxes), "#ff3b30", width=1.6)
        weight = "bold" if number == 0 else "normal"
        axes.set_title(f"{one.drive}\n{told}", fontsize=8, loc="left", fontweight=weight)
    figure.tight_layout()
    return figure


def _matched_box(seen: Embeddings, like: SimilarityScores, row: int) -> tuple[DrawnBox, ...]:
    """The object or tile of a frame that matched; nothing where it was the frame as a whole."""
    place = int(like.row[row])
    if like.kind[row] == "object":
        cls = seen.class_names[int(seen.classes[place])]
        return (DrawnBox(cls, tuple(seen.boxes[place].tolist())),)
    if like.kind[row] == "tile":
        return (DrawnBox("here", tuple(seen.tiles.boxes[place].tolist())),)
    return ()
