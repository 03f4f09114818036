"""Model families: a registry by name, and the decoding of raw outputs to boxes in numpy.

A checkpoint names its family in `DetectorConfig.architecture`. The compact detector and the models
of the transformers library are built in; another family is registered by its own module, which must
be imported before its checkpoints are read. The decoding is the same behind torch and ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.core.text import short_repr
from workbench.detection.boxes import Floats, clip_boxes, non_maximum_suppression
from workbench.detection.config import COMPACT, HUGGING_FACE, LITE0, DetectorConfig

__all__ = ["Detections", "decode"]


@short_repr
@dataclass(frozen=True)
class Detections:
    """Boxes of one frame, by falling score.

    Attributes:
        boxes: Float32 ``[n, 4]`` xyxy in pixels.
        scores: Float32 ``[n]`` in [0, 1].
        classes: Int64 ``[n]``, indices into the model's class list.
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


class _DecodeFunction(Protocol):
    """Maps raw outputs of a batch to the detections of each frame, in network pixels."""

    def __call__(
        self,
        outputs: Sequence[Floats],
        config: DetectorConfig,
        *,
        score_threshold: float,
        nms_iou: float,
    ) -> list[Detections]: ...


@dataclass(frozen=True)
class ModelFamily:
    """One kind of model.

    Attributes:
        name: Value of ``DetectorConfig.architecture``; a name never changes its meaning.
        build: Builds the model with new weights from its configuration.
        decode: Decodes raw outputs of torch or ONNX Runtime, in numpy.
        output_names: Names of the raw outputs, in order.
        multiple: Input width and height must be multiples of this number of pixels.
    """

    name: str
    build: Callable[[DetectorConfig], Any]
    decode: _DecodeFunction
    output_names: Callable[[DetectorConfig], tuple[str, ...]]
    multiple: int = 1


_REGISTERED: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> None:
    """Register a model family; registering the same one again has no effect.

    Raises:
        ParameterError: The name belongs to another family.
    """
    if (
        family.name in (COMPACT, LITE0, HUGGING_FACE)
        or _REGISTERED.get(family.name, family) != family
    ):
        raise ParameterError(
            f"model family {family.name!r} already exists",
            where="register_family",
            hint="Choose another name; existing checkpoints refer to this one",
        )
    _REGISTERED[family.name] = family


def find_family(name: str) -> ModelFamily:
    """The model family of this name.

    Raises:
        DataError: No such family is registered.
    """
    if name == COMPACT:
        return ModelFamily(COMPACT, _build_compact, _decode_cells, _cell_output_names, 32)
    if name == LITE0:
        return ModelFamily(LITE0, _build_lite0, _decode_cells, _cell_output_names, 32)
    if name == HUGGING_FACE:
        return ModelFamily(
            HUGGING_FACE, _build_hugging_face, decode_queries, lambda config: QUERY_OUTPUTS, 32
        )
    if name not in _REGISTERED:
        raise DataError(
            f"unknown model family {name!r}",
            where="DetectorConfig.architecture",
            hint="Import the module that calls workbench.detection.families.register_family",
        )
    return _REGISTERED[name]


def _build_compact(config: DetectorConfig) -> Any:
    from workbench.detection.detector import Detector

    return Detector(config)


def _build_lite0(config: DetectorConfig) -> Any:
    from workbench.detection.efficientnet import Lite0Detector

    return Lite0Detector(config)


def _build_hugging_face(config: DetectorConfig) -> Any:
    from workbench.detection import huggingface

    return huggingface.build_network(config)


def output_names(config: DetectorConfig) -> tuple[str, ...]:
    """Names of a model's raw outputs, in the order that its network gives them."""
    return find_family(config.architecture).output_names(config)


def decode(
    outputs: Sequence[Floats],
    config: DetectorConfig,
    *,
    score_threshold: float | None = None,
    nms_iou: float | None = None,
) -> list[Detections]:
    """Decode raw outputs of a batch to the detections of each frame, in network pixels.

    Args:
        outputs: Raw outputs in the order of `output_names`; of the compact detector ``cls`` and
            ``box`` of each stride, see `Detector.forward`.
        config: Names the family and gives the limits and default thresholds.
        score_threshold: Overrides ``config.score_threshold``.
        nms_iou: Overrides ``config.nms_iou``.
    """
    return find_family(config.architecture).decode(
        outputs,
        config,
        score_threshold=config.score_threshold if score_threshold is None else score_threshold,
        nms_iou=config.nms_iou if nms_iou is None else nms_iou,
    )


# Compact detector. The cell in column i and row j of a level with stride s is centred at
# ((i + 1/2) s, (j + 1/2) s). Raw outputs r give its distances to the four sides of a box as
# s * (elu(r) + relu(r)^2 / 2): linear near zero, quadratic for large boxes, and down to -s, so that
# a cell just outside a small box can still predict it.

_MAX_CANDIDATES = 400


def _cell_output_names(config: DetectorConfig) -> tuple[str, ...]:
    """Names of the compact detector's maps: ``cls`` and ``box`` of each stride."""
    return tuple(f"{part}_{stride}" for stride in config.strides for part in ("cls", "box"))


def cell_centres(width: int, height: int, stride: int) -> NDArray[np.float32]:
    """Centres (x, y) of a level's cells in network pixels, row by row, ``[h * w, 2]``."""
    xs = (np.arange(width // stride, dtype=np.float32) + 0.5) * stride
    ys = (np.arange(height // stride, dtype=np.float32) + 0.5) * stride
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def box_distances(raw: Floats) -> Floats:
    """Raw box outputs to distances in units of the stride."""
    positive = np.maximum(raw, 0)
    result: Floats = np.where(raw > 0, raw, np.expm1(np.minimum(raw, 0))) + 0.5 * positive**2
    return result


def _decode_cells(
    outputs: Sequence[Floats], config: DetectorConfig, *, score_threshold: float, nms_iou: float
) -> list[Detections]:
    """`decode` for the cell maps of the compact detector."""
    _require_outputs(outputs, 2 * len(config.strides))
    logits, boxes, size = _flatten_cells(outputs, config)
    limit = config.max_detections
    return [
        _decode_cells_of_frame(frame_logits, frame_boxes, size, score_threshold, nms_iou, limit)
        for frame_logits, frame_boxes in zip(logits, boxes, strict=True)
    ]


def _flatten_cells(
    outputs: Sequence[Floats], config: DetectorConfig
) -> tuple[Floats, Floats, tuple[int, int]]:
    """Cells of all levels: logits ``[n, cells, c]``, boxes ``[n, cells, 4]`` xyxy, input size."""
    logits, boxes = [], []
    for stride, cls, box in zip(config.strides, outputs[::2], outputs[1::2], strict=True):
        count, channels, rows, columns = cls.shape
        logits.append(cls.reshape(count, channels, -1).transpose(0, 2, 1))
        reach = box_distances(box.reshape(count, 4, -1).transpose(0, 2, 1)) * np.float32(stride)
        centres = cell_centres(columns * stride, rows * stride, stride)[None]
        boxes.append(np.concatenate([centres - reach[..., :2], centres + reach[..., 2:]], axis=-1))
    stride, rows, columns = config.strides[0], *outputs[0].shape[2:]
    return np.concatenate(logits, 1), np.concatenate(boxes, 1), (columns * stride, rows * stride)


def _decode_cells_of_frame(
    logits: Floats,
    boxes: Floats,
    size: tuple[int, int],
    threshold: float,
    iou: float,
    limit: int,
) -> Detections:
    probabilities = _sigmoid(logits)
    cells, classes = np.nonzero(probabilities >= threshold)
    scores = probabilities[cells, classes]
    if len(scores) > _MAX_CANDIDATES:
        best = np.sort(np.argsort(-scores, kind="stable")[:_MAX_CANDIDATES])
        cells, classes, scores = cells[best], classes[best], scores[best]
    candidates = clip_boxes(boxes[cells], *size)
    valid = _has_area(candidates)
    candidates, classes, scores = candidates[valid], classes[valid], scores[valid]
    kept = non_maximum_suppression(candidates, scores, classes, iou)[:limit]
    return _as_detections(candidates[kept], scores[kept], classes[kept])


# DETR and related models predict a set of boxes: one for each query, each object once.

QUERY_OUTPUTS = ("logits", "boxes")


def decode_queries(
    outputs: Sequence[Floats], config: DetectorConfig, *, score_threshold: float, nms_iou: float
) -> list[Detections]:
    """`decode` for set-prediction models; no suppression, as they predict each object once.

    Args:
        outputs: ``logits`` ``[n, q, c]`` and ``boxes`` ``[n, q, 4]``: centre, width and height as
            shares of the input.
        config: Its ``network`` has the input ``size`` in pixels and the ``scoring`` of
            `query_scores`.
    """
    _require_outputs(outputs, len(QUERY_OUTPUTS))
    width, height = config.network["size"]
    scores = query_scores(outputs[0], config.network["scoring"])
    side = np.array([width, height], np.float32)
    centre, half = outputs[1][..., :2] * side, outputs[1][..., 2:] * side / 2
    boxes = clip_boxes(np.concatenate([centre - half, centre + half], axis=-1), width, height)
    return [
        _decode_queries_of_frame(frame_scores, frame_boxes, score_threshold, config.max_detections)
        for frame_scores, frame_boxes in zip(scores, boxes, strict=True)
    ]


def query_scores(logits: Floats, scoring: str) -> Floats:
    """Class scores in [0, 1] from logits ``[…, c]``.

    Args:
        scoring: ``sigmoid`` of each class, or ``softmax`` over the classes and a last one for "no
            object", which is left out of the result.
    """
    if scoring == "sigmoid":
        return _sigmoid(logits)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = (exponentials / exponentials.sum(axis=-1, keepdims=True))[..., :-1]
    return shares


def _decode_queries_of_frame(
    probabilities: Floats, boxes: Floats, threshold: float, limit: int
) -> Detections:
    queries, classes = np.nonzero(probabilities >= threshold)
    valid = _has_area(boxes[queries])
    queries, classes = queries[valid], classes[valid]
    scores = probabilities[queries, classes]
    best = np.argsort(-scores, kind="stable")[:limit]
    return _as_detections(boxes[queries[best]], scores[best], classes[best])


def _require_outputs(outputs: Sequence[Floats], count: int) -> None:
    if len(outputs) != count:
        raise DataError(
            f"expected {count} raw outputs, got {len(outputs)}",
            hint="The model and its detector configuration do not belong together",
        )


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):
        result: Floats = 1 / (1 + np.exp(-logits))
    return result


def _has_area(boxes: Floats) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return valid


def _as_detections(boxes: Floats, scores: Floats, classes: NDArray[np.integer]) -> Detections:
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), classes.astype(np.int64))
