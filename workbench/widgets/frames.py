"""Frames as the widgets show them: image, boxes, reasons; and how they travel to the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench.core.workspace import Workspace
from workbench.data.drawing import class_colours, draw_boxes, image_grid
from workbench.data.images import open_media
from workbench.data.slices import frame_slices
from workbench.labeling.agreement import describe_disputes, load_answers
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, load_dataset, media_path
from workbench.records.frames import ANY_CLASS, Frame
from workbench.records.store import Store
from workbench.records.types import LabelBatch, LabelSet, Prediction, Selection

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
        model: Name of the model that found it; empty for a label, and for the only model.
        origin: Where a label comes from, see `Origin`.
        occluded: Hidden fraction in [0, 1], if known.
        truncated: Fraction outside the image in [0, 1], if known.
        ignore: Whether a label is a region that does not count.
    """

    cls: str
    xyxy: tuple[float, float, float, float]
    score: float | None = None
    colour: str = ""
    model: str = ""
    origin: str = ""
    occluded: float | None = None
    truncated: float | None = None
    ignore: bool = False

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
        boxes: Labels, and predictions of any number of models.
        role: What the frame is for, if known.
        index: Position in its drive.
        seconds: Time in its drive or since 1970, if known.
        size: Width and height, pixels; (0, 0) where only the image knows.
        slices: Names of the slices it is in.
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
    role: str = ""
    index: int = 0
    seconds: float | None = None
    size: tuple[int, int] = (0, 0)
    slices: tuple[str, ...] = ()


def dataset_frames(
    workspace: Workspace,
    dataset: Dataset,
    predictions: Mapping[str, Iterable[Prediction]] | None = None,
) -> list[ShownFrame]:
    """All frames of a dataset by drive and time, with labels and each model's predictions.

    Args:
        workspace: Holds the images.
        dataset: A dataset version, or a part of one.
        predictions: Boxes by name of the model.
    """
    boxes: dict[str, list[DrawnBox]] = {frame.id: [] for frame in dataset.frames}
    colours = class_colours((*dataset.label_schema.classes, ANY_CLASS))
    for label in dataset.labels:
        drawn = DrawnBox(
            label.cls,
            label.box.xyxy,
            colour=colours.get(label.cls, ""),
            origin=str(label.origin),
            occluded=label.occluded,
            truncated=label.truncated,
            ignore=label.ignore,
        )
        boxes[label.frame].append(drawn)
    for name, found in (predictions or {}).items():
        for one in found:
            drawn = DrawnBox(one.cls, one.box.xyxy, one.score, colours.get(one.cls, ""), name)
            boxes[one.frame].append(drawn)
    return [_shown(workspace, dataset, frame, boxes[frame.id]) for frame in dataset.frames]


def selected_frames(
    workspace: Workspace,
    dataset: Dataset,
    selection: Selection,
    predictions: Sequence[Prediction] = (),
) -> list[ShownFrame]:
    """The frames of a selection by rank, with labels and predicted boxes.

    Args:
        workspace: Holds the images.
        dataset: The dataset version.
        selection: The selection.
        predictions: Boxes of a model.
    """
    chosen = {choice.frame for choice in selection.chosen}
    part = dataset.where(lambda frame: frame.id in chosen)
    shown = {
        one.frame: one
        for one in dataset_frames(workspace, part, {"": predictions} if predictions else None)
    }
    return [
        replace(shown[choice.frame], arm=choice.arm, rank=choice.rank, reasons=choice.reasons)
        for choice in selection.chosen
        if choice.frame in shown
    ]


def answered_frames(store: Store, labels: Ref) -> list[ShownFrame]:
    """The frames of a label set that several labelers answered, the most disputed first.

    The first labeler's boxes, by name, are shown as labels, each other's as those of a model.

    Args:
        store: Holds the records.
        labels: A label set.
    """
    answers = load_answers(store, labels)
    batch = store.get(store.get(labels, LabelSet).batch, LabelBatch)
    several = {frame for frame, people in answers.items() if len(people) > 1}
    part = load_dataset(store, batch.dataset).where(lambda frame: frame.id in several)
    colours = class_colours((*part.label_schema.classes, ANY_CLASS))
    shown = []
    for one in dataset_frames(store.workspace, part):
        people = answers[one.frame]
        boxes = [
            DrawnBox(
                label.cls,
                label.box.xyxy,
                None if number == 0 else 1.0,
                colours.get(label.cls, ""),
                "" if number == 0 else who,
                who if number == 0 else "",
                ignore=label.ignore,
            )
            for number, who in enumerate(sorted(people))
            for label in people[who]
        ]
        shown.append(replace(one, boxes=tuple(boxes), reasons=tuple(describe_disputes(people))))
    return sorted(shown, key=lambda one: -len(one.reasons))


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
        own_boxes.sort(key=lambda box: -(box.score or 0))
        result.append(_shown(workspace, dataset, frames[name], own_boxes))
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


def _shown(
    workspace: Workspace, dataset: Dataset, frame: Frame, boxes: Sequence[DrawnBox]
) -> ShownFrame:
    labelled = {box.cls for box in boxes if box.score is None}
    slices = frame_slices(frame, labelled, dataset.label_schema)
    return ShownFrame(
        frame=frame.id,
        image=media_path(workspace, frame),
        drive=frame.drive,
        light=str(frame.conditions.light),
        weather=str(frame.conditions.weather),
        boxes=tuple(boxes),
        role=str(frame.role or ""),
        index=frame.index,
        seconds=None if frame.timestamp_us is None else frame.timestamp_us / 1e6,
        size=(frame.width, frame.height),
        slices=tuple(name for name in slices if not name.startswith("role=")),
    )


_MAX_SLICES = 32
"""Bits of the number that says which slices a frame is in."""
_NO_MODEL = 0xFFFF


def pack_frames(
    frames: Sequence[ShownFrame],
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Frames as names and arrays, which the page reads without parsing text.

    Within a frame, labels come first and predictions follow by falling score.

    Returns:
        What the arrays' numbers stand for, and the arrays: ``ids`` uint8 ``[n, 32]``; ``offsets``
        uint32 ``[n + 1]`` of the frames' boxes; ``boxes`` float32 ``[m, 7]``: x1, y1, x2, y2
        (pixels), score, occluded, truncated (NaN where unknown); ``codes`` uint16 ``[m, 4]``:
        class, model (65535 for a label), origin, 1 for an ignore region; ``sizes`` uint16
        ``[n, 2]``; ``index`` int32 ``[n]``; ``time`` float64 ``[n]``, microseconds; ``slices``
        uint32 ``[n]``, a bit each; and uint16 ``[n]`` for each of the header's ``columns``.
    """
    counts = [len(one.boxes) for one in frames]
    flat = [box for one in frames for box in one.boxes]
    score = _floats([box.score for box in flat])
    frame = np.repeat(np.arange(len(frames)), counts)
    order = np.lexsort((-np.nan_to_num(score), ~np.isnan(score), frame))
    colours: dict[str, str] = {}
    for box in flat:
        if box.cls not in colours:
            colours[box.cls] = box.drawn_colour
    classes = {name: number for number, name in enumerate(sorted(colours))}
    models = {
        name: number
        for number, name in enumerate(
            dict.fromkeys(box.model for box in flat if box.score is not None)
        )
    }
    origins = {
        name: number
        for number, name in enumerate(sorted({box.origin for box in flat if box.score is None}))
    }
    named = Counter(name for one in frames for name in one.slices)
    slices = {name: bit for bit, (name, _) in enumerate(named.most_common(_MAX_SLICES))}
    corners = np.array([box.xyxy for box in flat], np.float32).reshape(-1, 4)
    hidden = _floats([box.occluded for box in flat]), _floats([box.truncated for box in flat])
    numbers = np.column_stack([corners, score, *hidden])[order]
    codes = np.array(
        [
            [classes[box.cls] for box in flat],
            [_NO_MODEL if box.score is None else models[box.model] for box in flat],
            [origins.get(box.origin, 0) for box in flat],
            [box.ignore for box in flat],
        ],
        np.uint16,
    ).T[order]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.frombuffer(bytes.fromhex("".join(one.frame for one in frames)), np.uint8),
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        "boxes": numbers,
        "codes": codes,
        "sizes": np.array([_size(one) for one in frames], np.uint16).reshape(-1, 2),
        "index": np.array([one.index for one in frames], np.int32),
        "time": np.array([one.seconds for one in frames], np.float64) * 1e6,
        "slices": np.array(
            [sum(1 << slices[name] for name in one.slices if name in slices) for one in frames],
            np.uint32,
        ),
    }
    columns = []
    for column in ("drive", "role", "light", "weather", "arm"):
        values = {
            value: number
            for number, value in enumerate(sorted({getattr(one, column) for one in frames}))
        }
        columns.append({"name": column, "values": list(values)})
        arrays[column] = np.array([values[getattr(one, column)] for one in frames], np.uint16)
    header = {
        "n": len(frames),
        "classes": list(classes),
        "used_classes": [name for name in classes if name != ANY_CLASS],
        "colours": [colours[name] for name in classes],
        "models": [name or "model" for name in models],
        "origins": list(origins),
        "has_labels": any(box.score is None for box in flat),
        "slice_names": list(slices),
        "columns": columns,
        "reasons": [one.reasons for one in frames] if any(one.reasons for one in frames) else None,
    }
    return header, arrays


def _size(shown: ShownFrame) -> tuple[int, int]:
    if all(shown.size):
        return shown.size
    try:
        with Image.open(shown.image) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return (16, 9)  # of the grey field that stands for it


def _floats(values: Sequence[float | None]) -> NDArray[np.float32]:
    """As float32, NaN for None."""
    return np.array(values, np.float32)
