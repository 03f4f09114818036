"""Training detectors: configuration, loader, loss, loop and checkpoint.

trained = training.train(place, dataset, training.TrainingConfig(), classes=…, preprocessing=…)
ref = training.save(store, trained, dataset_ref)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.training.config import Augmentation, Sampling, Stopping, TrainingConfig, Trust

if TYPE_CHECKING:
    from workbench.training.checkpoint import save as save
    from workbench.training.loop import train as train
    from workbench.training.trained import Trained as Trained
    from workbench.training.watching import Watch as Watch

__all__ = [
    "Augmentation",
    "Sampling",
    "Stopping",
    "Trained",
    "TrainingConfig",
    "Trust",
    "Watch",
    "save",
    "train",
]

_HOMES = {"train": "loop", "Trained": "trained", "save": "checkpoint", "Watch": "watching"}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; reading a configuration should not.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"workbench.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'workbench.training' has no attribute {name!r}")
