"""Plots of batches, labels and agreement. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.core.workspace import Workspace
from workbench.data.drawing import add_legend, draw_boxes, image_grid
from workbench.data.images import open_media
from workbench.labeling.batches import sent_predictions
from workbench.records.base import Ref
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Frame
from workbench.records.store import Store
from workbench.records.types import Agreement, Prediction

__all__ = ["agreement_bars", "before_and_after", "first_frames", "labels_and_model"]

_MODEL_COLOUR, _LABEL_COLOUR = "#E69F00", "#009E73"


def first_frames(
    workspace: Workspace, frames: Sequence[Frame], predictions: Iterable[Prediction], count: int = 6
) -> Any:
    """The first frames of a batch with the boxes that labelers start from (orange).

    Args:
        frames: The batch's frames in order; the first ``count`` are shown.
        predictions: Boxes in pixels, also of other frames.
    """
    layers = [("prediction", _MODEL_COLOUR, _prediction_boxes(predictions))]
    title = "Predictions that labelers start from"
    return _frame_grid(workspace, frames[:count], layers, title)


def before_and_after(
    workspace: Workspace, store: Store, batch: Ref, labeled: Dataset, count: int = 6
) -> Any:
    """Labeled frames with the predictions that were sent (orange) and the labels (green).

    Args:
        batch: Whose predictions are shown.
        labeled: Frames and collected labels; the first ``count`` frames are shown.
    """
    sent = {
        frame: [one.box for one in predictions]
        for frame, predictions in sent_predictions(store, batch).items()
    }
    simulated = any(label.origin.is_simulated for label in labeled.labels)
    title = f"Before and after labeling{', replayed' if simulated else ''}"
    layers = [("sent", _MODEL_COLOUR, sent), ("drawn", _LABEL_COLOUR, _label_boxes(labeled))]
    return _frame_grid(workspace, labeled.frames[:count], layers, title)


def labels_and_model(
    workspace: Workspace,
    labeled: Dataset,
    frames: Sequence[Frame],
    predictions: Iterable[Prediction],
) -> Any:
    """Frames with their labels (green) and the model's predictions (orange).

    Args:
        labeled: Dataset with the labels.
        frames: Frames to show.
        predictions: Boxes in pixels, also of other frames.
    """
    layers = [
        ("prediction", _MODEL_COLOUR, _prediction_boxes(predictions)),
        ("label", _LABEL_COLOUR, _label_boxes(labeled)),
    ]
    return _frame_grid(workspace, frames, layers, "Labels and predictions")


def agreement_bars(record: Agreement) -> Any:
    """Missed rate and mean IoU of each subject with 95 % intervals."""
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
    columns = (("missed", "missed rate"), ("iou", "mean IoU of matched boxes"))
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
    replayed = ", replayed" if record.simulated else ""
    figure.suptitle(f"Agreement on {record.frames} frames{replayed}", fontsize=10)
    figure.tight_layout()
    return figure


def _prediction_boxes(predictions: Iterable[Prediction]) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    for prediction in predictions:
        boxes.setdefault(prediction.frame, []).append(prediction.box)
    return boxes


def _label_boxes(dataset: Dataset) -> dict[str, list[Box]]:
    return {
        frame: [label.box for label in labels] for frame, labels in dataset.labels_by_frame.items()
    }


def _frame_grid(
    workspace: Workspace,
    frames: Sequence[Frame],
    layers: Sequence[tuple[str, str, Mapping[str, Sequence[Box]]]],
    title: str,
) -> Any:
    figure, grid = image_grid(len(frames))
    for axis, frame in zip(grid, frames, strict=False):
        axis.imshow(open_media(media_path(workspace, frame), frame.id))
        for _, colour, boxes in layers:
            draw_boxes(axis, (box.xyxy for box in boxes.get(frame.id, ())), colour)
        axis.set_title(f"{frame.drive} #{frame.index}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    add_legend(figure, {name: colour for name, colour, _ in layers})
    return figure
