"""Detector configuration, ONNX metadata, and the interface of a detection model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import Field, ValidationError, field_validator

from workbench.core import digest
from workbench.core.errors import DataError
from workbench.detection import preprocessing as golden
from workbench.detection.preprocessing import Preprocessing
from workbench.records.base import FrozenModel
from workbench.records.frames import optional_field

if TYPE_CHECKING:
    from torch import Tensor


PREPROCESSING_KEY = "workbench.preprocessing"
DETECTOR_KEY = "workbench.detector"

COMPACT = "fpn-anchor-free-1"
HUGGING_FACE = "huggingface-detection-1"


class DetectorConfig(FrozenModel):
    """Everything that shapes the detector and the reading of its outputs.

    Attributes:
        classes: In the order of the class maps' channels.
        architecture: The family of models, see `workbench.detection.models`.
        width: Multiplies the number of channels; 1.0 is about 0.9 million parameters.
        depth: Residual blocks a stage of the compact detector.
        network: What another family needs to rebuild its network, as plain JSON.
        strides: Network pixels between neighbouring cells, one for each output level.
        score_threshold: Boxes below are dropped when decoding.
        nms_iou: Overlap above which the weaker of two boxes of one class is dropped.
        max_detections: Most boxes kept of a frame.
    """

    architecture: str = COMPACT
    classes: tuple[str, ...] = Field(min_length=1)
    width: float = Field(default=1.0, gt=0, le=4)
    strides: tuple[int, ...] = (8, 16, 32)
    score_threshold: float = Field(default=0.05, ge=0, le=1)
    nms_iou: float = Field(default=0.6, gt=0, le=1)
    max_detections: int = Field(default=100, gt=0)
    depth: int = optional_field(1)
    network: dict[str, Any] = optional_field({})

    @field_validator("classes")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("class names must be unique")
        return value


def to_onnx_metadata(config: DetectorConfig, preprocessing: Preprocessing) -> dict[str, str]:
    """The strings that go into an ONNX file's ``metadata_props``, in a fixed order."""
    return {
        DETECTOR_KEY: digest.canonical_json(config.model_dump(mode="json")).decode(),
        PREPROCESSING_KEY: digest.canonical_json(preprocessing.model_dump(mode="json")).decode(),
        golden.CHECK_KEY: digest.canonical_json(golden.golden_values(preprocessing)).decode(),
    }


def from_onnx_metadata(
    metadata: Mapping[str, str], *, where: object
) -> tuple[DetectorConfig, Preprocessing]:
    """Read the contract back; raises `DataError` when a file does not carry it."""
    try:
        config = DetectorConfig.model_validate(json.loads(metadata[DETECTOR_KEY]))
        return config, Preprocessing.model_validate(json.loads(metadata[PREPROCESSING_KEY]))
    except (KeyError, ValueError, ValidationError) as error:
        raise DataError(
            "model file does not carry a preprocessing and detector contract",
            where=where,
            hint="Use a file written by workbench.export; others do not say how to feed them",
        ) from error


# ---- What a detection model has to offer, so that it can be trained, judged and kept.


@dataclass(frozen=True)
class GroundTruthBatch:
    """Objects and ignore regions of a batch, padded to the fullest frame.

    ``boxes`` ``[n, m, 4]`` xyxy network pixels, ``classes`` ``[n, m]``, ``real`` ``[n, m]`` 1 for
    an object, ``ignore`` ``[n, m]`` 1 for an ignore region, ``weights`` ``[n, m]`` in [0, 1]: how
    far a label is trusted.
    """

    boxes: Tensor
    classes: Tensor
    real: Tensor
    ignore: Tensor
    weights: Tensor

    def part(self, rows: slice) -> GroundTruthBatch:
        """Some frames of the batch."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: str) -> GroundTruthBatch:
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Any) -> GroundTruthBatch:
        parts = (self.boxes, self.classes, self.real, self.ignore, self.weights)
        return GroundTruthBatch(*(change(part) for part in parts))


@dataclass(frozen=True)
class Losses:
    """``total`` to minimise, and its parts without gradients."""

    total: Tensor
    cls: Tensor
    box: Tensor


class DetectionModel(Protocol):
    """A `torch.nn.Module` that finds boxes.

    Its ``config`` says all that rebuilds it without weights: ``architecture`` names its family in
    the `registry`, ``network`` holds whatever else the family wants, as plain JSON. Calling it
    takes float32 ``[n, 3, height, width]``, prepared by the `Preprocessing` that is kept with it,
    and gives raw outputs, which its family's ``decode`` turns into boxes. It is trained with the
    compact detector's loss if its outputs are cell maps like those of `Detector.forward`; else it
    brings ``losses``, see `OwnLosses`.
    """

    config: DetectorConfig

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...

    def state_dict(self) -> dict[str, Any]: ...


@runtime_checkable
class ComputesLosses(Protocol):
    """A model that says itself how wrong it is."""

    def losses(self, images: Tensor, truth: GroundTruthBatch) -> Losses:
        """Of a batch, the mean over its objects."""
        ...


@runtime_checkable
class ComputesFeatures(Protocol):
    """A model whose inner maps can be had, so that frames and boxes can be compared by them."""

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps ``[n, c, height/stride, width/stride]`` over the whole input, finest first."""
        ...

    def features_and_outputs(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The same maps and the raw outputs, from one pass."""
        ...
