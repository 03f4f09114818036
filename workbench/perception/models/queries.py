"""From the outputs of models that predict a set of boxes (DETR and its kin) to detections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.errors import DataError
from workbench.perception.boxes import Floats, clip
from workbench.perception.contract import DetectorConfig
from workbench.perception.decode import Detections

OUTPUTS = ("logits", "boxes")


def decode(
    outputs: Sequence[Floats], config: DetectorConfig, *, score_threshold: float, nms_iou: float
) -> list[Detections]:
    """``logits`` ``[n, q, c]`` and ``boxes`` ``[n, q, 4]`` to boxes in network pixels.

    Boxes are centre, width and height as shares of the input. ``config.network`` gives its
    ``size`` in pixels and the ``scoring``: a ``sigmoid`` each class, or a ``softmax`` over the
    classes and, last, no object. A set is trained to hold each object once: nothing is suppressed.
    """
    if len(outputs) != len(OUTPUTS):
        raise DataError(
            f"expected the outputs {', '.join(OUTPUTS)}, got {len(outputs)}",
            hint="The model and its detector contract do not belong together",
        )
    width, height = config.network["size"]
    found = scores(outputs[0], config.network["scoring"])
    side = np.array([width, height], np.float32)
    centre, half = outputs[1][..., :2] * side, outputs[1][..., 2:] * side / 2
    boxes = np.concatenate([centre - half, centre + half], axis=-1)
    return [
        _frame(frame_scores, clip(frame_boxes, width, height), score_threshold, config)
        for frame_scores, frame_boxes in zip(found, boxes, strict=True)
    ]


def scores(logits: Floats, scoring: str) -> Floats:
    """Logits ``[…, c]`` to scores of the classes in [0, 1]; a softmax's no object is left out."""
    with np.errstate(over="ignore"):
        if scoring == "sigmoid":
            found: Floats = 1 / (1 + np.exp(-logits))
            return found
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = (raised / raised.sum(axis=-1, keepdims=True))[..., :-1]
    return shares


def _frame(scored: Floats, boxes: Floats, threshold: float, config: DetectorConfig) -> Detections:
    queries, classes = np.nonzero(scored >= threshold)
    found = scored[queries, classes]
    whole = (boxes[queries, 2] > boxes[queries, 0]) & (boxes[queries, 3] > boxes[queries, 1])
    queries, classes, found = queries[whole], classes[whole], found[whole]
    best = np.argsort(-found, kind="stable")[: config.max_detections]
    return Detections(
        boxes[queries[best]].astype(np.float32),
        found[best].astype(np.float32),
        classes[best].astype(np.int64),
    )
