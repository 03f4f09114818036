"""Training detectors: configuration, data loader, losses, trainer and checkpoints.

result = training.train(workspace, dataset, training.TrainingConfig(), classes=…, preprocessing=…)
ref = training.save_checkpoint(store, result, dataset_ref)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.training.config import (
    MODEL_SIZES,
    Augmentation,
    EarlyStopping,
    LabelTrust,
    Sampling,
    TrainingConfig,
    TrainingOptions,
)

if TYPE_CHECKING:
    from workbench.training.checkpoint import TrainingResult as TrainingResult
    from workbench.training.checkpoint import save_checkpoint as save_checkpoint
    from workbench.training.early_stopping import Validation as Validation
    from workbench.training.trainer import train as train

__all__ = [
    "MODEL_SIZES",
    "Augmentation",
    "EarlyStopping",
    "LabelTrust",
    "Sampling",
    "TrainingConfig",
    "TrainingOptions",
    "TrainingResult",
    "Validation",
    "save_checkpoint",
    "train",
]

_MODULES = {
    "TrainingResult": "checkpoint",
    "Validation": "early_stopping",
    "save_checkpoint": "checkpoint",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; reading a configuration should not.
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(f"workbench.training.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'workbench.training' has no attribute {name!r}")
