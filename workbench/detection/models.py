"""Model families: a registry by name, and the decoding of raw outputs to boxes in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import DataError, ParameterError
from workbench.detection.boxes import Floats, clip_boxes, non_maximum_suppression
from workbench.detection.config import COMPACT, HUGGING_FACE, DetectorConfig


class DecodeFunction(Protocol):
    """Raw outputs of a batch to the detections of each frame, in network pixels."""

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

    Args:
        name: What ``DetectorConfig.architecture`` says; never change what a used name means.
        build: The model with fresh weights from its configuration alone.
        decode: Its raw outputs to boxes, in numpy, also for what ONNX Runtime gives.
        output_names: Of its raw outputs, in order.
        multiple: What the input's width and height must be multiples of.
    """

    name: str
    build: Callable[[DetectorConfig], Any]
    decode: DecodeFunction
    output_names: Callable[[DetectorConfig], tuple[str, ...]]
    multiple: int = 1


_FAMILIES: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> None:
    """Make a family of one's own known; the same one twice is fine.

    Raises:
        ParameterError: The name is another family's.
    """
    if family.name in (COMPACT, HUGGING_FACE) or _FAMILIES.get(family.name, family) != family:
        raise ParameterError(
            f"there is a family of models called {family.name!r} already",
            where="models.register",
            hint="Give yours another name; old checkpoints go by it",
        )
    _FAMILIES[family.name] = family


def find_family(name: str) -> ModelFamily:
    """The family of this name; raises `DataError` where it is not known."""
    if name == COMPACT:
        return _compact_family()
    if name == HUGGING_FACE:
        return _hugging_face_family()
    if name not in _FAMILIES:
        raise DataError(
            f"models of the family {name!r} are not known here",
            where="DetectorConfig.architecture",
            hint="Import the module that registers it with workbench.detection.models.register_family",
        )
    return _FAMILIES[name]


def output_names(config: DetectorConfig) -> tuple[str, ...]:
    """Names of a model's raw outputs, in the order that its network gives them."""
    return find_family(config.architecture).output_names(config)


def _compact_family() -> ModelFamily:

    def build(config: DetectorConfig) -> Any:
        from workbench.detection.detector import Detector

        return Detector(config)

    return ModelFamily(COMPACT, build, decode_cells, cell_output_names, 32)


def _hugging_face_family() -> ModelFamily:

    def build(config: DetectorConfig) -> Any:
        from workbench.detection import huggingface

        return huggingface.build_network(config)

    return ModelFamily(HUGGING_FACE, build, decode_queries, lambda config: QUERY_OUTPUTS, 32)


# ---- From the network's raw maps to boxes, in numpy: the same code behind torch and ONNX Runtime.
#
# A cell in column ``i`` and row ``j`` of a level with stride ``s`` stands at ``(i + 1/2) s`` and
# ``(j + 1/2) s``. Its distances to the four sides are ``s * (elu(r) + relu(r)^2 / 2)``: linear near
# zero, quadratic for large boxes, and down to ``-s``, so that a cell just outside a small box can
# still give it.


_MAX_CANDIDATES = 400


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


def box_distances(raw: Floats) -> Floats:
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
    family = find_family(config.architecture)
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
    logits, boxes, size = _flatten_cells(outputs, config)
    limit = config.max_detections
    return [
        _decode_cells_of_frame(frame_logits, frame_boxes, size, score_threshold, nms_iou, limit)
        for frame_logits, frame_boxes in zip(logits, boxes, strict=True)
    ]


def _flatten_cells(
    outputs: Sequence[Floats], config: DetectorConfig
) -> tuple[Floats, Floats, tuple[int, int]]:
    """All levels in one row of cells: logits ``[n, cells, c]``, boxes ``[n, cells, 4]`` xyxy."""
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
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(-logits))
    cells, classes = np.nonzero(scores >= threshold)
    found = scores[cells, classes]
    if len(found) > _MAX_CANDIDATES:
        best = np.sort(np.argsort(-found, kind="stable")[:_MAX_CANDIDATES])
        cells, classes, found = cells[best], classes[best], found[best]
    candidates = clip_boxes(boxes[cells], *size)
    whole = (candidates[:, 2] > candidates[:, 0]) & (candidates[:, 3] > candidates[:, 1])
    candidates, classes, found = candidates[whole], classes[whole], found[whole]
    kept = non_maximum_suppression(candidates, found, classes, iou)[:limit]
    return Detections(
        candidates[kept].astype(np.float32),
        found[kept].astype(np.float32),
        classes[kept].astype(np.int64),
    )


# ---- From the outputs of models that predict a set of boxes (DETR and its kin) to detections.


QUERY_OUTPUTS = ("logits", "boxes")


def decode_queries(
    outputs: Sequence[Floats], config: DetectorConfig, *, score_threshold: float, nms_iou: float
) -> list[Detections]:
    """``logits`` ``[n, q, c]`` and ``boxes`` ``[n, q, 4]`` to boxes in network pixels.

    Boxes are centre, width and height as shares of the input. ``config.network`` gives its
    ``size`` in pixels and the ``scoring``: a ``sigmoid`` each class, or a ``softmax`` over the
    classes and, last, no object. A set is trained to hold each object once: nothing is suppressed.
    """
    if len(outputs) != len(QUERY_OUTPUTS):
        raise DataError(
            f"expected the outputs {', '.join(QUERY_OUTPUTS)}, got {len(outputs)}",
            hint="The model and its detector contract do not belong together",
        )
    width, height = config.network["size"]
    found = query_scores(outputs[0], config.network["scoring"])
    side = np.array([width, height], np.float32)
    centre, half = outputs[1][..., :2] * side, outputs[1][..., 2:] * side / 2
    boxes = np.concatenate([centre - half, centre + half], axis=-1)
    return [
        _decode_queries_of_frame(
            frame_scores, clip_boxes(frame_boxes, width, height), score_threshold, config
        )
        for frame_scores, frame_boxes in zip(found, boxes, strict=True)
    ]


def query_scores(logits: Floats, scoring: str) -> Floats:
    """Logits ``[…, c]`` to scores of the classes in [0, 1]; a softmax's no object is left out."""
    with np.errstate(over="ignore"):
        if scoring == "sigmoid":
            found: Floats = 1 / (1 + np.exp(-logits))
            return found
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = (raised / raised.sum(axis=-1, keepdims=True))[..., :-1]
    return shares


def _decode_queries_of_frame(
    scored: Floats, boxes: Floats, threshold: float, config: DetectorConfig
) -> Detections:
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
