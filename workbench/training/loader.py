"""Frames for training: decoded once, kept as bytes at network size, varied as they are used.

What a frame looks like in a step depends on the seed, the step and its place in the step alone,
never on which thread was first, so a training can be stopped and taken up at any step.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench import digest, resources
from workbench.errors import DataError
from workbench.perception.preprocessing import (
    Pixels,
    Placement,
    Preprocessing,
    fit,
    load_rgb,
    normalise,
    placement_of,
)
from workbench.records.base import Digest
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame
from workbench.training import augment, sampling
from workbench.training.config import TrainingConfig
from workbench.training.memory import cache_mib
from workbench.training.targets import Targets, of_frame, trust_of
from workbench.workspace import Workspace

_MIB = 1 << 20
_READ_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """``images`` float32 ``[n, 3, height, width]`` as the network takes them.

    They lie in memory as ``[n, height, width, 3]``, which is torch's channels-last.
    """

    images: NDArray[np.float32]
    targets: list[Targets]


@dataclass(frozen=True)
class Material:
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


class Loader:
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
        material: Material,
        *,
        rank: int = 0,
    ) -> None:
        self._place = place
        self._frames = dataset.frames
        self._labels = dataset.labels_by_frame
        self._classes = material.classes
        self._config = config
        self._spec = material.preprocessing
        self._trust = trust_of(config.trust, material.disputed)
        self._table = _table(self._spec)
        share = config.batch // config.processes
        self._slots = range(rank * share, (rank + 1) * share)
        self._pass: tuple[int, NDArray[np.int64]] | None = None
        self.weights = sampling.weights(
            dataset,
            material.classes,
            config.sampling,
            fresh=material.fresh,
            replay=config.replay,
        )
        self.waited_s = 0.0
        self._kept: list[tuple[Pixels, Targets]] | None = None
        size = len(self._frames) * self._spec.width * self._spec.height * 3
        if size <= cache_mib(config) * _MIB:
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
            yield self._targets(frame, placement_of(frame.width, frame.height, self._spec))

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
            resources.opencv_unthreaded(),
            ThreadPoolExecutor(1, thread_name_prefix="loader") as ahead,
            ThreadPoolExecutor(self._config.threads, thread_name_prefix="decode") as pool,
        ):
            until = min(first + _READ_AHEAD, last)
            waiting = [ahead.submit(self.batch, step, pool) for step in range(first, until)]
            for step in range(first, last):
                began = time.perf_counter()
                ready = waiting.pop(0).result()
                self.waited_s += time.perf_counter() - began
                if step + _READ_AHEAD < last:
                    waiting.append(ahead.submit(self.batch, step + _READ_AHEAD, pool))
                yield ready

    def _fill(
        self, out: NDArray[np.float32], index: int, step: int, rng: np.random.Generator
    ) -> Targets:
        """One frame of a step, varied, into its place as the network takes it."""
        how, pad = self._config.augment, self._spec.pad
        draw = rng.random(augment.DRAWS)
        pixels, targets = self._frame(index, step)
        if how.mosaic > 0 and rng.random() < how.mosaic:
            others = rng.integers(0, len(self._frames), 3).tolist()
            four = [(pixels, targets), *(self._frame(other, step) for other in others)]
            pixels, targets = augment.mosaic(four, pad, rng)
        pixels, targets = augment.move(pixels, targets, how, pad, draw)
        light = augment.light_table(how, draw)
        if light is not None and augment.spoils(how):
            pixels, light = np.asarray(cv2.LUT(pixels, light[None])), None
        pixels = augment.spoil(pixels, how, rng)
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
            picked = sampling.order(
                len(self._frames), slots, self.weights, self._config.seed, number
            )
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
            pixels, placement = fit(load_rgb(path), self._spec)
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

    def _targets(self, frame: Frame, placement: Placement) -> Targets:
        return of_frame(self._labels[frame.id], self._classes, placement, self._trust)


def _table(spec: Preprocessing) -> NDArray[np.float32]:
    """What the preprocessing makes of each 8-bit value, by channel: ``[256, 3]``."""
    every = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return np.ascontiguousarray(normalise(every[:, None, :], spec)[:, :, 0].T)
