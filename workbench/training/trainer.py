"""The trainer: the same configuration and frames give the same weights, to the bit."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from workbench.core import digest, processes
from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import Workspace
from workbench.detection import families
from workbench.detection.config import COMPACT, DetectorConfig
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import Preprocessing
from workbench.records.base import Digest
from workbench.records.dataset import Dataset
from workbench.training import loader as memory
from workbench.training.checkpoint import (
    LogMetric,
    TrainingResult,
    TrainingState,
    build_predictor,
    reproducibility_conditions,
)
from workbench.training.config import TrainingConfig
from workbench.training.early_stopping import Validation
from workbench.training.loader import DataLoader, TaskSpec
from workbench.training.targets import check_dataset, label_warnings


def rank_and_world_size() -> tuple[int, int]:
    """``(0, 1)`` where a process trains alone."""
    import torch.distributed as together

    if not together.is_available() or not together.is_initialized():
        return 0, 1
    return together.get_rank(), together.get_world_size()


# ---- Where a training begins: the fresh model, and the name of the whole training.


def _prepare_model(
    material: TaskSpec,
    config: TrainingConfig,
    loader: DataLoader,
    model: Any,
    start: TorchPredictor | None,
) -> Any:
    """The model to train, from its beginning."""
    shape = (
        DetectorConfig(classes=material.classes, width=config.width, depth=config.depth)
        if model is None
        else model.config
    )
    _check_model(shape, material)
    if model is None:
        torch.manual_seed(config.seed)
        model = families.find_family(shape.architecture).build(shape)
    if start is None:
        if shape.architecture == COMPACT:
            model.set_prior(_class_priors(shape, loader))
        return model
    if start.config.model_dump() != shape.model_dump():
        raise ParameterError(
            "the model to start from has other classes or another width",
            where=start.ref,
            hint=f"It has {', '.join(start.classes)} at width {start.config.width}",
        )
    model.load_state_dict(start.detector.state_dict())
    return model


def _training_key(
    dataset: Dataset,
    model: Any,
    material: TaskSpec,
    config: TrainingConfig,
    watch: Validation | None,
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


def _class_priors(shape: DetectorConfig, loader: DataLoader) -> Tensor:
    """About how many of all cells will belong to each class."""
    counts = torch.zeros(len(shape.classes))
    frames = 0
    for targets in loader.targets():
        frames += 1
        learned = targets.classes[~targets.ignore]
        counts += torch.bincount(torch.from_numpy(learned), minlength=len(counts))
    cells = 1000.0
    return (4 * counts / (frames * cells)).clamp(1e-4, 0.05)


def _check_model(shape: DetectorConfig, material: TaskSpec) -> None:
    spec = material.preprocessing
    multiple = families.find_family(shape.architecture).multiple
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


# ---- The steps of a training, with what is kept and looked at between them.


ProgressCallback = Callable[[int, int], None]

_MIN_SAVE_INTERVAL_S = 10.0  # between two states: passes over few frames end every second


@dataclass
class _TrainingLoop:
    """The steps of a training, with what is kept and looked at between them."""

    run: TrainingState
    loader: DataLoader
    config: TrainingConfig
    watch: Validation | None
    spec: Preprocessing
    key: str
    folder: Path | None
    first: int = 0
    seconds: float = 0.0
    ended: str = ""
    _kept_at: float = 0.0

    @property
    def takes_held(self) -> bool:
        """Whether the result is an earlier model, not the last."""
        stopping = self.config.stopping
        return bool(self.run.held) and (stopping.patience > 0 or self.ended == "forgot")

    def carry_out(
        self, *, with_start: bool, progress: ProgressCallback | None, log: LogMetric | None
    ) -> int:
        """Every step that is left; returns how many there are then in all."""
        total = self.run.total
        self.first = self.run.restore(self.folder, self.key)
        if self.first == 0 and with_start and self.watch:
            self._look(0, log)
        began = time.perf_counter()
        self._kept_at = began
        done = self.first
        try:
            if not self._has_ended(done):
                for step, batch in enumerate(self.loader.batches(done, total), start=done):
                    self.run.step(batch, step, log)
                    done = step + 1
                    if progress:
                        progress(done, total)
                    if self._is_time_to_look(done):
                        self._look(done, log)
                    self._keep(done)
                    if self.ended:
                        break
        except DataError:
            self._keep(done, now=True)  # whoever mends the data shall not lose the hours before
            raise
        finally:
            self.seconds = time.perf_counter() - began
        return done

    def _has_ended(self, done: int) -> bool:
        """Whether a training that is taken up had come to its end."""
        stopping, watched = self.config.stopping, self.run.watched
        if stopping.patience and watched.without_gain >= stopping.patience:
            self.ended = "stop"
        elif stopping.forget is not None and watched.looks:
            last = watched.looks[-1]
            self.ended = "forgot" if last["step"] and watched.lost(last["figures"]) else ""
        return bool(self.ended) or done >= self.run.total

    def _is_time_to_look(self, done: int) -> bool:
        every = self.config.stopping.every
        return self.watch is not None and (
            done == self.run.total or (every > 0 and done % every == 0)
        )

    def _look(self, done: int, log: LogMetric | None) -> None:
        assert self.watch is not None  # noqa: S101 - for the type checker
        random = torch.get_rng_state()
        average = {name: value.cpu() for name, value in self.run.average.items()}
        predictor = build_predictor(self.run.model.config, average, self.spec)
        figures = self.watch.judge(predictor)
        torch.set_rng_state(random)
        verdict = self.run.watched.look(done, figures)
        if log:
            for name, value in figures.items():
                log(f"watched/{name}", float(value), done)
        stopping = self.config.stopping
        if verdict == "best" if stopping.patience else verdict != "forgot":
            self.run.hold()
        if verdict in ("stop", "forgot"):
            self.ended = verdict

    def _keep(self, done: int, *, now: bool = False) -> None:
        if self.folder is None or self.run.rank > 0:
            return
        since = time.perf_counter() - self._kept_at
        per_pass = self.config.steps_per_epoch(self.loader.frames)
        due = since >= 60 * self.config.keep_minutes
        due |= done % per_pass == 0 and since >= _MIN_SAVE_INTERVAL_S
        if now or due or done == self.run.total or self.ended:
            self.run.keep(self.folder, self.key, done)
            self._kept_at = time.perf_counter()


# ---- The training loop: the same configuration and frames give the same weights, to the bit.


def train(  # noqa: PLR0913 - what is learned, how, from what, and who is told
    place: Workspace,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    model: Any = None,
    start: TorchPredictor | None = None,
    fresh: Collection[Digest] | None = None,
    disputed: Collection[Digest] = (),
    watch: Validation | None = None,
    checkpoint_dir: Path | None = None,
    progress: ProgressCallback | None = None,
    log: LogMetric | None = None,
) -> TrainingResult:
    """Train a detector on every frame of ``dataset``.

    Args:
        dataset: Only frames to learn from, with their labels; one without labels is background.
        classes: What to learn, in the order of the model's numbers.
        model: A `DetectionModel` other than the compact detector that ``config`` describes; it is
            trained in place.
        start: A model of the same shape to go on from.
        fresh: Frames that are new to ``start``, for ``config.replay``.
        disputed: Frames that labelers disagreed about, for ``config.trust``.
        watch: What to look at on the way, for ``config.stopping``.
        checkpoint_dir: State is kept here after passes and minutes; a training that was killed
            goes on from it to the same weights as one that was not.
        progress: Called with steps done and in all.
        log: Called with the name of a curve, its value and the step.

    Raises:
        DataError: The frames or labels must not be learned from, or a frame cannot be read.
        ParameterError: ``start`` has another shape, or nothing is watched that should be.
        StepFailed: The loss is no longer a number, or memory ran out.
    """
    check_dataset(dataset, classes)
    rank = _check_rank(config)
    material = TaskSpec(tuple(classes), preprocessing, fresh, disputed)
    with _deterministic_torch(config), memory.memory_limit(config), processes.keep_freed_memory():
        loader = DataLoader(place, dataset, config, material, rank=rank)
        model = _prepare_model(material, config, loader, model, start)
        key = _training_key(dataset, model, material, config, watch, start is not None)
        supplier = getattr(model, "supplier", None)
        run = TrainingState(
            model, preprocessing, config, config.steps_for(len(dataset.frames)), rank
        )
        work = _TrainingLoop(run, loader, config, watch, preprocessing, key, checkpoint_dir)
        done = work.carry_out(with_start=start is not None, progress=progress, log=log)
        weights = run.held if work.takes_held else run.average
    return TrainingResult(
        detector=model.config,
        preprocessing=preprocessing,
        config=config,
        weights={name: value.cpu().clone().contiguous() for name, value in weights.items()},
        curves=run.curves,
        frames=len(dataset.frames),
        seconds=work.seconds,
        images_per_second=(done - work.first) * config.batch / max(work.seconds, 1e-9),
        resumed_at=work.first,
        conditions=reproducibility_conditions(config),
        facts=_result_facts(dataset, material, config, run, work.ended),
        supplier=supplier,
        waited=loader.waited_s / max(work.seconds, 1e-9),
        peak_mib=memory.peak_memory_mib(),
    )


def _result_facts(
    dataset: Dataset, material: TaskSpec, config: TrainingConfig, run: TrainingState, ended: str
) -> dict[str, Any]:
    """What a record says of a training beside its configuration; only what there is to say."""
    said: dict[str, Any] = {}
    if found := label_warnings(dataset, material.classes):
        said["findings"] = list(found)
    if config.sampling.used:
        said["repeated"] = memory.repeat_factors(dataset, material.classes, config.sampling)
    if config.replay:
        said["fresh"] = len(material.fresh or ())
    if config.trust.disputed < 1:
        said["disputed"] = len(set(material.disputed))
    if run.watched.looks:
        said["watched"] = run.watched.looks
    if changes := run.watched.changes():
        said["changed"] = changes
    if ended:
        said["ended"] = {"why": ended, "forgot": run.watched.forgot}
    return said


def _check_rank(config: TrainingConfig) -> int:
    rank, size = rank_and_world_size()
    if size != config.processes:
        raise ParameterError(
            f"processes is {config.processes}, but {size} take part",
            where="TrainingConfig.processes",
            hint="workbench.training.distributed.train_distributed starts them, by torchrun or Ray",
        )
    return rank


@contextlib.contextmanager
def _deterministic_torch(config: TrainingConfig) -> Iterator[None]:
    """Torch with a fixed number of threads and without anything that may differ between runs."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    settings: Any = deterministic
    filling = settings.fill_uninitialized_memory
    if config.device == "cuda":
        if not torch.cuda.is_available():
            raise ParameterError("there is no CUDA device here", where="TrainingConfig.device")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    # Every buffer here is written before it is read; filling them first took a fifth of the time.
    settings.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        settings.fill_uninitialized_memory = filling
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(before)


__all__ = ["TrainingResult", "train"]
