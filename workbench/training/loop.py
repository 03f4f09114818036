"""The training loop: the same configuration and frames give the same weights, to the bit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import deterministic

from workbench import digest
from workbench.errors import ParameterError, StepFailed
from workbench.perception.contract import DetectorConfig
from workbench.perception.detector import Detector
from workbench.perception.predictor import TorchPredictor
from workbench.perception.preprocessing import Preprocessing
from workbench.records.dataset import Dataset
from workbench.training import state
from workbench.training.config import TrainingConfig
from workbench.training.loader import Loader
from workbench.training.loss import DetectionLoss, Losses, as_truth
from workbench.training.targets import check
from workbench.workspace import Workspace

Progress = Callable[[int, int], None]
Log = Callable[[str, float, int], None]
Curves = dict[str, list[float]]

_CURVES = ("loss", "loss_cls", "loss_box", "lr")


@dataclass(frozen=True)
class Trained:
    """A finished training.

    ``weights`` are the averaged float32 ones that `Detector` loads; ``curves`` hold a value for
    each step. ``seconds`` and ``images_per_second`` are facts about this machine and no part of
    the model.
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

    def predictor(self) -> TorchPredictor:
        """The model, ready to be asked for boxes."""
        model = Detector(self.detector)
        model.load_state_dict(self.weights)
        return TorchPredictor(model, self.preprocessing)


def train(  # noqa: PLR0913 - what is learned, how, from what, and who is told
    place: Workspace,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    start: TorchPredictor | None = None,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
) -> Trained:
    """Train a detector on every frame of ``dataset``.

    Args:
        dataset: Only frames to learn from, with their labels; one without labels is background.
        classes: What to learn, in the order of the model's numbers.
        start: A model of the same shape to go on from.
        checkpoint_dir: State is kept here after each pass; a training that was killed goes on
            from it to the same weights as one that was not.
        progress: Called with steps done and in all.
        log: Called with the name of a curve, its value and the step.

    Raises:
        DataError: The frames or labels must not be learned from.
        ParameterError: ``start`` has another shape.
        StepFailed: The loss is no longer a number.
    """
    check(dataset, classes)
    _check_size(preprocessing)
    shape = DetectorConfig(classes=tuple(classes), width=config.width)
    with _repeatable(config.threads):
        loader = Loader(place, dataset, config, classes=classes, preprocessing=preprocessing)
        total = config.steps_for(len(dataset.frames))
        run = _Run(_new_model(shape, config, loader, start), config, total)
        key = _key(dataset, shape, preprocessing, config, start)
        first = run.restore(checkpoint_dir, key)
        began = time.perf_counter()
        loss = DetectionLoss(shape, preprocessing.width, preprocessing.height)
        each_pass = config.steps_per_epoch(len(dataset.frames))
        for step, batch in enumerate(loader.batches(first, total), start=first):
            losses = loss(run.forward(batch.images), as_truth(batch.targets))
            run.update(losses, step, log)
            if progress:
                progress(step + 1, total)
            if checkpoint_dir and ((step + 1) % max(each_pass, 10) == 0 or step + 1 == total):
                run.keep(checkpoint_dir, key, step + 1)
        seconds = time.perf_counter() - began
    return Trained(
        detector=shape,
        preprocessing=preprocessing,
        config=config,
        weights={name: value.clone().contiguous() for name, value in run.average.items()},
        curves=run.curves,
        frames=len(dataset.frames),
        seconds=seconds,
        images_per_second=(total - first) * config.batch / max(seconds, 1e-9),
        resumed_at=first,
        conditions=conditions(config.threads),
    )


def conditions(threads: int) -> dict[str, Any]:
    """Under which weights repeat to the bit."""
    return {
        "threads": threads,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.split("+")[0],
    }


class _Run:
    """Everything that changes from step to step."""

    def __init__(self, model: Detector, config: TrainingConfig, total: int) -> None:
        self.model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        self.curves: Curves = {name: [] for name in _CURVES}
        self._config = config
        self._total = total
        self._optimiser = torch.optim.AdamW(_groups(model, config.weight_decay), lr=config.lr)

    def forward(self, images: Any) -> tuple[Tensor, ...]:
        batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        outputs: tuple[Tensor, ...] = self.model(batch)
        return outputs

    def update(self, losses: Losses, step: int, log: Log | None) -> None:
        value = float(losses.total.detach())
        if not torch.isfinite(losses.total):
            raise StepFailed(
                f"training diverged: the loss is {value} at step {step}",
                hint=f"Lower the learning rate (now {self._config.lr}) or check the labels",
            )
        rate = self._config.rate(step, self._total)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        self._optimiser.step()
        self._average(step)
        values = (value, float(losses.cls), float(losses.box), rate)
        for name, figure in zip(_CURVES, values, strict=True):
            self.curves[name].append(figure)
            if log:
                log(f"train/{name}", figure, step)

    def restore(self, folder: Path | None, key: str) -> int:
        """The step to begin with."""
        if folder is None:
            return 0
        facts = state.load(
            folder, key, model=self.model, average=self.average, optimiser=self._optimiser
        )
        if facts is None:
            return 0
        self.curves = facts["curves"]
        return int(facts["step"])

    def keep(self, folder: Path, key: str, step: int) -> None:
        state.save(
            folder,
            model=self.model,
            average=self.average,
            optimiser=self._optimiser,
            facts={"key": key, "step": step, "curves": self.curves},
        )

    @torch.no_grad()
    def _average(self, step: int) -> None:
        # A young average would remember the random start for ever in so short a training.
        decay = min(self._config.ema, (1 + step) / (10 + step))
        now = self.model.state_dict()
        floats = [name for name, value in self.average.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[name] for name in floats], [now[name] for name in floats], 1 - decay
        )
        for name in self.average.keys() - set(floats):
            self.average[name].copy_(now[name])


def _new_model(
    shape: DetectorConfig, config: TrainingConfig, loader: Loader, start: TorchPredictor | None
) -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Detector(shape)
    if start is None:
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


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and the scales of batch norm do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _key(
    dataset: Dataset,
    shape: DetectorConfig,
    preprocessing: Preprocessing,
    config: TrainingConfig,
    start: TorchPredictor | None,
) -> str:
    """Names this very training, so that no other one's state is taken up."""
    return digest.of_json(
        {
            "frames": [frame.id for frame in dataset.frames],
            "labels": sorted(label.id for label in dataset.labels),
            "detector": shape.model_dump(mode="json"),
            "preprocessing": preprocessing.digest,
            "config": config.as_json(),
            "start": None if start is None else digest.of_bytes(_bytes(start)),
        }
    )


def _bytes(start: TorchPredictor) -> bytes:
    from safetensors.torch import save

    weights: bytes = save(dict(start.detector.state_dict()))
    return weights


def _check_size(preprocessing: Preprocessing) -> None:
    if preprocessing.width % 32 or preprocessing.height % 32:
        raise ParameterError(
            f"the input of {preprocessing.width}x{preprocessing.height} does not fit the detector",
            where="Preprocessing",
            hint="Width and height must be multiples of 32",
        )


@contextlib.contextmanager
def _repeatable(threads: int) -> Iterator[None]:
    """Torch with a fixed number of threads and without anything that may differ between runs."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    settings: Any = deterministic
    filling = settings.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Every buffer here is written before it is read; filling them first took a fifth of the time.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = filling
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(before)
