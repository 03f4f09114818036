"""From the network's raw maps to boxes, in numpy: the same code behind torch and ONNX Runtime.

A cell in column ``i`` and row ``j`` of a level with stride ``s`` stands at ``(i + 1/2) s`` and
``(j + 1/2) s``. Its distances to the four sides are ``s * (elu(r) + relu(r)^2 / 2)``: linear near
zero, quadratic for large boxes, and down to ``-s``, so that a cell just outside a small box can
still give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.errors import DataError
from workbench.perception.boxes import Floats, clip, non_maximum_suppression
from workbench.perception.contract import DetectorConfig
from workbench.perception.models import registry

_CANDIDATES = 400


@dataclass(frozen=True)
class Detections:
    """Boxes of one frame, best first.

    ``boxes`` is float32 ``[n, 4]`` xyxy pixels, ``scores`` float32 ``[n]`` in [0, 1] and
    ``classes`` int64 ``[n]`` numbers into the model's class list.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """The detections with at least this score."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])


def cell_centres(width: int, height: int, stride: int) -> NDArray[np.float32]:
    """Centres (x, y) of a level's cells in network pixels, row by row, ``[h * w, 2]``."""
    xs = (np.arange(width // stride, dtype=np.float32) + 0.5) * stride
    ys = (np.arange(height // stride, dtype=np.float32) + 0.5) * stride
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def distances(raw: Floats) -> Floats:
    """Raw box outputs to distances in units of the stride."""
    positive = np.maximum(raw, 0)
    bent: Floats = np.where(raw > 0, raw, np.expm1(np.minimum(raw, 0))) + 0.5 * positive**2
    return bent


def decode(
    outputs: Sequence[Floats],
    config: DetectorConfig,
    *,
    score_threshold: float | None = None,
    nms_iou: float | None = None,
) -> list[Detections]:
    """Raw outputs of a batch to the detections of each frame, in network pixels.

    Args:
        outputs: As the model's family gives them; of the compact one ``cls`` and ``box`` for each
            stride, see `Detector.forward`.
        config: Says the family, limits and the default thresholds.
        score_threshold: Instead of the configured one.
        nms_iou: Instead of the configured one.
    """
    family = registry.find(config.architecture)
    threshold = config.score_threshold if score_threshold is None else score_threshold
    iou = config.nms_iou if nms_iou is None else nms_iou
    return family.decode(outputs, config, score_threshold=threshold, nms_iou=iou)


def cell_output_names(config: DetectorConfig) -> tuple[str, ...]:
    """Names of the compact detector's maps: ``cls`` and ``box`` of each stride."""
    return tuple(f"{part}_{stride}" for stride in config.strides for part in ("cls", "box"))


def decode_cells(
    outputs: Sequence[Floats], config: DetectorConfig, *, score_threshold: float, nms_iou: float
) -> list[Detections]:
    """`decode` for the compact detector's maps."""
    if len(outputs) != 2 * len(config.strides):
        raise DataError(
            f"expected {2 * len(config.strides)} output maps, got {len(outputs)}",
            hint="The model and its detector contract do not belong together",
        )
    logits, boxes, size = _flatten(outputs, config)
    limit = config.max_detections
    return [
        _decode_frame(frame_logits, frame_boxes, size, score_threshold, nms_iou, limit)
        for frame_logits, frame_boxes in zip(logits, boxes, strict=True)
    ]


def _flatten(
    outputs: Sequence[Floats], config: DetectorConfig
) -> tuple[Floats, Floats, tuple[int, int]]:
    """All levels in one row of cells: logits ``[n, cells, c]``, boxes ``[n, cells, 4]`` xyxy."""
    logits, boxes = [], []
    for stride, cls, box in zip(config.strides, outputs[::2], outputs[1::2], strict=True):
        count, channels, rows, columns = cls.shape
        logits.append(cls.reshape(count, channels, -1).transpose(0, 2, 1))
        reach = distances(box.reshape(count, 4, -1).transpose(0, 2, 1)) * np.float32(stride)
        centres = cell_centres(columns * stride, rows * stride, stride)[None]
        boxes.append(np.concatenate([centres - reach[..., :2], centres + reach[..., 2:]], axis=-1))
    stride, rows, columns = config.strides[0], *outputs[0].shape[2:]
    return np.concatenate(logits, 1), np.concatenate(boxes, 1), (columns * stride, rows * stride)


def _decode_frame(
    logits: Floats,
    boxes: Floats,
    size: tuple[int, int],
    threshold: float,
    iou: float,
    limit: int,
) -> Detections:
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(-logits))
    cells, classes = np.nonzero(scores >= threshold)
    found = scores[cells, classes]
    if len(found) > _CANDIDATES:
        best = np.sort(np.argsort(-found, kind="stable")[:_CANDIDATES])
        cells, classes, found = cells[best], classes[best], found[best]
    candidates = clip(boxes[cells], *size)
    whole = (candidates[:, 2] > candidates[:, 0]) & (candidates[:, 3] > candidates[:, 1])
    candidates, classes, found = candidates[whole], classes[whole], found[whole]
    kept = non_maximum_suppression(candidates, found, classes, iou)[:limit]
    return Detections(
        candidates[kept].astype(np.float32),
        found[kept].astype(np.float32),
        classes[kept].astype(np.int64),
    )
