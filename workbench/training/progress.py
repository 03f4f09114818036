"""Everything of a training that changes from step to step, and how it is kept and restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import StepFailed
from workbench.perception.contract import COMPACT
from workbench.perception.preprocessing import Preprocessing
from workbench.training import state
from workbench.training.config import TrainingConfig
from workbench.training.lesson import Lesson, over_processes, parts_of_a_step
from workbench.training.loader import Batch
from workbench.training.loss import as_truth
from workbench.training.watching import Watched

Log = Callable[[str, float, int], None]
Curves = dict[str, list[float]]

CURVES = ("loss", "loss_cls", "loss_box", "lr")
_MIX = 0x9E3779B97F4A7C15


class Progress:
    """Weights, their average, the optimiser, the scale of gradients, the curves and the looks.

    Args:
        total: Steps in all, which the schedule goes by.
        rank: Which process this is.
    """

    def __init__(
        self, model: Any, spec: Preprocessing, config: TrainingConfig, total: int, rank: int = 0
    ) -> None:
        # Of suppliers' networks oneDNN's backward pass in channels-last order crashed: torch 2.13,
        # DETR, 320 x 192.
        own = model.config.architecture == COMPACT
        self._layout = torch.channels_last if own else torch.contiguous_format
        model = model.to(config.device, memory_format=self._layout).train()
        self.model = model
        self.lesson = over_processes(Lesson(model, spec, config), config)
        self.curves: Curves = {name: [] for name in CURVES}
        self.watched = Watched(config.stopping)
        self.held: dict[str, Tensor] = {}
        self.total, self.rank = total, rank
        self._config = config
        live = model.state_dict()  # tensors that share their memory with the model's own
        self.average = {name: value.clone() for name, value in live.items()}
        floats = [name for name, value in live.items() if value.is_floating_point()]
        self._live = [live[name] for name in floats]
        self._mean = [self.average[name] for name in floats]
        self._counts = [(self.average[n], live[n]) for n in live.keys() - set(floats)]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(
            _groups(self._parameters, config.weight_decay), lr=config.lr, fused=True
        )
        self._scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "float16")

    def step(self, batch: Batch, step: int, log: Log | None) -> None:
        """One optimiser step; raises `StepFailed` when the loss is no number."""
        # What is drawn in a step, dropout such as it is, follows from the seed and the step alone.
        torch.manual_seed((self._config.seed * _MIX + step * 1009 + self.rank) % 2**63)
        rate = self._config.rate(step, self.total)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        figures = (*self._backward(batch, step), rate)
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimiser)
        self._clip()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._average(step)
        for name, figure in zip(CURVES, figures, strict=True):
            self.curves[name].append(figure)
            if log:
                log(f"train/{name}", figure, step)

    def keep(self, folder: Path, key: str, step: int) -> None:
        """Write all of it, so that `restore` makes as if it had never stopped."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors |= {f"held.{name}": value for name, value in self.held.items()}
        tensors |= {
            f"optimiser.{name}": value for name, value in state.optimiser_tensors(self._optimiser)
        }
        facts = {
            "key": key,
            "step": step,
            "curves": self.curves,
            "watched": self.watched.as_json(),
            "scaler": self._scaler.state_dict(),
        }
        state.save(folder, tensors, facts)

    def restore(self, folder: Path | None, key: str) -> int:
        """The step to begin with: 0 where nothing of this training is kept."""
        found = None if folder is None else state.load(folder, key)
        if found is None:
            return 0
        facts, tensors = found
        self.model.load_state_dict(state.below(tensors, "model."))
        for name, value in state.below(tensors, "average.").items():
            self.average[name].copy_(value)
        self.held = state.below(tensors, "held.")
        state.restore_optimiser(self._optimiser, state.below(tensors, "optimiser."))
        if facts["scaler"]:
            self._scaler.load_state_dict(facts["scaler"])
        self.curves = facts["curves"]
        self.watched.restore(facts["watched"])
        return int(facts["step"])

    def hold(self) -> None:
        """Remember the averaged weights as they are now."""
        self.held = {name: value.clone() for name, value in self.average.items()}

    def _backward(self, batch: Batch, step: int) -> tuple[float, float, float]:
        """Gradients of a step's parts, added up; the losses' means."""
        count = self._config.accumulate
        size = len(batch.images) // count
        truth = as_truth(batch.targets)
        sums = np.zeros(3)
        for number in range(count):
            rows = slice(number * size, (number + 1) * size)
            images = torch.from_numpy(batch.images[rows]).contiguous(memory_format=self._layout)
            images = images.to(self._config.device)
            with parts_of_a_step(self.lesson, number == count - 1):
                losses = self.lesson(images, truth.part(rows).to(self._config.device))
                self._check(losses[0], step)
                self._scaler.scale(losses[0] / count if count > 1 else losses[0]).backward()
            sums += [float(loss.detach()) for loss in losses]
        total, cls, box = (sums / count).tolist()
        return total, cls, box

    def _check(self, loss: Tensor, step: int) -> None:
        value = float(loss.detach())
        if not np.isfinite(value):
            raise StepFailed(
                f"training diverged: the loss is {value} at step {step}",
                hint=f"Lower the learning rate (now {self._config.lr}) or check the labels",
            )

    @torch.no_grad()
    def _clip(self) -> None:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        size = nn.utils.get_total_norm(gradients, foreach=True)
        if not float(size) <= self._config.clip_norm:  # seldom; else it would multiply all by one
            nn.utils.clip_grads_with_norm_(
                self._parameters, self._config.clip_norm, size, foreach=True
            )

    @torch.no_grad()
    def _average(self, step: int) -> None:
        # A young average would remember the random start for ever in so short a training.
        decay = min(self._config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)
        for kept, now in self._counts:
            kept.copy_(now)


def _groups(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and the scales of batch norm do not."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
