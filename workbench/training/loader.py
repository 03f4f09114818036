"""The data loader: which frames a pass shows, decoded once, augmented as they are used.

What a frame looks like in a step depends on the seed, the step and its position in the batch only, never on
thread timing, so that a training can be resumed at any step.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.core import digest, processes
from workbench.core.errors import DataError, ParameterError, StepFailed
from workbench.core.workspace import Workspace
from workbench.data.slices import frame_conditions
from workbench.detection.preprocessing import (
    LetterboxTransform,
    Pixels,
    Preprocessing,
    letterbox,
    letterbox_transform,
    load_rgb,
    normalise,
)
from workbench.records.base import Digest
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame
from workbench.training import augment
from workbench.training.config import Sampling, TrainingConfig
from workbench.training.targets import Targets, frame_targets, label_weighting

_ORDER_STREAM = 1 << 30


def repeat_factors(dataset: Dataset, classes: Collection[str], how: Sampling) -> dict[str, float]:
    """Repeat factors above 1 of classes and slices, such as ``{"class=cyclist": 2.1}``."""
    count = max(1, len(dataset.frames))
    found: dict[str, float] = {}
    for power, named in (
        (how.classes, _frame_classes(dataset, classes)),
        (how.slices, _frame_slices(dataset)),
    ):
        seen = Counter(name for names in named for name in names)
        for name, frames in sorted(seen.items()):
            factor = min(how.cap, (how.rare / (frames / count)) ** power)
            if factor > 1:
                found[name] = round(factor, 4)
    return found


def sampling_weights(
    dataset: Dataset,
    classes: Collection[str],
    how: Sampling,
    *,
    fresh: Collection[Digest] | None = None,
    replay: float = 0.0,
) -> NDArray[np.float64] | None:
    """Relative frequency of each frame, None when all are seen alike.

    Args:
        fresh: Frames that are new; all others are old and share ``replay`` of a pass.

    Raises:
        ParameterError: ``replay`` without both old and new frames.
    """
    if not how.used and replay == 0:
        return None
    result = np.ones(len(dataset.frames))
    if how.used:
        named = repeat_factors(dataset, classes, how)
        for row, names in enumerate(
            one | other
            for one, other in zip(
                _frame_classes(dataset, classes), _frame_slices(dataset), strict=True
            )
        ):
            result[row] = max((named[name] for name in names if name in named), default=1.0)
    if replay > 0:
        new = np.array([frame.id in (fresh or ()) for frame in dataset.frames])
        if new.all() or not new.any():
            raise ParameterError(
                f"replay of {replay:.0%} needs old and new frames, there are "
                f"{int((~new).sum())} old and {int(new.sum())} new",
                where="TrainingConfig.replay",
                hint="Pass fresh, the ids of the mined frames, and keep old frames in the dataset",
            )
        result[new] *= (1 - replay) / result[new].sum()
        result[~new] *= replay / result[~new].sum()
    return result


def sample_order(
    count: int, slots: int, weights: NDArray[np.float64] | None, seed: int, number: int
) -> NDArray[np.int64]:
    """Frames of pass ``number``, ``[slots]`` numbers below ``count``."""
    rng = np.random.default_rng([seed, number, _ORDER_STREAM])
    if weights is None:
        return np.resize(rng.permutation(count), slots)
    line = np.cumsum(weights)
    marks = (rng.random() + np.arange(slots)) / slots * line[-1]
    picked = np.minimum(np.searchsorted(line, marks, side="right"), count - 1)
    return rng.permutation(picked)


def _frame_classes(dataset: Dataset, classes: Collection[str]) -> list[set[str]]:
    return [
        {
            f"class={label.cls}"
            for label in dataset.labels_by_frame[frame.id]
            if label.cls in classes and not label.ignore
        }
        for frame in dataset.frames
    ]


def _frame_slices(dataset: Dataset) -> Sequence[set[str]]:
    return [set(frame_conditions(frame)) for frame in dataset.frames]


# ---- Limits on memory: how much may wait decoded, and a clear word when there is not enough.


_MIB = 1 << 20
_CACHE_SHARE = 0.5  # of what is free: the network, the system and other steps need the rest
_CGROUP = Path("/sys/fs/cgroup")
_OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Insufficient memory",
)


def cache_limit_mib(config: TrainingConfig) -> float:
    """MiB that decoded frames may take: what is configured, or less where less is free."""
    free = _free_mib()
    if config.limit_mib is not None:
        free = min(free, config.limit_mib - _resident_mib())
    return min(config.memory_mib, max(0.0, free * _CACHE_SHARE))


def _resident_mib() -> float:
    """Resident memory of this process."""
    import psutil

    return float(psutil.Process().memory_info().rss) / _MIB


def peak_memory_mib() -> float:
    """The most that this process has ever been resident."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def memory_limit(config: TrainingConfig) -> Iterator[None]:
    """Hold the process to ``limit_mib``, and say in plain words that memory ran out.

    The limit is the system's own on written-to memory (``RLIMIT_DATA``): an allocation beyond it
    fails here, instead of somebody's process being killed.

    Raises:
        ParameterError: The process already uses more.
        StepFailed: Memory ran out.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    if config.limit_mib is not None:
        used = _data_segment_mib()
        if used >= config.limit_mib:
            raise ParameterError(
                f"limit_mib is {config.limit_mib}: the process uses {used:.0f} MiB already",
                where="TrainingConfig.limit_mib",
                hint="Torch alone takes some hundred MiB; give it more",
            )
        resource.setrlimit(resource.RLIMIT_DATA, (config.limit_mib * _MIB, before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(
            sign in str(error) for sign in _OUT_OF_MEMORY_MESSAGES
        ):
            raise
        raise _out_of_memory(config) from error
    except Exception as error:  # OpenCV's own error has no public base beside Exception
        if type(error).__module__.startswith("cv2") and any(
            s in str(error) for s in _OUT_OF_MEMORY_MESSAGES
        ):
            raise _out_of_memory(config) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _out_of_memory(config: TrainingConfig) -> StepFailed:
    limit = "" if config.limit_mib is None else f" of {config.limit_mib} MiB"
    return StepFailed(
        f"out of memory{limit}: a step of {config.batch} frames in {config.accumulate} part(s) "
        "does not fit",
        where="training",
        hint="Raise accumulate (the same step in smaller parts), or lower batch, memory_mib or "
        "the network's input; what was kept of the training is taken up again",
    )


def _data_segment_mib() -> float:
    """What counts against ``RLIMIT_DATA``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) / 1024
    return _resident_mib()


def _free_mib() -> float:
    """What the machine, or the control group that this runs in, has left."""
    import psutil

    free = float(psutil.virtual_memory().available) / _MIB
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        free = min(free, (limit - used) / _MIB)
    return free


# ---- Frames for training: decoded once, kept as bytes at network size, varied as they are used.
#
# What a frame looks like in a step depends on the seed, the step and its place in the step alone,
# never on which thread was first, so a training can be stopped and taken up at any step.

_PREFETCH = 2


@dataclass(frozen=True)
class Batch:
    """``images`` float32 ``[n, 3, height, width]`` as the network takes them.

    They lie in memory as ``[n, height, width, 3]``, which is torch's channels-last.
    """

    images: NDArray[np.float32]
    targets: list[Targets]


@dataclass(frozen=True)
class TaskSpec:
    """What is learned from beside the frames themselves.

    Args:
        classes: In the order of the model's numbers.
        fresh: Frames that are new when a model is tuned on mined ones, see `Sampling`.
        disputed: Frames about which labelers disagreed.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    fresh: Collection[Digest] | None = None
    disputed: Collection[Digest] = ()


class DataLoader:
    """Gives the batch of any step.

    Args:
        place: Where the images lie.
        dataset: The frames to learn from.
        rank: Which process this is of the configuration's; each gets its part of every step.

    Attributes:
        weights: How often each frame is seen against the others; None for all alike.
        waited_s: Time that whoever took batches had to wait for one.
    """

    def __init__(
        self,
        place: Workspace,
        dataset: Dataset,
        config: TrainingConfig,
        material: TaskSpec,
        *,
        rank: int = 0,
    ) -> None:
        self._place = place
        self._frames = dataset.frames
        self._labels = dataset.labels_by_frame
        self._classes = material.classes
        self._config = config
        self._spec = material.preprocessing
        self._trust = label_weighting(config.trust, material.disputed)
        self._table = _normalization_table(self._spec)
        share = config.batch // config.processes
        self._slots = range(rank * share, (rank + 1) * share)
        self._pass: tuple[int, NDArray[np.int64]] | None = None
        self.weights = sampling_weights(
            dataset,
            material.classes,
            config.sampling,
            fresh=material.fresh,
            replay=config.replay,
        )
        self.waited_s = 0.0
        self._kept: list[tuple[Pixels, Targets]] | None = None
        size = len(self._frames) * self._spec.width * self._spec.height * 3
        if size <= cache_limit_mib(config) * _MIB:
            self._kept = self._decode_all()

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    @property
    def frames(self) -> int:
        return len(self._frames)

    def targets(self) -> Iterator[Targets]:
        """Targets of every frame as labelled, without variation and without decoding anything."""
        for frame in self._frames:
            yield self._targets(frame, letterbox_transform(frame.width, frame.height, self._spec))

    def batch(self, step: int, pool: ThreadPoolExecutor | None = None) -> Batch:
        """This process's part of a step, always the same; frames are read in ``pool``."""
        indices = self._indices(step)
        images = np.empty((len(self._slots), self._spec.height, self._spec.width, 3), np.float32)

        def fill(place: int) -> Targets:
            slot = self._slots[place]
            rng = np.random.default_rng([self._config.seed, step, slot])
            return self._fill(images[place], int(indices[slot]), step, rng)

        each = map if pool is None or self._kept is not None else pool.map
        targets = list(each(fill, range(len(self._slots))))
        return Batch(images.transpose(0, 3, 1, 2), targets)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of steps ``first`` up to ``last``, prepared ahead in threads."""
        with (
            processes.single_threaded_opencv(),
            ThreadPoolExecutor(1, thread_name_prefix="loader") as ahead,
            ThreadPoolExecutor(self._config.threads, thread_name_prefix="decode") as pool,
        ):
            until = min(first + _PREFETCH, last)
            waiting = [ahead.submit(self.batch, step, pool) for step in range(first, until)]
            for step in range(first, last):
                began = time.perf_counter()
                ready = waiting.pop(0).result()
                self.waited_s += time.perf_counter() - began
                if step + _PREFETCH < last:
                    waiting.append(ahead.submit(self.batch, step + _PREFETCH, pool))
                yield ready

    def _fill(
        self, out: NDArray[np.float32], index: int, step: int, rng: np.random.Generator
    ) -> Targets:
        """One frame of a step, varied, into its place as the network takes it."""
        how, pad = self._config.augment, self._spec.pad
        draw = rng.random(augment.DRAW_COUNT)
        pixels, targets = self._frame(index, step)
        if how.mosaic > 0 and rng.random() < how.mosaic:
            others = rng.integers(0, len(self._frames), 3).tolist()
            four = [(pixels, targets), *(self._frame(other, step) for other in others)]
            pixels, targets = augment.mosaic(four, pad, rng)
        pixels, targets = augment.random_geometry(pixels, targets, how, pad, draw)
        light = augment.color_table(how, draw)
        if light is not None and augment.has_corruptions(how):
            pixels, light = np.asarray(cv2.LUT(pixels, light[None])), None
        pixels = augment.corrupt(pixels, how, rng)
        # Light and normalisation are both tables over 256 values, and so is one after the other.
        table = self._table if light is None else np.take_along_axis(self._table, light, axis=0)
        cv2.LUT(pixels, table[None], dst=out)
        return targets

    def _indices(self, step: int) -> NDArray[np.int64]:
        """The frames of a step; the last step of a pass is filled up."""
        per_pass = self._config.steps_per_epoch(len(self._frames))
        number, within = divmod(step, per_pass)
        if self._pass is None or self._pass[0] != number:
            slots = per_pass * self._config.batch
            picked = sample_order(len(self._frames), slots, self.weights, self._config.seed, number)
            self._pass = number, picked
        batch = self._config.batch
        return self._pass[1][within * batch : (within + 1) * batch]

    def _frame(self, index: int, step: int) -> tuple[Pixels, Targets]:
        if self._kept is not None:
            return self._kept[index]
        try:
            return self._read(self._frames[index])
        except DataError as error:
            number = step // self._config.steps_per_epoch(len(self._frames)) + 1
            raise DataError(
                f"in pass {number}: {error.what}", where=error.where, hint=error.hint
            ) from error

    def _decode_all(self) -> list[tuple[Pixels, Targets]]:
        with ThreadPoolExecutor(self._config.threads, thread_name_prefix="decode") as pool:
            return list(pool.map(self._read, self._frames))

    def _read(self, frame: Frame) -> tuple[Pixels, Targets]:
        path = media_path(self._place, frame)
        try:
            # Many damaged images still decode; then the weights would no longer follow from the
            # dataset, and nobody would know.
            if digest.of_file(path) != frame.id:
                raise DataError("the image is not the one that was ingested", where=path)
            pixels, placement = letterbox(load_rgb(path), self._spec)
        except (OSError, DataError) as error:
            what = error.what if isinstance(error, DataError) else str(error)
            raise DataError(
                f"frame {frame.id[:12]} of drive {frame.drive} (number {frame.index}) cannot be "
                f"used: {what}",
                where=path.name,
                hint="Ingest its source again, which restores the image, and train again: what was "
                "kept of the training is taken up. Leaving it out would give other weights",
            ) from error
        return pixels, self._targets(frame, placement)

    def _targets(self, frame: Frame, placement: LetterboxTransform) -> Targets:
        return frame_targets(self._labels[frame.id], self._classes, placement, self._trust)


def _normalization_table(spec: Preprocessing) -> NDArray[np.float32]:
    """What the preprocessing makes of each 8-bit value, by channel: ``[256, 3]``."""
    every = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return np.ascontiguousarray(normalise(every[:, None, :], spec)[:, :, 0].T)
