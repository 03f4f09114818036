"""Where a training begins: the fresh model, and the name of the whole training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench import digest
from workbench.errors import ParameterError
from workbench.perception.contract import COMPACT, DetectorConfig
from workbench.perception.models import registry
from workbench.perception.predictor import TorchPredictor
from workbench.records.dataset import Dataset
from workbench.training.config import TrainingConfig
from workbench.training.loader import Loader, Material
from workbench.training.watching import Watch


def new_model(
    material: Material,
    config: TrainingConfig,
    loader: Loader,
    model: Any,
    start: TorchPredictor | None,
) -> Any:
    """The model to train, from its beginning."""
    shape = (
        DetectorConfig(classes=material.classes, width=config.width, depth=config.depth)
        if model is None
        else model.config
    )
    _check_shape(shape, material)
    if model is None:
        torch.manual_seed(config.seed)
        model = registry.find(shape.architecture).build(shape)
    if start is None:
        if shape.architecture == COMPACT:
            model.set_prior(_shares(shape, loader))
        return model
    if start.config.model_dump() != shape.model_dump():
        raise ParameterError(
            "the model to start from has other classes or another width",
            where=start.ref,
            hint=f"It has {', '.join(start.classes)} at width {start.config.width}",
        )
    model.load_state_dict(start.detector.state_dict())
    return model


def key_of(
    dataset: Dataset,
    model: Any,
    material: Material,
    config: TrainingConfig,
    watch: Watch | None,
    started: bool,
) -> str:
    """Names this very training, so that no other one's state is taken up."""
    from safetensors.torch import save

    own = model.config.architecture == COMPACT and not started
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return digest.of_json(
        {
            "frames": [frame.id for frame in dataset.frames],
            "labels": sorted(label.id for label in dataset.labels),
            "detector": model.config.model_dump(mode="json"),
            "preprocessing": material.preprocessing.digest,
            "config": config.as_json(),
            "start": None if own else digest.of_bytes(save(weights)),
            "fresh": sorted(material.fresh or ()),
            "disputed": sorted(material.disputed),
            "watch": None if watch is None else watch.name,
        }
    )


def _shares(shape: DetectorConfig, loader: Loader) -> Tensor:
    """About how many of all cells will belong to each class."""
    counts = torch.zeros(len(shape.classes))
    frames = 0
    for targets in loader.targets():
        frames += 1
        learned = targets.classes[~targets.ignore]
        counts += torch.bincount(torch.from_numpy(learned), minlength=len(counts))
    cells = 1000.0
    return (4 * counts / (frames * cells)).clamp(1e-4, 0.05)


def _check_shape(shape: DetectorConfig, material: Material) -> None:
    spec = material.preprocessing
    multiple = registry.find(shape.architecture).multiple
    if spec.width % multiple or spec.height % multiple:
        raise ParameterError(
            f"the input of {spec.width}x{spec.height} does not fit the detector",
            where="Preprocessing",
            hint=f"Width and height must be multiples of {multiple}",
        )
    if shape.classes != material.classes:
        raise ParameterError(
            "the model has other classes than those to learn",
            where="model",
            hint=f"It has {', '.join(shape.classes)}, in this order",
        )
