"""What a model file must say about itself to be used rightly: its input, its outputs, its decoding.

The same two objects stand in a checkpoint record and, as JSON, in an ONNX file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator

from workbench import digest
from workbench.errors import DataError
from workbench.perception import golden
from workbench.perception.preprocessing import Preprocessing
from workbench.records.base import Row
from workbench.records.frames import added

PREPROCESSING_KEY = "workbench.preprocessing"
DETECTOR_KEY = "workbench.detector"

COMPACT = "fpn-anchor-free-1"
HUGGING_FACE = "huggingface-detection-1"


class DetectorConfig(Row):
    """Everything that shapes the detector and the reading of its outputs.

    Args:
        classes: In the order of the class maps' channels.
        architecture: The family of models, see `workbench.perception.models.registry`.
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
    depth: int = added(1)
    network: dict[str, Any] = added({})

    @field_validator("classes")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("class names must be unique")
        return value


def to_metadata(config: DetectorConfig, preprocessing: Preprocessing) -> dict[str, str]:
    """The strings that go into an ONNX file's ``metadata_props``, in a fixed order."""
    return {
        DETECTOR_KEY: digest.canonical_json(config.model_dump(mode="json")).decode(),
        PREPROCESSING_KEY: digest.canonical_json(preprocessing.model_dump(mode="json")).decode(),
        golden.CHECK_KEY: digest.canonical_json(golden.vector(preprocessing)).decode(),
    }


def from_metadata(
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
