"""A model together with its loss: what goes forward in a step, on one process or on several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workbench.perception.contract import COMPACT
from workbench.perception.models.protocol import OwnLosses, Truth
from workbench.perception.preprocessing import Preprocessing
from workbench.training.config import TrainingConfig
from workbench.training.loss import DetectionLoss

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Lesson(nn.Module):
    """Images and truth to the losses ``(total, cls, box)``."""

    def __init__(self, model: Any, spec: Preprocessing, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self._dtype = _DTYPES.get(config.precision)
        self._device = config.device
        self._loss = None
        if not isinstance(model, OwnLosses):
            self._loss = DetectionLoss(model.config, spec.width, spec.height).to(config.device)

    def forward(self, images: Tensor, truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
        with self._precision():
            if self._loss is None:
                losses = self.model.losses(images, truth)
                return losses.total.float(), losses.cls, losses.box
            outputs = self.model(images)
        losses = self._loss(outputs, truth)
        return losses.total, losses.cls, losses.box

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)


def over_processes(lesson: Lesson, config: TrainingConfig) -> Any:
    """The lesson as each of several processes takes its part of it."""
    if config.processes == 1:
        return lesson
    # Parameters without a gradient occur in suppliers' networks: heads that a loss leaves out.
    own = lesson.model.config.architecture == COMPACT
    return DistributedDataParallel(lesson, find_unused_parameters=not own)


@contextlib.contextmanager
def parts_of_a_step(lesson: Any, last: bool) -> Iterator[None]:
    """Several processes agree on gradients once a step, after its last part."""
    if isinstance(lesson, DistributedDataParallel) and not last:
        with lesson.no_sync():
            yield
    else:
        yield
