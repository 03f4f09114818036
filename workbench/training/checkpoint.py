"""The training state, which is saved and resumed, and the `Checkpoint` record of the result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.audit import log as audit
from workbench.core import digest
from workbench.core.errors import StepFailed
from workbench.core.text import counted, short_repr
from workbench.core.types import Json
from workbench.core.workspace import atomic_replace
from workbench.detection import families
from workbench.detection.config import PYRAMID_FAMILIES, DetectorConfig
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.records.base import Ref
from workbench.records.model_types import Checkpoint, Supplier
from workbench.records.store import Store
from workbench.training.config import TrainingConfig
from workbench.training.early_stopping import ValidationHistory
from workbench.training.loader import Batch
from workbench.training.losses import ModelWithLoss, gradient_sync, pad_targets, wrap_ddp

__all__ = ["save_checkpoint"]

LogMetric = Callable[[str, float, int], None]
"""Called with a metric's name, its value and the step."""

_CURVES = ("loss", "loss_cls", "loss_box", "lr")
_SEED_MULTIPLIER = 0x9E3779B97F4A7C15
_STATE_PREFIX, _STATE_SUFFIX = "training-", ".safetensors"
_METADATA_KEY = "workbench"
_KEPT_STATES = 2
_DIGEST_LENGTH = 16


@short_repr
@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes:
        detector: Architecture of the model.
        preprocessing: The network's input contract.
        config: As trained.
        weights: Averaged float32 weights, which the model loads.
        curves: Loss, its parts and the learning rate, a value for each step.
        frames: Number of frames trained on.
        seconds: Duration on this machine.
        images_per_second: Speed on this machine.
        resumed_at: Step at which training resumed from a saved state, else 0.
        conditions: What the weights depend on besides data and configuration: threads, CPU, torch.
        facts: What the checkpoint records of frames, labels, validations and the stop reason.
        supplier: Origin and licence of a pretrained model.
        waited: Share of the time spent waiting for frames.
        peak_mib: Peak memory of the process in MiB.
    """

    detector: DetectorConfig
    preprocessing: Preprocessing
    config: TrainingConfig
    weights: dict[str, Tensor]
    curves: dict[str, list[float]]
    frames: int
    seconds: float
    images_per_second: float
    resumed_at: int = 0
    conditions: Json = field(default_factory=dict)
    facts: Json = field(default_factory=dict)
    supplier: Supplier | None = None
    waited: float = 0.0
    peak_mib: float = 0.0

    def predictor(self) -> TorchPredictor:
        """The trained model, ready to predict."""
        return build_predictor(self.detector, self.weights, self.preprocessing)

    def loss_change(self) -> tuple[float, float]:
        """Mean loss of the first and of the last tenth of the steps."""
        losses = self.curves["loss"]
        tenth = max(1, len(losses) // 10)
        return float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))

    def summary(self) -> str:
        """Label problems, repeat factors, validation changes and the stop reason, a line each."""
        lines = list(self.facts.get("findings", ()))
        for name, factor in self.facts.get("repeated", {}).items():
            lines.append(f"{name} is repeated {factor:.1f} times")
        for name, (before, after) in self.facts.get("changed", {}).items():
            lines.append(f"{name}: {before:.3f} before training, {after:.3f} after")
        if "ended" in self.facts:
            reason = self.facts["ended"]["why"]
            lines.append(f"stopped after {counted(len(self.curves['loss']), 'step')}: {reason}")
        return "\n".join(lines)


def build_predictor(
    config: DetectorConfig, weights: dict[str, Tensor], preprocessing: Preprocessing
) -> TorchPredictor:
    """A predictor of this architecture with these weights."""
    model = families.find_family(config.architecture).build(config)
    model.load_state_dict(weights)
    return TorchPredictor(model, preprocessing)


def save_checkpoint(
    store: Store, result: TrainingResult, dataset: Ref, *, parent: Ref | None = None
) -> Ref:
    """Write a `Checkpoint` record.

    Args:
        store: Where to write it.
        result: The training.
        dataset: The dataset version that was trained on.
        parent: The checkpoint that training started from.

    Returns:
        The record's reference; equal trainings give equal references.
    """
    from safetensors.torch import save

    record = Checkpoint(
        dataset=dataset,
        parent=parent,
        classes=result.detector.classes,
        architecture=result.detector.model_dump(mode="json"),
        training=result.config.as_json() | {"frames": result.frames} | result.facts,
        preprocessing=result.preprocessing.model_dump(mode="json"),
        conditions=result.conditions,
        family=result.detector.architecture,
        supplier=result.supplier,
    )
    payload = {
        # No metadata: safetensors does not write several keys in a fixed order.
        "weights.safetensors": save(result.weights),
        "curves.json": digest.canonical_json(result.curves),
    }
    speed = {
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "waited": result.waited,
        "peak_mib": result.peak_mib,
    }
    ref = store.put(record, payload, side={"speed": speed})
    audit.append(
        store.workspace,
        "trained",
        subjects=(ref, dataset),
        frames=result.frames,
        steps=result.config.steps,
    )
    return ref


class TrainingState:
    """All that changes from step to step: weights, their average, optimizer, curves, validations.

    Args:
        model: The model to train, in place.
        config: The training's configuration.
        total: Steps of the whole schedule.
        rank: Which process this is.

    Attributes:
        average: Exponential moving average of the weights.
        selected: Averaged weights of the best or last acceptable validation; empty before one.
    """

    def __init__(
        self,
        model: Any,
        config: TrainingConfig,
        total: int,
        rank: int = 0,
    ) -> None:
        # oneDNN's backward pass crashed on pretrained networks in channels-last order: torch 2.13,
        # DETR, 320 x 192.
        convolutional = model.config.architecture in PYRAMID_FAMILIES
        self._layout = torch.channels_last if convolutional else torch.contiguous_format
        model = model.to(config.device, memory_format=self._layout).train()
        self.model = model
        self.model_with_loss = wrap_ddp(ModelWithLoss(model, config), config)
        self.curves: dict[str, list[float]] = {name: [] for name in _CURVES}
        self.history = ValidationHistory(config.stopping)
        self.selected: dict[str, Tensor] = {}
        self.total, self.rank = total, rank
        self._config = config
        weights = model.state_dict()  # tensors that share their memory with the model's own
        self.average = {name: value.clone() for name, value in weights.items()}
        floats = [name for name, value in weights.items() if value.is_floating_point()]
        self._weights = [weights[name] for name in floats]
        self._averages = [self.average[name] for name in floats]
        self._counters = [(self.average[n], weights[n]) for n in weights.keys() - set(floats)]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        groups = _parameter_groups(model, config)
        self._optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        self._scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "float16")

    def step(self, batch: Batch, step: int, log: LogMetric | None) -> None:
        """One optimizer step.

        Raises:
            StepFailed: The loss is not finite.
        """
        # What is random in a step, such as dropout, follows from the seed and the step only.
        torch.manual_seed((self._config.seed * _SEED_MULTIPLIER + step * 1009 + self.rank) % 2**63)
        learning_rate = self._config.learning_rate(step, self.total)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_share"]
        self._optimizer.zero_grad(set_to_none=True)
        values = (*self._backward(batch, step), learning_rate)
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
        self._clip_gradients()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._update_average(step)
        for name, value in zip(_CURVES, values, strict=True):
            self.curves[name].append(value)
            if log:
                log(f"train/{name}", value, step)

    def select_average(self) -> None:
        """Select the averaged weights as they are now."""
        self.selected = {name: value.clone() for name, value in self.average.items()}

    def save(self, folder: Path, key: str, step: int) -> None:
        """Write the state after ``step`` steps; `restore` continues from it to the same bits."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors |= {f"held.{name}": value for name, value in self.selected.items()}
        for number, slots in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{slot}": value for slot, value in slots.items()}
        info = {
            "key": key,
            "step": step,
            "curves": self.curves,
            "watched": self.history.as_json(),
            "scaler": self._scaler.state_dict(),
        }
        _save_state(folder, tensors, info)

    def restore(self, folder: Path | None, key: str) -> int:
        """Continue from the newest saved state of the training ``key``.

        Returns:
            The step to continue with; 0 where no state is saved.
        """
        saved = None if folder is None else load_state(folder, key)
        if saved is None:
            return 0
        info, tensors = saved
        self.model.load_state_dict(_with_prefix(tensors, "model."))
        for name, value in _with_prefix(tensors, "average.").items():
            self.average[name].copy_(value)
        self.selected = _with_prefix(tensors, "held.")
        self._restore_optimizer(_with_prefix(tensors, "optimiser."))
        if info["scaler"]:
            self._scaler.load_state_dict(info["scaler"])
        self.curves = info["curves"]
        self.history.restore(info["watched"])
        return int(info["step"])

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        optimizer = self._optimizer
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            number, slot = name.split(".", 1)
            slots.setdefault(int(number), {})[slot] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": slots, "param_groups": groups})
        for weight in self._parameters:
            for slot, value in optimizer.state[weight].items():
                if value.shape == weight.shape:
                    # A fused step walks weight and moments side by side through memory: they must
                    # have the same strides, which a file does not keep.
                    optimizer.state[weight][slot] = torch.empty_like(weight.detach()).copy_(value)

    def _backward(self, batch: Batch, step: int) -> tuple[float, float, float]:
        """Accumulate the gradients of a step's micro-batches; returns the mean losses."""
        count = self._config.accumulate
        size = len(batch.targets) // count
        truth = pad_targets(batch.targets)
        sums = np.zeros(3)
        for number in range(count):
            rows = slice(number * size, (number + 1) * size)
            images = self._inputs(batch, rows)
            with gradient_sync(self.model_with_loss, number == count - 1):
                losses = self.model_with_loss(images, truth.part(rows).to(self._config.device))
                self._require_finite(losses[0], step)
                self._scaler.scale(losses[0] / count if count > 1 else losses[0]).backward()
            sums += [float(loss.detach()) for loss in losses]
        total, cls, box = (sums / count).tolist()
        return total, cls, box

    def _inputs(self, batch: Batch, rows: slice) -> Tensor | tuple[Tensor, ...]:
        if isinstance(batch.images, tuple):
            return tuple(
                level[rows].to(self._config.device, memory_format=self._layout)
                for level in batch.images
            )
        images = torch.from_numpy(batch.images[rows]).contiguous(memory_format=self._layout)
        return images.to(self._config.device)

    def _require_finite(self, loss: Tensor, step: int) -> None:
        value = float(loss.detach())
        if not np.isfinite(value):
            raise StepFailed(
                f"training diverged: the loss is {value} at step {step}",
                hint=f"Lower the learning rate (now {self._config.lr}) or check the labels",
            )

    @torch.no_grad()
    def _clip_gradients(self) -> None:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if not float(norm) <= self._config.clip_norm:  # rare; else it would multiply all by one
            nn.utils.clip_grads_with_norm_(
                self._parameters, self._config.clip_norm, norm, foreach=True
            )

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        # A smaller decay at first, else the average of a short training keeps the random start.
        decay = min(self._config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        for averaged, current in self._counters:
            averaged.copy_(current)


def _parameter_groups(model: Any, config: TrainingConfig) -> list[Json]:
    """Parameters with their weight decay and share of the learning rate.

    Weights decay; biases and the scales of batch norm do not. A backbone has its own rate.
    """
    backbone: set[int] = set()
    if config.backbone_rate < 1:
        stages = model.backbone_stages()
        backbone = {id(p) for stage in stages for p in stage.parameters()}
    groups: list[Json] = []
    for inside in (False, True) if backbone else (False,):
        trained = [
            p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == inside
        ]
        share = config.backbone_rate if inside else 1.0
        for decay, members in (
            (config.weight_decay, [p for p in trained if p.ndim > 1]),
            (0.0, [p for p in trained if p.ndim <= 1]),
        ):
            if members:
                groups.append({"params": members, "weight_decay": decay, "lr_share": share})
    return groups


def _save_state(folder: Path, tensors: Mapping[str, Tensor], info: Json) -> None:
    """Write a state file, named by its step and digest, in one rename; the previous one stays."""
    from safetensors.torch import save

    seen: set[int] = set()
    unshared: dict[str, Tensor] = {}
    for name, value in tensors.items():
        dense = value.detach().cpu().contiguous()
        # Weights that a network uses twice are written twice: the format knows no sharing.
        unshared[name] = dense.clone() if dense.data_ptr() in seen else dense
        seen.add(dense.data_ptr())
    content = save(unshared, metadata={_METADATA_KEY: json.dumps(info)})
    checksum = digest.of_bytes(content)[:_DIGEST_LENGTH]
    with atomic_replace(
        folder / f"{_STATE_PREFIX}{info['step']:09}-{checksum}{_STATE_SUFFIX}"
    ) as temporary:
        temporary.write_bytes(content)
    for old in _state_files(folder)[_KEPT_STATES:]:
        old.unlink(missing_ok=True)


def load_state(folder: Path, key: str) -> tuple[Json, dict[str, Tensor]] | None:
    """Info and tensors of the newest intact state of the training ``key``; None without one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    for path in _state_files(folder):
        with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError):
            content = path.read_bytes()
            if digest.of_bytes(content)[:_DIGEST_LENGTH] != path.stem.rpartition("-")[2]:
                continue
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            info: Json = json.loads(header["__metadata__"][_METADATA_KEY])
            if info["key"] == key:
                return info, load(content)
    return None


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _state_files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob(f"{_STATE_PREFIX}*{_STATE_SUFFIX}"), reverse=True)
