"""The data loader: which frames an epoch shows, decoded once, augmented as they are used.

What a frame looks like in a step depends on the seed, the step and its position in the batch only,
never on thread timing, so that a training can be resumed at any step.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import cv2
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.core import processes
from workbench.core.errors import DataError, ParameterError
from workbench.data.slices import frame_conditions
from workbench.detection.preprocessing import (
    LetterboxTransform,
    Pixels,
    Preprocessing,
    letterbox,
    letterbox_transform,
    load_frame,
    normalise,
)
from workbench.records.base import Digest
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame
from workbench.records.integrity import REPAIR_HINT
from workbench.training import augment
from workbench.training.config import Sampling, TrainingConfig
from workbench.training.targets import Targets, frame_targets, label_weighting

__all__ = ()

_MIB = 1 << 20
_PREFETCH = 2  # batches
_CACHE_SHARE = 0.5  # of the free memory: the network, the system and other steps need the rest
_CGROUP = Path("/sys/fs/cgroup")
_ORDER_STREAM = 1 << 30  # separates the random numbers of the order from those of the steps
_VARIANT_STREAM = 1 << 31
_FINEST, _COARSEST = 8, 32  # strides of the backbone's maps
_AROUND_OBJECTS = 0.8  # of the windows

_FrameFeatures = tuple[list[Tensor], Targets]
"""Maps of the backbone, float16 ``[1, channels, rows, columns]``, and the targets of a frame."""


class _Backbone(Protocol):
    def __call__(self, images: Tensor, levels: int) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class Batch:
    """One step's frames.

    Attributes:
        images: float32 ``[n, 3, height, width]`` network input, channels-last in memory; or the
            backbone's maps of the frames, float32 ``[n, channels, rows, columns]`` each.
        targets: Of each frame.
    """

    images: NDArray[np.float32] | tuple[Tensor, ...]
    targets: list[Targets]


@dataclass(frozen=True)
class TaskSpec:
    """What is learned from the frames.

    Attributes:
        classes: In the order of the model's class numbers.
        preprocessing: The network's input contract.
        fresh: Ids of frames that are new when fine-tuning on mined frames, see `Sampling`.
        disputed: Ids of frames that labelers disagreed about.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    fresh: Collection[Digest] | None = None
    disputed: Collection[Digest] = ()


class DataLoader:
    """Batches of a training, by step.

    Args:
        dataset: The frames to learn from; its workspace holds the images.
        config: The training's configuration.
        task: Classes, preprocessing, and which frames are new or disputed.
        rank: Which of the configuration's processes this is; each loads its part of every step.

    Attributes:
        weights: Relative frequency of each frame; None when all are equal.
        waited_s: Seconds that the consumer had to wait for batches.
    """

    def __init__(
        self, dataset: Dataset, config: TrainingConfig, task: TaskSpec, *, rank: int = 0
    ) -> None:
        if dataset.workspace is None:
            raise ParameterError(
                "the dataset is in no workspace",
                where=dataset.name,
                hint="Load it with workbench.open().dataset(NAME)",
            )
        self._workspace = dataset.workspace
        self._frames = dataset.frames
        self._labels = dataset.labels_by_frame
        self._classes = task.classes
        self._config = config
        self._spec = task.preprocessing
        self._trust = label_weighting(config.trust, task.disputed)
        self._normalization = _normalization_table(self._spec)
        share = config.batch // config.processes
        self._slots = range(rank * share, (rank + 1) * share)
        self._epoch_order: tuple[int, NDArray[np.int64]] | None = None
        self.weights = sampling_weights(
            dataset, task.classes, config.sampling, fresh=task.fresh, replay=config.replay
        )
        self.waited_s = 0.0
        self._cache: list[tuple[Pixels, Targets]] | None = None
        size = len(self._frames) * self._spec.width * self._spec.height * 3
        if size <= cache_limit_mib(config) * _MIB:
            with ThreadPoolExecutor(config.threads, thread_name_prefix="decode") as pool:
                self._cache = list(pool.map(self._decode, self._frames))

    @property
    def in_memory(self) -> bool:
        """Whether all decoded frames are cached."""
        return self._cache is not None

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self._frames)

    def targets(self) -> Iterator[Targets]:
        """Targets of every frame as labelled, without augmentation and without decoding."""
        for frame in self._frames:
            yield self._targets(frame, letterbox_transform(frame.width, frame.height, self._spec))

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches of the steps from ``first`` up to ``last``, prefetched in threads."""
        with (
            processes.single_threaded_opencv(),
            ThreadPoolExecutor(1, thread_name_prefix="loader") as prefetcher,
            ThreadPoolExecutor(self._config.threads, thread_name_prefix="decode") as pool,
        ):
            until = min(first + _PREFETCH, last)
            pending = [prefetcher.submit(self.batch, step, pool) for step in range(first, until)]
            for step in range(first, last):
                began = time.perf_counter()
                ready = pending.pop(0).result()
                self.waited_s += time.perf_counter() - began
                if step + _PREFETCH < last:
                    pending.append(prefetcher.submit(self.batch, step + _PREFETCH, pool))
                yield ready

    def batch(self, step: int, pool: ThreadPoolExecutor | None = None) -> Batch:
        """This process's part of a step, the same at each call; frames are decoded in ``pool``."""
        indices = self._indices(step)
        whole = self._spec.width, self._spec.height
        width, height = np.minimum(self._config.window or whole, whole)
        images = np.empty((len(self._slots), height, width, 3), np.float32)

        def fill(position: int) -> Targets:
            slot = self._slots[position]
            rng = np.random.default_rng([self._config.seed, step, slot])
            if (width, height) == whole:
                return self._fill(images[position], int(indices[slot]), step, rng)
            image = np.empty((*whole[::-1], 3), np.float32)
            targets = self._fill(image, int(indices[slot]), step, rng)
            part = left, top, right, bottom = _pick_window(whole, targets, (width, height), rng)
            images[position] = image[top:bottom, left:right]
            return _targets_in(targets, part)

        each = map if pool is None or self.in_memory else pool.map
        targets = list(each(fill, range(len(self._slots))))
        return Batch(images.transpose(0, 3, 1, 2), targets)

    def feature_batches(
        self,
        first: int,
        last: int,
        backbone: _Backbone,
        levels: Callable[[int], int],
    ) -> Iterator[Batch]:
        """Batches of the backbone's maps instead of images, for steps that leave them as they are.

        A frame has `TrainingOptions.variants` augmented variants. Their maps are computed one image
        at a time and rounded to 16 bits, so that it makes no difference which of them are cached.

        Args:
            first: First step.
            last: One past the last step.
            backbone: float32 ``[1, 3, height, width]`` and a number of levels to so many maps
                ``[1, channels, rows, columns]``, finest first.
            levels: How many levels a step takes; never more than the step before it.
        """
        scratch = self._workspace.scratch
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch) as file:
            cache = _FeatureCache(file)
            for step in range(first, last):
                parts = []
                for slot in self._slots:
                    rng = np.random.default_rng([self._config.seed, step, slot])
                    key = int(self._indices(step)[slot]), int(rng.integers(self._config.variants))
                    cached = cache.get(key, levels(step))
                    if cached is None:
                        cached = self._features(key, step, partial(backbone, levels=levels(step)))
                        cache.add(key, cached)
                    maps, targets = cached
                    if self._config.window is not None:
                        maps, targets = _crop_features(maps, targets, self._config.window, rng)
                    parts.append((maps, targets))
                by_level = zip(*(maps for maps, _ in parts), strict=True)
                yield Batch(
                    tuple(torch.cat(maps).float() for maps in by_level),
                    [targets for _, targets in parts],
                )

    def _features(
        self, key: tuple[int, int], step: int, backbone: Callable[[Tensor], Sequence[Tensor]]
    ) -> _FrameFeatures:
        image = np.empty((1, self._spec.height, self._spec.width, 3), np.float32)
        rng = np.random.default_rng([self._config.seed, *key, _VARIANT_STREAM])
        targets = self._fill(image[0], key[0], step, rng)
        with torch.no_grad():
            maps = backbone(torch.from_numpy(image.transpose(0, 3, 1, 2)))
        return [level.half() for level in maps], targets

    def _fill(
        self, out: NDArray[np.float32], index: int, step: int, rng: np.random.Generator
    ) -> Targets:
        """Write one augmented frame of a step to ``out`` as network input."""
        settings, pad = self._config.augment, self._spec.pad
        draws = rng.random(augment.DRAW_COUNT)
        pixels, targets = self._frame(index, step)
        if settings.mosaic > 0 and rng.random() < settings.mosaic:
            others = rng.integers(0, len(self._frames), 3).tolist()
            four = [(pixels, targets), *(self._frame(other, step) for other in others)]
            pixels, targets = augment.mosaic(four, pad, rng)
        pixels, targets = augment.random_geometry(pixels, targets, settings, pad, draws)
        color = augment.color_table(settings, draws)
        if color is not None and settings.has_corruptions:
            pixels, color = np.asarray(cv2.LUT(pixels, color[None])), None
        pixels = augment.corrupt(pixels, settings, rng)
        # Color and normalization are lookup tables of 256 values, and so is their composition.
        table = self._normalization
        if color is not None:
            table = np.take_along_axis(table, color, axis=0)
        cv2.LUT(pixels, table[None], dst=out)
        return targets

    def _indices(self, step: int) -> NDArray[np.int64]:
        """The frames of a step; the last step of an epoch is filled up."""
        steps_per_epoch = self._config.steps_per_epoch(len(self._frames))
        epoch, within = divmod(step, steps_per_epoch)
        batch = self._config.batch
        if self._epoch_order is None or self._epoch_order[0] != epoch:
            order = sample_order(
                len(self._frames), steps_per_epoch * batch, self.weights, self._config.seed, epoch
            )
            self._epoch_order = epoch, order
        return self._epoch_order[1][within * batch : (within + 1) * batch]

    def _frame(self, index: int, step: int) -> tuple[Pixels, Targets]:
        if self._cache is not None:
            return self._cache[index]
        try:
            return self._decode(self._frames[index])
        except DataError as error:
            epoch = step // self._config.steps_per_epoch(len(self._frames)) + 1
            raise DataError(
                f"in epoch {epoch}: {error.what}", where=error.where, hint=error.hint
            ) from error

    def _decode(self, frame: Frame) -> tuple[Pixels, Targets]:
        try:
            pixels, placement = letterbox(load_frame(self._workspace, frame), self._spec)
        except DataError as error:
            raise DataError(
                f"frame {frame.id[:12]} of drive {frame.drive} (number {frame.index}) cannot be "
                f"used: {error.what}",
                where=media_path(self._workspace, frame).name,
                hint=f"{REPAIR_HINT}. Then train again: training resumes from its saved state. "
                "Leaving the frame out would give other weights",
            ) from error
        return pixels, self._targets(frame, placement)

    def _targets(self, frame: Frame, placement: LetterboxTransform) -> Targets:
        return frame_targets(self._labels[frame.id], self._classes, placement, self._trust)


class _FeatureCache:
    """Feature maps in a temporary file: the system keeps in memory what fits there.

    Args:
        file: Grows up to half of the free space of its disk.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._entries: dict[tuple[int, int], tuple[int, list[torch.Size], Targets]] = {}
        free = os.fstatvfs(file.fileno())
        self._left = free.f_bavail * free.f_frsize // 2
        self._end = 0

    def get(self, key: tuple[int, int], levels: int) -> _FrameFeatures | None:
        """The first maps ``[1, channels, rows, columns]`` of a frame's variant, where cached."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        offset, shapes, targets = entry
        maps = []
        for shape in shapes[:levels]:
            buffer = bytearray(shape.numel() * torch.half.itemsize)
            if os.preadv(self._file.fileno(), [buffer], offset) != len(buffer):
                return None
            maps.append(torch.frombuffer(buffer, dtype=torch.half).reshape(shape))
            offset += len(buffer)
        return maps, targets

    def add(self, key: tuple[int, int], features: _FrameFeatures) -> None:
        """Keep the maps of a frame's variant while there is space."""
        maps, targets = features
        content = b"".join(level.contiguous().numpy().tobytes() for level in maps)
        if len(content) > self._left:
            return
        try:
            os.pwrite(self._file.fileno(), content, self._end)
        except OSError:  # others have filled the disk
            self._left = 0
            return
        self._entries[key] = self._end, [level.shape for level in maps], targets
        self._left -= len(content)
        self._end += len(content)


def _crop_features(
    maps: list[Tensor], targets: Targets, window: tuple[int, int], rng: np.random.Generator
) -> _FrameFeatures:
    """The part of a frame's maps under a window, and the targets in its pixels.

    Args:
        maps: ``[1, channels, rows, columns]``, the finest first, at stride `_FINEST`.
        targets: In network pixels.
        window: Width and height in network pixels, multiples of `_COARSEST`; at most the frame.
        rng: Random numbers of this slot of this step.
    """
    rows, columns = maps[0].shape[2:]
    whole = columns * _FINEST, rows * _FINEST
    left, top, right, bottom = _pick_window(whole, targets, window, rng)
    parts = []
    for level in maps:
        at = [side // (whole[0] // level.shape[3]) for side in (left, top, right, bottom)]
        parts.append(level[:, :, at[1] : at[3], at[0] : at[2]])
    return parts, _targets_in(targets, (left, top, right, bottom))


def _pick_window(
    whole: tuple[int, int], targets: Targets, window: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A part of a frame of this width and height, xyxy in multiples of `_COARSEST`.

    Most lie around a random object, at a random place in it; the others anywhere.
    """
    size = np.minimum(window, whole)
    room = (np.array(whole) - size) // _COARSEST
    if len(targets.boxes) and rng.random() < _AROUND_OBJECTS:
        box = targets.boxes[rng.integers(len(targets.boxes))]
        place = (box[:2] + box[2:]) / 2 - size * rng.uniform(0.15, 0.85, 2)
        start = np.clip(np.rint(place / _COARSEST).astype(int), 0, room)
    else:
        start = rng.integers(room + 1)
    (left, top), (width, height) = (start * _COARSEST).tolist(), size.tolist()
    return left, top, left + width, top + height


def _targets_in(targets: Targets, part: tuple[int, int, int, int]) -> Targets:
    left, top, right, bottom = part
    offset = np.array([left, top, left, top], np.float32)
    return targets.with_boxes(targets.boxes - offset, (0, 0, right - left, bottom - top))


def _normalization_table(spec: Preprocessing) -> NDArray[np.float32]:
    """The network input for each 8-bit value by channel, ``[256, 3]``."""
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return np.ascontiguousarray(normalise(values[:, None, :], spec)[:, :, 0].T)


def cache_limit_mib(config: TrainingConfig) -> float:
    """MiB for decoded frames: as configured, or less where less memory is free."""
    free = _free_mib()
    if config.limit_mib is not None:
        used = float(psutil.Process().memory_info().rss) / _MIB
        free = min(free, config.limit_mib - used)
    return min(config.memory_mib, max(0.0, free * _CACHE_SHARE))


def _free_mib() -> float:
    """Free memory of the machine, or of the control group that this process is in."""
    free = float(psutil.virtual_memory().available) / _MIB
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        free = min(free, (limit - used) / _MIB)
    return free


def sampling_weights(
    dataset: Dataset,
    classes: Collection[str],
    sampling: Sampling,
    *,
    fresh: Collection[Digest] | None = None,
    replay: float = 0.0,
) -> NDArray[np.float64] | None:
    """Relative frequency of each frame, ``[frames]``; None when all are equal.

    Args:
        dataset: The frames.
        classes: Classes that count as rare or not.
        sampling: Repeat-factor sampling.
        fresh: Ids of new frames; all others are old and share ``replay`` of an epoch.
        replay: Share of the old frames in [0, 1).

    Raises:
        ParameterError: ``replay`` without both old and new frames.
    """
    if not sampling.enabled and replay == 0:
        return None
    weights = np.ones(len(dataset.frames))
    if sampling.enabled:
        factors = repeat_factors(dataset, classes, sampling)
        for row, names in enumerate(
            one | other
            for one, other in zip(
                _frame_classes(dataset, classes), _frame_slices(dataset, sampling), strict=True
            )
        ):
            weights[row] = max((factors[name] for name in names if name in factors), default=1.0)
    if replay > 0:
        new = np.array([frame.id in (fresh or ()) for frame in dataset.frames])
        if new.all() or not new.any():
            raise ParameterError(
                f"replay of {replay:.0%} needs old and new frames, there are "
                f"{int((~new).sum())} old and {int(new.sum())} new",
                where="TrainingConfig.replay",
                hint="Pass fresh, the ids of the mined frames, and keep old frames in the dataset",
            )
        weights[new] *= (1 - replay) / weights[new].sum()
        weights[~new] *= replay / weights[~new].sum()
    return weights


def repeat_factors(
    dataset: Dataset, classes: Collection[str], sampling: Sampling
) -> dict[str, float]:
    """Repeat factors above 1 of classes and slices, such as ``{"class=cyclist": 2.1}``."""
    count = max(1, len(dataset.frames))
    factors: dict[str, float] = {}
    for power, names_by_frame in (
        (sampling.classes, _frame_classes(dataset, classes)),
        (sampling.slices, _frame_slices(dataset, sampling)),
    ):
        occurrences = Counter(name for names in names_by_frame for name in names)
        for name, frames in sorted(occurrences.items()):
            factor = min(sampling.cap, (sampling.rare / (frames / count)) ** power)
            if factor > 1:
                factors[name] = round(factor, 4)
    return factors


def sample_order(
    count: int, slots: int, weights: NDArray[np.float64] | None, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The frames of an epoch, ``[slots]`` indices below ``count``.

    Weighted epochs are drawn by systematic sampling: a frame that is due 2.3 times occurs two or
    three times, never less, and the length of the epoch is unchanged.
    """
    rng = np.random.default_rng([seed, epoch, _ORDER_STREAM])
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


def _frame_slices(dataset: Dataset, sampling: Sampling) -> list[set[str]]:
    """Names of the slices that each frame is in, as when a model is judged, and of its events."""
    parts, schema = sampling.parts() if sampling.slices else (), dataset.label_schema
    labels = dataset.labels_by_frame
    return [
        {part.name for part in parts if part.holds(frame, labels[frame.id], schema)}
        | set(frame_conditions(frame, ("event",)))
        for frame in dataset.frames
    ]
