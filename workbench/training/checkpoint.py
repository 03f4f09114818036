"""Training state: saved and resumed while training, and kept as a `Checkpoint` record at the end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.core import digest
from workbench.core.errors import StepFailed
from workbench.core.workspace import atomic_replace
from workbench.detection import families
from workbench.detection.config import COMPACT, DetectorConfig
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.records.base import Ref
from workbench.records.model_types import Checkpoint, Supplier
from workbench.records.store import Store
from workbench.training.config import TrainingConfig
from workbench.training.early_stopping import ValidationHistory
from workbench.training.loader import Batch
from workbench.training.losses import ModelWithLoss, gradient_sync, pad_targets, wrap_ddp

_STATE_PREFIX, _STATE_SUFFIX = "training-", ".safetensors"
_METADATA_KEY = "workbench"
_KEPT_STATES = 2
_DIGEST_LENGTH = 16  # digits of the digest


def save_state(folder: Path, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> Path:
    """Write everything that the next step depends on; ``facts`` is plain JSON with a ``step``."""
    from safetensors.torch import save as to_bytes

    seen: set[int] = set()
    alone: dict[str, Tensor] = {}
    for name, value in tensors.items():
        dense = value.detach().cpu().contiguous()
        # Weights that a network uses twice are written twice: the format knows no sharing.
        alone[name] = dense.clone() if dense.data_ptr() in seen else dense
        seen.add(dense.data_ptr())
    content = to_bytes(alone, metadata={_METADATA_KEY: json.dumps(facts)})
    name = f"{_STATE_PREFIX}{facts['step']:09}-{digest.of_bytes(content)[:_DIGEST_LENGTH]}{_STATE_SUFFIX}"
    with atomic_replace(folder / name) as temporary:
        temporary.write_bytes(content)
    for old in _state_files(folder)[_KEPT_STATES:]:
        old.unlink(missing_ok=True)
    return folder / name


def load_state(folder: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Facts and tensors of the newest whole state of this training; None when there is none.

    Args:
        key: Must equal ``facts["key"]``, else the state belongs to another training.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    for path in _state_files(folder):
        with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError):
            content = path.read_bytes()
            if digest.of_bytes(content)[:_DIGEST_LENGTH] != path.stem.rpartition("-")[2]:
                continue
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            facts: dict[str, Any] = json.loads(header["__metadata__"][_METADATA_KEY])
            if facts["key"] == key:
                return facts, from_bytes(content)
    return None


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _optimizer_tensors(optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for number, slots in optimiser.state_dict()["state"].items():
        for slot, value in slots.items():
            yield f"{number}.{slot}", value


def _restore_optimizer(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, slot = name.split(".", 1)
        slots.setdefault(int(number), {})[slot] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})
    for group in optimiser.param_groups:
        for weight in group["params"]:
            for slot, value in optimiser.state[weight].items():
                if value.shape == weight.shape:
                    # A fused step walks weight and moments side by side through memory: they must
                    # lie in the same order there, which a file does not keep.
                    optimiser.state[weight][slot] = torch.empty_like(weight.detach()).copy_(value)


def _state_files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob(f"{_STATE_PREFIX}*{_STATE_SUFFIX}"), reverse=True)


# ---- Everything of a training that changes from step to step, and how it is kept and restored.


LogMetric = Callable[[str, float, int], None]
Curves = dict[str, list[float]]

CURVE_NAMES = ("loss", "loss_cls", "loss_box", "lr")
_SEED_MULTIPLIER = 0x9E3779B97F4A7C15


class TrainingState:
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
        self.lesson = wrap_ddp(ModelWithLoss(model, spec, config), config)
        self.curves: Curves = {name: [] for name in CURVE_NAMES}
        self.watched = ValidationHistory(config.stopping)
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
            _parameter_groups(self._parameters, config.weight_decay), lr=config.lr, fused=True
        )
        self._scaler = torch.amp.GradScaler(config.device, enabled=config.precision == "float16")

    def step(self, batch: Batch, step: int, log: LogMetric | None) -> None:
        """One optimiser step; raises `StepFailed` when the loss is no number."""
        # What is drawn in a step, dropout such as it is, follows from the seed and the step alone.
        torch.manual_seed((self._config.seed * _SEED_MULTIPLIER + step * 1009 + self.rank) % 2**63)
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
        for name, figure in zip(CURVE_NAMES, figures, strict=True):
            self.curves[name].append(figure)
            if log:
                log(f"train/{name}", figure, step)

    def keep(self, folder: Path, key: str, step: int) -> None:
        """Write all of it, so that `restore` makes as if it had never stopped."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors |= {f"held.{name}": value for name, value in self.held.items()}
        tensors |= {
            f"optimiser.{name}": value for name, value in _optimizer_tensors(self._optimiser)
        }
        facts = {
            "key": key,
            "step": step,
            "curves": self.curves,
            "watched": self.watched.as_json(),
            "scaler": self._scaler.state_dict(),
        }
        save_state(folder, tensors, facts)

    def restore(self, folder: Path | None, key: str) -> int:
        """The step to begin with: 0 where nothing of this training is kept."""
        found = None if folder is None else load_state(folder, key)
        if found is None:
            return 0
        facts, tensors = found
        self.model.load_state_dict(_with_prefix(tensors, "model."))
        for name, value in _with_prefix(tensors, "average.").items():
            self.average[name].copy_(value)
        self.held = _with_prefix(tensors, "held.")
        _restore_optimizer(self._optimiser, _with_prefix(tensors, "optimiser."))
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
        truth = pad_targets(batch.targets)
        sums = np.zeros(3)
        for number in range(count):
            rows = slice(number * size, (number + 1) * size)
            images = torch.from_numpy(batch.images[rows]).contiguous(memory_format=self._layout)
            images = images.to(self._config.device)
            with gradient_sync(self.lesson, number == count - 1):
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


def _parameter_groups(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and the scales of batch norm do not."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


# ---- What a training gives: the model, how it came about, and under which conditions it repeats.


@dataclass(frozen=True)
class TrainingResult:
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
        return build_predictor(self.detector, self.weights, self.preprocessing)


def reproducibility_conditions(config: TrainingConfig) -> dict[str, Any]:
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


def build_predictor(
    shape: DetectorConfig, weights: dict[str, Tensor], spec: Preprocessing
) -> TorchPredictor:
    """The model of this shape with these weights."""
    model = families.find_family(shape.architecture).build(shape)
    model.load_state_dict(weights)
    return TorchPredictor(model, spec)


# ---- Keeping a trained model as a record.


WEIGHTS_FILE = "weights.safetensors"
CURVES_FILE = "curves.json"


def save_checkpoint(
    store: Store, trained: TrainingResult, dataset: Ref, *, parent: Ref | None = None
) -> Ref:
    """Write a `Checkpoint` record; the same training gives the same reference.

    Args:
        dataset: The version that was learned from.
        parent: The checkpoint it started from.
    """
    from safetensors.torch import save as to_bytes

    record = Checkpoint(
        dataset=dataset,
        parent=parent,
        classes=trained.detector.classes,
        architecture=trained.detector.model_dump(mode="json"),
        training=trained.config.as_json() | {"frames": trained.frames} | trained.facts,
        preprocessing=trained.preprocessing.model_dump(mode="json"),
        conditions=trained.conditions,
        family=trained.detector.architecture,
        supplier=trained.supplier,
    )
    payload = {
        # No metadata: safetensors does not write several keys in a fixed order.
        WEIGHTS_FILE: to_bytes(trained.weights),
        CURVES_FILE: digest.canonical_json(trained.curves),
    }
    speed = {
        "seconds": trained.seconds,
        "images_per_second": trained.images_per_second,
        "waited": trained.waited,
        "peak_mib": trained.peak_mib,
    }
    return store.put(record, payload, side={"speed": speed})
