"""Detector configuration, ONNX metadata, and the interface of a detection model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import Field, ValidationError, field_validator

from workbench.core import digest
from workbench.core.errors import DataError
from workbench.core.types import Json
from workbench.detection.preprocessing import CHECK_KEY, Preprocessing, golden_values
from workbench.records.base import FrozenModel
from workbench.records.frames import optional_field

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DetectorConfig"]

_PREPROCESSING_KEY = "workbench.preprocessing"
_DETECTOR_KEY = "workbench.detector"

COMPACT = "fpn-anchor-free-1"
"""Name of the model family of the compact detector."""
LITE0 = "efficientnet-lite0-fpn-1"
"""Name of the model family with EfficientNet-Lite0 under the compact detector's pyramid."""
PYRAMID_FAMILIES = (COMPACT, LITE0)
"""Families with the cell maps and the loss of the compact detector."""
HUGGING_FACE = "huggingface-detection-1"
"""Name of the model family of the transformers library."""


class DetectorConfig(FrozenModel):
    """Architecture of a detector and the decoding of its outputs.

    Attributes:
        architecture: Name of the model family, see `workbench.detection.families`.
        classes: Class names in the order of the output channels.
        width: Multiplies the number of channels (of the pyramid only, on a pretrained backbone);
            1.0 is about 0.9 million parameters of the compact detector.
        strides: Network pixels between neighbouring cells, one for each output level.
        score_threshold: Boxes with a lower score are dropped when decoding.
        nms_iou: IoU above which the weaker of two boxes of one class is dropped.
        max_detections: Maximum number of boxes of a frame.
        depth: Residual blocks per stage of the compact detector.
        network: What another family needs to rebuild its network, as JSON.
    """

    architecture: str = COMPACT
    classes: tuple[str, ...] = Field(min_length=1)
    width: float = Field(default=1.0, gt=0, le=4)
    strides: tuple[int, ...] = (8, 16, 32)
    score_threshold: float = Field(default=0.05, ge=0, le=1)
    nms_iou: float = Field(default=0.6, gt=0, le=1)
    max_detections: int = Field(default=100, gt=0)
    depth: int = optional_field(1)
    network: Json = optional_field({})

    @field_validator("classes")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("class names must be unique")
        return value


def to_onnx_metadata(config: DetectorConfig, preprocessing: Preprocessing) -> dict[str, str]:
    """The contract of a model file as strings for ONNX ``metadata_props``, in a fixed order."""
    return {
        _DETECTOR_KEY: digest.canonical_json(config.model_dump(mode="json")).decode(),
        _PREPROCESSING_KEY: digest.canonical_json(preprocessing.model_dump(mode="json")).decode(),
        CHECK_KEY: digest.canonical_json(golden_values(preprocessing)).decode(),
    }


def from_onnx_metadata(
    metadata: Mapping[str, str], *, where: object
) -> tuple[DetectorConfig, Preprocessing]:
    """Detector configuration and preprocessing contract of an ONNX file.

    Args:
        metadata: The file's ``metadata_props``.
        where: Named in the error.

    Raises:
        DataError: The metadata lacks the contract, or it is invalid.
    """
    try:
        config = DetectorConfig.model_validate(json.loads(metadata[_DETECTOR_KEY]))
        return config, Preprocessing.model_validate(json.loads(metadata[_PREPROCESSING_KEY]))
    except (KeyError, ValueError, ValidationError) as error:
        raise DataError(
            "model file has no preprocessing and detector contract in its metadata",
            where=where,
            hint="Use a file written by workbench.export",
        ) from error


@dataclass(frozen=True)
class GroundTruthBatch:
    """Objects and ignore regions of a batch, padded to the frame with the most.

    Attributes:
        boxes: ``[n, m, 4]`` xyxy in network pixels.
        classes: ``[n, m]``.
        real: ``[n, m]``, 1 for an object.
        ignore: ``[n, m]``, 1 for an ignore region.
        weights: ``[n, m]`` in [0, 1], trust in the label.
    """

    boxes: Tensor
    classes: Tensor
    real: Tensor
    ignore: Tensor
    weights: Tensor

    def part(self, rows: slice) -> GroundTruthBatch:
        """The frames in ``rows``."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: str) -> GroundTruthBatch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> GroundTruthBatch:
        parts = (self.boxes, self.classes, self.real, self.ignore, self.weights)
        return GroundTruthBatch(*map(function, parts))


@dataclass(frozen=True)
class Losses:
    """Training loss: ``total`` to minimise, and its parts without gradients."""

    total: Tensor
    cls: Tensor
    box: Tensor


class DetectionModel(Protocol):
    """Interface of a detection model: a `torch.nn.Module` of a registered model family.

    ``config`` rebuilds the model without its weights. Calling the model maps preprocessed images,
    float32 ``[n, 3, height, width]``, to raw outputs, which the family's ``decode`` turns into
    boxes. Training uses the loss of the compact detector if the outputs are cell maps like those of
    `Detector.forward`; otherwise the model implements `ComputesLosses`.
    """

    config: DetectorConfig

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]: ...

    def state_dict(self) -> dict[str, Any]: ...


@runtime_checkable
class ComputesLosses(Protocol):
    """A model with a training loss of its own."""

    def losses(self, images: Tensor, truth: GroundTruthBatch) -> Losses:
        """Loss of a batch, the mean over its objects."""
        ...


@runtime_checkable
class ComputesFeatures(Protocol):
    """A model that gives its feature maps, for embeddings of frames and boxes."""

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps ``[n, c, height/stride, width/stride]``, finest first."""
        ...

    def features_and_outputs(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Feature maps and raw outputs from one forward pass."""
        ...
