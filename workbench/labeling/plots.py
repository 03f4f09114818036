"""Plots of batches, labels and agreement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

from workbench.core.workspace import Workspace
from workbench.data.drawing import draw_boxes, image_grid
from workbench.labeling.batches import sent_predictions
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Frame
from workbench.records.store import Store
from workbench.records.types import Agreement, Prediction

_MODEL_COLOUR, _LABEL_COLOUR = "#E69F00", "#009E73"


def first_frames(
    place: Workspace, frames: Sequence[Frame], predictions: Iterable[Prediction], count: int = 6
) -> Any:
    """The first frames of a batch with the boxes that labelers start from (orange)."""
    boxes: dict[str, list[Box]] = defaultdict(list)
    for prediction in predictions:
        boxes[prediction.frame].append(prediction.box)
    layers = [(_MODEL_COLOUR, boxes)]
    return _image_grid(
        place, frames[:count], layers, "Boxes to start from: the model's, nobody's label"
    )


def before_and_after(
    place: Workspace, store: Store, batch: Ref, labeled: Dataset, count: int = 6
) -> Any:
    """Labeled frames with what the model had said (orange) and what came back (green)."""
    sent = {
        frame: [one.box for one in predictions]
        for frame, predictions in sent_predictions(store, batch).items()
    }
    drawn = {
        frame: [label.box for label in labels] for frame, labels in labeled.labels_by_frame.items()
    }
    simulated = any(label.origin.is_simulated for label in labeled.labels)
    title = f"Sent (orange) and drawn (green){', replayed' if simulated else ''}"
    return _image_grid(
        place, labeled.frames[:count], [(_MODEL_COLOUR, sent), (_LABEL_COLOUR, drawn)], title
    )


def labels_and_model(
    place: Workspace, labeled: Dataset, frames: Sequence[Frame], predictions: Iterable[Prediction]
) -> Any:
    """Frames with their labels (green) and what the model sees in them (orange)."""
    seen: dict[str, list[Box]] = defaultdict(list)
    for prediction in predictions:
        seen[prediction.frame].append(prediction.box)
    drawn = {
        frame: [label.box for label in labels] for frame, labels in labeled.labels_by_frame.items()
    }
    layers = [(_MODEL_COLOUR, dict(seen)), (_LABEL_COLOUR, drawn)]
    return _image_grid(place, frames, layers, "Labels (green) and the model's boxes (orange)")


def agreement_bars(record: Agreement) -> Any:
    """Missed rate and overlap of every subject with their intervals."""
    import matplotlib.pyplot as plt

    rates = record.rates
    names = [
        ("gold: " if rate.against == "gold" else "")
        + (rate.name if rate.subject == "all" else f"{rate.subject} {rate.name}")
        for rate in rates
    ]
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 1.2 + 0.28 * max(1, len(rates))), sharey=True, squeeze=False
    )
    columns = (("missed", "share of boxes missed"), ("iou", "mean overlap of matched boxes"))
    for axis, (name, title) in zip(axes[0], columns, strict=True):
        for row, rate in enumerate(rates):
            value, interval = getattr(rate, name), getattr(rate, f"{name}_interval")
            if interval is not None:
                axis.plot(interval, (row, row), color="#999999", lw=2)
            if value is not None:
                axis.plot(value, row, "o", color=_LABEL_COLOUR, ms=5)
        axis.set_title(title, fontsize=9)
        axis.set_xlim(0, 1)
    axes[0][0].set_yticks(range(len(rates)), names, fontsize=7)
    axes[0][0].invert_yaxis()
    told = ", replayed" if record.simulated else ""
    figure.suptitle(f"Agreement on {record.frames} frames{told}", fontsize=10)
    figure.tight_layout()
    return figure


def _image_grid(
    place: Workspace,
    frames: Sequence[Frame],
    layers: Sequence[tuple[str, dict[str, list[Box]]]],
    title: str,
) -> Any:
    figure, grid = image_grid(len(frames))
    for axis, frame in zip(grid, frames, strict=False):
        with Image.open(media_path(place, frame)) as image:
            axis.imshow(image.convert("RGB"))
        for colour, boxes in layers:
            draw_boxes(axis, (box.xyxy for box in boxes.get(frame.id, ())), colour)
        axis.set_title(f"{frame.drive} #{frame.index}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return figure
