"""The training loop: the same configuration and frames give the same weights, to the bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from workbench import resources
from workbench.errors import ParameterError
from workbench.perception.predictor import TorchPredictor
from workbench.perception.preprocessing import Preprocessing
from workbench.records.base import Digest
from workbench.records.dataset import Dataset
from workbench.training import memory, sampling
from workbench.training.beginning import key_of, new_model
from workbench.training.config import TrainingConfig
from workbench.training.distributed import rank_and_size
from workbench.training.loader import Loader, Material
from workbench.training.progress import Log, Progress
from workbench.training.targets import check, findings
from workbench.training.trained import Trained, conditions
from workbench.training.watching import Watch
from workbench.training.work import Told, Work
from workbench.workspace import Workspace

__all__ = ["Trained", "train"]


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
    watch: Watch | None = None,
    checkpoint_dir: Path | None = None,
    progress: Told | None = None,
    log: Log | None = None,
) -> Trained:
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
    check(dataset, classes)
    rank = _rank(config)
    material = Material(tuple(classes), preprocessing, fresh, disputed)
    with _repeatable(config), memory.limited(config), resources.memory_kept():
        loader = Loader(place, dataset, config, material, rank=rank)
        model = new_model(material, config, loader, model, start)
        key = key_of(dataset, model, material, config, watch, start is not None)
        supplier = getattr(model, "supplier", None)
        run = Progress(model, preprocessing, config, config.steps_for(len(dataset.frames)), rank)
        work = Work(run, loader, config, watch, preprocessing, key, checkpoint_dir)
        done = work.carry_out(with_start=start is not None, progress=progress, log=log)
        weights = run.held if work.takes_held else run.average
    return Trained(
        detector=model.config,
        preprocessing=preprocessing,
        config=config,
        weights={name: value.cpu().clone().contiguous() for name, value in weights.items()},
        curves=run.curves,
        frames=len(dataset.frames),
        seconds=work.seconds,
        images_per_second=(done - work.first) * config.batch / max(work.seconds, 1e-9),
        resumed_at=work.first,
        conditions=conditions(config),
        facts=_facts(dataset, material, config, run, work.ended),
        supplier=supplier,
        waited=loader.waited_s / max(work.seconds, 1e-9),
        peak_mib=memory.peak_mib(),
    )


def _facts(
    dataset: Dataset, material: Material, config: TrainingConfig, run: Progress, ended: str
) -> dict[str, Any]:
    """What a record says of a training beside its configuration; only what there is to say."""
    said: dict[str, Any] = {}
    if found := findings(dataset, material.classes):
        said["findings"] = list(found)
    if config.sampling.used:
        said["repeated"] = sampling.factors(dataset, material.classes, config.sampling)
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


def _rank(config: TrainingConfig) -> int:
    rank, size = rank_and_size()
    if size != config.processes:
        raise ParameterError(
            f"processes is {config.processes}, but {size} take part",
            where="TrainingConfig.processes",
            hint="workbench.training.together.train starts them, by torchrun or Ray",
        )
    return rank


@contextlib.contextmanager
def _repeatable(config: TrainingConfig) -> Iterator[None]:
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
