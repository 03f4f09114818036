"""What a training gives: the model, how it came about, and under which conditions it repeats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench.perception.contract import DetectorConfig
from workbench.perception.models import registry
from workbench.perception.predictor import TorchPredictor
from workbench.perception.preprocessing import Preprocessing
from workbench.records.types import Supplier
from workbench.training.config import TrainingConfig
from workbench.training.progress import Curves


@dataclass(frozen=True)
class Trained:
    """A finished training.

    ``weights`` are the averaged float32 ones that the model loads; ``curves`` hold a value for
    each step. ``facts`` say what was done with the frames: how rare ones were repeated, what
    people should know of the labels, what was watched, why it ended. ``seconds``,
    ``images_per_second``, ``waited`` (share of the time spent waiting for frames) and ``peak_mib``
    are about this machine and no part of the model.
    """

    detector: DetectorConfig
    preprocessing: Preprocessing
    config: TrainingConfig
    weights: dict[str, Tensor]
    curves: Curves
    frames: int
    seconds: float
    images_per_second: float
    resumed_at: int = 0
    conditions: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    supplier: Supplier | None = None
    waited: float = 0.0
    peak_mib: float = 0.0

    def predictor(self) -> TorchPredictor:
        """The model, ready to be asked for boxes."""
        return predictor_of(self.detector, self.weights, self.preprocessing)


def conditions(config: TrainingConfig) -> dict[str, Any]:
    """Under which weights repeat to the bit."""
    found = {
        "threads": config.threads,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.split("+")[0],
    }
    if config.device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    if config.processes > 1:
        found["processes"] = config.processes
    return found


def predictor_of(
    shape: DetectorConfig, weights: dict[str, Tensor], spec: Preprocessing
) -> TorchPredictor:
    """The model of this shape with these weights."""
    model = registry.find(shape.architecture).build(shape)
    model.load_state_dict(weights)
    return TorchPredictor(model, spec)
