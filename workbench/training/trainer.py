"""The trainer: the same configuration and frames give the same weights, to the bit."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from workbench.core import digest, processes
from workbench.core.errors import DataError, ParameterError, StepFailed
from workbench.core.types import Json, Progress
from workbench.core.workspace import Workspace
from workbench.detection import families
from workbench.detection.config import COMPACT, LITE0, PYRAMID_FAMILIES, DetectorConfig
from workbench.detection.efficientnet import load_pretrained_weights
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.records.base import Digest
from workbench.records.dataset import Dataset
from workbench.training.checkpoint import LogMetric, TrainingResult, TrainingState, build_predictor
from workbench.training.config import TrainingConfig
from workbench.training.early_stopping import Validation
from workbench.training.loader import Batch, DataLoader, TaskSpec, repeat_factors
from workbench.training.targets import check_dataset, label_warnings

__all__ = ["train"]

_MIN_SAVE_INTERVAL_S = 10.0  # an epoch over few frames ends every second
_MIB = 1 << 20
_OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Insufficient memory",
)


def train(  # noqa: PLR0913 - data, configuration, model and callbacks
    dataset: Dataset,
    config: TrainingConfig | None = None,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    model: Any = None,
    start: TorchPredictor | None = None,
    fresh: Collection[Digest] | None = None,
    disputed: Collection[Digest] = (),
    validation: Validation | None = None,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    log: LogMetric | None = None,
) -> TrainingResult:
    """Train a detector on every frame of ``dataset``.

    Args:
        dataset: Frames to learn from with their labels; a frame without labels is background. Its
            workspace holds the images.
        config: The training's configuration.
        classes: Classes to learn, in the order of the model's class numbers; all of the schema by
            default.
        preprocessing: The network's input contract, by default that of the model size.
        model: A `DetectionModel` to train in place, instead of the compact detector that ``config``
            describes.
        start: A trained model of the same architecture to continue from.
        fresh: Ids of frames that are new to ``start``, for ``config.replay``.
        disputed: Ids of frames that labelers disagreed about, for ``config.trust``.
        validation: How the model is validated on the way, for ``config.stopping``.
        checkpoint_dir: Where the training state is saved; a killed training resumes from it and
            gives the same weights as an uninterrupted one.
        progress: Called with the steps done and their total.
        log: Called with the name of a curve, its value and the step.

    Raises:
        DataError: Frames or labels must not be learned from, or an image cannot be read.
        ParameterError: ``start`` has another architecture, or the deciding validation metric is
            missing.
        StepFailed: The loss is not finite, or memory ran out.
    """
    config = config or TrainingConfig()
    preprocessing = preprocessing or config.preprocessing()
    task = TaskSpec(tuple(classes or dataset.classes), preprocessing, fresh, disputed)
    check_dataset(dataset, task.classes)
    rank, world_size = rank_and_world_size()
    if world_size != config.processes:
        raise ParameterError(
            f"processes is {config.processes}, but the training runs in {world_size}",
            where="TrainingConfig.processes",
            hint="workbench.training.distributed.train_job starts them",
        )
    with _deterministic_torch(config), _memory_limit(config), processes.keep_freed_memory():
        loader = DataLoader(dataset, config, task, rank=rank)
        model = _prepare_model(task, config, loader, model, start, dataset.workspace)
        key = _training_key(dataset, model, task, config, validation, start is not None)
        supplier = getattr(model, "supplier", None)
        steps = config.steps_for(len(dataset.frames))
        state = TrainingState(model, config, steps, rank)
        loop = _TrainingLoop(state, loader, config, validation, preprocessing, key, checkpoint_dir)
        done = loop.run(validate_start=start is not None, progress=progress, log=log)
        weights = loop.final_weights()
    return TrainingResult(
        detector=model.config,
        preprocessing=preprocessing,
        config=config,
        weights={name: value.cpu().clone().contiguous() for name, value in weights.items()},
        curves=state.curves,
        frames=len(dataset.frames),
        seconds=loop.seconds,
        images_per_second=(done - loop.first_step) * config.batch / max(loop.seconds, 1e-9),
        resumed_at=loop.first_step,
        conditions=_reproducibility_conditions(config),
        facts=_recorded_facts(dataset, task, config, loop),
        supplier=supplier,
        waited=loader.waited_s / max(loop.seconds, 1e-9),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def rank_and_world_size() -> tuple[int, int]:
    """Rank and world size of this process; ``(0, 1)`` without DDP."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _prepare_model(
    task: TaskSpec,
    config: TrainingConfig,
    loader: DataLoader,
    model: Any,
    start: TorchPredictor | None,
    workspace: Workspace | None,
) -> Any:
    """The model to train, with its initial weights."""
    architecture = _architecture(task, config) if model is None else model.config
    _check_architecture(architecture, task)
    if model is None:
        torch.manual_seed(config.seed)
        model = families.find_family(architecture.architecture).build(architecture)
        if architecture.architecture == LITE0 and start is None:
            model.load_backbone(*load_pretrained_weights(workspace))
    if start is None:
        if architecture.architecture in PYRAMID_FAMILIES:
            model.set_prior(_class_priors(architecture, loader))
    else:
        _load_start(model, start)
    if config.freeze or config.freeze_norm or config.backbone_rate < 1 or config.heads_first:
        _freeze(model, config)
    return model


def _architecture(task: TaskSpec, config: TrainingConfig) -> DetectorConfig:
    """The detector that the configuration describes."""
    if config.backbone == "lite0":
        # More than half of a box in common is one object: 0.6 left two boxes on many cars.
        return DetectorConfig(
            architecture=LITE0, classes=task.classes, width=config.width, nms_iou=0.5
        )
    return DetectorConfig(classes=task.classes, width=config.width, depth=config.depth)


def _load_start(model: Any, start: TorchPredictor) -> None:
    if start.config.model_dump() != model.config.model_dump():
        raise ParameterError(
            "the start model has other classes or another width",
            where=start.ref,
            hint=f"It has {', '.join(start.classes)} at width {start.config.width}",
        )
    model.load_state_dict(start.detector.state_dict())
    if start.supplier and not getattr(model, "supplier", None):
        model.supplier = start.supplier


def _freeze(model: Any, config: TrainingConfig) -> None:
    if model.config.architecture not in PYRAMID_FAMILIES:
        raise ParameterError(
            f"model family {model.config.architecture!r} has no backbone stages to freeze",
            where="TrainingConfig",
            hint="Leave freeze, freeze_norm, backbone_rate and heads_first at their defaults",
        )
    model.freeze(config.freeze, norm=config.freeze_norm)


def _check_architecture(architecture: DetectorConfig, task: TaskSpec) -> None:
    spec = task.preprocessing
    multiple = families.find_family(architecture.architecture).multiple
    if spec.width % multiple or spec.height % multiple:
        raise ParameterError(
            f"input size {spec.width}x{spec.height} does not fit the detector",
            where="Preprocessing",
            hint=f"Width and height must be multiples of {multiple}",
        )
    if architecture.classes != task.classes:
        raise ParameterError(
            "the model's classes differ from those of the dataset",
            where="model",
            hint=f"It has {', '.join(architecture.classes)}, in this order",
        )


def _class_priors(architecture: DetectorConfig, loader: DataLoader) -> Tensor:
    """Approximate share of all cells that belongs to each class."""
    counts = torch.zeros(len(architecture.classes))
    frames = 0
    for targets in loader.targets():
        frames += 1
        learned = targets.classes[~targets.ignore]
        counts += torch.bincount(torch.from_numpy(learned), minlength=len(counts))
    cells = 1000.0
    return (4 * counts / (frames * cells)).clamp(1e-4, 0.05)


def _training_key(
    dataset: Dataset,
    model: Any,
    task: TaskSpec,
    config: TrainingConfig,
    validation: Validation | None,
    started: bool,
) -> str:
    """Identity of a training: only a state that was saved under it is resumed."""
    from safetensors.torch import save

    fresh_compact = model.config.architecture == COMPACT and not started
    weights = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    return digest.of_json(
        {
            "frames": [frame.id for frame in dataset.frames],
            "labels": sorted(label.id for label in dataset.labels),
            "detector": model.config.model_dump(mode="json"),
            "preprocessing": task.preprocessing.digest,
            "config": config.as_json(),
            "start": None if fresh_compact else digest.of_bytes(save(weights)),
            "fresh": sorted(task.fresh or ()),
            "disputed": sorted(task.disputed),
            "watch": None if validation is None else validation.name,
        }
    )


@dataclass
class _TrainingLoop:
    """The steps of a training, with validation and saving between them."""

    state: TrainingState
    loader: DataLoader
    config: TrainingConfig
    validation: Validation | None
    preprocessing: Preprocessing
    key: str
    folder: Path | None
    first_step: int = 0
    seconds: float = 0.0
    stop_reason: str = ""
    _saved_at: float = 0.0

    def run(self, *, validate_start: bool, progress: Progress | None, log: LogMetric | None) -> int:
        """Run the remaining steps; returns the number of steps done in all."""
        total = self.state.total
        self.first_step = self.state.restore(self.folder, self.key)
        if self.first_step == 0 and validate_start and self.validation:
            self._validate(self.validation, 0, log)
        began = self._saved_at = time.perf_counter()
        done = self.first_step
        self.stop_reason = self.state.history.stop_reason()
        try:
            if not self.stop_reason and done < total:
                for step, batch in enumerate(self._batches(done, total), start=done):
                    self.state.step(batch, step, log)
                    done = step + 1
                    if progress:
                        progress(done, total)
                    if self.validation and self._is_validation_due(done):
                        self._validate(self.validation, done, log)
                    self._save_if_due(done)
                    if self.stop_reason:
                        break
        except DataError:
            # The work before a bad image is kept for when it is repaired.
            self._save_if_due(done, force=True)
            raise
        finally:
            self.seconds = time.perf_counter() - began
        return done

    def _batches(self, first: int, last: int) -> Iterator[Batch]:
        """Known features of the backbone for the steps that leave it as it is, then images."""
        config, model = self.config, self.state.model
        heads_until = round(config.heads_first * last)
        levels = len(model.config.strides) if heads_until else 0
        known = model.known_levels(config.freeze) if config.window and config.freeze_norm else 0
        switch = max(first, last if known else heads_until)
        if first < switch:
            yield from self.loader.feature_batches(
                first,
                switch,
                lambda images, levels: model.backbone_maps(images.to(config.device), levels),
                lambda step: levels if step < heads_until else known,
            )
        yield from self.loader.batches(switch, last)

    def final_weights(self) -> dict[str, Tensor]:
        """The averaged weights of the selected validation, or the last ones without any."""
        selects = self.config.stopping.patience > 0 or self.stop_reason == "forgot"
        return self.state.selected if selects and self.state.selected else self.state.average

    def _is_validation_due(self, done: int) -> bool:
        every = self.config.stopping.every
        return done == self.state.total or (every > 0 and done % every == 0)

    def _validate(self, validation: Validation, done: int, log: LogMetric | None) -> None:
        rng_state = torch.get_rng_state()
        weights = {name: value.cpu() for name, value in self.state.average.items()}
        predictor = build_predictor(self.state.model.config, weights, self.preprocessing)
        metrics = validation.evaluate(predictor)
        torch.set_rng_state(rng_state)
        decision = self.state.history.add(done, metrics)
        if log:
            for name, value in metrics.items():
                log(f"watched/{name}", float(value), done)
        if decision == "best" if self.config.stopping.patience else decision != "forgot":
            self.state.select_average()
        if decision in ("stop", "forgot"):
            self.stop_reason = decision

    def _save_if_due(self, done: int, *, force: bool = False) -> None:
        if self.folder is None or self.state.rank > 0:
            return
        elapsed = time.perf_counter() - self._saved_at
        epoch_ended = done % self.config.steps_per_epoch(self.loader.frames) == 0
        due = elapsed >= 60 * self.config.keep_minutes
        due |= epoch_ended and elapsed >= _MIN_SAVE_INTERVAL_S
        if force or due or done == self.state.total or self.stop_reason:
            self.state.save(self.folder, self.key, done)
            self._saved_at = time.perf_counter()


def _recorded_facts(
    dataset: Dataset, task: TaskSpec, config: TrainingConfig, loop: _TrainingLoop
) -> Json:
    """What a checkpoint records besides the configuration; only what applies."""
    history = loop.state.history
    facts: Json = {}
    if warnings := label_warnings(dataset, task.classes):
        facts["findings"] = list(warnings)
    if config.sampling.enabled:
        facts["repeated"] = repeat_factors(dataset, task.classes, config.sampling)
    if config.replay:
        facts["fresh"] = len(task.fresh or ())
    if config.trust.disputed < 1:
        facts["disputed"] = len(set(task.disputed))
    if history.checks:
        facts["watched"] = history.checks
    if changes := history.changes():
        facts["changed"] = changes
    if loop.stop_reason:
        facts["ended"] = {"why": loop.stop_reason, "forgot": history.regressions}
    return facts


def _reproducibility_conditions(config: TrainingConfig) -> Json:
    """What the weights depend on, to the bit, besides frames and configuration."""
    conditions: Json = {
        "threads": config.threads,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.split("+")[0],
    }
    if config.device == "cuda":
        conditions |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    if config.processes > 1:
        conditions["processes"] = config.processes
    return conditions


@contextlib.contextmanager
def _deterministic_torch(config: TrainingConfig) -> Iterator[None]:
    """Torch with a fixed number of threads and deterministic algorithms only."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    settings: Any = deterministic
    fills = settings.fill_uninitialized_memory
    if config.device == "cuda":
        if not torch.cuda.is_available():
            raise ParameterError("CUDA is not available", where="TrainingConfig.device")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    # Every buffer here is written before it is read; filling them first took a fifth of the time.
    settings.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        settings.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _memory_limit(config: TrainingConfig) -> Iterator[None]:
    """Hold the process to ``limit_mib``, and explain what to do when memory runs out.

    The limit is the system's own on the data segment (``RLIMIT_DATA``): an allocation beyond it
    fails here, instead of the system killing some process.

    Raises:
        ParameterError: The process already uses more.
        StepFailed: Memory ran out.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if config.limit_mib is not None:
        used = _data_segment_mib()
        if used >= config.limit_mib:
            raise ParameterError(
                f"limit_mib is {config.limit_mib}, but the process already uses {used:.0f} MiB",
                where="TrainingConfig.limit_mib",
                hint="Torch alone takes some hundred MiB; raise the limit",
            )
        resource.setrlimit(resource.RLIMIT_DATA, (config.limit_mib * _MIB, before[1]))
    try:
        yield
    except Exception as error:  # OpenCV's own error has no public base besides Exception
        from_cv2 = type(error).__module__.startswith("cv2")
        recognized = any(message in str(error) for message in _OUT_OF_MEMORY_MESSAGES)
        if not isinstance(error, MemoryError) and not (
            recognized and (from_cv2 or isinstance(error, RuntimeError))
        ):
            raise
        limit = "" if config.limit_mib is None else f" of {config.limit_mib} MiB"
        raise StepFailed(
            f"out of memory{limit}: a step of {config.batch} frames in {config.accumulate} "
            "micro-batch(es) does not fit",
            where="training",
            hint="Raise accumulate (the same step in smaller micro-batches), or lower batch, "
            "memory_mib or the input size; training resumes from its saved state",
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_segment_mib() -> float:
    """What counts against ``RLIMIT_DATA``."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmData:")) / 1024
