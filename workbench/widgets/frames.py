"""Frames as the widgets show them: image, boxes, reasons."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from workbench.core.errors import DataError
from workbench.core.workspace import Workspace
from workbench.data.drawing import class_colours, draw_box_on_image, draw_boxes, image_grid
from workbench.data.images import open_media
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import ANY_CLASS
from workbench.records.types import Prediction, Selection

if TYPE_CHECKING:
    from workbench.curation import Embeddings
    from workbench.curation.signals.similarity import SimilarityScores

__all__ = ["DrawnBox", "contact_sheet", "embedded_frames", "selected_frames", "similar_frames"]


@dataclass(frozen=True)
class DrawnBox:
    """A box to draw.

    Attributes:
        cls: Class name.
        xyxy: Corners, pixels of the frame.
        score: None for a label.
        colour: As ``#rrggbb``, of the class in its schema; see `class_colours`.
    """

    cls: str
    xyxy: tuple[float, float, float, float]
    score: float | None = None
    colour: str = ""

    @property
    def drawn_colour(self) -> str:
        return self.colour or class_colours((self.cls,))[self.cls]


@dataclass(frozen=True)
class ShownFrame:
    """A frame to show.

    Attributes:
        frame: Digest.
        image: Path of the image.
        drive: Its drive.
        light: Light condition.
        weather: Weather condition.
        arm: Arm of a selection, if any.
        rank: Rank in a selection, from 1.
        reasons: Why it was chosen.
        boxes: Boxes to draw.
    """

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
        """Classes of its boxes."""
        return frozenset(box.cls for box in self.boxes)


def selected_frames(
    workspace: Workspace,
    dataset: Dataset,
    selection: Selection,
    predictions: Sequence[Prediction] = (),
) -> list[ShownFrame]:
    """The frames of a selection by rank, with predicted boxes, or labels where there are none.

    Args:
        workspace: Holds the images.
        dataset: The dataset version.
        selection: The selection.
        predictions: Boxes of a model.
    """
    frames = {frame.id: frame for frame in dataset.frames}
    colours = class_colours((*dataset.label_schema.classes, ANY_CLASS))
    boxes_by_frame: dict[str, list[DrawnBox]] = {}
    for one in predictions:
        box = DrawnBox(one.cls, one.box.xyxy, one.score, colours.get(one.cls, ""))
        boxes_by_frame.setdefault(one.frame, []).append(box)
    result = []
    for choice in selection.chosen:
        if choice.frame not in frames:
            continue
        frame = frames[choice.frame]
        labels = [
            DrawnBox(one.cls, one.box.xyxy, colour=colours[one.cls])
            for one in dataset.labels_by_frame[frame.id]
        ]
        result.append(
            ShownFrame(
                frame=frame.id,
                image=media_path(workspace, frame),
                drive=frame.drive,
                light=str(frame.conditions.light),
                weather=str(frame.conditions.weather),
                arm=choice.arm,
                rank=choice.rank,
                reasons=choice.reasons,
                boxes=tuple(boxes_by_frame.get(frame.id, labels)),
            )
        )
    return result


def embedded_frames(
    workspace: Workspace, dataset: Dataset, embeddings: Embeddings
) -> list[ShownFrame]:
    """All embedded frames with the boxes that have a vector, highest score first.

    Args:
        workspace: Holds the images.
        dataset: The dataset version.
        embeddings: Embeddings of its frames.
    """
    frames = {frame.id: frame for frame in dataset.frames}
    colours = class_colours(dataset.label_schema.classes)
    boxes: list[list[DrawnBox]] = [[] for _ in embeddings.frames]
    for owner, box, cls, score in zip(
        embeddings.owner.tolist(),
        embeddings.boxes.tolist(),
        embeddings.classes.tolist(),
        embeddings.scores.tolist(),
        strict=True,
    ):
        name = embeddings.class_names[cls]
        boxes[owner].append(DrawnBox(name, tuple(box), score, colours.get(name, "")))
    result = []
    for name, own_boxes in zip(embeddings.frames, boxes, strict=True):
        frame = frames[name]
        result.append(
            ShownFrame(
                frame=name,
                image=media_path(workspace, frame),
                drive=frame.drive,
                light=str(frame.conditions.light),
                weather=str(frame.conditions.weather),
                boxes=tuple(sorted(own_boxes, key=lambda box: -(box.score or 0))),
            )
        )
    return result


def similar_frames(
    shown: Sequence[ShownFrame],
    embeddings: Embeddings,
    similarity: SimilarityScores,
    count: int,
    *,
    per_drive: int = 2,
) -> list[ShownFrame]:
    """The ``count`` most similar frames, with the matched box and the reason.

    Args:
        shown: Result of `embedded_frames`, in the order of ``embeddings``.
        embeddings: Embeddings of the frames.
        similarity: Their similarity to an exemplar or a text.
        count: Number of frames.
        per_drive: Largest number of one drive, whose frames are similar anyway.
    """
    count_by_drive: Counter[str] = Counter()
    result = []
    for row in similarity.order.tolist():
        frame = shown[row]
        if count_by_drive[frame.drive] >= per_drive:
            continue
        count_by_drive[frame.drive] += 1
        result.append(
            replace(
                frame,
                boxes=_matched_box(embeddings, similarity, row),
                reasons=(similarity.reason(row),),
            )
        )
        if len(result) == count:
            break
    return result


def _matched_box(
    embeddings: Embeddings, similarity: SimilarityScores, row: int
) -> tuple[DrawnBox, ...]:
    """The object or tile that matched; none where the whole frame did."""
    index = int(similarity.row[row])
    if similarity.kind[row] == "object":
        cls = embeddings.class_names[int(embeddings.classes[index])]
        return (DrawnBox(cls, tuple(embeddings.boxes[index].tolist())),)
    if similarity.kind[row] == "tile":
        return (DrawnBox("here", tuple(embeddings.tiles.boxes[index].tolist())),)
    return ()


def contact_sheet(exemplar: ShownFrame, box: DrawnBox | None, matches: Sequence[ShownFrame]) -> Any:
    """Plot an exemplar and the frames similar to it, four per row, the matched boxes in red.

    Args:
        exemplar: The exemplar's frame.
        box: The exemplar's box; None for the whole frame.
        matches: Similar frames, most similar first.
    """
    cards = [(replace(exemplar, boxes=(box,) if box else ()), "the exemplar")]
    cards += [(one, one.reasons[0]) for one in matches]
    figure, grid = image_grid(len(cards), columns=4, cell=(3.25, 2.5))
    for number, (axes, (one, text)) in enumerate(zip(grid, cards, strict=False)):
        axes.imshow(open_media(one.image, one.frame))
        draw_boxes(axes, (drawn.xyxy for drawn in one.boxes), "#ff3b30", width=1.6)
        weight = "bold" if number == 0 else "normal"
        axes.set_title(f"{one.drive}\n{text}", fontsize=8, loc="left", fontweight=weight)
    figure.tight_layout()
    return figure


def draw_frame(shown: ShownFrame, width: int) -> bytes:
    """PNG of a frame with its boxes, ``width`` pixels wide; grey where the image is unreadable."""
    try:
        image = open_media(shown.image, shown.frame)
    except DataError:
        return _png(_placeholder(width))
    scale = width / image.width
    image = image.resize((width, max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    for box in shown.boxes:
        text = box.cls if box.score is None else f"{box.cls} {box.score:.2f}"
        draw_box_on_image(
            image,
            [value * scale for value in box.xyxy],
            box.drawn_colour,
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
